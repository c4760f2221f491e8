//! A strict reader of TOML tables: what is taken is typed and has a span, what is left over is an error.

use super::diagnostics::{Diagnostic, Report};
use super::values;
use std::ops::Range;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Settings of the product that this version does not have: refused by name, not as a typing mistake.
const NOT_YET: [&str; 3] = ["lease", "upgrades", "tiers"];

/// A table that is being read.
pub struct Section<'r, 't> {
    report: &'r Report,
    /// How errors call it: `[limits]`, `route 3`.
    name: String,
    /// Where the table is.
    pub span: Range<usize>,
    table: DeTable<'t>,
    known: Vec<&'static str>,
}

/// A value with its place.
#[derive(Clone, Debug)]
pub struct Located<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// A value that is still to be read.
pub type Raw<'t> = Spanned<DeValue<'t>>;

// === impl Section ===

impl<'r, 't> Section<'r, 't> {
    pub fn new(report: &'r Report, name: impl Into<String>, span: Range<usize>, table: DeTable<'t>) -> Self {
        Self { report, name: name.into(), span, table, known: Vec::new() }
    }

    pub const fn report(&self) -> &'r Report {
        self.report
    }

    /// Whether a value was written, readable or not.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Takes a value; from now on its name is a known one.
    pub fn take(&mut self, key: &'static str) -> Option<Raw<'t>> {
        self.known.push(key);
        self.table.remove(key)
    }

    /// Takes a table. A missing one reads as empty.
    pub fn table(&mut self, key: &'static str) -> Section<'r, 't> {
        let name = format!("[{key}]");
        match self.take(key) {
            Some(raw) => self.as_section(name, raw),
            None => Section::new(self.report, name, self.span.clone(), DeTable::new()),
        }
    }

    /// Reads `raw` as a table.
    pub fn as_section(&self, name: impl Into<String>, raw: Raw<'t>) -> Section<'r, 't> {
        let span = raw.span();
        match raw.into_inner() {
            DeValue::Table(table) => Section::new(self.report, name, span, table),
            other => {
                self.mistyped::<()>(&span, "a table", &other);
                Section::new(self.report, name, span, DeTable::new())
            }
        }
    }

    /// Takes an array of tables.
    pub fn tables(&mut self, key: &'static str, name: &str) -> Vec<Section<'r, 't>> {
        let elements = self.take(key).map(|raw| self.elements(raw)).unwrap_or_default();
        (1..).zip(elements).map(|(number, raw)| self.as_section(format!("{name} {number}"), raw)).collect()
    }

    pub fn elements(&self, raw: Raw<'t>) -> Vec<Raw<'t>> {
        let span = raw.span();
        match raw.into_inner() {
            DeValue::Array(array) => array.into_iter().collect(),
            other => {
                self.mistyped::<()>(&span, "a list", &other);
                Vec::new()
            }
        }
    }

    pub fn string(&mut self, key: &'static str) -> Option<Located<String>> {
        let raw = self.take(key)?;
        self.as_string(raw)
    }

    pub fn as_string(&self, raw: Raw<'t>) -> Option<Located<String>> {
        let span = raw.span();
        match raw.into_inner() {
            DeValue::String(text) => Some(Located { value: text.into_owned(), span }),
            other => self.mistyped(&span, "a string", &other),
        }
    }

    /// Takes a string and reads it; what `read` says is shown at the string.
    pub fn parsed<T>(&mut self, key: &'static str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<Located<T>> {
        let text = self.string(key)?;
        self.read(text, read)
    }

    pub fn read<T>(&self, text: Located<String>, read: impl FnOnce(&str) -> Result<T, String>) -> Option<Located<T>> {
        match read(&text.value) {
            Ok(value) => Some(Located { value, span: text.span }),
            Err(message) => {
                self.report.add(Diagnostic::new(text.span, message));
                None
            }
        }
    }

    /// Takes a list of strings and reads each.
    pub fn list<T>(&mut self, key: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Vec<Located<T>> {
        let elements = self.take(key).map(|raw| self.elements(raw)).unwrap_or_default();
        elements.into_iter().filter_map(|raw| self.as_string(raw)).filter_map(|text| self.read(text, &read)).collect()
    }

    pub fn boolean(&mut self, key: &'static str) -> Option<Located<bool>> {
        let raw = self.take(key)?;
        let span = raw.span();
        match raw.into_inner() {
            DeValue::Boolean(value) => Some(Located { value, span }),
            other => self.mistyped(&span, "true or false", &other),
        }
    }

    /// Takes a whole number inside `range`.
    pub fn number(&mut self, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let raw = self.take(key)?;
        let span = raw.span();
        let number = match raw.into_inner() {
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok(),
            other => return self.mistyped(&span, "a whole number", &other),
        };
        let within = number.and_then(|number| u64::try_from(number).ok()).filter(|number| range.contains(number));
        within.or_else(|| self.out_of_range(span, key, &format!("{} to {}", range.start(), range.end())))
    }

    /// Takes a time such as `"30s"` inside `range`.
    pub fn duration(&mut self, key: &'static str, range: std::ops::RangeInclusive<Duration>) -> Option<Duration> {
        let time = self.parsed(key, values::duration)?;
        let within = range.contains(&time.value).then_some(time.value);
        let bounds = format!("{:?} to {:?}", range.start(), range.end());
        within.or_else(|| self.out_of_range(time.span, key, &bounds))
    }

    /// Takes a size such as `"16 KiB"` inside `range`.
    pub fn size(&mut self, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let size = self.parsed(key, values::size)?;
        let within = range.contains(&size.value).then_some(size.value);
        let bounds = format!("{} to {}", values::show_size(*range.start()), values::show_size(*range.end()));
        within.or_else(|| self.out_of_range(size.span, key, &bounds))
    }

    fn out_of_range<T>(&self, span: Range<usize>, key: &str, bounds: &str) -> Option<T> {
        self.report.add(Diagnostic::new(span, format!("{key} is out of range")).label(format!("must be {bounds}")));
        None
    }

    /// Takes everything that is left, for tables whose keys are names.
    pub fn rest(&mut self) -> Vec<(Located<String>, Raw<'t>)> {
        let table = std::mem::take(&mut self.table);
        table.into_iter().map(|(key, raw)| (located(key), raw)).collect()
    }

    /// Reports a required value that is not there.
    pub fn missing(&self, what: &str, help: &str) {
        let message = format!("{} has no {what}", self.name);
        self.report.add(Diagnostic::new(self.span.clone(), message).help(help));
    }

    /// Ends the table: whatever was not taken is unknown.
    pub fn finish(mut self) {
        for (key, _) in self.rest() {
            let diagnostic = Diagnostic::new(key.span, format!("unknown setting '{}' in {}", key.value, self.name));
            self.report.add(if NOT_YET.contains(&&*key.value) {
                Diagnostic { message: format!("'{}' is not supported in this version", key.value), ..diagnostic }
            } else {
                diagnostic.help(values::suggest(&key.value, self.known.iter().copied()))
            });
        }
    }

    fn mistyped<T>(&self, span: &Range<usize>, wanted: &str, found: &DeValue<'_>) -> Option<T> {
        let found = values::kind(found);
        self.report.add(Diagnostic::new(span.clone(), format!("expected {wanted}, found {found}")));
        None
    }
}

fn located(key: Spanned<std::borrow::Cow<'_, str>>) -> Located<String> {
    let span = key.span();
    Located { value: key.into_inner().into_owned(), span }
}
