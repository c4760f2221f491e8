//! A store behind TLS: who is trusted, who is shown, and what is said when that fails.

use crate::harness::gateway::{Key, keygate};
use crate::harness::tls::{Authority, Pair, TlsServer};
use crate::harness::{Gateway, PATIENCE, Upstream, eventually};
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

const HERE: &str = "IP:127.0.0.1";
const OPEN: [&str; 2] = ["--tls-auth-clients", "no"];
const CLOSED: [&str; 2] = ["--tls-auth-clients", "yes"];

fn status(gateway: &Gateway, key: &Key) -> u16 {
    gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status
}

fn ca(path: &Path) -> String {
    format!("ca = \"{}\"\n", path.display())
}

fn client(Pair { cert, key }: &Pair) -> String {
    format!("client_cert = \"{}\"\nclient_key = \"{}\"\n", cert.display(), key.display())
}

/// What `keygate keys list` says to a store with these settings, on a system that trusts the authority in `system`. It runs
/// elsewhere than beside its gateway.toml.
fn list(store: &str, system: &Path) -> (Option<i32>, String) {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = include_str!("../cases/config/redis.toml").split("[store]").next().unwrap();
    let file = dir.path().join("gateway.toml");
    std::fs::write(&file, format!("{config}[store]\n{store}")).unwrap();
    std::fs::copy(system, dir.path().join("system.pem")).unwrap();
    let mut command = keygate(elsewhere.path());
    command.args(["keys", "list", "-c"]).arg(file).env("SSL_CERT_FILE", system).env_remove("SSL_CERT_DIR");
    let (done, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(command.output().unwrap()));
    let output = result.recv_timeout(PATIENCE).expect("the command gives up in time");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[track_caller]
fn refuses(words: &str, url: &str, store: &str, system: &Path) {
    let (code, told) = list(&format!("url = \"{url}\"\n{store}"), system);
    let told_why = told.contains(&format!("the key store is not available: redis: {words}"));
    assert!(code == Some(69) && told_why, "{code:?} {told}");
}

fn follows(server: &mut TlsServer, store: &str) {
    let upstream = Upstream::named("erp");
    let store = format!("[store]\nurl = \"{}\"\n{store}", server.url());
    let gateway = Gateway::builder().live(&upstream).toml(&store).start();
    let (key, lasting) = (gateway.key(&["orders:read"]), gateway.key(&["orders:read"]));
    assert_eq!((status(&gateway, &key), status(&gateway, &lasting)), (200, 200));
    let output = gateway.run(&["keys", "revoke", &key.id, "--yes"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((status(&gateway, &key), status(&gateway, &lasting)), (401, 200));

    server.redis.kill();
    eventually("the loss is noticed", || gateway.log_text().contains("cannot be asked").then_some(()));
    server.redis.restart();
    eventually("it is revoked over a new connection", || {
        gateway.run(&["keys", "revoke", &lasting.id, "--yes", "--no-wait"]).status.success().then_some(())
    });
    eventually("the change is in force", || (status(&gateway, &lasting) == 401).then_some(()));
}

#[test]
fn a_gateway_follows_a_store_whose_authority_is_named() {
    let authority = Authority::new();
    follows(&mut TlsServer::start(&authority, HERE, &OPEN), &ca(&authority.ca()));
}

#[test]
fn a_gateway_shows_its_certificate_to_a_store_that_wants_one() {
    let authority = Authority::new();
    let shown = client(&authority.issue("edge", "DNS:edge"));
    follows(&mut TlsServer::start(&authority, HERE, &CLOSED), &format!("{}{shown}", ca(&authority.ca())));
}

#[test]
fn the_systems_authorities_count_unless_another_is_named() {
    let (authority, stranger) = (Authority::named("authority"), Authority::named("stranger"));
    let server = TlsServer::start(&authority, HERE, &OPEN);
    let (code, told) = list(&format!("url = \"{}\"\n", server.url()), &authority.ca());
    assert_eq!(code, Some(0), "{told}");
    let untrusted = "the server's certificate is not signed by an authority this system trusts: name its own with ca";
    refuses(untrusted, &server.url(), "", &stranger.ca());
    // One that took the other's name is no better.
    let namesake = Authority::named("authority");
    refuses(untrusted, &server.url(), "", &namesake.ca());
    let (code, told) = list(&format!("url = \"{}\"\nca = \"system.pem\"\n", server.url()), &authority.ca());
    assert_eq!(code, Some(0), "a path is relative to gateway.toml: {told}");
    let unnamed = "the server's certificate is not signed by an authority in ca";
    refuses(unnamed, &server.url(), &ca(&stranger.ca()), &authority.ca());
    let empty = authority.ca().with_extension("none");
    std::fs::write(&empty, "").unwrap();
    refuses("this system trusts no authorities", &server.url(), "", &empty);
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let server = TlsServer::start(&authority, "DNS:localhost", &OPEN);
    let by_its_name = server.url().replace("127.0.0.1", "localhost");
    let (code, told) = list(&format!("url = \"{by_its_name}/3\"\n{}", ca(&authority.ca())), &authority.ca());
    assert_eq!(code, Some(0), "{told}");
    let words = "the server's certificate is for another name: certificate not valid for name \"127.0.0.1\"";
    refuses(words, &server.url(), &ca(&authority.ca()), &authority.ca());
}

#[test]
fn a_store_that_refuses_us_is_told_from_one_that_is_down() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let trusted = ca(&authority.ca());
    for version in ["TLSv1.2", "TLSv1.3"] {
        let settings = [&CLOSED[..], &["--tls-protocols", version]].concat();
        let server = TlsServer::start(&authority, HERE, &settings);
        let (code, told) = list(&format!("url = \"{}\"\n{trusted}", server.url()), &authority.ca());
        // A server that hangs up at once may be faster than our reading of why.
        let wanted = told.contains("wants a client certificate") || told.contains("does it want a client certificate");
        assert!(code == Some(69) && wanted && told.contains("client_cert"), "{version}: {code:?} {told}");
        let shown = client(&stranger.issue("edge", "DNS:edge"));
        let (code, told) = list(&format!("url = \"{}\"\n{trusted}{shown}", server.url()), &authority.ca());
        let refused =
            told.contains("does not accept the certificate in client_cert") || told.contains("closed the conn");
        assert!(code == Some(69) && refused, "{version}: {code:?} {told}");
    }
}

#[test]
fn a_server_without_tls_is_named_as_such() {
    let authority = Authority::new();
    let server = TlsServer::start(&authority, HERE, &OPEN);
    let url = server.redis.url().replace("redis:", "rediss:");
    refuses("TLS was not set up within 2s", &url, &ca(&authority.ca()), &authority.ca());
    let url = format!("rediss://{}", trickle(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    refuses("what answers there does not speak TLS", &url, &ca(&authority.ca()), &authority.ca());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("rediss://{}", silent.local_addr().unwrap());
    refuses("TLS was not set up within 2s", &url, &ca(&authority.ca()), &authority.ca());
}

#[test]
fn a_server_that_hangs_up_without_a_word_may_want_a_certificate() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("rediss://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let words = "the server closed the connection; does it want a client certificate (client_cert, client_key)?";
    refuses(words, &url, &ca(&authority.ca()), &authority.ca());
}

/// Greets whoever connects, and then sends a byte now and then, without end.
fn trickle(greeting: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let feed = move |mut stream: TcpStream| {
        _ = stream.write_all(greeting);
        while stream.write_all(b"0").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    std::thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| _ = std::thread::spawn(move || feed(stream)))
    });
    address.to_string()
}

#[test]
fn who_answers_a_byte_at_a_time_does_not_hold_a_connection_for_ever() {
    let authority = Authority::new();
    // The head of a handshake record of 16 KiB, and of a string of a million bytes.
    let url = format!("rediss://{}", trickle(b"\x16\x03\x03\x40\x00\x02"));
    refuses("TLS was not set up within 2s", &url, &ca(&authority.ca()), &authority.ca());
    let url = format!("redis://{}", trickle(b"$1000000\r\n"));
    refuses("no answer within 2s", &url, "", &authority.ca());
}

#[test]
fn a_key_that_cannot_be_used_is_a_mistake_in_the_configuration() {
    let authority = Authority::new();
    let (edge, other) = (authority.issue("edge", "DNS:edge"), authority.issue("other", "DNS:other"));
    let told = |key: &Path| {
        let pair = Pair { cert: edge.cert.clone(), key: key.to_owned() };
        let (code, told) = list(&format!("url = \"rediss://127.0.0.1\"\n{}", client(&pair)), &authority.ca());
        assert!(code == Some(78) && told.contains(&*key.to_string_lossy()), "{code:?} {told}");
        told
    };
    assert!(told(&other.key).contains("is not the key of the certificate in client_cert"));
    assert!(told(&edge.cert).contains("has no private key in PEM form"));
    let protected = edge.key.with_extension("protected");
    let text = std::fs::read_to_string(&edge.key).unwrap().replace("PRIVATE", "ENCRYPTED PRIVATE");
    std::fs::write(&protected, text).unwrap();
    assert!(told(&protected).contains("is protected by a passphrase"));
}
