//! Compressed segments on real files: whole, damaged anywhere, and made of any bytes.

use super::*;
use crate::audit::reader::{Fault, Follow};
use crate::audit::segment::{Kind, write_line};
use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;
use std::ops::Range;
use std::sync::OnceLock;

/// Lines of different lengths, `count` of them, from number `first` on; they do not compress well.
fn lines(first: u64, count: u64) -> Vec<u8> {
    let mut lines = Vec::new();
    for seq in first..first + count {
        let mut random = fastrand::Rng::with_seed(seq);
        let text: String = (0..random.usize(..6000)).map(|_| random.alphanumeric()).collect();
        write_line(&mut lines, Kind::Gap, "gw/0", seq, "cfg", format!("\"text\":\"{text}\",").as_bytes());
    }
    lines
}

/// A journal of one compressed segment.
fn journal(lines: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(segment::file_name(1));
    fs::write(&path, lines).unwrap();
    assert_eq!(compress(&path).unwrap(), Step::Done);
    let path = segment::compressed(&path);
    (dir, path)
}

/// The same, of a hundred lines; compressed once for all cases.
fn hundred() -> (tempfile::TempDir, PathBuf) {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| fs::read(journal(&lines(1, 100)).1).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = segment::compressed(&dir.path().join(segment::file_name(1)));
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// The whole blocks of a compressed segment: their bytes and the numbers in them.
fn blocks(path: &Path) -> Vec<(Range<u64>, Range<u64>)> {
    let (mut blocks, mut found) = (Blocks::open(path, 0).unwrap(), Vec::new());
    while let Some(block) = blocks.read().unwrap() {
        let numbers: Vec<u64> =
            blocks.lines().split_inclusive(|byte| *byte == b'\n').filter_map(segment::seq_of).collect();
        if let (Some(first), Some(last)) = (numbers.first(), numbers.last()) {
            found.push((block.start..block.start + block.bytes, *first..last + 1));
        }
    }
    found
}

fn read(dir: &Path) -> (Vec<u64>, Vec<Fault>) {
    let (mut follow, mut seqs) = (Follow::new(dir.to_owned()), Vec::new());
    follow.read(|line| seqs.push(line.seq)).unwrap();
    (seqs, follow.take_faults())
}

#[test]
fn a_compressed_segment_is_zstd_and_holds_exactly_what_the_original_held() {
    for count in [1, 2, 200] {
        let lines = lines(1, count);
        let (dir, path) = journal(&lines);
        let unpacked = zstd::stream::decode_all(File::open(&path).unwrap()).unwrap();
        assert!(unpacked == lines, "{count}");
        assert_eq!(read(dir.path()), ((1..=count).collect(), vec![]));
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, [path]);
    }
}

#[test]
fn j7_no_block_holds_more_lines_than_it_may_and_none_is_far_smaller() {
    let (_dir, path) = journal(&lines(1, 200));
    let (mut blocks, mut sizes) = (Blocks::open(&path, 0).unwrap(), Vec::new());
    while let Some(block) = blocks.read().unwrap() {
        assert!(block.is_whole);
        sizes.push(blocks.lines().len());
    }
    sizes.pop();
    assert!(sizes.iter().all(|size| (BLOCK_BYTES_MAX - 8192..=BLOCK_BYTES_MAX).contains(size)), "{sizes:?}");
}

#[test]
fn text_that_does_not_compress_fits_its_blocks_all_the_same() {
    let (mut lines, mut random) = (Vec::new(), fastrand::Rng::with_seed(7));
    for seq in 1..=100 {
        let text: String = (0..1000).filter_map(|_| char::from_u32(random.u32(0x1000..0xd800))).collect();
        write_line(&mut lines, Kind::Gap, "gw/0", seq, "cfg", format!("\"text\":\"{text}\",").as_bytes());
    }
    let (dir, _) = journal(&lines);
    assert_eq!(read(dir.path()), ((1..=100).collect(), vec![]));
}

#[test]
fn a_block_that_claims_more_than_it_may_hold_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.ndjson.zst");
    let mut pack = Pack::new().unwrap();
    for extra in [0, 1, 1_000_000] {
        let mut lines = Vec::new();
        write_line(&mut lines, Kind::Gap, "gw/0", 1, "cfg", b"");
        lines.resize(BLOCK_BYTES_MAX + extra - 1, b' ');
        lines.push(b'\n');
        let mut block = Vec::new();
        pack.block(&lines, 1, &mut block).unwrap();
        fs::write(&path, &block).unwrap();
        let mut blocks = Blocks::open(&path, 0).unwrap();
        assert_eq!(blocks.read().unwrap().unwrap().is_whole, extra == 0, "{extra}");
        assert!(blocks.window.capacity() + blocks.lines.capacity() < 8 * BLOCK_BYTES_MAX);
    }
}

/// A block as earlier versions wrote it.
fn gzip(lines: &[u8]) -> Vec<u8> {
    let mut deflated = Vec::with_capacity(2 * BLOCK_BYTES_MAX);
    Compress::new(Compression::fast(), false).compress_vec(lines, &mut deflated, FlushCompress::Finish).unwrap();
    let trailer = [crc32fast::hash(lines).to_le_bytes(), (lines.len() as u32).to_le_bytes()].concat();
    let length = (HEADER_BYTES + deflated.len() + trailer.len()) as u32;
    let (length, first) = (length.to_le_bytes(), segment::seq_of(lines).unwrap().to_le_bytes());
    let block = [&GZIP_MARK[..], &length, &first, &[0; 4], &deflated, &trailer].concat();
    let checksum = checksum(&block).unwrap().to_le_bytes();
    [&block[..CHECKSUM_AT], &checksum, &block[HEADER_BYTES..]].concat()
}

#[test]
fn a_segment_of_an_earlier_version_is_read_and_its_damage_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("00000000000000000001.ndjson.gz");
    let blocks = [lines(1, 9), lines(10, 9), lines(19, 9)].map(|lines| gzip(&lines));
    fs::write(&path, blocks.concat()).unwrap();
    assert_eq!(read(dir.path()), ((1..=27).collect(), vec![]));
    assert_eq!(last_start(&path).unwrap(), (blocks[0].len() + blocks[1].len()) as u64);
    // A record of the middle block, its trailer, its mark.
    for at in [HEADER_BYTES + 50, blocks[1].len() - 2, 3] {
        let mut bytes = blocks.concat();
        bytes[blocks[0].len() + at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let (seqs, faults) = read(dir.path());
        assert_eq!(seqs, (1..10).chain(19..28).collect::<Vec<_>>(), "byte {at}");
        let (start, bytes) = (blocks[0].len() as u64, blocks[1].len() as u64);
        let damage = Fault::Damage { segment: path.clone(), start, bytes, after: Some(9), before: Some(19) };
        assert_eq!(faults[0], damage);
    }
}

#[test]
fn a_damaged_or_empty_segment_and_one_with_a_line_longer_than_a_block_stay_as_they_are() {
    let mut long = lines(1, 3);
    write_line(&mut long, Kind::Gap, "gw/0", 4, "cfg", format!("\"text\":\"{}\",", "x".repeat(70_000)).as_bytes());
    let mut flipped = lines(1, 300);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let torn = [lines(1, 3), b"{\"torn".to_vec()].concat();
    for lines in [long, flipped, torn, Vec::new()] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(segment::file_name(1));
        fs::write(&path, &lines).unwrap();
        assert_eq!(compress(&path).unwrap(), Step::Unfit);
        assert!(fs::read(&path).unwrap() == lines);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn j7_a_crash_before_the_original_went_leaves_a_segment_that_counts_once() {
    let (dir, path) = journal(&lines(1, 50));
    fs::write(dir.path().join(segment::file_name(1)), lines(1, 50)).unwrap();
    assert_eq!(read(dir.path()), ((1..=50).collect(), vec![]));
    assert_eq!(compress(&dir.path().join(segment::file_name(1))).unwrap(), Step::Done);
    assert_eq!(read(dir.path()), ((1..=50).collect(), vec![]));
    assert!(path.exists());
}

#[test]
fn a_reader_goes_on_in_the_compressed_form_of_the_segment_it_is_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(segment::file_name(1));
    fs::write(&path, lines(1, 100)).unwrap();
    let (mut follow, mut seqs) = (Follow::new(dir.path().to_owned()), Vec::new());
    for through in [30, 60, 100] {
        follow
            .read_through(through, |line| {
                seqs.push(line.seq);
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        if through == 30 {
            fs::write(dir.path().join(segment::file_name(101)), lines(101, 9)).unwrap();
            compress(&path).unwrap();
        }
    }
    follow.read(|line| seqs.push(line.seq)).unwrap();
    assert_eq!((seqs, follow.take_faults()), ((1..=109).collect(), vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn l8_any_flipped_bit_takes_its_block_and_nothing_else(at: prop::sample::Index, bit in 0_u32..8) {
        let (dir, path) = hundred();
        let blocks = blocks(&path);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();
        let (span, numbers) = blocks.into_iter().find(|(span, _)| span.contains(&(at as u64))).unwrap();
        let (seqs, faults) = read(dir.path());
        prop_assert_eq!(&seqs, &(1..=100).filter(|seq| !numbers.contains(seq)).collect::<Vec<_>>());
        let (after, before) = (numbers.start.checked_sub(1).filter(|seq| *seq > 0), numbers.end);
        let before = (before <= 100).then_some(before);
        let damage = Fault::Damage { segment: path, start: span.start, bytes: span.end - span.start, after, before };
        prop_assert_eq!(&faults[0], &damage);
        let lacks = Fault::Missing { journal: dir.path().to_owned(), first: numbers.start, last: numbers.end - 1 };
        prop_assert_eq!(&faults[1..], if after.and(before).is_some() { vec![lacks] } else { vec![] });
    }

    #[test]
    fn any_bytes_are_read_to_the_end(bytes: Vec<u8>, copies in 0_usize..3, cut: prop::sample::Index) {
        let (dir, path) = hundred();
        let whole = fs::read(&path).unwrap();
        let part = &whole[..cut.index(whole.len())];
        let mixed = [&bytes[..], &ZSTD_MARK[..], &part.repeat(copies), &bytes, &whole].concat();
        fs::write(&path, &mixed).unwrap();
        let (mut blocks, mut at) = (Blocks::open(&path, 0).unwrap(), 0);
        while let Some(block) = blocks.read().unwrap() {
            prop_assert_eq!(block.start, at);
            at += block.bytes;
        }
        prop_assert_eq!(at, mixed.len() as u64);
        let (seqs, _) = read(dir.path());
        prop_assert_eq!(seqs.last(), Some(&100));
    }
}
