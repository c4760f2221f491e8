//! Words that do not belong into a program that must not panic, must not print, and has one clock.

use super::source::{Source, is_name, occurrences};

/// Not in any code outside tests, but with a reason.
const NOWHERE: [&str; 9] = [
    "todo!",
    "unimplemented!",
    "dbg!",
    "panic!",
    "unreachable!",
    ".unwrap()",
    ".unwrap_err()",
    ".expect(",
    ".expect_err(",
];
/// Only where a person reads the output.
const OUTPUT: [&str; 4] = ["println!", "eprintln!", "print!", "eprint!"];
/// Only where time comes from.
const TIME: [&str; 3] = ["Instant::now", "SystemTime::now", ".elapsed()"];

/// Beginnings of paths on the machine of whoever wrote a line, and hosts that a program of this kind never names.
const PLACES: [&str; 8] = [
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/tm", "p/"),
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("npmjs", ".org"),
];

/// Parts of a type's name that say nothing.
const EMPTY_NAMES: [&str; 4] = ["Manager", "Helper", "Util", "Common"];

pub fn faults(source: &Source) -> Vec<String> {
    let module = source.module().unwrap_or_default();
    let output = OUTPUT.iter().filter(|_| module != "cli");
    let time = TIME.iter().filter(|_| module != "clock");
    let words = NOWHERE.iter().chain(output).chain(time);
    let found = words.flat_map(|word| source.uses(word).into_iter().map(move |at| (at, *word)));
    let indexed = indexings(source).into_iter().map(|at| (at, "indexing"));
    let unwaived = found.chain(indexed).filter(|(at, _)| !source.is_waived(source.line_of(*at)));
    unwaived.map(|(at, word)| source.fault(at, &format!("{word} needs a reason: // tidy: allow(reason)"))).collect()
}

/// Types called Manager and the like, functions called `get_`.
pub fn names(source: &Source) -> Vec<String> {
    let kinds = ["struct ", "enum ", "trait ", "type "];
    let types =
        kinds.into_iter().flat_map(|kind| occurrences(&source.code, kind).into_iter().map(|at| at + kind.len()));
    let name = |at: usize| source.code[at..].chars().take_while(|c| is_name(*c)).collect::<String>();
    let empty = types.filter(|at| EMPTY_NAMES.iter().any(|part| name(*at).contains(part)));
    let getters = source.code.match_indices("fn get_").map(|(at, _)| at);
    empty.chain(getters).map(|at| source.fault(at, "the name says nothing, see the lexicon")).collect()
}

/// Lines that name a place that only their writer has; comments and literals too.
pub fn places(source: &Source) -> Vec<String> {
    let found = PLACES.iter().flat_map(|place| source.text.match_indices(place));
    let unwaived = found.filter(|(at, _)| !source.is_waived(source.line_of(*at)));
    unwaived.map(|(at, place)| source.fault(at, &format!("{place} is a place on somebody's machine"))).collect()
}

/// Where an expression is indexed; `[..]` takes everything and cannot fail.
fn indexings(source: &Source) -> Vec<usize> {
    let code = &source.code;
    let brackets = code.match_indices('[').map(|(at, _)| at).filter(|at| !source.is_test(source.line_of(*at)));
    let indexes = |at: &usize| {
        let before = code[..*at].chars().next_back();
        before.is_some_and(|before| is_name(before) || matches!(before, ')' | ']' | '?'))
            && !code[*at..].starts_with("[..]")
    };
    brackets.filter(indexes).collect()
}

#[test]
fn banned_words_are_found_in_code_alone() {
    let told = |path: &str, text: &str| faults(&Source::new(path, text)).len();
    for word in NOWHERE.iter().chain(&OUTPUT).chain(&TIME) {
        assert_eq!(told("src/key/x.rs", &format!("fn x() {{ {word} }}")), 1, "{word}");
        assert_eq!(told("src/key/x.rs", &format!("// {word}\n#[cfg(test)]\nmod tests {{ {word} }}")), 0, "{word}");
        assert_eq!(told("src/key/x.rs", &format!("{word} // tidy: allow(a reason)")), 0, "{word}");
    }
    assert_eq!(told("src/cli/x.rs", "println!()"), 0);
    assert_eq!(told("src/clock.rs", "Instant::now()"), 0);
}

#[test]
fn indexing_is_told_from_types_attributes_macros_and_lists() {
    let told = |text: &str| faults(&Source::new("src/key/x.rs", text)).len();
    assert_eq!(told("a[0]; b()[1]; c?[2]; d[0][1]; e[1..]"), 6);
    assert_eq!(told("#[derive(X)] fn a(b: &[u8], c: [u8; 2]) { vec![1]; for x in [1, 2] { &x[..] } }"), 0);
}

#[test]
fn empty_names_are_found() {
    let told = |text: &str| names(&Source::new("src/key/x.rs", text)).len();
    assert_eq!(told("pub struct KeyManager; trait Helper {} fn get_key() {}"), 3);
    assert_eq!(told("pub struct Key; fn target() {}"), 0);
}

#[test]
fn places_are_found_in_comments_and_literals() {
    for place in PLACES {
        assert_eq!(places(&Source::new("src/x.rs", &format!("// see {place}"))).len(), 1, "{place}");
        assert_eq!(places(&Source::new("src/x.rs", &format!("let x = \"{place}\";"))).len(), 1, "{place}");
    }
}
