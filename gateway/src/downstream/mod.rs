//! Connections of clients: requests come out, answers go in. The codecs know nothing of routing or upstreams.

pub mod h1;
pub mod proxy_header;
pub mod tls;

/// How far the process is on its way out, as connections see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Drain {
    /// It stays.
    #[default]
    No,
    /// It is about to leave: answers announce their connection's end, and connections that wait are left alone, so
    /// that a client does not lose a request which crosses a close.
    Announced,
    /// It leaves: connections that wait are closed, too.
    Closing,
}
