//! What is watched of an HTTP/2 connection from outside (RFC 9113).
//!
//! A library speaks the protocol with the client, and does not say how many PING, SETTINGS, CONTINUATION and RST_STREAM
//! frames that took; frames that cost their sender nothing and the receiver something are how HTTP/2 is attacked
//! (RFC 9113, 10.5). So the shell shows every plaintext byte that it reads and writes to a [`Watch`], in pieces of any
//! size. Out comes nothing as long as all is well, and else the [`Misbehaviour`] for which the connection is to be ended,
//! and with which code. [`frame`] finds the frames in the bytes and skips what is in them; [`watch`] counts; [`fields`]
//! knows the form of header blocks. What is well is put into the form that the library takes by [`repack`]; [`head`] reads and writes the heads of messages.

mod blocks;
pub mod fields;
pub mod frame;
pub mod head;
pub mod repack;
mod rules;
pub mod watch;

pub use frame::{FrameHeader, FrameKind, FrameTap};
pub use repack::Repack;
pub use rules::FRAME_SIZE_MAX;
pub use watch::{Misbehaviour, Watch};
