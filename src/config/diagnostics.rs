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
        Self { path: path.to_owned(), text: text.to_owned(), list }
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

impl fmt::Display for Diagnostics {
    /// As the compiler shows its errors, without colour.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let renderer = Renderer::plain();
        for diagnostic in &self.list {
            writeln!(f, "{}\n", self.render(diagnostic, &renderer))?;
        }
        let count = self.list.len();
        writeln!(f, "{}: {count} error{}", self.path.display(), if count == 1 { "" } else { "s" })
    }
}
