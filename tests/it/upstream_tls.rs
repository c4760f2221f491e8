//! Upstreams behind TLS: who is trusted, who is shown, what is said when that fails, and where a response ends.

use crate::harness::far::{server_config, with_certificate};
use crate::harness::tls::{Authority, Pair};
use crate::harness::{Far, Gateway, Response, Script, Speaks, client, eventually};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const HERE: &str = "IP:127.0.0.1";
const SECURED: [Speaks; 2] = [Speaks::H1Tls, Speaks::H2Tls];

fn ok(speaks: Speaks, pair: &Pair) -> Far {
    Far::start(speaks, Some(pair), |_| Script::ok(10))
}

/// A gateway before this server, with these settings of `tls`.
fn before(address: SocketAddr, tls: &str) -> Gateway {
    let builder = Gateway::builder().workers(1).live_url(format!("https://{address}"));
    builder.upstream(&format!("tls = {{ {tls} }}")).start()
}

fn ca(path: &Path) -> String {
    format!("ca = \"{}\"", path.display())
}

fn ask(gateway: &Gateway) -> Response {
    let key = gateway.key(&["orders:read"]);
    gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()])
}

/// A request is answered 502, and the log says why.
#[track_caller]
fn refuses(gateway: &Gateway, words: &str) {
    let answer = ask(gateway);
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_unreachable"), "{words}");
    let is_told = |line: &str| line.contains("cannot connect to an upstream") && line.contains(words);
    eventually(&format!("{words}, in {}", gateway.log_text()), || {
        gateway.log_text().lines().any(is_told).then_some(())
    });
    // Not once for each request.
    (0..5).for_each(|_| assert_eq!(ask(gateway).status, 502));
    assert_eq!(gateway.log_text().lines().filter(|line| is_told(line)).count(), 1, "{}", gateway.log_text());
}

/// A server that lets in whom this authority vouches for.
fn closed(pair: &Pair, authority: &Authority, is_http2: bool) -> Arc<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.ca()).unwrap()).unwrap();
    let provider = Arc::new(keygate::tls::provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    with_certificate(builder.with_client_cert_verifier(verifier), pair, is_http2)
}

#[test]
fn connections_are_kept_and_used_again() {
    let authority = Authority::new();
    let pair = authority.issue("erp", HERE);
    for speaks in SECURED {
        let far = ok(speaks, &pair);
        let gateway = before(far.address, &ca(&authority.ca()));
        let key = gateway.key(&["orders:read"]);
        for _ in 0..10 {
            let answer = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
            assert_eq!((answer.status, answer.body.len()), (200, 10), "{}", speaks.name());
        }
        assert_eq!(far.connections(), 1, "{}", speaks.name());
    }
}

#[test]
fn a_certificate_that_does_not_prove_the_upstream_is_told_in_words() {
    let (authority, stranger) = (Authority::named("authority"), Authority::named("stranger"));
    let trusted = ca(&authority.ca());
    for speaks in SECURED {
        let expired = ok(speaks, &authority.issue_expired("old", HERE));
        refuses(&before(expired.address, &trusted), "the server's certificate has expired");
        let misnamed = ok(speaks, &authority.issue("other", "DNS:other.internal"));
        refuses(&before(misnamed.address, &trusted), "the server's certificate is for another name");
        let named = format!("{trusted}, server_name = \"other.internal\"");
        assert_eq!(ask(&before(misnamed.address, &named)).status, 200, "{}", speaks.name());
        let unknown = ok(speaks, &stranger.issue("erp", HERE));
        refuses(&before(unknown.address, &trusted), "the server's certificate is not signed by an authority in ca");
    }
}

#[test]
fn an_upstream_that_wants_to_know_who_we_are_is_shown_it() {
    let (authority, stranger) = (Authority::named("authority"), Authority::named("stranger"));
    let (pair, edge, other) =
        (authority.issue("erp", HERE), authority.issue("edge", "DNS:edge"), stranger.issue("edge", "DNS:edge"));
    let trusted = ca(&authority.ca());
    let shown = |pair: &Pair| {
        format!("{trusted}, client_cert = \"{}\", client_key = \"{}\"", pair.cert.display(), pair.key.display())
    };
    for speaks in SECURED {
        let config = closed(&pair, &authority, speaks.is_http2());
        let far = Far::start_with(speaks.is_http2(), Some(config), |_| Script::ok(10));
        assert_eq!(ask(&before(far.address, &shown(&edge))).status, 200, "{}", speaks.name());
        let gateway = before(far.address, &trusted);
        assert_eq!(ask(&gateway).status, 502);
        // A server that hangs up at once may be faster than our reading of why.
        eventually("why", || {
            let log = gateway.log_text();
            (log.contains("wants a client certificate") || log.contains("does it want a client certificate"))
                .then_some(())
        });
        let gateway = before(far.address, &shown(&other));
        assert_eq!(ask(&gateway).status, 502);
        eventually("why", || {
            let log = gateway.log_text();
            (log.contains("does not accept the certificate in client_cert") || log.contains("closed the connection"))
                .then_some(())
        });
    }
}

/// A server that does this with whoever connects.
fn serve(act: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let act = Arc::new(act);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let act = Arc::clone(&act);
            std::thread::spawn(move || act(stream));
        }
    });
    address
}

/// Answers every request with these bytes under TLS, all in one piece.
fn answering(config: Arc<ServerConfig>, answer: &'static str, closes: bool) -> SocketAddr {
    serve(move |stream| {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        let mut head = Vec::new();
        loop {
            let mut byte = [0];
            let Ok(1) = stream.read(&mut byte) else { return };
            head.push(byte[0]);
            if head.ends_with(b"\r\n\r\n") {
                head.clear();
                _ = stream.write_all(answer.as_bytes());
                _ = stream.flush();
                if closes {
                    return;
                }
            }
        }
    })
}

#[test]
fn what_follows_a_response_under_tls_never_answers_the_next_request() {
    const ANSWER: &str =
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let authority = Authority::new();
    let address = answering(server_config(&authority.issue("erp", HERE), false), ANSWER, false);
    let gateway = before(address, &ca(&authority.ca()));
    let key = gateway.key(&["orders:read"]);
    for _ in 0..20 {
        let answer = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
        assert!(answer.text() != "evil" && matches!(answer.status, 200 | 502), "{answer:?}");
    }
}

/// Whoever sits between could end a connection; only the server can say that it did (RFC 9112, section 9.8).
#[test]
fn a_body_that_ends_with_the_connection_ends_by_the_servers_word() {
    let authority = Authority::new();
    let address = answering(server_config(&authority.issue("erp", HERE), false), "HTTP/1.1 200 OK\r\n\r\nhalf", true);
    let gateway = before(address, &ca(&authority.ca()));
    let key = gateway.key(&["orders:read"]);
    let mut client = gateway.client();
    client.send(client::head("GET", &gateway.path("orders"), &[&key.bearer()]));
    assert!(!client.try_read("GET").is_some_and(|answer| answer.complete));
}

#[test]
fn an_upstream_that_speaks_something_else_is_named_as_such() {
    let authority = Authority::new();
    let (pair, trusted) = (authority.issue("erp", HERE), ca(&authority.ca()));
    let plain = serve(|mut stream| {
        _ = stream.read(&mut [0; 1024]);
        _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        _ = stream.read_to_end(&mut Vec::new());
    });
    refuses(&before(plain, &trusted), "what answers there does not speak TLS");
    let gateway = Gateway::builder().workers(1).live_at(plain).upstream("protocol = \"h2\"").start();
    refuses(&gateway, "what answers there does not speak HTTP/2");
    let builder = |address: SocketAddr| {
        let builder = Gateway::builder().workers(1).live_url(format!("https://{address}"));
        builder.upstream(&format!("protocol = \"h2\"\ntls = {{ {trusted} }}"))
    };
    let other = ok(Speaks::H1Tls, &pair);
    refuses(&builder(other.address).start(), "the server refused the TLS connection (NoApplicationProtocol)");
    let mut config = ServerConfig::clone(&server_config(&pair, false));
    config.alpn_protocols.clear();
    let silent = Far::start_with(false, Some(Arc::new(config)), |_| Script::ok(10));
    refuses(&builder(silent.address).start(), "the server did not agree to HTTP/2 (ALPN)");
    // Unless it must be HTTP/2, a server that knows no ALPN speaks what it always has.
    assert_eq!(ask(&before(silent.address, &trusted)).status, 200);
}

/// It leaves a connection of HTTP/1.1 when asked to, and echoes then. What it agreed to speak on others is told to `spoken`.
fn able_to_both(pair: &Pair, spoken: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let mut config = ServerConfig::clone(&server_config(pair, false));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let config = Arc::new(config);
    serve(move |stream| {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(1) = stream.read(&mut byte) else { return };
            head.push(byte[0]);
        }
        let agreed = String::from_utf8_lossy(stream.conn.alpn_protocol().unwrap_or_default()).into_owned();
        spoken.lock().unwrap().push(agreed.clone());
        if agreed == "http/1.1" {
            _ = stream.write_all(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: example/1\r\n\r\n");
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
            stream.flush().unwrap();
            _ = stream.read(&mut byte);
        }
    })
}

#[test]
fn an_upgrade_has_a_connection_of_its_own_though_the_upstream_would_speak_http2() {
    const ROUTE: &str = "[[routes]]\npath = \"/v1/sockets\"\nupstream = \"erp\"\nread = \"orders:read\"\n\
                         write = \"orders:write\"\nupgrades = [\"example/1\"]";
    let authority = Authority::new();
    let spoken: Arc<Mutex<Vec<String>>> = Arc::default();
    let address = able_to_both(&authority.issue("erp", HERE), Arc::clone(&spoken));
    let builder = Gateway::builder().workers(1).live_url(format!("https://{address}")).toml(ROUTE);
    let gateway = builder.upstream(&format!("tls = {{ {} }}", ca(&authority.ca()))).start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    let answer = gateway.client().request("GET", "/v1/sockets", &[&key.bearer()]);
    assert_eq!(
        (answer.status, spoken.lock().unwrap().clone()),
        (502, vec!["h2".to_owned()]),
        "it says no more than that"
    );
    let mut client = gateway.client();
    let lines = [&*key.bearer(), "Connection: upgrade", "Upgrade: example/1"];
    client.send(client::head("GET", "/v1/sockets", &lines));
    assert_eq!(client.read_one("GET").unwrap().status, 101);
    client.send("hello");
    let mut echoed = [0; 5];
    client.stream().read_exact(&mut echoed).unwrap();
    assert_eq!((&echoed, spoken.lock().unwrap().last().unwrap().as_str()), (b"hello", "http/1.1"));
}

#[test]
fn an_upstream_that_does_not_answer_the_handshake_is_given_up_in_time() {
    let authority = Authority::new();
    let silent = serve(|mut stream| _ = stream.read_to_end(&mut Vec::new()));
    refuses(&before(silent, &ca(&authority.ca())), "timed out");
    let gateway = Gateway::builder().workers(1).live_at(silent).upstream("protocol = \"h2\"").start();
    refuses(&gateway, "timed out");
}

#[test]
fn an_upstream_that_answers_again_is_told_too() {
    let authority = Authority::new();
    let pair = authority.issue("erp", HERE);
    // Taken, and not listened on yet.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let gateway = before(address, &ca(&authority.ca()));
    refuses(&gateway, "Connection refused");
    socket.listen(16).unwrap();
    let listener = TcpListener::from(socket);
    let config = server_config(&pair, false);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
            _ = stream.read(&mut [0; 4096]);
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    eventually("it answers", || (ask(&gateway).status == 200).then_some(()));
    eventually("that is told", || gateway.log_text().contains("an upstream answers again").then_some(()));
}
