//! What a client sends besides requests and bodies, counted: the library answers each of these frames for as long as it is
//! asked to.

use crate::clock::monotonic;
use crate::proxy::frames::{Allowance, Bounds, Scanner};
use crate::server::registry::ConnState;
use std::cell::{Cell, RefCell};

/// Bytes of the client's first words, which are no frame (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

/// Frames that carry nothing: so many at once, and so many a second.
const CONTROL: Bounds = Bounds { burst: 1024, per_second: 100, most: 65_536 };
/// Requests that the client takes back.
const RESETS: Bounds = Bounds { burst: 100, per_second: 10, most: 100 };
/// A client may say that it has taken what we sent: one frame for so many bytes.
const BYTES_A_FRAME: usize = 512;
/// A part of a body, however small, explains so many.
const FRAMES_A_PART: u32 = 2;
/// What a request that was served whole explains.
const FRAMES_A_REQUEST: u32 = 16;

/// The account of one connection's frames.
#[derive(Debug)]
pub struct Meter {
    scanner: RefCell<Scanner>,
    control: Allowance,
    resets: Allowance,
    /// Bytes sent that do not make a frame yet.
    sent: Cell<usize>,
    is_exhausted: Cell<bool>,
}

// === impl Meter ===

impl Default for Meter {
    fn default() -> Self {
        let now = monotonic();
        Self {
            scanner: RefCell::new(Scanner::after(PREFACE_BYTES)),
            control: Allowance::new(CONTROL, now),
            resets: Allowance::new(RESETS, now),
            sent: Cell::new(0),
            is_exhausted: Cell::new(false),
        }
    }
}

impl Meter {
    /// The client has sent more than its requests explain.
    pub const fn is_exhausted(&self) -> bool {
        self.is_exhausted.get()
    }

    /// Bytes arrived.
    pub fn read(&self, bytes: &[u8], state: &ConnState) {
        let mut scanner = self.scanner.borrow_mut();
        let mut rest = bytes;
        while let Some(kind) = scanner.next(&mut rest) {
            self.count(kind, state);
        }
    }

    /// Bytes were taken.
    pub fn wrote(&self, bytes: usize) {
        let sent = self.sent.get() + bytes;
        self.sent.set(sent % BYTES_A_FRAME);
        self.control.earn(u32::try_from(sent / BYTES_A_FRAME).unwrap_or(u32::MAX));
    }

    /// A part of a body goes out: the client may say that it has taken it, to the stream and to the connection.
    pub fn sent_data(&self) {
        self.control.earn(FRAMES_A_PART);
    }

    /// A request was served whole.
    pub fn served(&self) {
        self.control.earn(FRAMES_A_REQUEST);
        self.resets.earn(1);
    }

    /// The frames that are not counted here have bounds in the library: fields by their size, bodies by their window, empty and
    /// tiny parts of bodies by their number.
    fn count(&self, kind: u8, state: &ConnState) {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const RST_STREAM: u8 = 3;
        const CONTINUATION: u8 = 9;
        let within = match kind {
            DATA | CONTINUATION => true,
            HEADERS => {
                state.on_read();
                true
            }
            RST_STREAM => self.resets.spend(),
            _ => self.control.spend(),
        };
        if !within {
            self.is_exhausted.set(true);
        }
    }
}
