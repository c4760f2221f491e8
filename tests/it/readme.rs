//! The README keeps its word: its session runs, its gateway.toml is one, its links lead somewhere.

use std::path::Path;
use std::process::{Command, Stdio};

const README: &str = include_str!("../../README.md");

/// The content of the first fenced block of this language.
fn block(language: &str) -> &'static str {
    let (_, rest) = README.split_once(&format!("```{language}\n")).expect("the block is there");
    rest.split_once("```").expect("the block ends").0
}

#[test]
fn the_session_gives_what_it_shows() {
    let shown: Vec<&str> =
        block("sh").lines().filter(|line| line.starts_with("status -H") || line.starts_with("status \"")).collect();
    let expected: Vec<&str> =
        shown.iter().map(|line| line.split_once("# ").expect("a status is shown").1[..3].trim()).collect();
    assert_eq!(expected.len(), 4);

    let demo = format!("{} demo --listen 127.0.0.1:0 --admin 127.0.0.1:0", env!("CARGO_BIN_EXE_keygate"));
    let session = block("sh").replacen("cargo run --release -- demo", &demo, 1);
    assert!(session.contains(&demo), "the session starts the demo");
    let script = format!("set -u\n{session}\nkill $!\nwait\n");
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("timeout")
        .args(["60", "bash", "-c", &script])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()
        .expect("bash and timeout are there");
    let errors = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{errors}");
}

#[test]
fn the_smallest_configuration_has_no_mistakes() {
    let config = keygate::config::Config::parse(block("toml"), Path::new("gateway.toml"));
    assert!(config.is_ok(), "{}", config.unwrap_err());
}

#[test]
fn every_link_leads_to_a_file() {
    let links: Vec<&str> =
        README.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(link, _)| link)).collect();
    assert!(links.len() >= 5);
    for link in links {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(link).exists(), "{link}");
    }
}
