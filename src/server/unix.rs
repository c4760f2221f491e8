//! Listening on a Unix socket: one file, shared by all workers, made and removed by whoever listens.

use rustix::fs::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest path that a socket's address holds, in bytes (unix(7)).
pub const PATH_BYTES_MAX: usize = 107;
/// Who may connect: the gateway's user, and its group.
const MODE: u32 = 0o660;
/// How often, and how long in between, somebody else is waited for who takes a place in the same directory.
const LOCK_TRIES: usize = 100;
const LOCK_REST: Duration = Duration::from_millis(20);

/// The file of a socket that is listened on. Dropped after the listeners: removed, unless somebody else listens there by then.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

/// Listens on a socket at `path`. The file that a process left there which is gone is replaced.
///
/// # Errors
/// When another process listens there, something else than a socket is there, or the directory cannot be written.
pub fn bind(path: &Path, backlog: i32) -> io::Result<(UnixListener, SocketFile)> {
    fs::create_dir_all(directory(path))?;
    // Of two that start at once, the later one must find the earlier one's socket.
    let _lock = lock(path)?;
    make_way(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file is never open to more than it will be: it is made with no more than the socket has now.
    fchmod(&socket, Mode::from_raw_mode(MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile(path.to_owned());
    fs::set_permissions(path, Permissions::from_mode(MODE))?;
    socket.set_nonblocking(true)?;
    socket.listen(backlog)?;
    Ok((socket.into(), file))
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn lock(path: &Path) -> io::Result<File> {
    let dir = directory(path);
    let file = File::open(dir)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_REST),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(
        ErrorKind::ResourceBusy,
        format!("another process keeps the directory {} locked", dir.display()),
    ))
}

/// Removes a socket that nobody listens on any more.
fn make_way(path: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !there.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "something that is no socket is there; move it away"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another process listens there; stop it first")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        // Somebody may live who is not to be asked, or is too busy to answer.
        Err(error) => Err(io::Error::new(error.kind(), format!("whoever listened there may be alive: {error}"))),
    }
}

// === impl SocketFile ===

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Ok(_lock) = lock(&self.0) {
            // Left behind, it is replaced by the next who listens there.
            _ = make_way(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: io::Result<(UnixListener, SocketFile)>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_living_listener_is_left_alone_and_what_a_dead_one_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/keygate.sock");
        let (listener, _left) = bind(&path, 8).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, MODE);
        assert!(message(bind(&path, 8)).contains("another process listens there"));
        UnixStream::connect(&path).unwrap();
        // As after a kill: nobody listens, and the file is there.
        drop(listener);
        let (listener, file) = bind(&path, 8).unwrap();
        drop(listener);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn the_successors_file_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keygate.sock");
        let (listener, file) = bind(&path, 8).unwrap();
        drop(listener);
        let (_listener, _file) = bind(&path, 8).unwrap();
        drop(file);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keygate.sock");
        fs::write(&path, "a letter").unwrap();
        assert!(message(bind(&path, 8)).contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a letter");
    }
}
