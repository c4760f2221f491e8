//! A request's record as its worker leaves it in the ring: numbers, and texts one after the other. The journal's writer gives it
//! a number and makes it a line, so that the request does not wait for that.
//!
//! Another version of this program may find it there: it names reasons by their names. The layout is part of the ring's mark.

use super::RECORD_BYTES_MAX;
use crate::clock::Timestamp;
use crate::key::{KeyId, Mode};
use crate::ulid::Ulid;
use std::net::{IpAddr, Ipv6Addr};

/// What a worker knows of a request. What does not apply is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draft<'a> {
    /// When its head arrived.
    pub at: Timestamp,
    pub duration_us: Option<u64>,
    pub bytes_in: Option<u64>,
    pub bytes_out: Option<u64>,
    pub upstream_us: Option<u64>,
    pub trace_id: [u8; 16],
    pub key: Option<(KeyId, Mode)>,
    pub client_ip: Option<IpAddr>,
    pub peer_ip: Option<IpAddr>,
    pub status: Option<u16>,
    pub protocol: Protocol,
    pub allowed: bool,
    /// By [`Text`].
    pub texts: [Option<&'a [u8]>; TEXTS],
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http10,
    Http11,
    Http2,
}

/// The texts of a request, as they arrived or were configured; an overlong one may be cut where a line does not show it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    RequestId,
    Method,
    Host,
    Path,
    /// What the configuration allows of it.
    Query,
    Route,
    UserAgent,
    ClientIdentity,
    KeyName,
    EntityId,
    Reason,
    Upstream,
}

const TEXTS: usize = 12;
/// Words before the texts; the last ones hold their lengths, in 16 bits each.
const WORDS: usize = 14 + LENGTH_WORDS;
const LENGTH_WORDS: usize = TEXTS.div_ceil(4);
const WORD: usize = 8;
/// In the place of a number or a length that there is not.
const NO_NUMBER: u64 = u64::MAX;
const NO_TEXT: u16 = u16::MAX;
/// So much more is kept of a text than a line shows, for that to be seen: no character is longer.
const BEYOND: usize = 4;

// In the word of small things, above 16 bits of status.
const ALLOWED: u64 = 1 << 16;
const HAS_KEY: u64 = 1 << 17;
const IS_LIVE: u64 = 1 << 18;
const HAS_CLIENT: u64 = 1 << 19;
const HAS_PEER: u64 = 1 << 20;
const PROTOCOL_AT: u32 = 24;

// === impl Text ===

impl Text {
    /// How many bytes of it a line shows, at most, once they are escaped.
    pub const fn shown_max(self) -> usize {
        match self {
            Self::RequestId => 128,
            Self::Method => 32,
            Self::Host => 100,
            Self::Path => 256,
            Self::Query | Self::Route => 200,
            Self::UserAgent => 120,
            Self::ClientIdentity => 160,
            Self::KeyName | Self::EntityId | Self::Reason | Self::Upstream => 64,
        }
    }

    const ALL: [Self; TEXTS] = [
        Self::RequestId,
        Self::Method,
        Self::Host,
        Self::Path,
        Self::Query,
        Self::Route,
        Self::UserAgent,
        Self::ClientIdentity,
        Self::KeyName,
        Self::EntityId,
        Self::Reason,
        Self::Upstream,
    ];
}

const _: () = {
    let (mut bytes, mut at) = (WORDS * WORD, 0);
    while at < TEXTS {
        // tidy: allow(at compile time)
        bytes += Text::ALL[at].shown_max() + BEYOND;
        at += 1;
    }
    assert!(bytes <= RECORD_BYTES_MAX);
};

// === impl Draft ===

impl<'a> Draft<'a> {
    pub const fn text(&self, text: Text) -> Option<&'a [u8]> {
        self.texts[text as usize] // tidy: allow(there is a place for each)
    }

    /// Appends it as bytes, at most [`RECORD_BYTES_MAX`].
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut lengths = [NO_TEXT; LENGTH_WORDS * 4];
        let mut texts = self.texts;
        for ((text, which), length) in texts.iter_mut().zip(Text::ALL).zip(&mut lengths) {
            let Some(bytes) = text else { continue };
            *bytes = bytes.get(..which.shown_max() + BEYOND).unwrap_or(bytes);
            *length = bytes.len() as u16;
        }
        let (key, client, peer) =
            (self.key.map_or(0, |(id, _)| id.ulid().to_bits()), ip(self.client_ip), ip(self.peer_ip));
        let trace = u128::from_le_bytes(self.trace_id);
        let numbers = [self.duration_us, self.bytes_in, self.bytes_out, self.upstream_us]
            .map(|number| number.unwrap_or(NO_NUMBER));
        let [duration, bytes_in, bytes_out, upstream] = numbers;
        let (trace, key, client, peer) = (halves(trace), halves(key), halves(client), halves(peer));
        let words = [
            self.at.as_micros() as u64,
            duration,
            bytes_in,
            bytes_out,
            upstream,
            trace.0,
            trace.1,
            key.0,
            key.1,
            client.0,
            client.1,
            peer.0,
            peer.1,
            self.small(),
        ];
        out.extend_from_slice(words.map(u64::to_le_bytes).as_flattened());
        out.extend_from_slice(lengths.map(u16::to_le_bytes).as_flattened());
        texts.iter().flatten().for_each(|text| out.extend_from_slice(text));
    }

    fn small(&self) -> u64 {
        let bit = |is_set: bool, bit: u64| if is_set { bit } else { 0 };
        u64::from(self.status.unwrap_or(0))
            | bit(self.allowed, ALLOWED)
            | bit(self.key.is_some(), HAS_KEY)
            | bit(self.key.is_some_and(|(_, mode)| mode == Mode::Live), IS_LIVE)
            | bit(self.client_ip.is_some(), HAS_CLIENT)
            | bit(self.peer_ip.is_some(), HAS_PEER)
            | (self.protocol as u64) << PROTOCOL_AT
    }

    /// Reads what [`Draft::write`] wrote; `None` for anything else that can be told from it.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<WORD>().0.split_first_chunk::<{ WORDS - LENGTH_WORDS }>()?;
        let words = words.map(u64::from_le_bytes);
        let [
            at,
            duration,
            bytes_in,
            bytes_out,
            upstream,
            trace0,
            trace1,
            key0,
            key1,
            client0,
            client1,
            peer0,
            peer1,
            small,
        ] = words;
        let lengths = rest.first_chunk::<LENGTH_WORDS>()?.as_flattened().as_chunks::<2>().0;
        let has = |bit: u64| small & bit != 0;
        let number = |number: u64| (number != NO_NUMBER).then_some(number);
        let mode = if has(IS_LIVE) { Mode::Live } else { Mode::Test };
        let mut draft = Self {
            at: Timestamp::from_micros(at as i64),
            duration_us: number(duration),
            bytes_in: number(bytes_in),
            bytes_out: number(bytes_out),
            upstream_us: number(upstream),
            trace_id: whole(trace0, trace1).to_le_bytes(),
            key: has(HAS_KEY).then(|| (KeyId::new(Ulid::from_bits(whole(key0, key1))), mode)),
            client_ip: has(HAS_CLIENT).then(|| address(whole(client0, client1))),
            peer_ip: has(HAS_PEER).then(|| address(whole(peer0, peer1))),
            status: Some(small as u16).filter(|status| *status != 0),
            protocol: Protocol::read(small >> PROTOCOL_AT)?,
            allowed: has(ALLOWED),
            texts: [None; TEXTS],
        };
        let mut rest = bytes.get(WORDS * WORD..)?;
        for (text, length) in draft.texts.iter_mut().zip(lengths) {
            let length = u16::from_le_bytes(*length);
            if length != NO_TEXT {
                let (bytes, after) = rest.split_at_checked(length.into())?;
                (*text, rest) = (Some(bytes), after);
            }
        }
        rest.is_empty().then_some(draft)
    }
}

// === impl Protocol ===

impl Protocol {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2.0",
        }
    }

    fn read(number: u64) -> Option<Self> {
        [Self::Http10, Self::Http11, Self::Http2].into_iter().find(|protocol| *protocol as u64 == number)
    }
}

/// One form for both families, since an address that stands for the other family's is folded onto it anyway.
fn ip(address: Option<IpAddr>) -> u128 {
    match address {
        Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped().to_bits(),
        Some(IpAddr::V6(v6)) => v6.to_bits(),
        None => 0,
    }
}

const fn address(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).to_canonical()
}

const fn halves(number: u128) -> (u64, u64) {
    ((number >> 64) as u64, number as u64)
}

fn whole(high: u64, low: u64) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::*;

    /// What a request may leave, however odd, with texts as they may be in a ring.
    #[derive(Clone, Debug)]
    pub struct Sample {
        numbers: [Option<u64>; 4],
        at: i64,
        trace_id: [u8; 16],
        key: Option<(u128, bool)>,
        addresses: [Option<IpAddr>; 2],
        status: Option<u16>,
        protocol: Protocol,
        allowed: bool,
        texts: Vec<Option<Vec<u8>>>,
    }

    // === impl Sample ===

    impl Sample {
        pub fn draft(&self) -> Draft<'_> {
            let [duration_us, bytes_in, bytes_out, upstream_us] = self.numbers;
            let [client_ip, peer_ip] = self.addresses.map(|ip| ip.map(|ip| ip.to_canonical()));
            let mode = |is_live| if is_live { Mode::Live } else { Mode::Test };
            let mut texts = [None; TEXTS];
            texts.iter_mut().zip(&self.texts).for_each(|(slot, text)| *slot = text.as_deref());
            Draft {
                at: Timestamp::from_micros(self.at),
                duration_us,
                bytes_in,
                bytes_out,
                upstream_us,
                trace_id: self.trace_id,
                key: self.key.map(|(bits, is_live)| (KeyId::new(Ulid::from_bits(bits)), mode(is_live))),
                client_ip,
                peer_ip,
                status: self.status,
                protocol: self.protocol,
                allowed: self.allowed,
                texts,
            }
        }
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            2 => "[ -~]{0,40}".prop_map(String::into_bytes),
            1 => "\\PC{0,400}".prop_map(String::into_bytes),
            1 => vec(any::<u8>(), 0..400),
        ]
    }

    pub fn sample() -> impl Strategy<Value = Sample> {
        let address = || of(any::<IpAddr>());
        let protocol = prop_oneof![Just(Protocol::Http10), Just(Protocol::Http11), Just(Protocol::Http2)];
        // Times of our era, which have four digits for the year.
        let at = 0_i64..4_000_000_000_000_000;
        let numbers = [of(..u64::MAX), of(..u64::MAX), of(..u64::MAX), of(..u64::MAX)];
        let rest = (protocol, any::<bool>(), vec(of(text()), TEXTS));
        (numbers, at, any::<[u8; 16]>(), of(any::<(u128, bool)>()), [address(), address()], of(100_u16..), rest)
            .prop_map(|(numbers, at, trace_id, key, addresses, status, (protocol, allowed, texts))| Sample {
                numbers,
                at,
                trace_id,
                key,
                addresses,
                status,
                protocol,
                allowed,
                texts,
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_fits_a_record(sample in sample()) {
            let (draft, mut bytes) = (sample.draft(), Vec::new());
            draft.write(&mut bytes);
            prop_assert!(bytes.len() <= RECORD_BYTES_MAX);
            let read = Draft::read(&bytes).unwrap();
            prop_assert_eq!(Draft { texts: draft.texts, ..read }, draft);
            for (text, which) in read.texts.iter().zip(Text::ALL) {
                prop_assert_eq!(*text, draft.text(which).map(|all| &all[..all.len().min(which.shown_max() + BEYOND)]));
            }
        }

        #[test]
        fn no_bytes_break_the_reader(bytes in vec(any::<u8>(), 0..300), sample in sample(), cut in 0_usize..400) {
            Draft::read(&bytes);
            let mut written = Vec::new();
            sample.draft().write(&mut written);
            let cut = cut.min(written.len());
            assert_eq!(Draft::read(&written[..cut]).is_some(), cut == written.len());
        }
    }
}
