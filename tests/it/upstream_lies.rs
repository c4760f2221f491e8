//! An upstream that breaks the framing of its responses.

use crate::harness::{Gateway, Reply, Upstream};

/// Row 36: a response that breaks the framing never arrives as a good one, and its connection is never used again.
#[test]
fn row_36_an_upstream_that_breaks_the_framing_is_not_believed() {
    const LIES: [&str; 9] = [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nbytes",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        "garbage\r\n\r\n",
    ];
    let upstream = Upstream::start(|received| {
        let lie = received.target().rsplit('/').next().and_then(|index| index.parse::<usize>().ok());
        lie.map_or_else(|| Reply::ok("good"), |lie| Reply::BytesThenClose(LIES[lie].as_bytes().to_vec()))
    });
    let gateway = Gateway::before(&upstream);
    let key = gateway.key(&["orders:read"]);
    for (index, lie) in LIES.iter().enumerate() {
        let mut client = gateway.client();
        client.send(crate::harness::client::head("GET", &gateway.path(&format!("orders/{index}")), &[&key.bearer()]));
        let answer = client.try_read("GET");
        let believed = answer.is_some_and(|answer| answer.status != 502 && answer.complete);
        assert!(!believed, "{lie:?}");
        let good = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
        assert_eq!((good.status, good.text().as_str()), (200, "good"), "after {lie:?}");
    }
}

#[test]
fn bytes_after_a_response_never_answer_the_next_request() {
    let upstream = Upstream::start(|_| {
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    });
    let gateway = Gateway::before(&upstream);
    let key = gateway.key(&["orders:read"]);
    for _ in 0..20 {
        let answer = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
        assert!(answer.text() != "evil" && matches!(answer.status, 200 | 502), "{answer:?}");
    }
}
