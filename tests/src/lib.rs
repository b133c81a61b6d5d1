//! The harness of the end-to-end tests: the gateway as a child process, and everything that stands around it.
//!
//! [`gateway`] starts the real binary on ports that the kernel chooses and knows the facts of the process (open files,
//! memory, counters); [`resources`] writes the documents that it is started with. In front of it stands [`client`], a
//! raw client that says exactly which bytes it sends and reads answers strictly, and [`load`], which sends many. [`h2`]
//! is a raw client of HTTP/2 with the cases that a server of it must pass, and [`haproxy`] a server that they are tried
//! out on. Behind it stand [`upstream`] (records every byte and answers as told), [`fault`] (does what upstreams do when they
//! are ill), [`dns`] (says what names stand for), [`gauge`] (counts what it has at a time) and [`nginx`] (a real one). For TLS there are certificates ([`cert`]), and [`openssl`] and [`curl`] as
//! peers; [`bytes`] has peers of connections without HTTP. [`wire`] is the strict HTTP/1.1 reader that both sides
//! share; it is not the gateway's own parser, on purpose.
//!
//! Rules: a port comes from the kernel, nothing waits by sleeping ([`deadline`]), whoever starts a process ends it when
//! dropped, and a test that could not run never looks green.
#![forbid(unsafe_code)]
// The harness speaks to tests: what it cannot do is a failed test, said by a panic with its reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

pub mod bytes;
pub mod cert;
pub mod chromium;
pub mod client;
pub mod corpus;
pub mod curl;
pub mod deadline;
pub mod dns;
pub mod fault;
pub mod gateway;
pub mod gauge;
pub mod h2;
pub mod haproxy;
pub mod load;
pub mod nghttpd;
pub mod nginx;
pub mod openssl;
pub mod port;
pub mod python;
pub mod resources;
pub mod upstream;
pub mod wire;
