//! HTTP/1.1 without I/O (RFC 9112): bytes in, messages out, and back.
//!
//! [`head`] finds and checks the heads of requests and responses, [`body`] follows a body's framing, [`encode`] writes
//! both. Nothing here reads or writes a socket: the caller hands in what has arrived so far and is told how much of it
//! was used. The result does not depend on how the bytes were cut into pieces.
//!
//! Where leniency would let two parties see different messages in the same bytes, this codec refuses: bare LF or CR,
//! space before a colon, folded lines, Content-Length beside Transfer-Encoding or more than once, codings other than
//! `chunked`, chunk sizes that are not plain hexadecimal.

pub mod body;
pub mod encode;
pub mod head;

pub use body::{BodyDecoder, BodyError, BodyStep};
pub use head::{HeadError, HeadParser, Parsed, is_protocol, read_target};
