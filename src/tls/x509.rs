//! What a certificate says of itself (RFC 5280): its names, and from when until when it holds. Whether it is to be believed is
//! not judged here.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

// Tags of DER (X.690, section 8).
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const TELETEX: u8 = 0x14;
const IA5: u8 = 0x16;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// Of a certificate's body (section 4.1).
const VERSION: u8 = 0xa0;
const ISSUER_ID: u8 = 0x81;
const SUBJECT_ID: u8 = 0x82;
const EXTENSIONS: u8 = 0xa3;
/// Kinds of names (section 4.2.1.6).
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const ADDRESS: u8 = 0x87;

/// 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// A certificate's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Seconds since the Unix epoch.
    pub not_before: i64,
    pub not_after: i64,
    /// The subject's last CN.
    pub common_name: Option<Box<str>>,
    /// The subject's alternative names, in their order.
    pub names: Vec<Name>,
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// In lower case; its first label may be `*`.
    Dns(Box<str>),
    Address(IpAddr),
    Uri(Box<str>),
    Email(Box<str>),
}

/// DER that is still to be read.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

// === impl Facts ===

impl Facts {
    /// Reads a certificate in DER. None for what is no certificate.
    pub fn read(certificate: &[u8]) -> Option<Self> {
        let mut body = Der(Der(certificate).take(SEQUENCE)?).enter(SEQUENCE)?;
        body.skip(VERSION);
        body.take(INTEGER)?;
        // The signature's algorithm, the issuer.
        body.take(SEQUENCE)?;
        body.take(SEQUENCE)?;
        let mut validity = body.enter(SEQUENCE)?;
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        let common_name = common_name(body.enter(SEQUENCE)?)?;
        // The key.
        body.take(SEQUENCE)?;
        body.skip(ISSUER_ID);
        body.skip(SUBJECT_ID);
        let names = match body.take(EXTENSIONS) {
            Some(extensions) => alternative_names(Der(extensions).enter(SEQUENCE)?)?,
            None => Vec::new(),
        };
        Some(Self { not_before, not_after, common_name, names })
    }

    /// Whether it is for this host: a name in lower case, or an address.
    pub fn covers(&self, host: &str) -> bool {
        self.is_exactly(host) || self.covers_by_wildcard(host)
    }

    /// Whether it names this host.
    pub fn is_exactly(&self, host: &str) -> bool {
        let address = host.parse::<IpAddr>().ok();
        self.names.iter().any(|name| match name {
            Name::Dns(name) => **name == *host,
            Name::Address(known) => Some(*known) == address,
            Name::Uri(_) | Name::Email(_) => false,
        })
    }

    /// Whether a `*` of its names stands for the first label of this host, and for no more (RFC 9525, section 6.3).
    pub fn covers_by_wildcard(&self, host: &str) -> bool {
        let Some((label, rest)) = host.split_once('.').filter(|_| host.parse::<IpAddr>().is_err()) else {
            return false;
        };
        !label.is_empty()
            && self.names.iter().any(|name| match name {
                Name::Dns(name) => name.strip_prefix("*.") == Some(rest),
                Name::Address(_) | Name::Uri(_) | Name::Email(_) => false,
            })
    }

    /// Whom it stands for where a client shows it, with the kind of name before it: its first URI, else its first host
    /// name, else its first mail address, else its subject's CN.
    pub fn identity(&self) -> Option<String> {
        let first = |pick: fn(&Name) -> Option<String>| self.names.iter().find_map(pick);
        first(|name| if let Name::Uri(uri) = name { Some(format!("URI:{uri}")) } else { None })
            .or_else(|| first(|name| if let Name::Dns(dns) = name { Some(format!("DNS:{dns}")) } else { None }))
            .or_else(|| first(|name| if let Name::Email(email) = name { Some(format!("email:{email}")) } else { None }))
            .or_else(|| self.common_name.as_ref().map(|name| format!("CN:{name}")))
    }
}

/// The last CN of a subject.
fn common_name(mut subject: Der<'_>) -> Option<Option<Box<str>>> {
    let mut found = None;
    while !subject.is_empty() {
        let mut set = subject.enter(SET)?;
        while !set.is_empty() {
            let mut attribute = set.enter(SEQUENCE)?;
            let (kind, (tag, value)) = (attribute.take(OID)?, attribute.next()?);
            if kind == COMMON_NAME && matches!(tag, UTF8 | PRINTABLE | TELETEX | IA5) {
                found = Some(text(value));
            }
        }
    }
    Some(found)
}

fn alternative_names(mut extensions: Der<'_>) -> Option<Vec<Name>> {
    let mut found = Vec::new();
    while !extensions.is_empty() {
        let mut extension = extensions.enter(SEQUENCE)?;
        let kind = extension.take(OID)?;
        extension.skip(BOOLEAN);
        let value = extension.take(OCTETS)?;
        if kind == SUBJECT_ALT_NAME {
            let mut names = Der(value).enter(SEQUENCE)?;
            while !names.is_empty() {
                let (tag, value) = names.next()?;
                found.extend(name(tag, value));
            }
        }
    }
    Some(found)
}

/// A name of a kind that is known here.
fn name(tag: u8, value: &[u8]) -> Option<Name> {
    match tag {
        DNS => Some(Name::Dns(text(value).trim_end_matches('.').to_ascii_lowercase().into())),
        URI => Some(Name::Uri(text(value))),
        EMAIL => Some(Name::Email(text(value))),
        ADDRESS => {
            let four = <[u8; 4]>::try_from(value).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
            let address = four.or_else(|_| <[u8; 16]>::try_from(value).map(|octets| Ipv6Addr::from(octets).into()));
            address.ok().map(Name::Address)
        }
        _ => None,
    }
}

fn text(value: &[u8]) -> Box<str> {
    String::from_utf8_lossy(value).into()
}

// === impl Der ===

impl<'a> Der<'a> {
    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next value: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk::<2>()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next value, if it has this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let (_, content) = ahead.next().filter(|(found, _)| *found == tag)?;
        *self = ahead;
        Some(content)
    }

    fn enter(&mut self, tag: u8) -> Option<Self> {
        self.take(tag).map(Der)
    }

    /// Passes over a value that may be left out.
    fn skip(&mut self, tag: u8) {
        _ = self.take(tag);
    }

    /// A time in UTC, whole seconds (section 4.1.2.5).
    fn time(&mut self) -> Option<i64> {
        let (tag, content) = self.next()?;
        let (year_digits, rest) = match tag {
            UTC_TIME => content.split_at_checked(2)?,
            GENERALIZED_TIME => content.split_at_checked(4)?,
            _ => return None,
        };
        let year = match (tag, number(year_digits)?) {
            (UTC_TIME, year) if year < 50 => year + 2000,
            (UTC_TIME, year) => year + 1900,
            (_, year) => year,
        };
        let rest = rest.strip_suffix(b"Z").filter(|rest| rest.len() == 10)?;
        let (pairs, _) = rest.as_chunks::<2>();
        let mut parts = pairs.iter().map(|pair| number(pair).and_then(|part| i8::try_from(part).ok()));
        let mut part = || parts.next().flatten();
        let time = DateTime::new(year, part()?, part()?, part()?, part()?, part()?, 0).ok()?;
        TimeZone::UTC.to_timestamp(time).ok().map(|time| time.as_second())
    }
}

/// A number of a few decimal digits.
fn number(digits: &[u8]) -> Option<i16> {
    digits.iter().try_fold(0_i16, |number, digit| {
        let digit = char::from(*digit).to_digit(10).and_then(|digit| i16::try_from(digit).ok())?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    fn facts(names: &[&str]) -> Facts {
        let names = names.iter().map(|name| Name::Dns((*name).into())).collect();
        Facts { not_before: 0, not_after: 0, common_name: None, names }
    }

    /// Made by `openssl req -x509 -newkey ed25519 -noenc -days 9000 -utf8 -subj '/O=x/CN=first/CN=Édge' -addext
    /// 'subjectAltName=DNS:Edge.Example,DNS:*.b.example,IP:192.0.2.1,IP:2001:db8::1,URI:spiffe://example/edge,email:edge@example'`.
    /// Its end is past 2050, where times have another form.
    fn certificate() -> Vec<u8> {
        CertificateDer::from_pem_slice(include_bytes!("x509_test.pem")).unwrap().to_vec()
    }

    #[test]
    fn all_names_and_both_times_are_read() {
        let facts = Facts::read(&certificate()).unwrap();
        assert_eq!((facts.not_before, facts.not_after), (1_796_068_832, 2_573_668_832));
        assert_eq!(facts.common_name.as_deref(), Some("Édge"));
        let names = [
            Name::Dns("edge.example".into()),
            Name::Dns("*.b.example".into()),
            Name::Address("192.0.2.1".parse().unwrap()),
            Name::Address("2001:db8::1".parse().unwrap()),
            Name::Uri("spiffe://example/edge".into()),
            Name::Email("edge@example".into()),
        ];
        assert_eq!(facts.names, names);
        assert_eq!(facts.identity().as_deref(), Some("URI:spiffe://example/edge"));
    }

    #[test]
    fn a_star_stands_for_one_whole_label() {
        let wild = facts(&["*.example.com"]);
        assert!(wild.covers("a.example.com"));
        for host in ["example.com", "a.b.example.com", ".example.com", "aexample.com", "*.com"] {
            assert!(!wild.covers(host), "{host}");
        }
        assert!(!facts(&["*.0.0.1"]).covers("127.0.0.1"));
        assert!(!facts(&["a*.example.com"]).covers("ab.example.com"));
    }

    #[test]
    fn an_address_is_covered_by_an_address_alone() {
        let named = Facts { names: vec![Name::Address("::1".parse().unwrap())], ..facts(&["127.0.0.2"]) };
        assert!(named.covers("::1"));
        assert!(named.covers("0:0::1"));
        assert!(!named.covers("127.0.0.1"));
    }

    #[test]
    fn who_a_client_is_falls_back_to_its_subject() {
        let named = |names: Vec<Name>| Facts { names, common_name: Some("edge".into()), ..facts(&[]) };
        assert_eq!(named(vec![]).identity().as_deref(), Some("CN:edge"));
        let email = Name::Email("a@b".into());
        assert_eq!(named(vec![email.clone()]).identity().as_deref(), Some("email:a@b"));
        assert_eq!(named(vec![email, Name::Dns("a".into())]).identity().as_deref(), Some("DNS:a"));
        assert_eq!(facts(&[]).identity(), None);
    }

    proptest! {
        #[test]
        fn what_is_damaged_is_read_or_refused_and_never_a_panic(at in 0usize..1000, bytes in any::<Vec<u8>>(), cut in 0usize..1000) {
            let mut damaged = certificate();
            let at = at % damaged.len();
            let end = (at + bytes.len()).min(damaged.len());
            damaged.splice(at..end, bytes);
            damaged.truncate(damaged.len().saturating_sub(cut % 50));
            _ = Facts::read(&damaged);
        }
    }
}
