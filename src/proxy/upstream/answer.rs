//! A response that has begun, whichever protocol it comes by.

use super::{Slot, conversation, http2};
use crate::clock::Instant;
use crate::proxy::body::BodyError;
use bytes::Bytes;
use http_body::Frame;
use std::task::{Context, Poll};

/// A response whose head is here. Its body is on its way, and possibly the request's.
pub enum Answer {
    /// On a connection of its own.
    Http1(conversation::Conversation),
    /// On a stream of a shared one.
    Http2(http2::conversation::Conversation, Slot),
}

// === impl Answer ===

impl Answer {
    /// The whole rest of the body, if it is here already: the usual case, which needs no body that is polled.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        match self {
            Self::Http1(conversation) => conversation.take_whole(),
            Self::Http2(conversation, _) => conversation.take_whole(),
        }
    }

    /// The next part of the body; `None` at its end.
    ///
    /// # Errors
    /// [`BodyError`], when either body cannot go on.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Http1(conversation) => conversation.poll_frame(cx),
            Self::Http2(conversation, _) => conversation.poll_frame(cx),
        }
    }

    /// Nothing more of the body is to come.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Http1(conversation) => conversation.is_done(),
            Self::Http2(conversation, _) => conversation.is_done(),
        }
    }

    /// The bytes still to come, where the head tells.
    pub fn exact_len(&self) -> Option<u64> {
        match self {
            Self::Http1(conversation) => conversation.exact_len(),
            Self::Http2(conversation, _) => conversation.exact_len(),
        }
    }

    /// The connection itself, once both sides have left HTTP on it: one of its own alone.
    pub fn into_upgraded(self) -> Option<conversation::Upgraded> {
        match self {
            Self::Http1(conversation) => Some(conversation.into_upgraded()),
            Self::Http2(..) => None,
        }
    }

    /// The exchange is over. A connection of its own waits for another, if it can serve one; a stream ends.
    pub fn give_back(self, now: Instant) {
        match self {
            Self::Http1(conversation) => conversation.give_back(now),
            Self::Http2(..) => {}
        }
    }
}
