//! Style is a test: what the sources promise about imports, sizes, words and documentation is read from them here.
//!
//! Each rule is a function from a source to its faults, with a bad sample that it must find beside it. A line that has
//! to break a rule about words says why, on it or on the line above: `// tidy: allow(reason)`.

#[path = "tidy/documented.rs"]
mod documented;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/matches.rs"]
mod matches;
#[path = "tidy/sizes.rs"]
mod sizes;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/words.rs"]
mod words;

use source::Source;

/// Fails with every fault that `rule` finds in `src/`.
fn hold(rule: impl Fn(&Source) -> Vec<String>) {
    let sources = source::all();
    assert!(sources.len() > 50, "only {} files were found under src", sources.len());
    let faults: Vec<String> = sources.iter().flat_map(rule).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn imports_go_one_way() {
    hold(imports::faults);
}

#[test]
fn the_pure_modules_know_no_runtime_and_no_io() {
    hold(imports::impurities);
}

#[test]
fn files_and_functions_are_small() {
    hold(sizes::faults);
}

#[test]
fn no_word_is_banned() {
    hold(words::faults);
}

#[test]
fn names_say_what_a_thing_is() {
    hold(words::names);
}

#[test]
fn no_line_points_at_the_machine_it_was_written_on() {
    hold(words::places);
}

#[test]
fn matches_on_own_enums_have_no_catch_all() {
    hold(matches::faults);
}

#[test]
fn every_file_says_what_it_is() {
    hold(documented::heads);
}

#[test]
fn every_metric_has_a_help_text() {
    hold(documented::metrics);
}

#[test]
fn every_setting_is_documented() {
    let documents = documented::documents(&source::all());
    hold(|source| documented::settings(source, &documents));
}
