//! Every door that bytes come in by, as a function that a fuzzer can call.
//!
//! A door takes whatever bytes there are, drives the code behind it as the gateway does, and panics when something that
//! must hold does not. [`DOORS`] lists them; the binaries in `targets/` hand each to libFuzzer, and a test replays what
//! is in `corpora/` and `regressions/`, so that a crash that was found once is tried by every build.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a door panics when something that must hold does not"
)]

pub mod h1_connection;
pub mod h1_differential;
pub mod h1_request;
pub mod h1_response;
pub mod h2_client;
pub mod h2_server;
pub mod hello;
pub mod input;
pub mod pem;
pub mod proxy_protocol;
pub mod routes;
pub mod upgrade;
pub mod yaml;

/// Takes whatever bytes there are.
pub type Door = fn(&[u8]);

/// All doors by name.
pub const DOORS: &[(&str, Door)] = &[
    ("h1_request", h1_request::run),
    ("h1_response", h1_response::run),
    ("h1_differential", h1_differential::run),
    ("h1_connection", h1_connection::run),
    ("h2_client", h2_client::run),
    ("h2_server", h2_server::run),
    ("upgrade", upgrade::run),
    ("yaml", yaml::run),
    ("routes", routes::run),
    ("hello", hello::run),
    ("proxy_protocol", proxy_protocol::run),
    ("pem", pem::run),
];
