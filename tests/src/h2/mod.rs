//! HTTP/2 as a client that may be wrong on purpose, and what a server owes to such a client.
//!
//! [`frame`] and [`hpack`] write what they are told, legal or not, and read strictly; [`client`] is a connection over
//! TCP or TLS that keeps account of both sides. [`cases`] says what a server must do with what, each with its section
//! of RFC 9113 or RFC 7541, and plays it against any address.

pub mod cases;
pub mod client;
pub mod frame;
pub mod hpack;
mod transport;

pub use transport::{AUTHORITY, Target};
