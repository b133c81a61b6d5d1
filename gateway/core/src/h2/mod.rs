//! HTTP/2 (RFC 9113), without sockets: bytes go in and come out.
//!
//! [`connection`] is one connection as either side sees it: frames, streams, windows, and the ends of all of them.
//! [`hpack`] reads and writes header blocks, [`fields`] holds what they say, and [`head`] makes messages of it and blocks
//! of messages. [`watch`] counts what costs a client little and the gateway more: frames that cost their sender nothing
//! and the receiver something are how HTTP/2 is attacked (RFC 9113, 10.5).

pub mod connection;
pub mod fields;
pub mod frame;
pub mod head;
pub mod hpack;
mod huffman;
pub mod watch;

pub use connection::{Connection, Failure, Holder, Key, Options, Role};
pub use fields::Fields;
pub use watch::Misbehaviour;
