//! What an operator or a reader meets is written down: files, settings, metrics.

use super::source::{Source, is_name, occurrences, root};

/// How `src/config` takes a setting from a table.
const TAKES: [&str; 11] = [
    ".take(",
    ".string(",
    ".parsed(",
    ".number(",
    ".duration(",
    ".size(",
    ".list(",
    ".table(",
    ".tables(",
    ".flag(",
    "deadline(",
];

/// Every file begins with what it is.
pub fn heads(source: &Source) -> Vec<String> {
    let told = source.text.starts_with("//! ");
    (!told).then(|| format!("{}: begins without a //! comment", source.path)).into_iter().collect()
}

/// Every metric is described where it is named: `describe_*!(NAME, "help")`, or a reading's `("name", "help", ..)`.
pub fn metrics(source: &Source) -> Vec<String> {
    let named = source.text.match_indices("\"keygate_").filter(|(at, _)| !source.is_test(source.line_of(*at)));
    let undescribed = named.filter(|(at, _)| {
        let line = source.text.lines().nth(source.line_of(*at)).unwrap_or_default().trim();
        let constant = line.trim_start_matches("pub ").trim_start_matches("(crate) ").strip_prefix("const ");
        match constant.and_then(|constant| constant.split(':').next()) {
            Some(constant) => !source.text.contains("describe_") || !is_described(&source.text, constant),
            None => !has_help(&source.text[at + 1..]),
        }
    });
    undescribed.map(|(at, _)| source.fault(at, "the metric has no help text")).collect()
}

fn is_described(text: &str, constant: &str) -> bool {
    let described = |at: usize| {
        let macro_name = text[..at].trim_end().rsplit(|c: char| !is_name(c) && c != '!' && c != '(').next();
        macro_name.is_some_and(|name| name.starts_with("describe_"))
    };
    occurrences(text, constant).into_iter().any(described)
}

/// Whether a literal is followed by another one that is not empty.
fn has_help(literal: &str) -> bool {
    let after = literal.split_once('"').map_or("", |(_, after)| after).trim_start();
    let help = after.strip_prefix(',').map(str::trim_start).and_then(|after| after.strip_prefix('"'));
    help.is_some_and(|help| !help.starts_with('"'))
}

/// Every text in which a setting can be documented: the example, the manual, doc comments, documented fields.
pub fn documents(sources: &[Source]) -> String {
    let mut text = std::fs::read_to_string(root().join("gateway.toml")).unwrap();
    let manual = std::fs::read_dir(root().join("src/manual")).into_iter().flatten();
    for page in manual.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md")) {
        text.push_str(&std::fs::read_to_string(page).unwrap());
    }
    for source in sources {
        text.push_str(&doc_comments(source));
    }
    text
}

/// Doc comments, and the names of what they stand above.
fn doc_comments(source: &Source) -> String {
    let mut text = String::new();
    let mut documented = false;
    for line in source.text.lines().map(str::trim) {
        let is_doc = line.starts_with("///") || line.starts_with("//!");
        if is_doc || (documented && line.starts_with("pub ")) {
            text.push_str(line);
            text.push('\n');
        }
        documented = is_doc;
    }
    text
}

/// Settings that `src/config` takes and no document names.
pub fn settings(source: &Source, documents: &str) -> Vec<String> {
    if source.module() != Some("config") {
        return Vec::new();
    }
    let unknown = |(_, name): &(usize, &str)| occurrences(documents, name).is_empty();
    let taken = taken(source).into_iter().filter(unknown);
    taken.map(|(at, name)| source.fault(at, &format!("the setting {name} is documented nowhere"))).collect()
}

fn taken(source: &Source) -> Vec<(usize, &str)> {
    let name = |at: usize| {
        let rest = source.text[at..].trim_start().strip_prefix('"')?;
        rest.split_once('"').map(|(name, _)| (at, name))
    };
    let named = |take: &&str| source.uses(take).into_iter().map(|at| at + take.len()).collect::<Vec<_>>();
    TAKES.iter().flat_map(named).filter_map(name).collect()
}

#[test]
fn a_file_without_a_head_is_found() {
    assert_eq!(heads(&Source::new("src/key/mod.rs", "pub mod token;")).len(), 1);
    assert_eq!(heads(&Source::new("src/key/mod.rs", "//! What a key is.")).len(), 0);
}

#[test]
fn a_metric_without_a_help_text_is_found() {
    let told = |text: &str| metrics(&Source::new("src/app.rs", text)).len();
    assert_eq!(told("const A: &str = \"keygate_a\";"), 1);
    assert_eq!(told("const A: &str = \"keygate_a\"; describe_counter!(B, \"help\"); counter!(A);"), 1);
    assert_eq!(told("const A: &str = \"keygate_a\";\nmetrics::describe_counter!(A, \"help\");"), 0);
    assert_eq!(told("(\"keygate_a\", \"\", 1.0)"), 1);
    assert_eq!(told("(\"keygate_a\", 1.0)"), 1);
    assert_eq!(told("(\n    \"keygate_a\",\n    \"help\", 1.0)"), 0);
}

#[test]
fn a_setting_that_no_document_names_is_found() {
    let source =
        Source::new("src/config/x.rs", "section.number(\"a_max\", 1..=2); deadline(\"drain\", x); s.size(\n\"b\")");
    assert_eq!(settings(&source, "a_maximum, drain_all").len(), 3);
    assert_eq!(settings(&source, "a_max = 1\ndrain, `b`").len(), 0);
    assert_eq!(settings(&Source::new("src/proxy/x.rs", &source.text), "").len(), 0);
}

#[test]
fn a_documented_field_documents_its_setting() {
    let source =
        Source::new("src/x.rs", "pub struct X {\n    /// How long.\n    pub drain: u8,\n    pub other: u8,\n}");
    let text = doc_comments(&source);
    assert!(text.contains("drain") && !text.contains("other"), "{text}");
}
