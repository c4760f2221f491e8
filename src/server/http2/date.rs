//! `Date` for responses that lack it (RFC 9110, section 6.6.1), made once a second.

use crate::clock::{Clock, Timestamp};
use http::HeaderValue;
use jiff::fmt::rfc2822::DateTimePrinter;
use std::cell::RefCell;

thread_local! {
    static LAST: RefCell<Option<(i64, HeaderValue)>> = const { RefCell::new(None) };
}

/// The time of now; `None` where the clock is out of all bounds.
pub fn now() -> Option<HeaderValue> {
    let second = Clock::system().now().as_millis().div_euclid(1000);
    LAST.with_borrow_mut(|last| match last {
        Some((at, value)) if *at == second => Some(value.clone()),
        _ => {
            let value = written(Timestamp::from_micros(second.checked_mul(1_000_000)?))?;
            *last = Some((second, value.clone()));
            Some(value)
        }
    })
}

fn written(time: Timestamp) -> Option<HeaderValue> {
    let time = jiff::Timestamp::from_microsecond(time.as_micros()).ok()?;
    HeaderValue::try_from(DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_http_wants_it() {
        let time = Timestamp::from_micros(784_111_777_000_000);
        assert_eq!(written(time).unwrap(), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(now().unwrap().len(), 29);
    }
}
