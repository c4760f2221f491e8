//! Frames in a file: a length, a checksum, and the bytes. What is torn or changed is noticed.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};

/// The longest frame: records are some hundred bytes.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Length and CRC-32, little-endian.
const HEAD: usize = 8;
const BUFFER: usize = 1 << 20;

/// Writes frames one after the other.
#[derive(Debug)]
pub struct FrameWriter(BufWriter<File>);

/// Reads them again.
#[derive(Debug)]
pub struct FrameReader {
    file: BufReader<File>,
    /// The offset behind the last whole frame.
    offset: u64,
    frame: Vec<u8>,
}

/// What follows in the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    Frame(&'a [u8]),
    End,
    /// Bytes that are no whole frame: torn, or changed.
    Torn,
}

/// One frame's bytes.
///
/// # Errors
/// `InvalidInput`, for more than a frame holds.
pub fn frame(payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= FRAME_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a record has more than 1 MiB"))?;
    let mut bytes = Vec::with_capacity(HEAD + payload.len());
    bytes.extend(length.to_le_bytes());
    bytes.extend(crc32fast::hash(payload).to_le_bytes());
    bytes.extend(payload);
    Ok(bytes)
}

// === impl FrameWriter ===

impl FrameWriter {
    /// Writes after what the file holds.
    pub fn new(file: File) -> Self {
        Self(BufWriter::with_capacity(BUFFER, file))
    }

    pub fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        self.0.write_all(&frame(payload)?)
    }

    /// Everything is on disk when this returns.
    pub fn finish(self) -> io::Result<()> {
        self.0.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

// === impl FrameReader ===

impl FrameReader {
    /// Reads from where the file stands, at `offset`.
    pub fn new(file: File, offset: u64) -> Self {
        Self { file: BufReader::with_capacity(BUFFER, file), offset, frame: Vec::new() }
    }

    /// The offset behind the last whole frame.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The next frame.
    ///
    /// # Errors
    /// The system's, when it cannot read.
    pub fn read(&mut self) -> io::Result<Next<'_>> {
        let mut head = [0; HEAD];
        match self.fill(&mut head)? {
            0 => return Ok(Next::End),
            HEAD => {}
            _ => return Ok(Next::Torn),
        }
        let [a, b, c, d, crc @ ..] = head;
        let (length, crc) = (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes(crc));
        // Zeros, which a loss of power leaves, have a checksum that holds.
        if length == 0 || length > FRAME_BYTES_MAX {
            return Ok(Next::Torn);
        }
        let mut frame = std::mem::take(&mut self.frame);
        frame.resize(length, 0);
        let read = self.fill(&mut frame)?;
        self.frame = frame;
        if read < length || crc32fast::hash(&self.frame) != crc {
            return Ok(Next::Torn);
        }
        self.offset += (HEAD + length) as u64;
        Ok(Next::Frame(&self.frame))
    }

    /// Reads until `bytes` is full or the file ends; how much was read.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read(rest) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}
