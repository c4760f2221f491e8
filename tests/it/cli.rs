//! What a person and a script see of the command line. `KEYGATE_BLESS=1` writes the golden files of `tests/cases/cli` anew.

use crate::harness::gateway::keygate;
use crate::harness::{Gateway, Upstream};
use std::path::Path;
use std::process::{Output, Stdio};

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/cli").join(name);
    if std::env::var_os("KEYGATE_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(text, expected, "{name}");
}

fn run(directory: &Path, args: &[&str]) -> Output {
    keygate(directory).args(args).env("COLUMNS", "100").stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_says_what_there_is() {
    let directory = tempfile::tempdir().unwrap();
    let commands: &[&[&str]] = &[
        &[],
        &["serve"],
        &["demo"],
        &["check"],
        &["health"],
        &["logs"],
        &["audit"],
        &["audit", "verify"],
        &["audit", "export"],
        &["entities"],
        &["entities", "create"],
        &["entities", "delete"],
        &["entities", "list"],
        &["fleet"],
        &["fleet", "list"],
        &["fleet", "forget"],
        &["store"],
        &["store", "status"],
        &["store", "init"],
        &["store", "adopt"],
        &["store", "reseed"],
        &["keys"],
        &["keys", "create"],
        &["keys", "list"],
        &["keys", "show"],
        &["keys", "update"],
        &["keys", "rotate"],
        &["keys", "revoke"],
        &["keys", "import"],
        &["keys", "report"],
        &["keys", "usage"],
    ];
    for command in commands {
        let output = run(directory.path(), &[*command, &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0));
        compare(
            &format!("help{}.txt", command.iter().map(|word| format!("-{word}")).collect::<String>()),
            &text(&output.stdout),
        );
    }
}

#[test]
fn exit_codes_tell_kinds_of_failure_apart() {
    let directory = tempfile::tempdir().unwrap();
    let code = |args: &[&str]| run(directory.path(), args).status.code();
    assert_eq!(code(&["keys", "frobnicate"]), Some(2));
    assert_eq!(code(&["check"]), Some(78), "there is no gateway.toml");
    let shipped = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("gateway.toml")).unwrap();
    std::fs::write(directory.path().join("gateway.toml"), shipped).unwrap();
    assert_eq!(code(&["check"]), Some(0));
    assert_eq!(code(&["keys", "list"]), Some(69), "there is no store");
    assert!(!directory.path().join("data").exists(), "a command that only reads made a store");
    assert_eq!(code(&["entities", "create", "--code", "acme"]), Some(0));
    assert_eq!(code(&["keys", "list", "--entity", "nobody"]), Some(1));
    std::fs::write(directory.path().join("data/keygate.db"), "this is no database, whatever its name may say").unwrap();
    for command in [&["keys", "list"][..], &["serve"]] {
        let output = run(directory.path(), command);
        assert_eq!(output.status.code(), Some(69));
        assert!(text(&output.stderr).contains("is not a database"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_script_gets_the_key_alone_and_a_list_as_json() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let create = ["keys", "create", "--entity", "acme", "--name", "script", "--mode", "test", "--scope", "orders:read"];
    let output = gateway.run(&create);
    let printed = text(&output.stdout);
    assert!(printed.starts_with("ark_test_ent_acme_") && printed.lines().count() == 1, "{printed}");
    let list = gateway.json(&["keys", "list", "--output", "json"]);
    let mut members: Vec<&str> = list[0].as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    let expected = [
        "allowlist",
        "created_at",
        "entity",
        "entity_id",
        "expires_at",
        "id",
        "last4",
        "mode",
        "name",
        "scopes",
        "state",
        "tier",
        "version",
    ];
    assert_eq!(members, expected);
    assert_eq!((&list[0]["tier"], &list[0]["entity"]), (&"test".into(), &"acme".into()));
}

#[test]
fn a_key_is_not_revoked_by_a_script_that_did_not_say_yes() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let key = gateway.key(&["orders:read"]);
    let output = gateway.run(&["keys", "revoke", &key.id]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--yes"));
    assert_eq!(gateway.json(&["keys", "show", &key.id, "--output", "json"])["state"], "active");
}

#[test]
fn where_nothing_is_yet_it_is_said_what_makes_it() {
    let directory = tempfile::tempdir().unwrap();
    let said = |args: &[&str]| text(&run(directory.path(), args).stderr);
    for command in [&["check"][..], &["serve"], &["keys", "list"], &["logs"], &["audit", "verify"]] {
        let words = said(command);
        assert!(words.contains("gateway.toml: there is no such file; ") && words.contains("--config"), "{words}");
    }
    let listen = "[[listen]]\naddress = \"127.0.0.1:0\"\n";
    let rest = "[scopes]\n[upstreams.erp]\nlive = [\"http://127.0.0.1:1\"]\n[[routes]]\npath = \"/v1/**\"\nupstream = \"erp\"\npublic = true\n";
    std::fs::write(directory.path().join("gateway.toml"), format!("{listen}{rest}")).unwrap();
    for command in [&["logs"][..], &["audit", "verify"], &["audit", "export", "--since", "1h"]] {
        let words = said(command);
        let told =
            "error: there is no journal in data/audit; `keygate serve` writes it, in audit.dir of gateway.toml\n";
        assert_eq!(words, told, "{command:?}");
    }
    let words = said(&["logs", "--since", "yesterday"]);
    assert!(words.ends_with("or \"90d\", or 2026-11-24T10:42:10Z\n"), "{words}");
}

#[test]
fn a_key_given_for_its_id_is_not_shown_in_the_error() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let key = gateway.key(&["orders:read"]);
    for command in
        [&["keys", "show"][..], &["keys", "revoke"], &["keys", "rotate"], &["keys", "update"], &["logs", "--key"]]
    {
        let output = gateway.run(&[command, &[&key.text]].concat());
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(!text(&output.stderr).contains(&key.text) && !text(&output.stdout).contains(&key.text));
    }
}

#[test]
fn a_closed_stderr_is_no_reason_to_panic() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = keygate(directory.path()).arg("check").stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(78));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    // Something to print: the first line meets the closed end.
    let many = ["keys", "create", "--entity", "acme", "--mode", "test", "--scope", "orders:read", "--name"];
    assert!(gateway.run(&[&many[..], &["reader"]].concat()).status.success());
    let mut child = keygate(gateway.dir.path())
        .args(["keys", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}
