//! Headers whole, broken, cut and random.

use super::*;
use proptest::prelude::*;

/// What comes of a header with `request` behind it, delivered by `piece` bytes; and what is left to read.
fn read_pieces(header: &[u8], request: &[u8], piece: usize) -> (Result<Source, Fault>, Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let bytes = [header, request].concat();
        let mut stream = pieces_of(&bytes, piece);
        let result = read(&mut stream).await;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        (result, rest)
    })
}

/// A stream that gives at most `piece` bytes at a time.
fn pieces_of(bytes: &[u8], piece: usize) -> impl AsyncRead + Unpin {
    struct Pieces(Vec<u8>, usize, usize);
    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let end = (self.1 + self.2.min(buf.remaining())).min(self.0.len());
            buf.put_slice(&self.0[self.1..end]);
            self.1 = end;
            std::task::Poll::Ready(Ok(()))
        }
    }
    Pieces(bytes.to_vec(), 0, piece)
}

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [V2_SIGNATURE, &[command, family], &length, rest].concat()
}

/// The addresses of version 2 for a client of IPv4, with fields behind them.
fn v4_block(client: [u8; 4], fields: &[u8]) -> Vec<u8> {
    [&client[..], &[198, 51, 100, 1], &[0x12, 0x34, 1, 187], fields].concat()
}

/// A header of version 2 with a checksum.
fn checked(flip: u8) -> Vec<u8> {
    let mut header = v2(0x21, 0x11, &v4_block([192, 0, 2, 7], &[4, 0, 1, 0, 3, 0, 4, 0, 0, 0, 0]));
    let place = header.len() - 4..header.len();
    let crc = crc32c_without(&header, place.clone());
    header[place].copy_from_slice(&(crc ^ u32::from(flip)).to_be_bytes());
    header
}

fn client(text: &str) -> Result<Source, Fault> {
    Ok(Source::Client(text.parse().unwrap()))
}

fn judged(header: &[u8]) -> Result<Source, Fault> {
    let (result, rest) = read_pieces(header, b"GET / HTTP/1.1\r\n\r\n", 7);
    if result.is_ok() {
        assert_eq!(rest, b"GET / HTTP/1.1\r\n\r\n", "{header:?}");
    }
    result
}

#[test]
fn headers_of_version_1_name_the_client() {
    assert_eq!(judged(b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n"), client("192.0.2.7"));
    assert_eq!(judged(b"PROXY TCP4 1.1.1.1 2.2.2.2 0 0\r\n"), client("1.1.1.1"));
    assert_eq!(judged(b"PROXY TCP6 2001:db8::7 ::1 65535 1\r\n"), client("2001:db8::7"));
    let full = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let longest = format!("PROXY TCP6 {full} {full} 65535 65535\r\n");
    assert_eq!(judged(longest.as_bytes()), client(full));
    assert_eq!(judged(b"PROXY UNKNOWN\r\n"), Ok(Source::Unsaid));
    assert_eq!(judged(b"PROXY UNKNOWN whatever it may be\r\n"), Ok(Source::Unsaid));
    let longest = format!("PROXY UNKNOWN {full} {full} 65535 65535\r\n");
    assert_eq!(longest.len(), V1_BYTES_MAX);
    assert_eq!(judged(longest.as_bytes()), Ok(Source::Unsaid));
}

#[test]
fn what_version_1_does_not_allow_is_refused() {
    for line in [
        "PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\r\n",
        "PROXY TCP4  192.0.2.7 198.51.100.1 4711 443\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 4711 443 \r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 4711 443 1\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 4711\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 04711 443\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 +711 443\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
        "PROXY TCP4 192.0.2.07 198.51.100.1 4711 443\r\n",
        "PROXY TCP4 192.0.2.256 198.51.100.1 4711 443\r\n",
        "PROXY TCP4 2001:db8::7 ::1 4711 443\r\n",
        "PROXY TCP6 192.0.2.7 198.51.100.1 4711 443\r\n",
        "PROXY TCP6 fe80::1%eth0 ::1 4711 443\r\n",
        "PROXY TCP6 [2001:db8::7] ::1 4711 443\r\n",
        "PROXY UDP4 192.0.2.7 198.51.100.1 4711 443\r\n",
        "PROXY tcp4 192.0.2.7 198.51.100.1 4711 443\r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY \r\nGET / HTTP/1.1\r\n",
        "PROXY TCP4 192.0.2.7\r\nX: 198.51.100.1 4711 443\r\n",
        "PROXY TCP4 192.0.2.7 \u{a0} 4711 443\r\n",
    ] {
        assert_eq!(judged(line.as_bytes()), Err(Fault::Malformed), "{line:?}");
    }
    for longer in [format!("PROXY UNKNOWN {}\r\n", "x".repeat(92)), format!("PROXY UNKNOWN {}", "x".repeat(5000))] {
        assert_eq!(judged(longer.as_bytes()), Err(Fault::Malformed));
    }
}

#[test]
fn headers_of_version_2_name_the_client() {
    assert_eq!(judged(&v2(0x21, 0x11, &v4_block([192, 0, 2, 7], &[]))), client("192.0.2.7"));
    assert_eq!(judged(&v2(0x21, 0x12, &v4_block([192, 0, 2, 7], &[]))), client("192.0.2.7"));
    let v6: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let v6 = [&v6.octets()[..], &[0; 20]].concat();
    assert_eq!(judged(&v2(0x21, 0x21, &v6)), client("2001:db8::7"));
    assert_eq!(judged(&v2(0x21, 0x31, &[0; 216])), Ok(Source::Unsaid));
    assert_eq!(judged(&v2(0x21, 0x00, &[])), Ok(Source::Unsaid));
    assert_eq!(judged(&v2(0x20, 0x00, &[])), Ok(Source::Unsaid));
    // LOCAL says nothing, whatever follows.
    assert_eq!(judged(&v2(0x20, 0x11, &v4_block([192, 0, 2, 7], &[9]))), Ok(Source::Unsaid));
    // A field of 200 bytes, and an empty one.
    let fields = [&[0xe1, 0, 200][..], &[7; 200], &[4, 0, 0]].concat();
    assert_eq!(judged(&v2(0x21, 0x11, &v4_block([192, 0, 2, 7], &fields))), client("192.0.2.7"));
    let largest = vec![0; V2_BYTES_MAX - V2_FIXED];
    assert_eq!(judged(&v2(0x20, 0x00, &largest)), Ok(Source::Unsaid));
}

#[test]
fn what_version_2_does_not_allow_is_refused() {
    let block = v4_block([192, 0, 2, 7], &[]);
    for (what, header) in [
        ("version 1 in the form of 2", v2(0x11, 0x11, &block)),
        ("a command that there is not", v2(0x22, 0x11, &block)),
        ("a family that there is not", v2(0x21, 0x41, &block)),
        ("a protocol that there is not", v2(0x21, 0x13, &block)),
        ("too short for two addresses", v2(0x21, 0x11, &block[..11])),
        ("IPv4 where IPv6 is said", v2(0x21, 0x21, &block)),
        ("half a field's head", v2(0x21, 0x11, &v4_block([192, 0, 2, 7], &[4, 0]))),
        ("a field longer than the rest", v2(0x21, 0x11, &v4_block([192, 0, 2, 7], &[4, 0, 2, 0]))),
        ("a checksum of three bytes", v2(0x21, 0x11, &v4_block([192, 0, 2, 7], &[3, 0, 3, 0, 0, 0]))),
        ("longer than is read", v2(0x20, 0x00, &vec![0; V2_BYTES_MAX - V2_FIXED + 1])),
    ] {
        assert_eq!(judged(&header), Err(Fault::Malformed), "{what}");
    }
}

#[test]
fn a_checksum_must_be_right() {
    // The check value of CRC-32C, as catalogues of checksums have it.
    assert_eq!(crc32c_without(b"123456789", 0..0), 0xe306_9283);
    assert_eq!(judged(&checked(0)), client("192.0.2.7"));
    assert_eq!(judged(&checked(1)), Err(Fault::Malformed));
    let mut moved = checked(0);
    moved[V2_FIXED] ^= 1;
    assert_eq!(judged(&moved), Err(Fault::Malformed));
    let twice = v4_block([192, 0, 2, 7], &[3, 0, 4, 0, 0, 0, 0, 3, 0, 4, 0, 0, 0, 0]);
    assert_eq!(judged(&v2(0x21, 0x11, &twice)), Err(Fault::Malformed));
}

#[test]
fn something_else_is_told_from_a_broken_header() {
    for begin in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0"] {
        assert_eq!(read_pieces(begin, b"", 64).0, Err(Fault::Missing), "{begin:?}");
    }
    assert_eq!(read_pieces(b"", b"", 64).0, Err(Fault::Silent));
    for cut in [&b"P"[..], b"PROXY TCP4 1", b"\r\n\r\n", &checked(0)[..20]] {
        assert_eq!(read_pieces(cut, b"", 64).0, Err(Fault::Malformed), "{cut:?}");
    }
}

/// A header that is one, of either version.
fn any_header() -> impl Strategy<Value = Vec<u8>> {
    let v1 = (any::<[u8; 4]>(), any::<u16>())
        .prop_map(|(ip, port)| format!("PROXY TCP4 {} 198.51.100.1 {port} 443\r\n", Ipv4Addr::from(ip)).into_bytes());
    let v1_v6 = (any::<[u8; 16]>(), any::<u16>())
        .prop_map(|(ip, port)| format!("PROXY TCP6 {} ::1 {port} 443\r\n", Ipv6Addr::from(ip)).into_bytes());
    let fields = proptest::collection::vec((4..=255_u8, proptest::collection::vec(any::<u8>(), 0..40)), 0..4);
    let v2 = (any::<[u8; 4]>(), fields).prop_map(|(ip, fields)| {
        let fields: Vec<u8> =
            fields.into_iter().flat_map(|(kind, value)| [vec![kind, 0, value.len() as u8], value].concat()).collect();
        v2(0x21, 0x11, &v4_block(ip, &fields))
    });
    prop_oneof![v1, v1_v6, v2, Just(checked(0)), Just(b"PROXY UNKNOWN\r\n".to_vec())]
}

proptest! {
    #[test]
    fn however_a_header_arrives_it_is_read_to_its_end_and_no_further(
        header in any_header(), request in proptest::collection::vec(any::<u8>(), 0..64), piece in 1usize..200,
    ) {
        let (result, rest) = read_pieces(&header, &request, piece);
        prop_assert!(result.is_ok(), "{result:?}");
        prop_assert_eq!(rest, request);
    }

    /// No beginning of a header is taken for a whole one, nor for something else.
    #[test]
    fn a_header_that_is_cut_short_is_none(header in any_header(), cut in any::<proptest::sample::Index>()) {
        let cut = cut.index(header.len());
        prop_assert!(matches!(parse(&header[..cut]), Ok(Progress::Needs(needs)) if cut + needs <= header.len()));
    }

    #[test]
    fn one_changed_byte_never_panics_and_never_makes_a_header_longer_than_was_read(
        header in any_header(), at in any::<proptest::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut header = header;
        let at = at.index(header.len());
        header[at] = byte;
        for cut in 0..=header.len() {
            if let Ok(Progress::Needs(needs)) = parse(&header[..cut]) {
                prop_assert!(needs > 0 && cut + needs <= V2_BYTES_MAX);
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), begin in 0usize..4) {
        let begin: &[u8] = [&b""[..], b"PROXY ", b"PROXY TCP4 ", V2_SIGNATURE][begin];
        let bytes = [begin, &bytes].concat();
        _ = read_pieces(&bytes, b"", 50);
    }
}
