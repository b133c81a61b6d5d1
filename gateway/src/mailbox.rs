//! Messages between control and a shard: one lock-free ring in each direction, and the messages themselves.
//!
//! A message carries whole values; no closure crosses a core. Neither side ever waits for room: what does not fit stays
//! in the sender's outbox and goes with the next [`Outbox::flush`]. A wake-up is an atomic flag and, when the other
//! side sleeps, one write to its event descriptor; the shard's ticker bounds what a lost one could cost.
//!
//! Beside the mailboxes each shard has a bell ([`Bells`]), which says no more than that a budget has something for it:
//! what it is, the budget itself knows. So shards hand permits to each other without control between them.

use atomic_waker::AtomicWaker;
use isthmus_core::cluster::ClusterSpec;
use isthmus_core::cluster::outlier::Change;
use isthmus_core::drain::Drain;
use isthmus_core::listener::ListenerKey;
use isthmus_core::name::{ClusterKey, ClusterMap};
use isthmus_core::shared::{Bell, ClusterShared};
use isthmus_core::snapshot::Snapshot;
use isthmus_core::stats::ShardStats;
use isthmus_core::tls::{ClientTls, Offer, ServerTls};
use rustls::{ClientConfig, ServerConfig};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Instant;

/// One version of the configuration as shards get it. Made and freed on control.
#[derive(Debug)]
pub struct Publication {
    /// What the resources mean.
    pub snapshot: Snapshot,
    /// What the shards share about each cluster.
    pub shared: ClusterMap<Arc<ClusterShared>>,
}

/// Other endpoints of one cluster of the present version. Made and freed on control.
#[derive(Debug)]
pub struct EndpointUpdate {
    /// The cluster.
    pub key: ClusterKey,
    /// Grows with each change of any cluster's endpoints.
    pub number: u64,
    /// The cluster with its endpoints.
    pub spec: Arc<ClusterSpec>,
    /// What the shards share about it.
    pub shared: Arc<ClusterShared>,
}

/// What control has found out about a name that a request has brought.
#[derive(Debug, Clone)]
pub struct NameAnswer {
    /// As it was asked for.
    pub name: Arc<str>,
    /// In the order in which they are to be tried; none when there are none, or nobody can be asked.
    pub addresses: Arc<[IpAddr]>,
    /// Until when asking again changes nothing.
    pub until: Instant,
}

/// The bells of all shards.
#[derive(Debug)]
pub struct Bells(Box<[Doorbell]>);

/// One shard's; each on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Doorbell {
    rung: AtomicBool,
    waker: AtomicWaker,
}

impl Bells {
    /// Bells for so many shards.
    pub fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self((0..shards).map(|_| Doorbell::default()).collect()))
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.0.len()
    }

    /// Waits until the bell of `shard` is rung. Only one may wait at a bell.
    pub async fn rung(&self, shard: usize) {
        poll_fn(|cx| {
            let Some(bell) = self.0.get(shard) else {
                return Poll::Pending;
            };
            bell.waker.register(cx.waker());
            if bell.rung.swap(false, Ordering::AcqRel) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

impl Bell for Bells {
    fn ring(&self, shard: usize) {
        if let Some(bell) = self.0.get(shard)
            && !bell.rung.swap(true, Ordering::AcqRel)
        {
            bell.waker.wake();
        }
    }
}

/// Configurations for connections to an upstream: one for each [`Offer`], at its place.
#[derive(Debug)]
pub struct ClientConfigs(pub [Arc<ClientConfig>; Offer::ALL.len()]);

impl ClientConfigs {
    /// The one that makes an offer.
    pub fn offering(&self, offer: Offer) -> &Arc<ClientConfig> {
        let Self([bytes, http1, http2]) = self;
        match offer {
            Offer::Bytes => bytes,
            Offer::Http1 => http1,
            Offer::Http2 => http2,
        }
    }
}

/// Configurations of the TLS library for everything that a version of the snapshot asks for. What is not there has no
/// usable keys: its connections are refused.
#[derive(Debug, Default)]
pub struct TlsSet {
    /// For servers.
    pub servers: HashMap<Arc<ServerTls>, Arc<ServerConfig>>,
    /// For connections to upstreams.
    pub clients: HashMap<Arc<ClientTls>, Arc<ClientConfigs>>,
}

/// To a shard.
#[derive(Debug)]
pub enum ToShard {
    /// Serve this version. New listeners come with this shard's sockets, bound and perhaps not yet listening.
    Apply {
        /// The version.
        publication: Arc<Publication>,
        /// Keys of its servers and clusters.
        tls: Arc<TlsSet>,
        /// Sockets of listeners that the shard does not have yet.
        sockets: Vec<(ListenerKey, OwnedFd)>,
    },
    /// The present version with other endpoints of one cluster. No other of that cluster is sent before this one is
    /// answered by [`ToControl::EndpointsApplied`]; then the latest is.
    Endpoints(Arc<EndpointUpdate>),
    /// The answer to [`ToControl::Resolve`].
    Resolved(NameAnswer),
    /// The present version with other keys; connections that are there keep theirs.
    Secure {
        /// Counts such changes.
        number: u64,
        /// The keys.
        tls: Arc<TlsSet>,
    },
    /// Send [`ToControl::Stats`].
    CollectStats,
    /// Let connections end as far as this says, and close the listeners. Answered by [`ToControl::Drained`] when the
    /// last connection has ended.
    Drain(Drain),
    /// End now.
    Stop,
}

/// One endpoint as a shard sees it.
#[derive(Debug, Clone)]
pub struct EndpointView {
    /// Its address.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u32,
    /// Requests in flight.
    pub active: u32,
    /// Idle connections.
    pub idle: usize,
}

/// One cluster as a shard sees it.
#[derive(Debug, Clone)]
pub struct ClusterView {
    /// Its name.
    pub name: String,
    /// Its endpoints.
    pub endpoints: Vec<EndpointView>,
}

/// From a shard.
#[derive(Debug)]
pub enum ToControl {
    /// A version is being served; requests that began before end under theirs.
    Applied {
        /// Which.
        version: u64,
    },
    /// These endpoints take requests from now on; the value is control's to free.
    EndpointsApplied(Arc<EndpointUpdate>),
    /// The addresses of this name are wanted: answered by one [`ToShard::Resolved`].
    Resolve(Arc<str>),
    /// New handshakes see the keys of this [`ToShard::Secure`].
    Secured {
        /// Which.
        number: u64,
    },
    /// A listener could not be opened on the shard.
    ListenFailed {
        /// Which.
        listener: ListenerKey,
        /// Why.
        error: String,
    },
    /// Nothing on the shard uses this version any more: it is control's to free.
    Retired(Arc<Publication>),
    /// Counts since the last collection, and what is there now.
    Stats {
        /// The counts.
        stats: Box<ShardStats>,
        /// The clusters.
        clusters: Vec<ClusterView>,
    },
    /// Endpoints were ejected, or are back: all shards know already.
    Ejected(Vec<(ClusterKey, Change)>),
    /// The last connection has ended after a drain.
    Drained {
        /// How many did not end in time.
        cut: u64,
    },
}

/// The sending end.
#[derive(Debug)]
pub struct Outbox<T> {
    ring: rtrb::Producer<T>,
    waiting: VecDeque<T>,
    // Behind the ring, and dropped after it: the receiver must find the ring abandoned when it is woken.
    waker: WakeOnDrop,
}

#[derive(Debug)]
struct WakeOnDrop(Arc<AtomicWaker>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct Inbox<T> {
    ring: rtrb::Consumer<T>,
    waker: Arc<AtomicWaker>,
}

/// A ring for `capacity` messages on their way.
pub fn channel<T>(capacity: usize) -> (Outbox<T>, Inbox<T>) {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    let waker = Arc::new(AtomicWaker::new());
    let outbox = Outbox {
        ring: producer,
        waiting: VecDeque::new(),
        waker: WakeOnDrop(Arc::clone(&waker)),
    };
    (
        outbox,
        Inbox {
            ring: consumer,
            waker,
        },
    )
}

impl<T> Outbox<T> {
    /// Sends, or keeps for the next flush.
    pub fn send(&mut self, message: T) {
        self.waiting.push_back(message);
        self.flush();
    }

    /// Sends what is kept, as far as there is room; answers whether nothing is left.
    pub fn flush(&mut self) -> bool {
        let mut sent = false;
        while let Some(message) = self.waiting.pop_front() {
            match self.ring.push(message) {
                Ok(()) => sent = true,
                Err(rtrb::PushError::Full(message)) => {
                    self.waiting.push_front(message);
                    break;
                }
            }
        }
        if sent {
            self.waker.0.wake();
        }
        self.waiting.is_empty()
    }
}

impl<T> Inbox<T> {
    /// A message that has come.
    pub fn try_recv(&mut self) -> Option<T> {
        self.ring.pop().ok()
    }

    /// The next message; None when the other end is gone and all its messages are taken.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| {
            if let Some(message) = self.try_recv() {
                return Poll::Ready(Some(message));
            }
            self.waker.register(cx.waker());
            // Looked at again: a message may have come between the look and the registration.
            let gone = self.ring.is_abandoned();
            match self.try_recv() {
                Some(message) => Poll::Ready(Some(message)),
                None if gone => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_and_nobody_waits_when_the_ring_is_full() {
        let (mut outbox, mut inbox) = channel(2);
        for number in 0..5 {
            outbox.send(number);
        }
        let mut got = Vec::new();
        while got.len() < 5 {
            while let Some(number) = inbox.try_recv() {
                got.push(number);
            }
            outbox.flush();
        }
        assert_eq!(got, [0, 1, 2, 3, 4]);
        drop(outbox);
        assert_eq!(futures_lite::future::block_on(inbox.recv()), None);
    }

    #[test]
    fn a_bell_that_is_rung_before_or_while_somebody_waits_is_heard() {
        let bells = Bells::new(2);
        bells.ring(1);
        bells.ring(7);
        futures_lite::future::block_on(bells.rung(1));
        let ringer = {
            let bells = Arc::clone(&bells);
            std::thread::spawn(move || bells.ring(1))
        };
        futures_lite::future::block_on(bells.rung(1));
        ringer.join().unwrap();
    }

    #[test]
    fn a_message_wakes_a_receiver_on_another_thread() {
        let (mut outbox, mut inbox) = channel(4);
        let receiver = std::thread::spawn(move || {
            let mut sum = 0u64;
            while let Some(number) = futures_lite::future::block_on(inbox.recv()) {
                sum += number;
            }
            sum
        });
        for number in 0..20_000u64 {
            outbox.send(number);
        }
        while !outbox.flush() {
            std::thread::yield_now();
        }
        drop(outbox);
        assert_eq!(receiver.join().unwrap(), 19_999 * 20_000 / 2);
    }
}
