//! The proxy: what happens between a request's head and its answer's last byte. The only room where the client's side
//! and the upstream's side meet.

mod body;
mod fields;
pub mod http;
mod local;

use crate::access_log::AccessLog;
use crate::clusters::Clusters;
use crate::io::buffer::Pool;
use crate::io::spawn::Tasks;
use crate::io::timer::Wheel;
use isthmus_core::limits::{MessageLimits, Settings};
use isthmus_core::listener::ListenerKey;
use isthmus_core::random::Random;
use isthmus_core::reply::Cause;
use isthmus_core::route::{RouteTable, Scratch, VirtualHost};
use isthmus_core::stats::ShardStats;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// What every exchange of a shard has at hand.
pub struct Context {
    /// The process's settings.
    pub settings: Rc<Settings>,
    /// The codecs' part of them.
    pub limits: MessageLimits,
    /// Deadlines.
    pub wheel: Wheel,
    /// Buffers.
    pub pool: Pool,
    /// Tasks.
    pub tasks: Rc<Tasks>,
    /// Upstreams.
    pub clusters: Clusters,
    /// Chance.
    pub random: RefCell<Random>,
    /// Working memory of route look-ups.
    pub scratch: RefCell<Scratch>,
    /// Counters.
    pub stats: RefCell<ShardStats>,
    /// Requests in flight.
    pub active: Rc<Cell<u64>>,
    /// The access log.
    pub log: AccessLog,
}

impl Context {
    /// Whether a client's connection that has carried so many requests must end.
    fn is_last_request(&self, requests: u32) -> bool {
        let max = self.settings.requests_per_connection;
        max > 0 && requests >= max
    }

    /// Counts why the gateway answered by itself, or broke off.
    pub fn count_cause(&self, cause: Cause) {
        *self
            .stats
            .borrow_mut()
            .causes
            .entry((cause.label(), cause.flag()))
            .or_default() += 1;
    }
}

/// A virtual host as one shard holds it: a request pins this, on its own core, and not the whole snapshot.
pub struct VirtualHostPin {
    /// The host and its routes.
    pub host: Arc<VirtualHost>,
}

/// The routes of one listener in one version.
pub struct ListenerRoutes {
    table: Arc<RouteTable>,
    pins: Vec<Rc<VirtualHostPin>>,
}

impl ListenerRoutes {
    /// Routes for a listener; virtual hosts that `before` had too keep their pin.
    pub fn new(table: Arc<RouteTable>, before: Option<&Self>) -> Self {
        let before = before.map_or(&[][..], |before| &before.pins);
        let known: HashMap<*const VirtualHost, &Rc<VirtualHostPin>> =
            before.iter().map(|pin| (Arc::as_ptr(&pin.host), pin)).collect();
        let pin = |host: &Arc<VirtualHost>| {
            known
                .get(&Arc::as_ptr(host))
                .map(|pin| Rc::clone(pin))
                .unwrap_or_else(|| {
                    Rc::new(VirtualHostPin {
                        host: Arc::clone(host),
                    })
                })
        };
        let pins = table.virtual_hosts().iter().map(pin).collect();
        Self { table, pins }
    }

    /// The virtual host of an authority's host.
    pub fn find(&self, host: &str) -> Option<Rc<VirtualHostPin>> {
        self.table
            .find_host(host)
            .and_then(|at| self.pins.get(at))
            .cloned()
    }
}

/// A listener as its connections see it: the routes change under them, between two requests.
pub struct ListenerState {
    /// Which one.
    pub key: ListenerKey,
    /// The present version's routes.
    pub routes: RefCell<Rc<ListenerRoutes>>,
}
