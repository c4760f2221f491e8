//! Mistakes in gateway.toml: each `tests/cases/config/*.toml` with what `keygate check` says beside it in `*.err`. Adding a
//! case is adding two files; `KEYGATE_BLESS=1` writes the second.

use crate::harness::gateway::keygate;
use keygate::config::Config;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/config")
}

#[test]
fn every_mistake_is_told_with_its_place_and_what_to_do() {
    let mut count = 0;
    for entry in std::fs::read_dir(cases()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            count += 1;
            check(&path);
        }
    }
    assert!(count >= 40, "{count} cases");
}

fn check(path: &Path) {
    let name = path.file_name().unwrap();
    let output = keygate(&cases()).args(["check", "-c"]).arg(name).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{name:?}: {told}");
    assert!(output.stdout.is_empty());
    let golden = path.with_extension("err");
    if std::env::var_os("KEYGATE_BLESS").is_some() {
        std::fs::write(&golden, &told).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_else(|error| panic!("{}: {error}", golden.display()));
    assert_eq!(told, expected, "{name:?}");
}

#[test]
fn a_file_too_large_to_be_meant_is_not_read_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let check = |file: &str| keygate(directory.path()).args(["check", "-c", file]).output().unwrap();
    std::fs::write(directory.path().join("large.toml"), "#".repeat(1024 * 1024 + 1)).unwrap();
    for file in ["large.toml", "/dev/zero"] {
        let output = check(file);
        assert_eq!(output.status.code(), Some(78), "{file}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(file) && told.contains("at most 1 MiB"), "{told}");
    }
    std::fs::write(directory.path().join("full.toml"), format!("{SHIPPED}{}", "#".repeat(1024 * 1024 - SHIPPED.len())))
        .unwrap();
    assert!(check("full.toml").status.success());
}

const SHIPPED: &str = include_str!("../../gateway.toml");

#[test]
fn the_shipped_file_has_no_mistakes() {
    let config = Config::parse(SHIPPED, Path::new("gateway.toml")).unwrap();
    assert_eq!((config.routes.len(), config.manage.presets.len()), (12, 5));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens to the file: mistakes, or a configuration, and never a panic.
    #[test]
    fn a_damaged_file_is_told_and_never_a_panic(
        at in 0..SHIPPED.len(), cut in 0usize..40, insert in "[\\[\\]{}=\",.a-z0-9 \n#'-]{0,8}",
    ) {
        let at = (0..=at).rev().find(|at| SHIPPED.is_char_boundary(*at)).unwrap();
        let end = (at + cut..=SHIPPED.len()).find(|end| SHIPPED.is_char_boundary(*end)).unwrap_or(SHIPPED.len());
        let text = format!("{}{insert}{}", &SHIPPED[..at], &SHIPPED[end.max(at)..]);
        if let Err(mistakes) = Config::parse(&text, Path::new("gateway.toml")) {
            prop_assert!(!mistakes.to_string().is_empty());
        }
    }
}
