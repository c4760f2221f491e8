//! A listener's certificate is swapped again and again under load, and no request fails.

use crate::harness::{Authority, Client, Gateway, Http2, Key, Pair, TlsClient, Upstream, eventually};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const NAME: &str = "erp.example";
/// Between two requests of one client.
const PACE: Duration = Duration::from_millis(2);

/// A gateway under load.
struct Scene {
    gateway: Gateway,
    key: Key,
    client: TlsClient,
    stop: AtomicBool,
    served: AtomicUsize,
}

/// Swaps so many times, each time as soon as the last one is seen.
pub fn prove(swaps: u32) {
    let authority = Authority::new();
    let pair = authority.issue("server", "DNS:erp.example");
    let pairs = ["one", "other"].map(|file| authority.issue(file, "DNS:erp.example"));
    let gateway = Gateway::builder().live(&Upstream::named("live")).tls(&pair).start();
    let key = gateway.key(&["orders:read"]);
    let client = TlsClient::new(&authority);
    let scene = Scene { gateway, key, client, stop: AtomicBool::new(false), served: AtomicUsize::new(0) };
    std::thread::scope(|scope| {
        for load in [Scene::keep_a_connection, Scene::keep_streams, Scene::connect_each_time] {
            let scene = &scene;
            scope.spawn(move || {
                while !scene.stop.load(Ordering::Relaxed) {
                    load(scene);
                }
            });
        }
        // Ends the load when a swap is not seen, too.
        let stop = StopOnDrop(&scene.stop);
        for (_, new) in (0..swaps).zip(pairs.iter().cycle()) {
            scene.swap(&pair, new);
        }
        drop(stop);
    });
    let served = scene.served.load(Ordering::Relaxed);
    println!("{swaps} swaps, {served} requests, none failed");
    assert!(served > swaps as usize * 100, "{served} requests are no load");
    let reloads =
        |outcome| scene.gateway.metric(&format!("keygate_certificate_reloads_total{{outcome=\"{outcome}\"}}"));
    assert_eq!((reloads("taken"), reloads("refused")), (f64::from(swaps), 0.0));
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// === impl Scene ===

impl Scene {
    /// Writes the new files over the old ones, one after the other: in between they do not fit together.
    fn swap(&self, pair: &Pair, new: &Pair) {
        for (from, to) in [(&new.cert, &pair.cert), (&new.key, &pair.key)] {
            std::fs::write(to, std::fs::read(from).unwrap()).unwrap();
        }
        let wanted = CertificateDer::from_pem_file(&new.cert).unwrap();
        let looking = self.client.forgetting();
        eventually("the new certificate is shown", || {
            std::thread::sleep(Duration::from_millis(50));
            let client = Client::connect_tls(self.gateway.tls_address(), NAME, &looking).unwrap();
            (client.session().peer_certificates()? == [wanted.clone()]).then_some(())
        });
    }

    fn is_served(&self, status: u16) {
        assert_eq!(status, 200);
        self.served.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PACE);
    }

    fn keep_a_connection(&self) {
        let mut client = Client::connect_tls(self.gateway.tls_address(), NAME, &self.client).unwrap();
        for _ in 0..2000 {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.is_served(client.request("GET", &self.gateway.path("orders"), &[&self.key.bearer()]).status);
        }
    }

    fn keep_streams(&self) {
        let mut client = Http2::connect_tls(self.gateway.tls_address(), NAME, &self.client);
        for _ in 0..2000 {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.is_served(client.request("GET", &self.gateway.path("orders"), &[&self.key.bearer()], b"").status());
        }
    }

    /// With every session resumed that can be, and from time to time one that begins anew.
    fn connect_each_time(&self) {
        let served = self.served.load(Ordering::Relaxed);
        let client = if served.is_multiple_of(3) { self.client.forgetting() } else { self.client.clone() };
        let mut client = Client::connect_tls(self.gateway.tls_address(), NAME, &client).unwrap();
        self.is_served(client.request("GET", &self.gateway.path("orders"), &[&self.key.bearer()]).status);
    }
}
