//! A source file as the rules see it: text, and the same text with comments and literals blanked out.

use std::path::{Path, PathBuf};

/// One Rust file.
pub struct Source {
    /// From the top of the repository: `src/key/mod.rs`.
    pub path: String,
    pub text: String,
    /// `text` with comments and the insides of literals replaced by spaces: same length, same lines.
    pub code: String,
    /// By line: whether it belongs to a test.
    tests: Vec<bool>,
}

// === impl Source ===

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let tests = test_lines(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, tests }
    }

    /// The line of a byte, from 0.
    pub fn line_of(&self, at: usize) -> usize {
        self.code.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count()
    }

    pub fn is_test(&self, line: usize) -> bool {
        self.tests.get(line).copied().unwrap_or(false)
    }

    /// Whether the line, or the one above, gives a reason for breaking a rule.
    pub fn is_waived(&self, line: usize) -> bool {
        let gives_reason = |line: &str| {
            let reason = line.split_once("// tidy: allow(").map(|(_, reason)| reason.trim_end());
            reason.is_some_and(|reason| reason.len() > 1 && reason.ends_with(')'))
        };
        self.text.lines().skip(line.saturating_sub(1)).take(if line == 0 { 1 } else { 2 }).any(gives_reason)
    }

    /// The top-level module that the file belongs to; none for the crate's roots.
    pub fn module(&self) -> Option<&str> {
        let path = self.path.strip_prefix("src/")?;
        let first = path.split('/').next()?.trim_end_matches(".rs");
        (!matches!(first, "lib" | "main")).then_some(first)
    }

    /// A fault at a byte of this file.
    pub fn fault(&self, at: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path, self.line_of(at) + 1)
    }

    /// Where `word` stands in code outside tests, not as a part of a longer name.
    pub fn uses(&self, word: &str) -> Vec<usize> {
        let live = |at: &usize| !self.is_test(self.line_of(*at));
        occurrences(&self.code, word).into_iter().filter(live).collect()
    }
}

/// Where `word` begins in `text`, not in the middle of a longer name.
pub fn occurrences(text: &str, word: &str) -> Vec<usize> {
    let begins_name = word.starts_with(is_name);
    let ends_name = word.ends_with(is_name);
    let whole = |at: &usize| {
        let before = text[..*at].chars().next_back().is_some_and(is_name);
        let after = text[*at + word.len()..].chars().next().is_some_and(is_name);
        !(begins_name && before || ends_name && after)
    };
    text.match_indices(word).map(|(at, _)| at).filter(whole).collect()
}

pub fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// The index of the bracket that closes the one at `open`, or the end of the text.
pub fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' if depth <= 1 => return at,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// The first of `wanted` at or after `from` that is inside no bracket.
pub fn find_outside(code: &str, from: usize, wanted: &[u8]) -> Option<usize> {
    let mut at = from;
    while let Some(byte) = code.as_bytes().get(at) {
        if wanted.contains(byte) {
            return Some(at);
        }
        at = if matches!(byte, b'(' | b'[' | b'{') { closing(code, at) + 1 } else { at + 1 };
    }
    None
}

/// The top of the repository that is tested now, which need not be the one that this was compiled in.
pub fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Every Rust file under `src/`; files that are modules of tests alone are left out.
pub fn all() -> Vec<Source> {
    let mut paths = Vec::new();
    walk(&root().join("src"), &mut paths);
    paths.sort();
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        Source::new(&name, &std::fs::read_to_string(path).unwrap())
    };
    let sources: Vec<Source> = paths.iter().map(read).collect();
    let of_tests: Vec<String> = sources.iter().flat_map(test_files).collect();
    sources.into_iter().filter(|source| !of_tests.iter().any(|file| source.path.starts_with(file.as_str()))).collect()
}

fn walk(dir: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// The files that `#[cfg(test)] mod name;` of this one stands for, as beginnings of paths.
fn test_files(source: &Source) -> Vec<String> {
    let dir = source.path.trim_end_matches("mod.rs").trim_end_matches("lib.rs").trim_end_matches(".rs");
    let dir = dir.trim_end_matches('/');
    let lines = source.code.lines().enumerate().filter(|(line, _)| source.is_test(*line));
    let names = lines.filter_map(|(_, line)| line.trim().strip_prefix("mod ")?.strip_suffix(';'));
    names.flat_map(|name| [format!("{dir}/{name}.rs"), format!("{dir}/{name}/")]).collect()
}

/// Marks the lines of items under `#[cfg(test)]`.
fn test_lines(code: &str) -> Vec<bool> {
    let line_of = |at: usize| code.as_bytes()[..at.min(code.len())].iter().filter(|byte| **byte == b'\n').count();
    let mut tests = vec![false; code.lines().count() + 1];
    for (at, attribute) in code.match_indices("#[cfg(test)]") {
        let end = find_outside(code, at + attribute.len(), b"{;").unwrap_or(code.len());
        // An outside `{` is returned as found; its item ends where it closes.
        let end = if code.as_bytes().get(end) == Some(&b'{') { closing(code, end) } else { end };
        tests[line_of(at)..=line_of(end)].fill(true);
    }
    tests
}

/// Replaces comments and the insides of literals with spaces.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = skip(text, at);
        let Some((inside, end)) = end else {
            at += 1;
            continue;
        };
        for byte in &mut code[inside.0..inside.1] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(code).expect("whole characters are blanked")
}

/// When a comment or a literal begins at `at`: what of it is blanked, and where it ends.
fn skip(text: &str, at: usize) -> Option<((usize, usize), usize)> {
    let rest = &text.as_bytes()[at..];
    let in_name = at > 0 && text[..at].chars().next_back().is_some_and(is_name);
    if rest.starts_with(b"//") {
        let end = at + text[at..].find('\n').unwrap_or(rest.len());
        return Some(((at, end), end));
    }
    if rest.starts_with(b"/*") {
        let end = at + text[at..].find("*/").map_or(rest.len(), |end| end + 2);
        return Some(((at, end), end));
    }
    let raw = if in_name { None } else { raw_string(text, at) };
    raw.or_else(|| quoted(text, at))
}

/// `r"…"`, `r#"…"#`, and with `b` before.
fn raw_string(text: &str, at: usize) -> Option<((usize, usize), usize)> {
    let rest = text.get(at..)?;
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.bytes().take_while(|byte| *byte == b'#').count();
    let inside = after[hashes..].strip_prefix('"')?;
    let begin = at + rest.len() - inside.len();
    let close = format!("\"{}", "#".repeat(hashes));
    let end = begin + inside.find(&close).unwrap_or(inside.len());
    Some(((begin, end), (end + close.len()).min(text.len())))
}

/// `"…"` and `'x'`; a lifetime is neither.
fn quoted(text: &str, at: usize) -> Option<((usize, usize), usize)> {
    let bytes = text.as_bytes();
    let quote = bytes[at];
    match quote {
        b'"' => {}
        b'\'' if bytes.get(at + 1) == Some(&b'\\') => {}
        b'\'' => {
            let character = text[at + 1..].chars().next()?;
            let end = at + 1 + character.len_utf8();
            return (bytes.get(end) == Some(&b'\'')).then_some(((at + 1, end), end + 1));
        }
        _ => return None,
    }
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != quote {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    Some(((at + 1, end.min(bytes.len())), (end + 1).min(bytes.len())))
}

#[test]
fn comments_and_literals_are_blanked_and_lifetimes_are_not() {
    let text = "a /* } */ \"{\\\"\" r#\"\"{\"# '{' '\\'' <'a> b'{' // {\nfor";
    let code = blank(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(code.matches('{').count() + code.matches('}').count(), 0, "{code}");
    assert!(code.contains("<'a>") && code.ends_with("\nfor"), "{code}");
}

#[test]
fn items_under_cfg_test_are_tests_and_what_follows_is_not() {
    let source = Source::new("src/x.rs", "fn a() {}\n#[cfg(test)]\nmod tests {\n    use x;\n}\nfn b() {}\n");
    let tests: Vec<bool> = (0..6).map(|line| source.is_test(line)).collect();
    assert_eq!(tests, [false, true, true, true, true, false]);
}

#[test]
fn a_waiver_needs_a_reason_and_reaches_one_line() {
    let source = Source::new("src/x.rs", "// tidy: allow(measured)\na\nb // tidy: allow()\nc\n");
    let waived: Vec<bool> = (0..4).map(|line| source.is_waived(line)).collect();
    assert_eq!(waived, [true, true, false, false]);
}

#[test]
fn a_file_that_is_a_module_of_tests_is_known_by_its_declaration() {
    let source = Source::new("src/key/mod.rs", "#[cfg(test)]\nmod tests;\nmod token;\n");
    assert_eq!(test_files(&source), ["src/key/tests.rs", "src/key/tests/"]);
}
