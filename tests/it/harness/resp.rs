//! One command to a Redis server, whole.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// Sends a command, words separated by spaces, to a loopback port; gives all words of the answer, in order. An error begins with
/// a minus, and so does a server that is not there.
pub fn ask(port: u16, words: &str) -> Vec<String> {
    try_ask(port, words).unwrap_or_else(|error| vec![format!("-{error}")])
}

fn try_ask(port: u16, words: &str) -> std::io::Result<Vec<String>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(format!("{words}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    read(&mut BufReader::new(stream), &mut answer)?;
    Ok(answer)
}

fn read(stream: &mut impl BufRead, answer: &mut Vec<String>) -> std::io::Result<()> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end();
    let count = || line[1..].parse::<i64>().unwrap();
    match line.as_bytes().first() {
        Some(b'*') => (0..count()).try_for_each(|_| read(stream, answer))?,
        Some(b'$') if count() < 0 => answer.push(String::new()),
        Some(b'$') => {
            let mut text = vec![0; count() as usize + 2];
            stream.read_exact(&mut text)?;
            answer.push(String::from_utf8_lossy(&text[..text.len() - 2]).into_owned());
        }
        Some(b'+' | b':') => answer.push(line[1..].to_owned()),
        _ => answer.push(if line.is_empty() { "-closed".to_owned() } else { line.to_owned() }),
    }
    Ok(())
}
