//! Texts by number: each is kept once, however many records hold it.

use super::fields::Text;
use super::hash::Seeded;
use std::collections::HashMap;
use std::num::NonZeroU32;

/// Each text once, as JSON has it between its quotes.
#[derive(Debug, Default)]
pub struct Texts {
    numbers: HashMap<Box<str>, TextId, Seeded>,
    texts: Vec<Box<str>>,
    /// The last two: of a record's, two are mostly those of the record before.
    latest: [Option<TextId>; 2],
}

/// Beginning with 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TextId(NonZeroU32);

// === impl TextId ===

impl TextId {
    pub const fn place(self) -> usize {
        self.0.get() as usize - 1
    }
}

// === impl Texts ===

impl Texts {
    /// In the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(|text| &**text)
    }

    /// The number of a text; `raw` is what JSON has between its quotes.
    pub fn number(&mut self, raw: &str) -> TextId {
        let is_it = |number: &TextId| self.texts.get(number.place()).is_some_and(|text| &**text == raw);
        if let Some(number) = self.latest.into_iter().flatten().find(is_it) {
            return number;
        }
        let number = self.numbers.get(raw).copied().unwrap_or_else(|| self.add(raw));
        self.latest = [Some(number), self.latest[0]]; // tidy: allow(there are two)
        number
    }

    fn add(&mut self, raw: &str) -> TextId {
        self.texts.push(raw.into());
        // They come from far fewer records.
        let number = u32::try_from(self.texts.len()).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX);
        self.numbers.insert(raw.into(), TextId(number));
        TextId(number)
    }

    /// The text itself.
    pub fn text(&self, number: TextId) -> String {
        self.texts.get(number.place()).map(|raw| Text::of(raw).decoded().into_owned()).unwrap_or_default()
    }
}
