//! Follows the files of the listeners' certificates.

use crate::clock::Clock;
use crate::server::Listen;
use crate::server::tls::watch::{PERIOD, Watcher};
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Looks at the files once a second for as long as `runtime` lives, on a thread where a slow disk holds nobody up.
pub fn watch(runtime: &Runtime, listens: &[Listen], clock: &Clock) {
    for listen in listens {
        let Some(tls) = &listen.tls else { continue };
        let watcher = Watcher::new(Arc::clone(tls), listen.address.to_string(), clock.clone());
        runtime.spawn(follow(watcher));
    }
}

async fn follow(mut watcher: Watcher) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let looked = tokio::task::spawn_blocking(move || {
            watcher.turn();
            watcher
        });
        match looked.await {
            Ok(same) => watcher = same,
            Err(error) => {
                tracing::error!(%error, "certificates are not followed any more; restart to have replaced ones taken");
                return;
            }
        }
    }
}
