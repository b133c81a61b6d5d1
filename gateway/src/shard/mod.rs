//! A shard: one core's listeners, connections, clusters and counters, and the loop that obeys control.

mod accept;
mod checks;
mod connection;

use crate::access_log::{AccessLog, AccessLogSender};
use crate::clusters::Clusters;
use crate::io::buffer::Pool;
use crate::io::spawn::{self, Tasks};
use crate::io::timer::Wheel;
use crate::io::{clock, socket};
use crate::mailbox::TlsSet;
use crate::mailbox::{Bells, Inbox, Outbox, Publication, ToControl, ToShard};
use crate::proxy::{Context, ListenerState, Serving};
use isthmus_core::drain::Drain;
use isthmus_core::limits::Settings;
use isthmus_core::listener::ListenerKey;
use isthmus_core::overload::Bounds;
use isthmus_core::random::Random;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a shard does what need not be done at once: looks at idle upstream connections.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How often the access log's batch is handed over at the latest, and retired versions, full mailboxes, and endpoints
/// that were ejected or judged are looked at.
const FLUSH: Duration = Duration::from_millis(100);
/// How long the connections of a listener that is gone may wait for a request that announces their end, before those
/// without one are closed: what a client sends at that moment is not lost.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a shard is started with.
pub struct Start {
    /// Its number, from 0.
    pub index: usize,
    /// By which shards tell each other that there is something to look at.
    pub bells: Arc<Bells>,
    /// The process's settings.
    pub settings: Settings,
    /// Most downstream connections.
    pub connections_max: usize,
    /// What else it takes on at most.
    pub bounds: Bounds,
    /// Seed of its random source.
    pub seed: u64,
    /// From control.
    pub inbox: Inbox<ToShard>,
    /// To control.
    pub outbox: Outbox<ToControl>,
    /// Where access log lines go.
    pub log: AccessLogSender,
}

/// A listener of this shard.
struct Listening {
    state: Rc<ListenerState>,
    /// Dropped when the listener goes: the accepting tasks see it and end. There are several when a process with more
    /// shards has left its sockets to this one.
    _accepting: Vec<accept::Guard>,
}

struct Shard {
    context: Rc<Context>,
    accepting: accept::Limits,
    checks: checks::Checks,
    listeners: RefCell<HashMap<ListenerKey, Listening>>,
    outbox: RefCell<Outbox<ToControl>>,
    /// Versions that requests may still use; the last is the present one.
    publications: RefCell<Vec<Arc<Publication>>>,
    drain: Cell<Drain>,
    drained_sent: Cell<bool>,
    /// Connections that had not ended when the time for it was over.
    cut: Cell<u64>,
    /// Listeners that no resource has any more, whose connections may still be there, and since when.
    leaving: RefCell<Vec<(Weak<ListenerState>, Instant)>>,
}

/// Runs a shard until control says stop.
pub async fn run(start: Start, wheel: Wheel) {
    let settings = Rc::new(start.settings);
    let context = Rc::new(Context {
        limits: settings.message_limits(),
        settings,
        wheel,
        pool: Pool::default(),
        tasks: Rc::new(Tasks::default()),
        clusters: Clusters::on_shard(start.index),
        sources: RefCell::default(),
        random: RefCell::new(Random::from_seed(start.seed)),
        scratch: RefCell::default(),
        stats: RefCell::default(),
        exchanges: RefCell::default(),
        kept_bytes: Rc::default(),
        active: Rc::default(),
        bounds: start.bounds,
        log: AccessLog::new(start.log),
    });
    let shard = Rc::new(Shard {
        accepting: accept::Limits::new(start.connections_max),
        checks: checks::Checks::new(start.index, start.bells.shards()),
        context,
        listeners: RefCell::default(),
        outbox: RefCell::new(start.outbox),
        publications: RefCell::default(),
        drain: Cell::default(),
        drained_sent: Cell::new(false),
        cut: Cell::new(0),
        leaving: RefCell::default(),
    });
    let housekeeping = Rc::clone(&shard);
    spawn::spawn(
        &shard.context.tasks,
        async move { housekeeping.keep_house().await },
    );
    let (answering, bells, index) = (Rc::clone(&shard), start.bells, start.index);
    spawn::spawn(&shard.context.tasks, async move {
        loop {
            bells.rung(index).await;
            answering.context.clusters.answer_bell();
        }
    });
    let asking = Rc::clone(&shard);
    spawn::spawn(&shard.context.tasks, async move {
        loop {
            for name in asking.context.clusters.names.wanted().await {
                asking.send(ToControl::Resolve(name));
            }
        }
    });
    let mut inbox = start.inbox;
    while let Some(message) = inbox.recv().await {
        match message {
            ToShard::Apply {
                publication,
                tls,
                sockets,
            } => shard.apply(&publication, &tls, sockets),
            ToShard::Endpoints(update) => {
                let context = &shard.context;
                if context.clusters.update(&update, &context.random) {
                    shard.checks.fall_behind();
                }
                shard.send(ToControl::EndpointsApplied(update));
            }
            ToShard::Resolved(answer) => shard.context.clusters.names.answered(&answer),
            ToShard::Secure { number, tls } => {
                shard.secure(&tls);
                shard.send(ToControl::Secured { number });
            }
            ToShard::CollectStats => shard.send_stats(),
            ToShard::Drain(drain) => shard.drain(drain),
            ToShard::Stop => break,
        }
    }
    shard.context.log.flush();
    shard.listeners.borrow_mut().clear();
    shard.context.clusters.close_idle();
    shard.outbox.borrow_mut().flush();
}

impl Shard {
    fn send(&self, message: ToControl) {
        self.outbox.borrow_mut().send(message);
    }

    /// Serves a new version: clusters first, so that no route names one that is not there; then routes; then listeners.
    fn apply(
        self: &Rc<Self>,
        publication: &Arc<Publication>,
        tls: &TlsSet,
        sockets: Vec<(ListenerKey, OwnedFd)>,
    ) {
        self.context
            .clusters
            .reconcile(publication, tls, &self.context.random);
        self.checks.secure(tls);
        self.check_endpoints();
        *self.context.sources.borrow_mut() = Arc::clone(&publication.snapshot.sources);
        self.context.scratch.borrow_mut().clear();
        let mut bound: HashMap<ListenerKey, Vec<OwnedFd>> = HashMap::new();
        for (key, socket) in sockets {
            bound.entry(key).or_default().push(socket);
        }
        let mut before = std::mem::take(&mut *self.listeners.borrow_mut());
        let mut next = HashMap::new();
        for listener in &publication.snapshot.listeners {
            let key = &listener.key;
            if let Some(known) = before.remove(key) {
                let serving = Serving::new(listener, tls, Some(&known.state.serving.borrow()));
                *known.state.serving.borrow_mut() = Rc::new(serving);
                next.insert(key.clone(), known);
                continue;
            }
            let Some(bound) = bound.remove(key) else {
                continue;
            };
            if let Err(error) = bound.iter().try_for_each(socket::listen) {
                self.send(ToControl::ListenFailed {
                    listener: key.clone(),
                    error: error.to_string(),
                });
                continue;
            }
            let state = Rc::new(ListenerState {
                key: key.clone(),
                serving: RefCell::new(Rc::new(Serving::new(listener, tls, None))),
                drain: Rc::new(Cell::new(self.drain.get())),
            });
            let start = |socket| accept::start(self, socket, Rc::clone(&state));
            let accepting = bound.into_iter().map(start).collect();
            next.insert(
                key.clone(),
                Listening {
                    state,
                    _accepting: accepting,
                },
            );
        }
        *self.listeners.borrow_mut() = next;
        self.dismiss(before.into_values());
        self.publications.borrow_mut().push(Arc::clone(publication));
        self.send(ToControl::Applied {
            version: publication.snapshot.version,
        });
        self.retire();
    }

    /// Serves the present version with other keys: new handshakes see them, connections that are there keep theirs.
    fn secure(&self, tls: &TlsSet) {
        for listening in self.listeners.borrow().values() {
            let serving = listening.state.serving.borrow().with_keys(tls);
            *listening.state.serving.borrow_mut() = Rc::new(serving);
        }
        self.context.clusters.secure(tls);
        self.checks.secure(tls);
    }

    /// Sends the versions back that nothing here uses any more: requests hold parts of a version, never the whole.
    fn retire(&self) {
        let mut publications = self.publications.borrow_mut();
        while publications.len() > 1 {
            let old = publications.remove(0);
            self.send(ToControl::Retired(old));
        }
    }

    fn send_stats(&self) {
        let mut stats = std::mem::take(&mut *self.context.stats.borrow_mut());
        let (open, idle) = self.context.clusters.connections();
        self.context.clusters.take_overflows(&mut stats.overflows);
        stats.counters.task_panics = self.context.tasks.take_panics();
        stats.gauges.downstream_connections_active = self.accepting.connections();
        stats.gauges.requests_active = self.context.active.get();
        stats.gauges.upstream_connections_active = open;
        stats.gauges.upstream_connections_idle = idle;
        stats.gauges.tasks = self.context.tasks.live();
        stats.gauges.buffers_in_use = self.context.pool.lent();
        stats.gauges.buffer_bytes = self.context.load().buffer_bytes;
        self.send(ToControl::Stats {
            stats: Box::new(stats),
            clusters: self.context.clusters.view(),
        });
    }

    /// Stops accepting on listeners that are gone; their connections are told to end.
    fn dismiss(&self, listeners: impl Iterator<Item = Listening>) {
        let mut leaving = self.leaving.borrow_mut();
        let now = clock::now();
        for listening in listeners {
            let state = &listening.state;
            if state.drain.get() == Drain::No {
                state.drain.set(Drain::Announced);
            }
            leaving.push((Rc::downgrade(state), now));
        }
    }

    /// Closes what still waits on listeners that are gone since long.
    fn close_dismissed(&self, now: Instant) {
        if self.drain.get().is_announced() {
            // They end with the process, which has its own pace.
            return;
        }
        let mut closed = false;
        self.leaving.borrow_mut().retain(|(state, since)| {
            let Some(state) = state.upgrade() else {
                return false;
            };
            let is_over = now.saturating_duration_since(*since) >= FAREWELL;
            if is_over {
                state.drain.set(Drain::CLOSING);
                closed = true;
            }
            !is_over
        });
        if closed {
            self.context.wheel.wake_all();
        }
    }

    fn drain(&self, drain: Drain) {
        self.drain.set(drain);
        if drain == Drain::Cut {
            self.cut.set(self.accepting.connections());
        }
        for listening in self.listeners.borrow().values() {
            listening.state.drain.set(drain);
        }
        for (state, _) in &*self.leaving.borrow() {
            state.upgrade().inspect(|state| state.drain.set(drain));
        }
        let going = std::mem::take(&mut *self.listeners.borrow_mut());
        let states = going.values().map(|listening| Rc::downgrade(&listening.state));
        // Their connections hear of each step.
        let now = clock::now();
        self.leaving.borrow_mut().extend(states.map(|state| (state, now)));
        drop(going);
        self.context.wheel.wake_all();
        self.report_drained();
    }

    fn report_drained(&self) {
        let stopped = self.drain.get().is_announced() && self.listeners.borrow().is_empty();
        if stopped && self.accepting.is_at_rest() && !self.drained_sent.replace(true) {
            self.context.log.flush();
            self.send(ToControl::Drained { cut: self.cut.get() });
        }
    }

    async fn keep_house(self: Rc<Self>) {
        let mut last = clock::now();
        loop {
            self.context.wheel.sleep(FLUSH).await;
            self.context.log.flush();
            self.outbox.borrow_mut().flush();
            self.report_drained();
            let now = clock::now();
            let changes = self.context.clusters.sweep_outliers(now);
            if !changes.is_empty() {
                self.send(ToControl::Ejected(changes));
            }
            let changes = self.checks.take_changes();
            if !changes.is_empty() {
                self.send(ToControl::Checked(changes));
            }
            self.context.clusters.refresh(now, &self.context.random);
            self.catch_up_with_checks();
            if now.saturating_duration_since(last) >= HOUSEKEEPING {
                last = now;
                self.context.clusters.sweep();
                self.close_dismissed(now);
            }
        }
    }
}
