//! Signs of life of a connection to an upstream that speaks HTTP/2, and its account of frames that carry nothing.

use crate::clock::{Instant, monotonic};
use crate::proxy::frames::{Allowance, Bounds, Scanner};
use crate::proxy::transport::Stream;
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Frames that carry nothing: so many at once, and so many a second.
const CONTROL: Bounds = Bounds { burst: 1024, per_second: 100, most: 65_536 };
/// An upstream may say that it has taken what we sent: one frame for so many bytes.
const BYTES_A_FRAME: usize = 512;
/// What a request explains, and each part of its body: some servers answer the smallest with more room for the next.
const FRAMES_A_REQUEST: u32 = 16;
const FRAMES_A_PART: u32 = 4;
/// How long an upstream may be silent while it owes something, until it is asked whether it lives.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long it may take to say so.
const PONG_MAX: Duration = Duration::from_secs(5);

/// What is known of a connection's state by whoever does not drive it.
#[derive(Debug)]
pub struct Vitals {
    scanner: RefCell<Scanner>,
    control: Allowance,
    sent: Cell<usize>,
    /// When anything was read last.
    heard: Cell<Instant>,
    /// When something was last asked of the upstream, or heard of it, answers to pings left out.
    active: Cell<Instant>,
    /// When it was asked whether it lives, since it was last active.
    asked: Cell<Option<Instant>>,
    /// Why it is to end, whatever is under way.
    condemned: Cell<Option<&'static str>>,
    driver: RefCell<Option<Waker>>,
    /// Why TLS broke: the library keeps of it the text alone.
    failure: RefCell<Option<io::Error>>,
}

/// A connection's bytes, watched.
pub struct Watched {
    stream: Stream,
    vitals: Rc<Vitals>,
}

/// What is to be done about a connection that is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    None,
    Ask,
}

// === impl Vitals ===

impl Vitals {
    pub fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self {
            scanner: RefCell::new(Scanner::after(0)),
            control: Allowance::new(CONTROL, now),
            sent: Cell::new(0),
            heard: Cell::new(now),
            active: Cell::new(now),
            asked: Cell::new(None),
            condemned: Cell::new(None),
            driver: RefCell::new(None),
            failure: RefCell::default(),
        })
    }

    /// A request is sent.
    pub fn begin_request(&self, now: Instant) {
        self.control.earn(FRAMES_A_REQUEST);
        self.be_active(now);
    }

    /// A part of a request's body is sent.
    pub fn send_part(&self) {
        self.control.earn(FRAMES_A_PART);
    }

    /// What to do at `now`, while it owes something. One question for each silence: servers take more than a few for an
    /// attack. An upstream that leaves one unanswered is given up.
    pub fn care(&self, now: Instant) -> Care {
        match self.asked.get() {
            Some(asked) => {
                if self.heard.get() < asked && now.saturating_duration_since(asked) >= PONG_MAX {
                    self.condemn("it does not answer a ping");
                }
                Care::None
            }
            None if now.saturating_duration_since(self.active.get()) < SILENCE_MAX => Care::None,
            None => {
                self.asked.set(Some(now));
                Care::Ask
            }
        }
    }

    /// Ends the connection.
    pub fn condemn(&self, why: &'static str) {
        self.condemned.set(Some(why));
        self.driver.borrow().iter().for_each(Waker::wake_by_ref);
    }

    pub const fn condemned(&self) -> Option<&'static str> {
        self.condemned.get()
    }

    /// Keeps the waker of whoever drives the connection.
    pub fn set_driver(&self, waker: &Waker) {
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *driver = Some(waker.clone());
        }
    }

    /// Why TLS broke, if it did.
    pub fn take_failure(&self) -> Option<io::Error> {
        self.failure.borrow_mut().take()
    }

    fn note_failure(&self, error: &io::Error) {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        *self.failure.borrow_mut() = cause.map(|cause| io::Error::new(error.kind(), cause.clone()));
    }

    fn be_active(&self, now: Instant) {
        self.active.set(now);
        self.asked.set(None);
    }

    fn read(&self, bytes: &[u8]) {
        let now = monotonic();
        self.heard.set(now);
        let mut scanner = self.scanner.borrow_mut();
        let mut rest = bytes;
        while let Some(kind) = scanner.next(&mut rest) {
            self.count(kind, now);
        }
    }

    /// The frames that are not counted here have bounds in the library.
    fn count(&self, kind: u8, now: Instant) {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const PING: u8 = 6;
        const CONTINUATION: u8 = 9;
        if kind != PING {
            self.be_active(now);
        }
        if !matches!(kind, DATA | HEADERS | CONTINUATION) && !self.control.spend() {
            self.condemn("it floods us with frames that carry nothing");
        }
    }

    fn wrote(&self, bytes: usize) {
        let sent = self.sent.get() + bytes;
        self.sent.set(sent % BYTES_A_FRAME);
        self.control.earn(u32::try_from(sent / BYTES_A_FRAME).unwrap_or(u32::MAX));
    }
}

// === impl Watched ===

impl Watched {
    pub const fn new(stream: Stream, vitals: Rc<Vitals>) -> Self {
        Self { stream, vitals }
    }

    fn note(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            self.vitals.wrote(*bytes);
        }
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.vitals.condemned().is_some() {
            // Nothing more of it is read: whoever polls ends the connection.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(bytes) = buf.filled().get(before..).filter(|bytes| !bytes.is_empty()) {
            self.vitals.read(bytes);
        }
        if let Poll::Ready(Err(error)) = &result {
            self.vitals.note_failure(error);
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame without content.
    const fn frame(kind: u8) -> [u8; 9] {
        [0, 0, 0, kind, 0, 0, 0, 0, 0]
    }

    #[test]
    fn a_silence_is_asked_about_once_and_one_that_lasts_ends_the_connection() {
        let start = monotonic();
        let vitals = Vitals::new(start);
        assert_eq!(vitals.care(start + SILENCE_MAX / 2), Care::None);
        let asked = start + SILENCE_MAX;
        assert_eq!((vitals.care(asked), vitals.care(asked)), (Care::Ask, Care::None));
        assert_eq!((vitals.care(asked + PONG_MAX / 2), vitals.condemned()), (Care::None, None));
        assert_eq!(vitals.care(asked + PONG_MAX), Care::None);
        assert!(vitals.condemned().is_some());
    }

    #[test]
    fn a_pong_is_life_and_no_reason_to_ask_again() {
        let start = monotonic();
        let vitals = Vitals::new(start);
        assert_eq!(vitals.care(start + SILENCE_MAX), Care::Ask);
        vitals.heard.set(start + SILENCE_MAX + PONG_MAX / 2);
        vitals.count(6, start + SILENCE_MAX + PONG_MAX / 2);
        assert_eq!((vitals.care(start + SILENCE_MAX * 100), vitals.condemned()), (Care::None, None));
        vitals.read(&frame(1));
        assert_eq!(vitals.care(monotonic() + SILENCE_MAX), Care::Ask);
    }

    #[test]
    fn a_flood_is_told_from_answers_to_what_was_sent() {
        let vitals = Vitals::new(monotonic());
        (0..CONTROL.burst).for_each(|_| vitals.read(&frame(4)));
        assert_eq!(vitals.condemned(), None);
        vitals.wrote(BYTES_A_FRAME * 20);
        (0..20).for_each(|_| vitals.read(&frame(8)));
        assert_eq!(vitals.condemned(), None);
        (0..CONTROL.burst).for_each(|_| vitals.read(&frame(6)));
        assert!(vitals.condemned().is_some());
    }
}
