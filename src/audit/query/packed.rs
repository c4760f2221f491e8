//! A compressed segment: blocks, found by the numbers in their headers.

use super::slot::{Piece, Window};
use crate::audit::block::{self, Blocks};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// One open segment.
#[derive(Debug)]
pub struct Packed {
    path: PathBuf,
    first: u64,
    extents: Vec<Extent>,
    pub bytes_read: u64,
}

/// A stretch of the file: a block with the number of its first record, or damage.
#[derive(Clone, Copy, Debug)]
struct Extent {
    start: u64,
    bytes: u64,
    first: Option<u64>,
}

// === impl Packed ===

impl Packed {
    /// Opens a segment and goes from header to header.
    pub fn open(path: &Path, first: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let (length, mut at, mut extents, mut bytes_read) = (file.metadata()?.len(), 0, Vec::new(), 0);
        while at < length {
            let mut header = [0; block::HEADER_BYTES];
            let read = file.read_at(&mut header, at)?;
            bytes_read += read as u64;
            let extent = match block::header(&header).filter(|(bytes, _)| at + bytes <= length) {
                Some((bytes, first)) => Extent { start: at, bytes, first: Some(first) },
                None => damage(path, at)?,
            };
            at += extent.bytes.max(1);
            extents.push(extent);
        }
        Ok(Self { path: path.to_owned(), first, extents, bytes_read })
    }

    /// Puts the block into `window` that holds the newest record of at most `upto`, and the damage around it.
    pub fn load(&mut self, upto: u64, window: &mut Window) -> io::Result<()> {
        window.bytes.clear();
        window.pieces.clear();
        window.low = self.first;
        let is_here = |extent: &Extent| extent.first.is_some_and(|first| first <= upto);
        let Some(found) = self.extents.iter().rposition(is_here) else { return Ok(()) };
        let is_first = self.extents.iter().take(found).all(|extent| extent.first.is_none());
        let from = if is_first { 0 } else { found };
        window.low =
            self.extents.get(found).and_then(|extent| extent.first).filter(|_| !is_first).unwrap_or(self.first);
        let around = self.extents.iter().enumerate().skip(from);
        for (index, extent) in around.take_while(|(index, extent)| *index <= found || extent.first.is_none()) {
            if index == found {
                self.bytes_read += extent.bytes;
                read_block(&self.path, *extent, upto, window)?;
            } else {
                window.pieces.push(Piece::Damage { start: extent.start, bytes: extent.bytes });
            }
        }
        Ok(())
    }
}

fn read_block(path: &Path, extent: Extent, upto: u64, window: &mut Window) -> io::Result<()> {
    let mut blocks = Blocks::open(path, extent.start)?;
    if !blocks.read()?.is_some_and(|block| block.is_whole) {
        window.pieces.push(Piece::Damage { start: extent.start, bytes: extent.bytes });
        return Ok(());
    }
    window.bytes.extend_from_slice(blocks.lines());
    let mut at = 0;
    for newline in memchr::memchr_iter(b'\n', blocks.lines()) {
        match blocks.lines().get(at..newline).and_then(super::plain::whole) {
            Some(seq) if seq <= upto => window.pieces.push(Piece::Record { seq, text: at..newline }),
            Some(_) => {}
            None => window.pieces.push(Piece::Damage { start: extent.start, bytes: extent.bytes }),
        }
        at = newline + 1;
    }
    Ok(())
}

/// From a place where no block's header is, up to the next whole block.
fn damage(path: &Path, at: u64) -> io::Result<Extent> {
    let passed = Blocks::open(path, at)?.read()?;
    Ok(Extent { start: at, bytes: passed.map_or(1, |block| block.bytes), first: None })
}
