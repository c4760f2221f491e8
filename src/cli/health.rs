//! `keygate health`: asks a running gateway's admin listener, for container probes without a shell.

use super::{Failure, exit};
use crate::config::Config;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(3);
/// More than any answer of `/readyz`.
const ANSWER_MAX: u64 = 64 * 1024;

/// Asks `/readyz` at the configured admin address.
pub fn run(config: &Config) -> Result<ExitCode, Failure> {
    let address = config.admin.address;
    let mut stream =
        TcpStream::connect_timeout(&address, TIMEOUT).map_err(|error| format!("no gateway at {address}: {error}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /readyz?verbose HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is not HTTP")?;
    super::output::line(body.trim_end())?;
    Ok(if head.starts_with("HTTP/1.1 200 ") { exit::DONE } else { exit::FAILED })
}
