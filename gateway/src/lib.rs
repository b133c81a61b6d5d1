//! The gateway's shell: sockets, clocks and threads around the decisions of `isthmus-core`.
//!
//! A request goes `shard/accept` -> `shard/connection` -> `downstream/h1` -> `proxy/http` -> `clusters` ->
//! `upstream/connect`, and back the same way. A configuration goes `control` -> `isthmus-config` -> `mailbox` ->
//! `shard`. Each module may use only those below it; `cargo xtask tidy` holds the table.
#![deny(unsafe_code)]

pub mod access_log;
pub mod cli;
pub mod clusters;
pub mod control;
pub mod demo;
pub mod downstream;
pub mod io;
pub mod mailbox;
pub mod proxy;
pub mod run;
pub mod shard;
pub mod tls;
pub mod upstream;
