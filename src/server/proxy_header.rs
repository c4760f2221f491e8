//! The PROXY protocol, versions 1 and 2: before its first byte, a connection is told for whom a proxy makes it.
//!
//! Strict, since what it says decides allowlists: what the specification
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>) does not allow is refused. The header is read to its end and
//! not a byte further: what follows may be TLS.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::str::FromStr;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest header of version 1 (section 2.1).
const V1_BYTES_MAX: usize = 107;
/// The longest header of version 2 that is read. Real ones are some hundred bytes; the format goes to 64 KiB.
const V2_BYTES_MAX: usize = 4096;
/// What no header is shorter than: `PROXY UNKNOWN`, and the end of its line.
const BYTES_MIN: usize = 15;
const V1_BEGIN: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_FIXED: usize = 16;
/// The type of the field that holds a checksum of the whole header (section 2.2.3).
const TYPE_CRC32C: u8 = 0x03;

/// For whom a proxy has made a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Client(IpAddr),
    /// For itself, or for somebody whose address has no form here: the proxy's own counts.
    Unsaid,
}

/// What the bytes so far come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// At least so many more bytes belong to the header.
    Needs(usize),
    /// The header is whole.
    Whole(Source),
}

/// Why there is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client went away without a byte.
    Silent,
    /// Something else came.
    Missing,
    /// It began as a header and is none, or broke off.
    Malformed,
}

// === impl Fault ===

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silent => "nothing came",
            Self::Missing => "no PROXY header",
            Self::Malformed => "a malformed PROXY header",
        })
    }
}

/// Reads a header, and nothing of what follows it.
///
/// # Errors
/// [`Fault`].
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Source, Fault> {
    let mut bytes = Vec::with_capacity(V1_BYTES_MAX);
    loop {
        let needs = match parse(&bytes)? {
            Progress::Whole(source) => return Ok(source),
            Progress::Needs(needs) => needs,
        };
        match stream.take(needs as u64).read_buf(&mut bytes).await {
            Ok(0) | Err(_) if bytes.is_empty() => return Err(Fault::Silent),
            Ok(0) | Err(_) => return Err(Fault::Malformed),
            Ok(_) => {}
        }
    }
}

/// Judges the first bytes of a connection.
///
/// # Errors
/// [`Fault`], as soon as they are no beginning of a header.
pub fn parse(bytes: &[u8]) -> Result<Progress, Fault> {
    if begins(bytes, V2_SIGNATURE) {
        return parse_v2(bytes);
    }
    if begins(bytes, V1_BEGIN) {
        return parse_v1(bytes);
    }
    Err(Fault::Missing)
}

/// Whether `bytes` begin with `expected`, or are its beginning.
fn begins(bytes: &[u8], expected: &[u8]) -> bool {
    bytes.iter().zip(expected).all(|(one, other)| one == other)
}

// === version 1 ===

/// `PROXY TCP4 192.0.2.7 198.51.100.1 4711 443`, and CR LF (section 2.1).
fn parse_v1(bytes: &[u8]) -> Result<Progress, Fault> {
    let Some(end) = memchr::memchr2(b'\r', b'\n', bytes) else { return needs_v1(bytes) };
    match bytes.get(end..) {
        // One byte was certain to come, and it was this one.
        Some([b'\r']) if bytes.len() < V1_BYTES_MAX => return Ok(Progress::Needs(1)),
        Some([b'\r', b'\n']) if bytes.len() <= V1_BYTES_MAX => {}
        Some(_) | None => return Err(Fault::Malformed),
    }
    let line =
        bytes.get(V1_BEGIN.len()..end).and_then(|line| std::str::from_utf8(line).ok()).ok_or(Fault::Malformed)?;
    source_v1(line).map(Progress::Whole).ok_or(Fault::Malformed)
}

/// As many bytes as a line that goes on like this has at least.
fn needs_v1(bytes: &[u8]) -> Result<Progress, Fault> {
    if bytes.len() < BYTES_MIN {
        return Ok(Progress::Needs(BYTES_MIN - bytes.len()));
    }
    let is_unknown = bytes.get(V1_BEGIN.len()..).is_some_and(|rest| rest.starts_with(b"UNKNOWN"));
    // Five spaces, and something after each, if it names addresses.
    let spaces = memchr::memchr_iter(b' ', bytes).count();
    let fields = if is_unknown { 0 } else { 5_usize.checked_sub(spaces).ok_or(Fault::Malformed)? };
    let needs = 2 * fields + 2;
    if bytes.len() + needs > V1_BYTES_MAX { Err(Fault::Malformed) } else { Ok(Progress::Needs(needs)) }
}

/// What stands between `PROXY ` and the line's end.
fn source_v1(line: &str) -> Option<Source> {
    // Whatever follows is to be ignored.
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Some(Source::Unsaid);
    }
    let mut fields = line.split(' ');
    let client = match fields.next()? {
        "TCP4" => addresses::<Ipv4Addr>(&mut fields)?,
        "TCP6" => addresses::<Ipv6Addr>(&mut fields)?,
        _ => return None,
    };
    let ports = [fields.next()?, fields.next()?];
    (ports.into_iter().all(is_port) && fields.next().is_none()).then_some(Source::Client(client))
}

/// Whose connection it is; to whom it was made must be an address too.
fn addresses<'a, A: FromStr + Into<IpAddr>>(fields: &mut impl Iterator<Item = &'a str>) -> Option<IpAddr> {
    let (source, _destination) = (fields.next()?.parse::<A>().ok()?, fields.next()?.parse::<A>().ok()?);
    Some(source.into())
}

/// In decimal, without leading zeros.
fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port.to_string() == text)
}

// === version 2 ===

/// The binary form (section 2.2).
fn parse_v2(bytes: &[u8]) -> Result<Progress, Fault> {
    let fixed = match bytes.first_chunk::<V2_FIXED>() {
        Some(fixed) => fixed,
        // Version 1 may be one byte shorter, until the signature is whole.
        None if bytes.len() < V2_SIGNATURE.len() => return Ok(Progress::Needs(BYTES_MIN - bytes.len())),
        None => return Ok(Progress::Needs(V2_FIXED - bytes.len())),
    };
    let [.., command, family, length_high, length_low] = *fixed;
    let length = V2_FIXED + usize::from(u16::from_be_bytes([length_high, length_low]));
    if length > V2_BYTES_MAX || !matches!(command, 0x20 | 0x21) {
        return Err(Fault::Malformed);
    }
    if bytes.len() < length {
        return Ok(Progress::Needs(length - bytes.len()));
    }
    if bytes.len() > length {
        return Err(Fault::Malformed);
    }
    // LOCAL: the proxy speaks for itself, and the rest is to be ignored.
    if command == 0x20 {
        return Ok(Progress::Whole(Source::Unsaid));
    }
    source_v2(bytes, family).map(Progress::Whole).ok_or(Fault::Malformed)
}

fn source_v2(header: &[u8], family: u8) -> Option<Source> {
    let rest = header.get(V2_FIXED..)?;
    let (source, addresses_length) = match family {
        // Unspecified: the rest is to be ignored.
        0x00 => return Some(Source::Unsaid),
        // IPv4, IPv6, Unix; over a stream, or over datagrams that the proxy has understood.
        0x11 | 0x12 => (Source::Client(Ipv4Addr::from(*rest.first_chunk::<4>()?).into()), 12),
        0x21 | 0x22 => (Source::Client(Ipv6Addr::from(*rest.first_chunk::<16>()?).into()), 36),
        0x31 | 0x32 => (Source::Unsaid, 216),
        _ => return None,
    };
    check_fields(header, V2_FIXED + addresses_length)?;
    Some(source)
}

/// Walks over the fields that follow the addresses; a checksum must be right.
fn check_fields(header: &[u8], begin: usize) -> Option<()> {
    let (mut at, mut checksum) = (begin, None);
    while at != header.len() {
        let [kind, high, low] = *header.get(at..)?.first_chunk::<3>()?;
        let value = at + 3..at + 3 + usize::from(u16::from_be_bytes([high, low]));
        at = value.end;
        let bytes = header.get(value.clone())?;
        if kind == TYPE_CRC32C && checksum.replace((value, u32::from_be_bytes(bytes.try_into().ok()?))).is_some() {
            return None;
        }
    }
    checksum.is_none_or(|(place, told)| crc32c_without(header, place) == told).then_some(())
}

/// CRC-32C (Castagnoli) of the header, with zeros at `place`. Bit by bit: once a connection, over some hundred bytes.
fn crc32c_without(header: &[u8], place: Range<usize>) -> u32 {
    let masked = (0..).zip(header).map(|(at, byte)| if place.contains(&at) { 0 } else { *byte });
    let step = |crc: u32, _: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !masked.fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests;
