//! What a URL says of Redis: which servers there are, and who tells which of them is the master.

use crate::secret::Secret;
use crate::tls::Tls;
use ::redis::{ConnectionAddr, IntoConnectionInfo as _};
use rustls::pki_types::ServerName;
use std::fmt;
use std::sync::Arc;

/// A server, or several and how they stand to each other: known to be well-formed. And who logs in there.
#[derive(Clone, Debug)]
pub struct Url {
    /// At least one, none twice: the server, the Sentinels, or nodes of the cluster.
    pub(super) servers: Vec<Address>,
    pub(super) topology: Topology,
    pub(super) database: i64,
    /// None in plain text.
    pub(super) tls: Option<Tls>,
    pub(super) login: Option<Arc<Login>>,
}

/// Who says where the keys are.
#[derive(Clone, Debug)]
pub enum Topology {
    /// The one server there is.
    Single,
    /// A majority of the Sentinels, asked for the master of this name.
    Sentinel { master: String, login: Option<Arc<Login>> },
    /// Any node knows the owner of a slot.
    Cluster,
}

/// What a server asks for first (`AUTH`).
#[derive(Debug)]
pub struct Login {
    /// The ACL user; the default one unless given.
    pub username: Option<String>,
    pub password: Secret<String>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

/// How a URL begins, whom it is for, and whether they speak TLS.
const SCHEMES: [(&str, Kind, bool); 6] = [
    ("redis://", Kind::Single, false),
    ("rediss://", Kind::Single, true),
    ("redis+sentinel://", Kind::Sentinel, false),
    ("rediss+sentinel://", Kind::Sentinel, true),
    ("redis+cluster://", Kind::Cluster, false),
    ("rediss+cluster://", Kind::Cluster, true),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Single,
    Sentinel,
    Cluster,
}

const SENTINEL_PORT: u16 = 26379;

// === impl Url ===

impl Url {
    /// Reads `redis://HOST[:PORT][/DATABASE]`, `redis+sentinel://HOST[:PORT],.../NAME[/DATABASE]` or
    /// `redis+cluster://HOST[:PORT],...`; with `rediss` in place of `redis` all of it is encrypted.
    ///
    /// # Errors
    /// What is wrong with it, without its text: that may hold a password, which does not belong there.
    pub fn parse(text: &str) -> Result<Self, String> {
        let scheme = SCHEMES.into_iter().find_map(|(begin, kind, tls)| Some((text.strip_prefix(begin)?, kind, tls)));
        let (rest, kind, is_encrypted) = scheme.ok_or_else(|| {
            "write \"redis://host:6379\", \"redis+sentinel://host:26379,host:26379,host:26379/NAME\" or \
             \"redis+cluster://host:6379,host:6379\", and \"rediss\" in place of \"redis\" for TLS"
                .to_owned()
        })?;
        if text.contains(['?', '#']) {
            return Err(match kind {
                Kind::Single | Kind::Sentinel => "a Redis URL ends with the database's number".to_owned(),
                Kind::Cluster => "the URL of a Redis cluster ends with its last node".to_owned(),
            });
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (topology, database) = read_path(kind, path)?;
        let servers = hosts.split(',').map(|host| Address::read(host, database, kind));
        let servers = servers.collect::<Result<Vec<_>, _>>()?;
        if kind == Kind::Single && servers.len() > 1 {
            return Err(
                "\"redis://\" names one server; for several write \"redis+sentinel://\" or \"redis+cluster://\""
                    .to_owned(),
            );
        }
        if (1..).zip(&servers).any(|(next, server)| servers.iter().skip(next).any(|other| other == server)) {
            return Err("a server is named twice".to_owned());
        }
        if is_encrypted && servers.iter().any(|server| ServerName::try_from(server.host.as_str()).is_err()) {
            return Err("no certificate can be for a host of this name".to_owned());
        }
        let database = database.parse().map_err(|_| malformed(kind))?;
        Ok(Self { servers, topology, database, tls: is_encrypted.then(Tls::default), login: None })
    }

    pub const fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether Sentinels are asked, who may want a login of their own.
    pub const fn has_sentinels(&self) -> bool {
        matches!(self.topology, Topology::Sentinel { .. })
    }

    /// The same servers, with these certificates. Nothing changes for those in plain text.
    pub fn with_tls(mut self, given: Tls) -> Self {
        self.tls.iter_mut().for_each(|tls| given.clone_into(tls));
        self
    }

    /// The same servers, with a login.
    pub fn with_login(self, login: Login) -> Self {
        Self { login: Some(Arc::new(login)), ..self }
    }

    /// The same servers, with a login at the Sentinels. Nothing changes where there are none.
    pub fn with_sentinel_login(mut self, given: Login) -> Self {
        if let Topology::Sentinel { login, .. } = &mut self.topology {
            *login = Some(Arc::new(given));
        }
        self
    }
}

/// What is behind the servers: the master's name, and the number of the database.
fn read_path(kind: Kind, path: &str) -> Result<(Topology, &str), String> {
    match kind {
        Kind::Single => Ok((Topology::Single, if path.is_empty() { "0" } else { path })),
        Kind::Sentinel => {
            let (master, database) = path.split_once('/').unwrap_or((path, "0"));
            // As Sentinel itself checks it.
            let is_name =
                !master.is_empty() && master.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
            if !is_name {
                return Err("behind the Sentinels belongs the name under which they watch the master, such as \
                            \"redis+sentinel://host:26379/mymaster\""
                    .to_owned());
            }
            Ok((Topology::Sentinel { master: master.to_owned(), login: None }, database))
        }
        Kind::Cluster if path.is_empty() => Ok((Topology::Cluster, "0")),
        Kind::Cluster => Err("a Redis cluster has no numbered databases: end the URL with its last node".to_owned()),
    }
}

fn malformed(kind: Kind) -> String {
    match kind {
        Kind::Single => "write a Redis URL like \"redis://host:6379/0\"",
        Kind::Sentinel => "write a URL like \"redis+sentinel://host:26379,host:26379,host:26379/mymaster/0\"",
        Kind::Cluster => "write a URL like \"redis+cluster://host:6379,host:6379,host:6379\"",
    }
    .to_owned()
}

// === impl Address ===

impl Address {
    fn read(text: &str, database: &str, kind: Kind) -> Result<Self, String> {
        let info = format!("redis://{text}/{database}").into_connection_info().map_err(|_| malformed(kind))?;
        let redis = info.redis_settings();
        if redis.username().is_some() || redis.password().is_some() {
            return Err("a login does not belong in the URL: give username and password beside it".to_owned());
        }
        let ConnectionAddr::Tcp(host, port) = info.addr() else { return Err(malformed(kind)) };
        let has_port = !text.ends_with(']') && text.contains(':');
        let port = if kind == Kind::Sentinel && !has_port { SENTINEL_PORT } else { *port };
        Ok(Self { host: host.clone(), port })
    }

    /// Reads what a server says of another: `HOST:PORT`, without a host when it is its own.
    pub fn told_by(teller: &Self, text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = if host.is_empty() { &teller.host } else { host };
        // What a node does not know it calls "?".
        (host != "?").then_some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Option<String>, i64, bool) {
        let url = Url::parse(text).unwrap();
        let master = match &url.topology {
            Topology::Sentinel { master, .. } => Some(master.clone()),
            Topology::Single | Topology::Cluster => None,
        };
        (url.servers.iter().map(ToString::to_string).collect(), master, url.database, url.is_encrypted())
    }

    #[test]
    fn a_url_names_servers_who_is_the_master_and_the_database() {
        let servers = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        for (text, wanted) in [
            ("redis://h", (servers(&["h:6379"]), None, 0, false)),
            ("rediss://[::1]:7000/3", (servers(&["[::1]:7000"]), None, 3, true)),
            ("redis+sentinel://a,b:1/m", (servers(&["a:26379", "b:1"]), Some("m".to_owned()), 0, false)),
            ("rediss+sentinel://[::1]/m.y-m_1/2", (servers(&["[::1]:26379"]), Some("m.y-m_1".to_owned()), 2, true)),
            ("redis+cluster://a:1,b", (servers(&["a:1", "b:6379"]), None, 0, false)),
            ("rediss+cluster://a/", (servers(&["a:6379"]), None, 0, true)),
        ] {
            assert_eq!(read(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_no_such_url_is_refused_without_its_text() {
        for text in [
            "redis://",
            "redis://a,b",
            "redis://u:hunter2@a",
            "redis://a/x",
            "redis+sentinel://a",
            "redis+sentinel://a/",
            "redis+sentinel://a/m m",
            "redis+sentinel://a/m/x",
            "redis+sentinel://a/m/0/0",
            "redis+sentinel://a,a:26379/m",
            "redis+sentinel://a,/m",
            "redis+sentinel://a,u:hunter2@b/m",
            "redis+cluster://a/0",
            "redis+cluster://a,,b",
            "redis+cluster://a?b",
            "rediss+cluster://a,redis..example",
            "redis+unix://a",
        ] {
            let error = Url::parse(text).unwrap_err();
            assert!(!error.contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn a_node_names_others_with_or_without_a_host() {
        let teller = Address { host: "10.0.0.1".to_owned(), port: 1 };
        let told = |text: &str| Address::told_by(&teller, text).map(|address| address.to_string());
        assert_eq!(told("10.0.0.2:7000").as_deref(), Some("10.0.0.2:7000"));
        assert_eq!(told(":7000").as_deref(), Some("10.0.0.1:7000"));
        assert_eq!(told("::1:7000").as_deref(), Some("[::1]:7000"));
        assert_eq!((told("?:7000"), told("10.0.0.2"), told("a:b")), (None, None, None));
    }
}
