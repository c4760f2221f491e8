//! Every bit, every cut, and whatever else can be done to bytes.

use super::journals::{Written, cut, missing, parts, three};
use keygate::audit::verify::{self, Event, Finding};
use proptest::prelude::*;
use std::fs;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn l8_any_flipped_bit_is_named_with_its_record_or_the_exact_range_of_its_block(
        segment in 0_usize..3,
        at: prop::sample::Index,
        bit in 0_u32..8,
    ) {
        let written = three();
        let path = written.path(segment).to_owned();
        let parts = parts(&path);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();
        let hit = parts.iter().position(|(span, _)| span.contains(&(at as u64))).unwrap();
        let (span, numbers) = &parts[hit];
        // Without its newline a line goes on in the next one.
        let is_newline = segment != 1 && at as u64 == span.end - 1;
        let end = if is_newline { parts.get(hit + 1).unwrap_or(&parts[hit]) } else { &parts[hit] };
        let last = Some(end.1.end - 1).filter(|last| *last < 340);
        prop_assert_eq!(written.verify().1, [Finding::Damaged {
            segment: path,
            start: span.start,
            bytes: end.0.end - span.start,
            records: Some((numbers.start, last)),
        }]);
    }

    #[test]
    fn l8_any_cut_is_named_with_exactly_the_records_it_took(segment in 0_usize..3, at: prop::sample::Index) {
        let written = three();
        let path = written.path(segment).to_owned();
        let (parts, bytes) = (parts(&path), fs::read(&path).unwrap());
        let at = at.index(bytes.len());
        fs::write(&path, &bytes[..at]).unwrap();
        let (span, numbers) = parts.iter().find(|(span, _)| span.contains(&(at as u64))).unwrap();
        let (first, last, torn) = (numbers.start, written.segments[segment].1.end - 1, at as u64 - span.start);
        let (_, findings) = written.verify_with(&[written.head()]);
        let mut expected = Vec::new();
        if at == 0 {
            expected.push(Finding::Empty { segment: path.clone() });
        }
        if torn > 0 {
            let records = Some((first, Some(last).filter(|_| segment < 2)));
            expected.push(Finding::Damaged { segment: path, start: span.start, bytes: torn, records });
        } else if segment < 2 {
            expected.push(missing(first, last));
        }
        if segment == 2 {
            expected.push(cut(&written, first - 1, 340));
        }
        prop_assert_eq!(findings, expected);
    }
}

/// What somebody does to a segment's bytes.
#[derive(Clone, Debug)]
enum Edit {
    Replace(prop::sample::Index, usize, Vec<u8>),
    /// A stretch of it, somewhere else in it or in another segment.
    Copy(prop::sample::Index, usize, prop::sample::Index, usize),
    Exchange(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), 0_usize..3000, prop::collection::vec(any::<u8>(), 0..50))
            .prop_map(|(at, length, bytes)| Edit::Replace(at, length, bytes)),
        (index(), 1_usize..5000, index(), 0_usize..3)
            .prop_map(|(from, length, to, into)| Edit::Copy(from, length, to, into)),
        (0_usize..3).prop_map(Edit::Exchange),
    ]
}

fn apply(written: &Written, segment: usize, edit: Edit) {
    let mut bytes = fs::read(written.path(segment)).unwrap();
    match edit {
        Edit::Replace(at, length, with) => {
            let at = at.index(bytes.len());
            let end = (at + length).min(bytes.len());
            bytes.splice(at..end, with);
            fs::write(written.path(segment), bytes).unwrap();
        }
        Edit::Copy(from, length, to, into) => {
            let from = from.index(bytes.len());
            let piece = bytes[from..(from + length).min(bytes.len())].to_vec();
            let mut bytes = fs::read(written.path(into)).unwrap();
            let to = to.index(bytes.len() + 1);
            bytes.splice(to..to, piece);
            fs::write(written.path(into), bytes).unwrap();
        }
        Edit::Exchange(other) => {
            let others = fs::read(written.path(other)).unwrap();
            fs::write(written.path(other), bytes).unwrap();
            fs::write(written.path(segment), others).unwrap();
        }
    }
}

/// The records that count, and how many faults there are.
fn counted(written: &Written) -> (Vec<(u64, String)>, u64) {
    let mut records = Vec::new();
    let summary = verify::verify(&written.slot(), &[written.head()], None, &mut |event| {
        if let Event::Record { seq, line } = event {
            records.push((seq, line.to_owned()));
        }
        Ok(())
    });
    (records, summary.unwrap().faults)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn l8_whatever_is_done_to_the_bytes_only_what_was_written_counts_and_what_lacks_is_told(
        edits in prop::collection::vec((0_usize..3, edit()), 1..4),
    ) {
        let written = three();
        let (original, none) = counted(&written);
        prop_assert_eq!((original.len(), none), (340, 0));
        edits.into_iter().for_each(|(segment, edit)| apply(&written, segment, edit));
        let (records, faults) = counted(&written);
        prop_assert!(records.windows(2).all(|pair| pair[0].0 < pair[1].0));
        prop_assert!(records.iter().all(|record| original.contains(record)));
        prop_assert!(faults > 0 || records == original);
    }
}
