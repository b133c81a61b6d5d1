//! The proxy: what happens between a request's head and its answer's last byte. The only room where the client's side
//! and the upstream's side meet.

mod attempt;
mod body;
mod cors;
pub mod exchange;
mod fault;
mod fields;
pub mod http;
mod local;
mod mirror;
mod pending;
pub mod side;
pub mod tcp;
mod tee;
pub mod upgrade;
mod watch;

use crate::access_log::AccessLog;
use crate::clusters::{ClusterHandle, Clusters};
use crate::downstream::tls::Secured;
use crate::io::buffer::Pool;
use crate::io::spawn::Tasks;
use crate::io::timer::Wheel;
use crate::mailbox::TlsSet;
use isthmus_core::drain::Drain;
use isthmus_core::limits::{MessageLimits, Settings};
use isthmus_core::listener::{
    Accepts, ChainAction, ForwardPort, Listener, ListenerKey, ProxyProtocol, TableOf, TcpRoute, Upgrades,
    forward_port, forward_ports,
};
use isthmus_core::overload::{Bounds, Load};
use isthmus_core::random::Random;
use isthmus_core::reply::Cause;
use isthmus_core::route::{RouteTable, Scratch, VirtualHost};
use isthmus_core::source::Sources;
use isthmus_core::stats::ShardStats;
use isthmus_core::tls::ServerTls;
use rustls::ServerConfig;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

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
    /// Which workloads clients can be.
    pub sources: RefCell<Arc<Sources>>,
    /// Chance.
    pub random: RefCell<Random>,
    /// Working memory of route look-ups.
    pub scratch: RefCell<Scratch>,
    /// Counters.
    pub stats: RefCell<ShardStats>,
    /// Buffers of exchanges that have ended, for those of HTTP/2, whose tasks live no longer than one exchange.
    pub exchanges: RefCell<Vec<Box<exchange::Exchange>>>,
    /// Bytes of request bodies that are kept to be sent again.
    pub kept_bytes: Rc<Cell<usize>>,
    /// Requests in flight.
    pub active: Rc<Cell<u64>>,
    /// What the shard takes on at most.
    pub bounds: Bounds,
    /// The access log.
    pub log: AccessLog,
}

impl Context {
    /// What the shard has taken on.
    pub fn load(&self) -> Load {
        Load {
            requests: self.active.get(),
            buffer_bytes: self.pool.bytes() + self.kept_bytes.get() as u64,
        }
    }

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

/// The routes of one table in one version.
struct Table {
    table: Arc<RouteTable>,
    pins: Vec<Rc<VirtualHostPin>>,
}

impl Table {
    fn find(&self, host: &str) -> Option<Rc<VirtualHostPin>> {
        self.table
            .find_host(host)
            .and_then(|at| self.pins.get(at))
            .cloned()
    }
}

/// What a listener does in one version.
pub struct Serving {
    proxy_protocol: ProxyProtocol,
    upgrades: Upgrades,
    accepts: Accepts,
    tables: Vec<Table>,
    /// What a forward proxy leads to.
    forward: Vec<ForwardPort>,
    /// By chain of a TLS listener: what TLS ends with, if its keys could be loaded.
    configs: Vec<Option<Arc<ServerConfig>>>,
    /// Whether every name of a TLS listener has one policy, so that no request can be on the wrong connection.
    one_policy: bool,
}

/// What a look for a request's virtual host finds.
pub enum FoundHost {
    /// This one.
    Host(Rc<VirtualHostPin>),
    /// None that serves this authority.
    Unknown,
    /// The authority is that of a server with another certificate or policy.
    Misdirected,
}

impl Serving {
    /// What a listener does; virtual hosts that `before` had too keep their pin.
    pub fn new(listener: &Listener, tls: &TlsSet, before: Option<&Self>) -> Self {
        let before = before.map_or(&[][..], |before| &before.tables);
        let known: HashMap<*const VirtualHost, &Rc<VirtualHostPin>> = before
            .iter()
            .flat_map(|table| &table.pins)
            .map(|pin| (Arc::as_ptr(&pin.host), pin))
            .collect();
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
        let tables = listener.tables.iter().map(|table| Table {
            table: Arc::clone(table),
            pins: table.virtual_hosts().iter().map(pin).collect(),
        });
        Self {
            proxy_protocol: listener.proxy_protocol,
            upgrades: listener.upgrades.clone(),
            accepts: listener.accepts.clone(),
            tables: tables.collect(),
            forward: listener.forward.clone(),
            one_policy: listener.accepts.has_one_policy(),
            configs: chain_configs(&listener.accepts, tls),
        }
    }

    /// The same with other keys.
    pub fn with_keys(&self, tls: &TlsSet) -> Self {
        let tables = self.tables.iter().map(|table| Table {
            table: Arc::clone(&table.table),
            pins: table.pins.clone(),
        });
        Self {
            proxy_protocol: self.proxy_protocol,
            upgrades: self.upgrades.clone(),
            accepts: self.accepts.clone(),
            tables: tables.collect(),
            forward: self.forward.clone(),
            configs: chain_configs(&self.accepts, tls),
            one_policy: self.one_policy,
        }
    }

    /// Whether a PROXY header comes first.
    pub fn proxy_protocol(&self) -> ProxyProtocol {
        self.proxy_protocol
    }

    /// What is done with a connection.
    pub fn accepts(&self) -> &Accepts {
        &self.accepts
    }

    /// Whether connections may go on in this protocol.
    pub fn passes(&self, protocol: &str) -> bool {
        self.upgrades.allows(protocol)
    }

    /// What a connection leads to as one with a forward proxy, whose requests are for hosts behind it that they name;
    /// nothing for a connection with another server.
    pub fn forward(&self, secured: Option<&Secured>) -> Forwarding<'_> {
        let ports = if self.forward.is_empty() {
            &[]
        } else {
            let named = secured.map(|secured| (&secured.policy, secured.server_name.as_deref()));
            let chain = self.accepts.chain_of(named);
            chain.map_or(&[][..], |chain| forward_ports(&self.forward, chain))
        };
        Forwarding {
            ports,
            tables: &self.tables,
        }
    }

    /// What TLS ends with at a chain, by its position.
    pub fn config(&self, chain: usize) -> Option<&Arc<ServerConfig>> {
        self.configs.get(chain)?.as_ref()
    }

    /// The virtual host of an authority's host, on a connection with this policy (None for plaintext).
    pub fn find(&self, policy: Option<&Arc<ServerTls>>, host: &str) -> FoundHost {
        let table = match self.accepts.table_of(self.one_policy, policy, host) {
            TableOf::Table(at) => self.tables.get(at),
            TableOf::Unknown => None,
            TableOf::Misdirected => return FoundHost::Misdirected,
        };
        table
            .and_then(|table| table.find(host))
            .map_or(FoundHost::Unknown, FoundHost::Host)
    }
}

/// What a forward proxy leads to.
#[derive(Clone, Copy)]
pub struct Forwarding<'a> {
    ports: &'a [ForwardPort],
    tables: &'a [Table],
}

impl Forwarding<'_> {
    /// Whether there is no proxy.
    pub fn is_none(&self) -> bool {
        self.ports.is_empty()
    }

    /// The virtual host of a target's host at a port of targets.
    pub fn find(&self, port: u16, host: &str) -> FoundHost {
        let table = forward_port(self.ports, port).and_then(|found| self.tables.get(found.table));
        table
            .and_then(|table| table.find(host))
            .map_or(FoundHost::Unknown, FoundHost::Host)
    }

    /// Where a tunnel to a host and a port leads.
    pub fn tunnel(&self, port: u16, host: &str) -> Option<Arc<TcpRoute>> {
        let names = &forward_port(self.ports, port)?.connect;
        match &names.chains().get(names.find(Some(host))?)?.action {
            ChainAction::Pass(route) => Some(Arc::clone(route)),
            _ => None,
        }
    }
}

fn chain_configs(accepts: &Accepts, tls: &TlsSet) -> Vec<Option<Arc<ServerConfig>>> {
    let Accepts::Tls(names) = accepts else {
        return Vec::new();
    };
    let config = |policy| tls.servers.get(policy).cloned();
    names
        .chains()
        .iter()
        .map(|chain| chain.action.tls().and_then(config))
        .collect()
}

/// A listener as its connections see it: what it does changes under them, between two requests.
pub struct ListenerState {
    /// Which one.
    pub key: ListenerKey,
    /// The present version.
    pub serving: RefCell<Rc<Serving>>,
    /// How far it is on its way out: with the process, or alone because no resource has it any more.
    pub drain: Rc<Cell<Drain>>,
}

/// The cluster of a host that a client has named, which may have to be resolved: within this time, or it is this cause.
async fn host_within(
    context: &Context,
    template: &Rc<ClusterHandle>,
    name: &str,
    (patience, late): (Duration, Cause),
) -> Result<Rc<ClusterHandle>, Cause> {
    let timer = context.wheel.timer();
    timer.set(patience);
    let allowed = &context.settings.egress_allowed;
    let found = context.clusters.of_host(template, name, allowed, &context.random);
    let mut found = pin!(found);
    let found = poll_fn(|cx| match found.as_mut().poll(cx) {
        Poll::Pending => timer.poll(cx).map(|()| Err(late)),
        found => found,
    });
    found.await
}
