//! Whether the servers are set up so that a failover loses little: for `keygate check`.

use super::StoreError;
use super::link::Link;
use super::url::{Topology, Url};

const SETTING: &str = "min-replicas-to-write";

/// What an operator should change, or could not be told; nothing for a server without a successor.
pub fn warnings(url: &Url) -> Vec<String> {
    if let Topology::Single = url.topology {
        return Vec::new();
    }
    let mut link = Link::new(url);
    let mut command = ::redis::cmd("CONFIG");
    let answer: Result<Vec<String>, StoreError> = link.call(command.arg("GET").arg(SETTING));
    let warning = match answer {
        Ok(words) => match words.get(1).map(String::as_str) {
            Some("0") => format!(
                "the key store's master accepts changes that no replica has ({SETTING} 0), and in a failover or a partition they are \
                 lost: set {SETTING} 1 and min-replicas-max-lag 10 on every server"
            ),
            Some(_) => return Vec::new(),
            None => format!("the key store's master does not tell its {SETTING}, which should be 1"),
        },
        // Of a server that lets nobody look.
        Err(StoreError::Unavailable(why)) if why.contains("permission") || why.contains("unknown command") => {
            format!("the key store's user may not run CONFIG GET: see to it that {SETTING} is 1 on every server")
        }
        Err(error) => format!("{error}"),
    };
    vec![warning]
}
