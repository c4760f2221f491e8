//! Errors in gateway.toml: all of them at once, each with file, line, column, a caret and what to do.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One mistake.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    pub span: Range<usize>,
    pub message: String,
    /// What stands beside the caret.
    pub label: String,
    /// What to do.
    pub help: Option<String>,
    /// A second place that the mistake is about.
    pub other: Option<(Range<usize>, String)>,
}

/// All mistakes of one file.
#[derive(Debug)]
pub struct Diagnostics {
    path: PathBuf,
    text: String,
    list: Vec<Diagnostic>,
}

/// Where the readers of the sections report to.
#[derive(Debug, Default)]
pub struct Report(RefCell<Vec<Diagnostic>>);

// === impl Diagnostic ===

impl Diagnostic {
    pub fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { span, message: message.into(), label: String::new(), help: None, other: None }
    }

    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub fn other(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.other = Some((span, label.into()));
        self
    }
}

// === impl Report ===

impl Report {
    pub fn add(&self, diagnostic: Diagnostic) {
        self.0.borrow_mut().push(diagnostic);
    }

    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub fn into_list(self) -> Vec<Diagnostic> {
        self.0.into_inner()
    }
}

// === impl Diagnostics ===

impl Diagnostics {
    pub fn new(path: &Path, text: &str, mut list: Vec<Diagnostic>) -> Self {
        list.sort_by_key(|diagnostic| (diagnostic.span.start, diagnostic.span.end));
        for diagnostic in &mut list {
            diagnostic.message = masked(&diagnostic.message);
        }
        Self { path: path.to_owned(), text: masked(text), list }
    }

    /// A file that could not be read at all.
    pub fn unreadable(path: &Path, message: impl Into<String>) -> Self {
        Self::new(path, "", vec![Diagnostic::new(0..0, message)])
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn render(&self, diagnostic: &Diagnostic, renderer: &Renderer) -> String {
        if self.text.is_empty() {
            let help = diagnostic.help.as_ref().map_or_else(String::new, |help| format!("\n  = help: {help}"));
            return format!("error: {}: {}{help}", self.path.display(), diagnostic.message);
        }
        let path = self.path.display().to_string();
        let primary = AnnotationKind::Primary.span(self.within(&diagnostic.span)).label(&*diagnostic.label);
        let mut snippet = Snippet::source(&*self.text).path(&*path).annotation(primary);
        if let Some((span, label)) = &diagnostic.other {
            snippet = snippet.annotation(AnnotationKind::Context.span(self.within(span)).label(&**label));
        }
        let mut group = Level::ERROR.primary_title(&*diagnostic.message).element(snippet);
        if let Some(help) = &diagnostic.help {
            group = group.element(Level::HELP.message(&**help));
        }
        renderer.render(&[group])
    }

    /// The renderer wants spans inside the text, on character boundaries.
    fn within(&self, span: &Range<usize>) -> Range<usize> {
        let boundary = |at: usize| {
            let at = at.min(self.text.len());
            (0..=at).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0)
        };
        let start = boundary(span.start);
        start..boundary(span.end).max(start)
    }
}

/// Blots out what looks like a secret that was written into the file: the user part of a URL, the value of a name such as
/// `password`, and keys. As long as before, so that places stay where they are.
fn masked(text: &str) -> String {
    text.split_inclusive('\n').map(mask_line).collect()
}

fn mask_line(line: &str) -> String {
    let name = line.split_once('=').map_or("", |(name, _)| name.trim());
    let secret_name = ["password", "secret", "token", "credential"].iter().any(|word| name.contains(word));
    let mut masked = String::with_capacity(line.len());
    for (index, part) in line.split_inclusive(['"', '\'', ' ']).enumerate() {
        let (word, end) = part.split_at(part.trim_end_matches(['"', '\'', ' ', '\n', '\r']).len());
        let at = match word.split_once("://") {
            Some((scheme, rest)) if rest.contains('@') => Some(scheme.len() + 3),
            Some(_) | None if looks_like_a_key(word) => Some(0),
            // The name itself and the sign after it are no secret.
            Some(_) | None => (secret_name && index > 0 && word != "=").then_some(0),
        };
        let (shown, hidden) = word.split_at(at.unwrap_or(word.len()));
        masked.push_str(shown);
        masked.push_str(&"*".repeat(hidden.len()));
        masked.push_str(end);
    }
    masked
}

/// A key of whatever prefix, or as long a run of its alphabet.
fn looks_like_a_key(word: &str) -> bool {
    let in_alphabet = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (word.contains("_live_") || word.contains("_test_")) && word.len() > 20
        || in_alphabet && word.len() >= 32 && word.bytes().any(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Diagnostics {
    /// As the compiler shows its errors, without colour.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let renderer = Renderer::plain();
        for diagnostic in &self.list {
            writeln!(f, "{}\n", self.render(diagnostic, &renderer))?;
        }
        let count = self.list.len();
        write!(f, "{}: {count} error{}", self.path.display(), if count == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_secret_in_the_file_is_not_shown_again() {
        for line in [
            "url = \"redis://user:hunter2@10.0.0.1\"",
            "password = \"hunter2\"",
            "  db_password=\"hunter2\"",
            "prefix = \"ark_live_ent_acme_hunter2xxxxxxxxxxxxxxxx\"",
            "id = 'hunter2hunter2hunter2hunter2hunter2'",
            "'redis://:hunter2@h' is not an address",
        ] {
            let masked = masked(line);
            assert!(!masked.contains("hunter2"), "{masked}");
            assert_eq!(masked.len(), line.len());
        }
        for line in [
            "url = \"sqlite:data/keygate.db\"",
            "path = \"/v1/entities/{entity_id}/orders/**\"",
            "read = \"a:b\" # x@y",
        ] {
            assert_eq!(masked(line), line);
        }
    }

    proptest! {
        /// Carets point into the masked text: it may not be shifted.
        #[test]
        fn masking_keeps_every_place(text in "[a-z0-9_=:/@\"' \n.ä]{0,200}") {
            prop_assert_eq!(masked(&text).len(), text.len());
        }
    }
}
