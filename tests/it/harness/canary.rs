//! The search for keys in everything that a gateway leaves behind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The keys that must be found nowhere. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Canary {
    /// The last 49 characters of each: whoever has these has the key, whatever stands before them.
    secrets: Arc<Mutex<BTreeSet<String>>>,
}

const SECRET_LEN: usize = 49;

impl Canary {
    /// Remembers every key that a command has printed.
    pub fn remember_all(&self, printed: &[u8]) {
        let printed = String::from_utf8_lossy(printed);
        let words = printed.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let keys = words.filter(|word| word.contains("_ent_") && word.len() > SECRET_LEN);
        self.secrets.lock().unwrap().extend(keys.map(|key| key[key.len() - SECRET_LEN..].to_owned()));
    }

    /// How many keys are looked for.
    pub fn keys(&self) -> usize {
        self.secrets.lock().unwrap().len()
    }

    /// Whether one of the keys occurs in `bytes`.
    pub fn occurs_in(&self, bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes);
        self.secrets.lock().unwrap().iter().any(|secret| text.contains(secret.as_str()))
    }

    /// The files below `dir` that hold one of the keys, or have one in their name.
    pub fn files_holding(&self, dir: &Path) -> Vec<PathBuf> {
        let mut files = files_below(dir);
        files.retain(|file| {
            // A file that the gateway removed meanwhile holds nothing.
            let content = std::fs::read(file).unwrap_or_default();
            self.occurs_in(&content) || self.occurs_in(file.as_os_str().as_encoded_bytes())
        });
        files
    }
}

/// All files below a directory.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    collect_files(dir, &mut files);
    files
}

fn collect_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect_files(&entry.path(), files),
            Ok(_) | Err(_) => files.push(entry.path()),
        }
    }
}
