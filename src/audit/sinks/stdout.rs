//! Records on standard output, as they stand in the journal: for a log collector that reads what containers print.

use super::{Line, Positions, Sink, SinkError};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;

/// Writes to a descriptor of its own: whoever does not read stands in nobody's way but this sink's.
#[derive(Debug)]
pub struct Stdout {
    name: String,
    file: File,
    text: Vec<u8>,
    /// A line may have been left unfinished.
    is_torn: bool,
}

// === impl Stdout ===

impl Stdout {
    /// # Errors
    /// When the process has no standard output.
    pub fn open(name: String) -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self { name, file, text: Vec::new(), is_torn: false })
    }
}

impl Sink for Stdout {
    fn name(&self) -> &str {
        &self.name
    }

    fn position(&mut self) -> Result<Option<Positions>, SinkError> {
        Ok(None)
    }

    fn deliver(&mut self, batch: &[Line]) -> Result<(), SinkError> {
        self.text.clear();
        if self.is_torn {
            self.text.push(b'\n');
        }
        super::push_lines(&mut self.text, batch);
        let written = self.file.write_all(&self.text);
        self.is_torn = written.is_err();
        written.map_err(|error| SinkError::later(format!("cannot write to standard output: {error}")))
    }

    /// Nobody says whether what was printed was kept, and a reader that is gone for good must not fill the disk.
    fn is_durable(&self) -> bool {
        false
    }
}
