//! Connections to endpoints: made by [`connect`], used by the proxy, kept by `clusters` while they idle.

pub mod connect;

use crate::io::h1::MessageReader;
use crate::io::stream::Stream;
use isthmus_core::shared::Permit;
use rustls::ClientConfig;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

/// Counts what is open; goes down when dropped.
#[derive(Debug)]
pub struct Open(Rc<Cell<u64>>);

impl Open {
    /// One more.
    pub fn new(count: &Rc<Cell<u64>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// One connection to an endpoint.
pub struct Connection {
    /// The socket.
    pub stream: Stream,
    /// Reads answers.
    pub reader: MessageReader,
    /// Where it leads.
    pub address: SocketAddr,
    /// The name that its TLS was asked for; None for plaintext.
    pub name: Option<Box<str>>,
    /// What was shown and demanded; None for plaintext.
    pub config: Option<Arc<ClientConfig>>,
    /// Whether its PROXY header names one client, so that no other may use it.
    pub is_for_one: bool,
    /// Requests that it has carried, the present one included.
    pub requests: u32,
    /// Whether the upstream may have more to say although its last answer has ended: it must be looked at before it is
    /// used again.
    pub is_doubtful: bool,
    /// Its permit of the cluster's budget.
    pub permit: Permit,
    /// Its place in the count of open connections.
    pub open: Open,
}
