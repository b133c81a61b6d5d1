//! HTTP/2 as a client that may be wrong on purpose, what a server owes to such a client, and a server that does as it is
//! told.
//!
//! [`frame`] and [`hpack`] write what they are told, legal or not, and read strictly; [`client`] is a connection over
//! TCP or TLS that keeps account of both sides. [`server`] is an upstream that a test scripts. [`cases`] says what a server must do with what, each with its section
//! of RFC 9113 or RFC 7541, and plays it against any address.

pub mod cases;
pub mod client;
pub mod frame;
pub mod hpack;
pub mod server;
mod transport;

pub use transport::{AUTHORITY, Target};
