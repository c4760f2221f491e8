//! Checkpoints: how far each sink has come, in `checkpoints/<sink>.json` beside the journals. One is replaced whole or not at
//! all; it may lag behind the sink, never run ahead of it.

use super::Positions;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

const DIR: &str = "checkpoints";
/// Thousands of journals fit.
const BYTES_MAX: u64 = 1024 * 1024;

/// One sink's checkpoint file.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
}

// === impl Checkpoint ===

impl Checkpoint {
    /// The checkpoint of the sink `name` in an audit directory.
    pub fn of(audit_dir: &Path, name: &str) -> Self {
        Self { path: audit_dir.join(DIR).join(format!("{name}.json")) }
    }

    /// What was saved last; none when nothing was.
    ///
    /// # Errors
    /// As of reading the file, with its path; `InvalidData` for one that holds no positions.
    pub fn load(&self) -> io::Result<Option<Positions>> {
        let mut bytes = Vec::new();
        match File::open(&self.path).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("read", &error)),
        }
        let positions = serde_json::from_slice(&bytes).map_err(|error| self.failed("read", &error.into()))?;
        Ok(Some(positions))
    }

    /// Replaces what was saved: a temporary file, synced, then renamed.
    ///
    /// # Errors
    /// As of writing the file, with its path.
    pub fn save(&self, positions: &Positions) -> io::Result<()> {
        self.replace(positions).map_err(|error| self.failed("write", &error))
    }

    fn replace(&self, positions: &Positions) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let part = self.path.with_extension("part");
        let mut file = File::create(&part)?;
        file.write_all(&serde_json::to_vec(positions)?)?;
        file.sync_data()?;
        fs::rename(&part, &self.path)?;
        File::open(dir)?.sync_all()
    }

    fn failed(&self, verb: &str, error: &io::Error) -> io::Error {
        let kind = if error.kind() == ErrorKind::UnexpectedEof { ErrorKind::InvalidData } else { error.kind() };
        io::Error::new(kind, format!("cannot {verb} the checkpoint {}: {error}", self.path.display()))
    }
}

/// The smaller of both in each journal; what one of them does not know it has nothing of.
pub fn smaller(left: &Positions, right: &Positions) -> Positions {
    let both = left.iter().filter_map(|(journal, seq)| Some((journal.clone(), *right.get(journal)?.min(seq))));
    both.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(list: &[(&str, u64)]) -> Positions {
        list.iter().map(|(journal, seq)| ((*journal).to_owned(), *seq)).collect()
    }

    #[test]
    fn a_checkpoint_reads_back_and_garbage_is_told_from_none() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::of(dir.path(), "http");
        assert_eq!(checkpoint.load().unwrap(), None);
        for saved in [positions(&[("edge-1/0", 7), ("edge-1/1", u64::MAX)]), positions(&[])] {
            checkpoint.save(&saved).unwrap();
            assert_eq!(checkpoint.load().unwrap(), Some(saved));
        }
        for garbage in ["", "{", "[1]", "{\"edge-1/0\":-1}", "{\"edge-1/0\":1}x"] {
            fs::write(dir.path().join("checkpoints/http.json"), garbage).unwrap();
            assert_eq!(checkpoint.load().unwrap_err().kind(), ErrorKind::InvalidData, "{garbage}");
        }
    }
}
