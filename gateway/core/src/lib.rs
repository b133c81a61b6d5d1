//! Pure policy and data of the gateway.
//!
//! Everything in this crate is a decision or a value: no sockets, no clock, no threads, no YAML, no unsafe code.
//! What depends on time takes `now`, what depends on chance takes a [`random::Random`], so that every decision can
//! be simulated and replayed. The configuration compiler (`isthmus-config`) builds a [`snapshot::Snapshot`] out of
//! what the operator wrote; the shell (`isthmus`) moves bytes and asks this crate what to do with them.
//!
//! In reading order: [`name`] (hosts, cluster names) and [`endpoint`] are the nouns, [`discovery`] and [`dns`] how endpoints
//! are found that are known by name; [`message`] and [`header`] are
//! one HTTP message, whatever its version; [`h1`] turns bytes into messages and back, and [`h2`] watches over bytes that
//! a library makes messages of; [`grpc`] is what calls need beyond HTTP; [`listener`], [`route`] and [`snapshot`] are what
//! an operator's resources mean, and [`source`] which clients rules are about; [`cluster`] picks endpoints and keeps
//! connections; [`attempt`] decides about timeouts and retries; [`reply`] is everything that can stop a request on its
//! way, and [`drain`] how a process leaves; [`limits`] names every bound, [`tls`] is what resources ask of TLS,
//! [`websocket`] knows where frames end, [`shared`] holds the only values that shards share, and [`stats`] what is counted.
#![forbid(unsafe_code)]

pub mod attempt;
pub mod cluster;
pub mod discovery;
pub mod dns;
pub mod drain;
pub mod egress;
pub mod endpoint;
pub mod forwarded;
pub mod grpc;
pub mod h1;
pub mod h2;
pub mod header;
pub mod hello;
pub mod limits;
pub mod listener;
pub mod message;
pub mod name;
pub mod overload;
pub mod path;
pub mod protocol;
pub mod proxy_protocol;
pub mod random;
pub mod reply;
pub mod route;
pub mod shared;
pub mod snapshot;
pub mod source;
pub mod stats;
pub mod substitution;
pub mod tls;
pub mod websocket;
