//! The thin slice, end to end.

use crate::harness::{Gateway, Upstream};

#[test]
fn a_key_reaches_the_upstream_of_its_mode_and_leaves_one_record() {
    let (live, test) = (Upstream::named("live"), Upstream::named("test"));
    let gateway = Gateway::builder().live(&live).test(&test).start();
    let key = gateway.key(&["orders:read"]);
    let sandbox = gateway.key_with(&["--mode", "test", "--scope", "orders:read"]);

    let answer = gateway.client().request("GET", &gateway.path("orders/7?x=1"), &[&key.bearer()]);
    assert_eq!((answer.status, answer.text().as_str()), (200, "live"));
    let answer_in_sandbox = gateway.client().request("GET", &gateway.path("orders"), &[&sandbox.bearer()]);
    assert_eq!((answer_in_sandbox.status, answer_in_sandbox.text().as_str()), (200, "test"));

    let received = live.only();
    assert_eq!(received.target(), gateway.path("orders/7?x=1"));
    assert_eq!(received.header("x-key-id").as_deref(), Some(key.id.as_str()));
    assert_eq!(received.header("authorization"), None);
    assert_eq!(test.only().header("x-key-mode").as_deref(), Some("test"));

    let record = gateway.record_of(answer.header("x-request-id").unwrap());
    assert_eq!(record["decision"], "allow");
    assert_eq!(record["key_id"], key.id.as_str());
    assert_eq!(record["path"], gateway.path("orders/7").as_str());
}
