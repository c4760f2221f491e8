//! A new variant of an enum of ours breaks the build wherever it must be thought about.

use super::source::{Source, closing, find_outside, occurrences};

/// Enums whose matches name every variant.
const CLOSED: [&str; 9] = ["Reason", "Code", "Mode", "KeyState", "Action", "Cause", "Kind", "Verdict", "Self"];

pub fn faults(source: &Source) -> Vec<String> {
    let matches = source.uses("match ").into_iter();
    let catching = matches.filter(|at| catches_all(&source.code, *at) && !source.is_waived(source.line_of(*at)));
    catching.map(|at| source.fault(at, "a match on our own enum has a catch-all arm")).collect()
}

fn catches_all(code: &str, at: usize) -> bool {
    let Some(open) = find_outside(code, at, b"{;") else { return false };
    let patterns = patterns(&code[open + 1..closing(code, open)]);
    let is_own = |pattern: &&str| CLOSED.iter().any(|name| !occurrences(pattern, &format!("{name}::")).is_empty());
    patterns.contains(&"_") && patterns.iter().any(is_own)
}

/// The patterns of a match's arms, guards included.
fn patterns(arms: &str) -> Vec<&str> {
    let mut patterns = Vec::new();
    let mut at = 0;
    while let Some(arrow) = arrow(arms, at) {
        patterns.push(arms[at..arrow].trim_matches(|c: char| c.is_whitespace() || c == ','));
        let body = arrow + 2 + arms[arrow + 2..].len() - arms[arrow + 2..].trim_start().len();
        let end =
            if arms[body..].starts_with('{') { Some(closing(arms, body)) } else { find_outside(arms, body, b",") };
        at = end.map_or(arms.len(), |end| end + 1).min(arms.len());
    }
    patterns
}

/// The next `=>` that is inside no bracket.
fn arrow(arms: &str, from: usize) -> Option<usize> {
    let at = find_outside(arms, from, b"=")?;
    if arms[at..].starts_with("=>") { Some(at) } else { arrow(arms, at + 1) }
}

#[test]
fn a_catch_all_over_an_enum_of_ours_is_found() {
    let told = |text: &str| faults(&Source::new("src/key/x.rs", text)).len();
    assert_eq!(told("fn x() { match reason { Reason::Revoked => 1, _ => 2 } }"), 1);
    assert_eq!(told("fn x() { match self { Self::A { b } => { match b { 1 => {} _ => {} } } _ => {} } }"), 1);
    assert_eq!(told("fn x() { match f(|a| { a }) { Mode::Live if a == b => 1, Mode::Test => 2, _ => 3 } }"), 1);
}

#[test]
fn foreign_enums_and_whole_matches_are_let_through() {
    let told = |text: &str| faults(&Source::new("src/key/x.rs", text)).len();
    assert_eq!(told("match e.kind() { ErrorKind::NotFound => Reason::A, _ => Reason::B }"), 0);
    assert_eq!(told("match mode { Mode::Live => match n { 0 => 1, _ => 2 }, Mode::Test => 3 }"), 0);
}
