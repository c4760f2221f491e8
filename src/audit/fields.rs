//! What index, usage and filters need of a line of the journal, borrowed from it: no allocation, no tree of values.
//!
//! A line is read member by member, so that a name inside a value is never taken for a member.

use crate::clock::Timestamp;
use std::borrow::Cow;

/// The members of one record. What the record does not have, or has as null, is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a> {
    pub kind: Option<Text<'a>>,
    pub journal: Option<Text<'a>>,
    pub seq: Option<u64>,
    pub ts: Option<Text<'a>>,
    pub gateway: Option<Text<'a>>,
    pub request_id: Option<Text<'a>>,
    pub client_ip: Option<Text<'a>>,
    pub method: Option<Text<'a>>,
    pub path: Option<Text<'a>>,
    pub route: Option<Text<'a>>,
    pub key_id: Option<Text<'a>>,
    pub entity_id: Option<Text<'a>>,
    pub mode: Option<Text<'a>>,
    pub decision: Option<Text<'a>>,
    pub reason: Option<Text<'a>>,
    pub status: Option<u64>,
    pub duration_us: Option<u64>,
    /// Of a seal: its hash.
    pub hash: Option<Text<'a>>,
}

/// A string as it stands in the line, between its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    raw: &'a str,
    has_escapes: bool,
}

/// A value, as far as anybody here looks at it.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Text(Text<'a>),
    Number(u64),
    /// Null, and what no member of ours is: lists, objects, fractions, true and false.
    Other,
}

/// Reads a line from its beginning.
struct Scanner<'a> {
    line: &'a str,
    /// What follows the last byte that was read.
    rest: &'a [u8],
}

// === impl Fields ===

impl<'a> Fields<'a> {
    /// Reads a line of the journal, without its newline; `None` for what is no JSON object as the journal writes it, without
    /// spaces between its members. That the line is whole is for its checksum to say.
    pub fn read(line: &'a str) -> Option<Self> {
        Self::read_in_order(line).or_else(|| Self::read_any(line))
    }

    /// Reads a request as it is written, up to the last member that is wanted: nearly all lines, in a fraction of the time.
    fn read_in_order(line: &'a str) -> Option<Self> {
        let mut scanner = Scanner { line, rest: line.as_bytes() };
        let scanner = &mut scanner;
        scanner.skip(br#"{"schema":1,"kind":"#)?;
        let kind = scanner.text_or_null()?;
        let journal = scanner.text_at(br#","journal":"#)?;
        let gateway = journal.map(|journal| Text { raw: journal.raw.split('/').next().unwrap_or_default(), ..journal });
        Some(Self {
            kind,
            journal,
            seq: scanner.number_at(br#","seq":"#)?,
            ts: scanner.text_at(br#","ts":"#)?,
            request_id: scanner.text_at(br#","request_id":"#)?,
            client_ip: scanner.text_at(br#","trace_id":"#).and_then(|_| scanner.text_at(br#","client_ip":"#))?,
            method: scanner.text_at(br#","peer_ip":"#).and_then(|_| scanner.text_at(br#","method":"#))?,
            path: scanner.text_at(br#","host":"#).and_then(|_| scanner.text_at(br#","path":"#))?,
            route: {
                // Where the configuration allows names of it.
                _ = scanner.text_at(br#","query":"#);
                scanner.text_at(br#","route":"#)?
            },
            key_id: {
                scanner.text_at(br#","protocol":"#)?;
                scanner.text_at(br#","user_agent":"#)?;
                // Records of before it was one have none.
                _ = scanner.text_at(br#","client_identity":"#);
                scanner.text_at(br#","key_id":"#)?
            },
            entity_id: scanner.text_at(br#","key_name":"#).and_then(|_| scanner.text_at(br#","entity_id":"#))?,
            mode: scanner.text_at(br#","mode":"#)?,
            decision: scanner.text_at(br#","decision":"#)?,
            reason: scanner.text_at(br#","reason":"#)?,
            status: scanner.number_at(br#","status":"#)?,
            duration_us: {
                scanner.number_at(br#","bytes_in":"#)?;
                scanner.number_at(br#","bytes_out":"#)?;
                scanner.number_at(br#","duration_us":"#)?
            },
            // It is the first part of the journal's name.
            gateway,
            hash: None,
        })
    }

    /// Reads any object.
    fn read_any(line: &'a str) -> Option<Self> {
        let mut scanner = Scanner { line, rest: line.as_bytes() };
        let mut fields = Self::default();
        scanner.skip(b"{")?;
        loop {
            let name = scanner.text()?;
            scanner.skip(b":")?;
            let value = scanner.value()?;
            fields.set(name.raw, value);
            if scanner.skip(b",").is_none() {
                scanner.skip(b"}")?;
                return scanner.rest.is_empty().then_some(fields);
            }
        }
    }

    /// Whether this is the record of a request.
    pub fn is_request(&self) -> bool {
        self.kind.is_some_and(|kind| kind.is("request"))
    }

    /// When the request's head arrived.
    pub fn at(&self) -> Option<Timestamp> {
        self.ts.and_then(|text| timestamp(text.raw))
    }

    fn set(&mut self, name: &str, value: Value<'a>) {
        match name {
            "kind" => self.kind = value.text(),
            "journal" => self.journal = value.text(),
            "seq" => self.seq = value.number(),
            "ts" => self.ts = value.text(),
            "gateway" => self.gateway = value.text(),
            "request_id" => self.request_id = value.text(),
            "client_ip" => self.client_ip = value.text(),
            "method" => self.method = value.text(),
            "path" => self.path = value.text(),
            "route" => self.route = value.text(),
            "key_id" => self.key_id = value.text(),
            "entity_id" => self.entity_id = value.text(),
            "mode" => self.mode = value.text(),
            "decision" => self.decision = value.text(),
            "reason" => self.reason = value.text(),
            "status" => self.status = value.number(),
            "duration_us" => self.duration_us = value.number(),
            "hash" => self.hash = value.text(),
            _ => {}
        }
    }
}

// === impl Text ===

impl<'a> Text<'a> {
    /// A text as JSON has it between its quotes.
    pub fn of(raw: &'a str) -> Self {
        Self { raw, has_escapes: raw.contains('\\') }
    }

    /// The bytes of the line between the quotes: equal texts written by the journal have equal ones.
    pub const fn raw(self) -> &'a str {
        self.raw
    }

    /// The text itself.
    pub fn decoded(self) -> Cow<'a, str> {
        if !self.has_escapes {
            return Cow::Borrowed(self.raw);
        }
        let decoded = serde_json::from_str::<String>(&format!("\"{}\"", self.raw));
        decoded.map_or(Cow::Borrowed(self.raw), Cow::Owned)
    }

    pub fn is(self, other: &str) -> bool {
        if self.has_escapes { self.decoded() == other } else { self.raw == other }
    }

    pub fn starts_with(self, prefix: &str) -> bool {
        if self.has_escapes { self.decoded().starts_with(prefix) } else { self.raw.starts_with(prefix) }
    }
}

// === impl Value ===

impl<'a> Value<'a> {
    const fn text(self) -> Option<Text<'a>> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(_) | Self::Other => None,
        }
    }

    const fn number(self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Text(_) | Self::Other => None,
        }
    }
}

// === impl Scanner ===

impl<'a> Scanner<'a> {
    #[inline]
    fn skip<const N: usize>(&mut self, bytes: &[u8; N]) -> Option<()> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        (head == bytes).then(|| self.rest = rest)
    }

    /// The member that begins with these bytes; `None` when another comes, or another kind of value.
    #[inline]
    fn text_at<const N: usize>(&mut self, name: &[u8; N]) -> Option<Option<Text<'a>>> {
        self.skip(name)?;
        self.text_or_null()
    }

    #[inline]
    fn text_or_null(&mut self) -> Option<Option<Text<'a>>> {
        match self.text() {
            Some(text) => Some(Some(text)),
            None => self.skip(b"null").map(|()| None),
        }
    }

    #[inline]
    fn number_at<const N: usize>(&mut self, name: &[u8; N]) -> Option<Option<u64>> {
        self.skip(name)?;
        match self.number()? {
            Value::Number(number) => Some(Some(number)),
            Value::Text(_) => None,
            Value::Other => self.skip(b"null").map(|()| None),
        }
    }

    fn value(&mut self) -> Option<Value<'a>> {
        match self.rest.first()? {
            b'"' => self.text().map(Value::Text),
            b'0'..=b'9' => match self.number()? {
                Value::Other => self.word(),
                number @ (Value::Number(_) | Value::Text(_)) => Some(number),
            },
            b'{' | b'[' => self.nested(),
            b'-' | b'n' | b't' | b'f' => self.word(),
            _ => None,
        }
    }

    /// A string, quotes included.
    #[inline]
    fn text(&mut self) -> Option<Text<'a>> {
        self.skip(b"\"")?;
        let start = self.line.len() - self.rest.len();
        let length = quote_or_backslash(self.rest)?;
        self.rest = self.rest.get(length..)?;
        let has_escapes = self.skip(b"\"").is_none();
        let length = if has_escapes { length + self.escaped()? } else { length };
        Some(Text { raw: self.line.get(start..start + length)?, has_escapes })
    }

    /// The rest of a string from its first backslash on; gives its length without the closing quote.
    fn escaped(&mut self) -> Option<usize> {
        let before = self.rest.len();
        loop {
            let length = quote_or_backslash(self.rest)?;
            self.rest = self.rest.get(length..)?;
            if self.skip(b"\"").is_some() {
                return Some(before - self.rest.len() - 1);
            }
            self.rest = self.rest.get(2..)?;
        }
    }

    /// A whole number, or [`Value::Other`] when it is none; then nothing has been read.
    #[inline]
    fn number(&mut self) -> Option<Value<'a>> {
        let mut number = 0_u64;
        for (length, byte) in self.rest.iter().enumerate() {
            match byte {
                b'0'..=b'9' => match number.checked_mul(10).and_then(|ten| ten.checked_add(u64::from(byte - b'0'))) {
                    Some(more) => number = more,
                    None => return Some(Value::Other),
                },
                b',' | b'}' if length > 0 => {
                    self.rest = self.rest.get(length..)?;
                    return Some(Value::Number(number));
                }
                _ => return Some(Value::Other),
            }
        }
        None
    }

    /// Null, true, false, or a number that is no whole one.
    fn word(&mut self) -> Option<Value<'a>> {
        let length = self.rest.iter().position(|byte| matches!(byte, b',' | b'}'))?;
        self.rest = self.rest.get(length..)?;
        Some(Value::Other)
    }

    /// A list or an object, whatever is inside.
    fn nested(&mut self) -> Option<Value<'a>> {
        let mut depth = 0_usize;
        loop {
            match self.rest.first()? {
                b'"' => {
                    self.text()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.rest = self.rest.get(1..)?;
            if depth == 0 {
                return Some(Value::Other);
            }
        }
    }
}

/// Where the first quote or backslash is. Eight bytes at a time: most strings are short, and a call of a library's search
/// costs more than they do.
#[inline]
fn quote_or_backslash(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut checked = 0;
    for word in words {
        let word = u64::from_le_bytes(*word);
        let found = zero_bytes(word ^ repeated(b'"')) | zero_bytes(word ^ repeated(b'\\'));
        if found != 0 {
            return Some(checked + found.trailing_zeros() as usize / 8);
        }
        checked += 8;
    }
    rest.iter().position(|byte| matches!(byte, b'"' | b'\\')).map(|at| checked + at)
}

const fn repeated(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// The high bit of the lowest byte that is zero is set; those of higher ones may be wrong.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(repeated(1)) & !word & repeated(0x80)
}

/// RFC 3339. By hand in the form that the journal writes.
fn timestamp(text: &str) -> Option<Timestamp> {
    written_by_us(text.as_bytes()).or_else(|| Timestamp::parse(text))
}

/// `2026-11-24T10:42:10.123456Z`, and nothing else.
fn written_by_us(text: &[u8]) -> Option<Timestamp> {
    let text: &[u8; 27] = text.try_into().ok()?;
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (26, b'Z')];
    let is_ours = marks.iter().all(|(at, mark)| text.get(*at) == Some(mark));
    let number = |from: usize, length: usize| digits(text.get(from..from + length)?);
    let day = is_ours.then(|| days_since_epoch(number(0, 4)?, number(5, 2)?, number(8, 2)?))??;
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let in_day = (hour <= 23 && minute <= 59 && second <= 59).then_some((hour * 60 + minute) * 60 + second)?;
    Some(Timestamp::from_micros((day * 86_400 + in_day) * 1_000_000 + number(20, 6)?))
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
}

/// Of a date of the Gregorian calendar; `None` when there is no such day. Years begin in March here, so that the leap day is
/// the last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let exists = (1..=12).contains(&month) && (1..=length).contains(&day);
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let before_year = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    exists.then_some(before_year + (153 * month + 2) / 5 + day - 1 - 719_468)
}

#[cfg(test)]
mod tests {
    use super::super::reader::Follow;
    use super::super::segment::{Kind, write_line};
    use super::super::{Journal, Settings};
    use super::*;
    use crate::clock::{Clock, monotonic};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::Value as Json;
    use std::rc::Rc;

    const NAMES: [&str; 25] = [
        "ts",
        "request_id",
        "client_ip",
        "method",
        "path",
        "route",
        "key_id",
        "entity_id",
        "mode",
        "decision",
        "reason",
        "status",
        "duration_us",
        "hash",
        "trace_id",
        "counts",
        "before",
        "after",
        "bytes_in",
        "key_name",
        "user_agent",
        "client_identity",
        "upstream",
        "host",
        "protocol",
    ];

    /// Strings that a careless reader would take for members.
    fn string() -> impl Strategy<Value = String> {
        prop_oneof![
            "\\PC{0,40}",
            any::<String>(),
            select(vec!["\",\"key_id\":\"key_X", "\\", "\\\"", "}", "{\"seq\":1}", "\u{0}\n"]).prop_map(str::to_owned),
        ]
    }

    fn json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            string().prop_map(Json::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Json::from),
                vec((select(NAMES.to_vec()), inner), 0..4)
                    .prop_map(|members| members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
            ]
        })
    }

    /// Any members, each once, in any order.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        (Just(NAMES.to_vec()).prop_shuffle(), vec(json(), 0..NAMES.len())).prop_map(|(names, values)| {
            let members = names.iter().zip(values).map(|(name, value)| format!("\"{name}\":{value},"));
            members.collect::<String>().into_bytes()
        })
    }

    /// A request as it is written, with these values.
    fn in_order(texts: &[String], numbers: &[Option<u64>]) -> String {
        let names = [
            "ts",
            "request_id",
            "trace_id",
            "client_ip",
            "peer_ip",
            "method",
            "host",
            "path",
            "route",
            "protocol",
            "user_agent",
            "client_identity",
            "key_id",
            "key_name",
            "entity_id",
            "mode",
            "decision",
            "reason",
        ];
        let counts = ["status", "bytes_in", "bytes_out", "duration_us", "upstream_us"];
        let texts = names.iter().zip(texts).map(|(name, text)| format!("\"{name}\":{},", Json::from(text.as_str())));
        let numbers = counts.iter().zip(numbers).map(|(name, number)| format!("\"{name}\":{},", Json::from(*number)));
        let mut line = Vec::new();
        let body = texts.chain(numbers).collect::<String>();
        write_line(&mut line, Kind::Request, "edge-1/0", 7, "cfg", body.as_bytes());
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_request_is_written_in_the_order_that_is_read_fast() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::of(dir.path().to_owned());
        settings.query_names = vec!["page".to_owned()];
        let (journal, mut tellers) = Journal::open(&settings, "gw", "cfg", Clock::system(), 1, 100).unwrap();
        let recorder = Rc::new(tellers.remove(0).recorder);
        let (head, ()) = http::Request::new(()).into_parts();
        for target in ["/v1/x", "/v1/x?page=2&key=secret"] {
            let mut pending = recorder.begin(Clock::system().moment()).unwrap();
            pending.set_request(&head, "req_1".parse().unwrap(), [7; 16]);
            pending.set_target(&target.parse().unwrap());
            pending.commit(None, monotonic());
        }
        drop((recorder, tellers));
        journal.shutdown();
        let mut requests = 0;
        let read = Follow::new(dir.path().join("0")).read(|line| {
            let fields = Fields::read_any(line.text).unwrap();
            requests += u32::from(fields.is_request());
            assert_eq!(Fields::read_in_order(line.text), Some(fields).filter(Fields::is_request), "{}", line.text);
        });
        read.unwrap();
        assert_eq!(requests, 2);
    }

    fn agrees(text: Option<Text<'_>>, json: &Json, name: &str) {
        assert_eq!(text.map(Text::decoded).as_deref(), json[name].as_str(), "{name}");
    }

    proptest! {
        #[test]
        fn a_line_reads_as_the_library_reads_it(seq: u64, body in body()) {
            let mut line = Vec::new();
            write_line(&mut line, Kind::Request, "edge-1/0", seq, "cfg", &body);
            let line = String::from_utf8(line).unwrap();
            let (line, json) = (line.trim_end_matches('\n'), serde_json::from_str::<Json>(&line).unwrap());
            let fields = Fields::read(line).expect("a line of the journal");
            let texts = [
                (fields.kind, "kind"), (fields.journal, "journal"), (fields.ts, "ts"), (fields.gateway, "gateway"),
                (fields.request_id, "request_id"), (fields.client_ip, "client_ip"), (fields.method, "method"),
                (fields.path, "path"), (fields.route, "route"), (fields.key_id, "key_id"),
                (fields.entity_id, "entity_id"), (fields.mode, "mode"), (fields.decision, "decision"),
                (fields.reason, "reason"), (fields.hash, "hash"),
            ];
            texts.into_iter().for_each(|(text, name)| agrees(text, &json, name));
            let numbers = [(fields.seq, "seq"), (fields.status, "status"), (fields.duration_us, "duration_us")];
            numbers.into_iter().for_each(|(number, name)| assert_eq!(number, json[name].as_u64(), "{name}"));
        }

        #[test]
        fn what_is_read_in_order_is_what_is_read_in_any(texts in vec(string(), 18), numbers in vec(any::<Option<u64>>(), 5)) {
            let line = in_order(&texts, &numbers);
            let line = line.trim_end();
            let fields = Fields::read_in_order(line).expect("the order of a request");
            prop_assert_eq!(Some(fields), Fields::read_any(line));
        }

        #[test]
        fn no_bytes_break_the_reader(text: String, cut in 0_usize..200) {
            Fields::read(&text);
            let line = format!("{{\"a\":[{text:?},{{\"b\":1.5}}],\"c\":{text:?}}}");
            Fields::read(line.get(..cut).unwrap_or(&line));
        }

        #[test]
        fn times_read_as_the_library_reads_them(micros in -62_135_596_800_000_000_i64..253_402_300_799_000_000) {
            let time = Timestamp::from_micros(micros);
            prop_assert_eq!(written_by_us(time.to_string().as_bytes()), Some(time));
        }

        #[test]
        fn no_time_is_read_that_the_library_refuses(text in "(19|20|00)\\d\\d-[01]\\d-[0-3]\\dT[0-2]\\d:[0-6]\\d:[0-6]\\d\\.\\d{6}Z") {
            if let Some(time) = written_by_us(text.as_bytes()) {
                prop_assert_eq!(Timestamp::parse(&text), Some(time));
            }
        }
    }
}
