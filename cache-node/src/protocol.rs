//! RESP2 and RESP3: bytes to the arguments of a command, and replies to bytes.
//!
//! Nothing here knows what a command means or where bytes come from. The parser borrows: an argument is a span of the
//! buffer that was read. Depth is bounded by construction (a request is one array of bulk strings, as in Redis), length
//! by [`RequestLimits`].
//!
//! Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

mod inline;
mod number;
mod reply;
mod request;

pub use self::{
    number::{parse_i64, push_i64},
    reply::{Piece, Protocol, Replies},
    request::{Arguments, Parse, ProtocolError, RequestLimits, RequestParser},
};
