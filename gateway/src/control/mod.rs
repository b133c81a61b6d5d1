//! The control thread: everything that is not on the path of a request.
//!
//! One actor owns what there is to know: the published configuration, the shards' mailboxes, the merged counters, the
//! state of the process. Signals, the HTTP servers and the shards send it [`Event`]s; it answers and sends messages to
//! shards. It never waits for a shard: it asks, and goes on when the answer comes.

mod admin;
mod admin_tls;
mod configuration;
mod discovery;
mod dns;
mod doors;
pub mod endpoints;
mod explain;
mod keys;
mod life;
mod listeners;
mod metrics;
mod publish;
mod registration;
mod registration_api;
mod report;
mod resources;
mod servers;
mod source;
mod stall;
mod systemd;
mod upgrade;

pub use admin::AdminAddress;
pub use admin_tls::AdminTls;
pub use listeners::{ListenerError, PortMap};
pub use metrics::Metrics;
pub use source::Files;
pub use upgrade::{Inherited, Parent};

use crate::access_log;
use crate::io::executor::{self, Heartbeat};
use crate::io::{clock, heap};
use crate::mailbox::{
    Bells, ClusterView, Inbox, NameAnswer, Outbox, Publication, TlsSet, ToControl, ToShard,
};
use crate::tls::Store;
use configuration::Configuration;
use discovery::Discovery;
use dns::Names;
use doors::Closed;
use explain::Written;
use isthmus_config::Secrets;
use isthmus_config::diagnostic::{Diagnostic, Severity};
use isthmus_config::explain::{Asked, Explanation};
use isthmus_config::keep::Outcome;
use isthmus_core::drain::{Drain, Plan};
use isthmus_core::limits::Settings;
use isthmus_core::listener::ListenerKey;
use isthmus_core::snapshot::{Changes, Difference, Snapshot};
use isthmus_core::stats::{Gauges, ShardStats};
use keys::Keys;
use listeners::Listeners;
use publish::Publisher;
use servers::{NAMES as SERVERS, Servers};
use source::{Answer, Loaded, Set, Watch};
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use systemd::Systemd;
use tokio::sync::{mpsc, oneshot};
use upgrade::{Asker, Order, Successor, Upgrading};

/// How often control looks after its shards.
const TICK: Duration = Duration::from_millis(100);
/// Most events that are taken before what they have changed of endpoints is sent.
const EVENTS_AT_ONCE: usize = 256;
/// How long a collection of counters waits for a shard.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long connections that were cut may take to leave their lines in the access log, and shards to end.
const LAST_WORDS: Duration = Duration::from_secs(1);
const SHARDS_END: Duration = Duration::from_secs(5);
/// How long what shards have left for the access log may take to be written.
const LOG_ENDS: Duration = Duration::from_secs(3);
/// Most new warnings that one load of the resources logs; `isthmus check` has them all.
const WARNINGS_LOGGED: usize = 20;

/// Where the HTTP servers listen, and how the process ends.
#[derive(Debug, Clone)]
pub struct Options {
    /// Admin API.
    pub admin: AdminAddress,
    /// What it shows and demands when it speaks TLS.
    pub admin_tls: Option<AdminTls>,
    /// Health.
    pub status: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
    /// Address of listeners whose Gateway names none.
    pub bind_address: IpAddr,
    /// Ports of Gateways and the ports to listen on for them.
    pub port_map: PortMap,
    /// How long new connections are still accepted after TERM.
    pub drain_delay: Duration,
    /// How long connections may take to end then.
    pub drain_timeout: Duration,
    /// Written once traffic is accepted.
    pub ready_file: Option<PathBuf>,
}

/// A shard as control sees it.
pub struct ShardLink {
    /// To it.
    pub outbox: Outbox<ToShard>,
    /// From it.
    pub inbox: Inbox<ToControl>,
    /// Its sign of life.
    pub heartbeat: Heartbeat,
    /// Its thread.
    pub thread: JoinHandle<std::thread::Result<()>>,
}

/// How the process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// As it was asked to.
    Asked,
    /// The machine does not allow what was asked.
    Environment(String),
    /// A shard died.
    ShardDied,
}

/// Why control could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port of a Gateway cannot be opened.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// A port of the process itself cannot be opened.
    #[error("the {what} address {address} cannot be opened: {error}; give another one with --{what}")]
    Server {
        /// `admin`, `status` or `metrics`.
        what: &'static str,
        /// The address.
        address: String,
        /// Why.
        error: std::io::Error,
    },
    /// Something else.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What one collection of counters brought.
struct Collected {
    gauges: Gauges,
    clusters: BTreeMap<String, Vec<ClusterView>>,
    publication: Option<Arc<Publication>>,
}

enum Event {
    Shard(usize, ToControl),
    Collect(oneshot::Sender<Collected>),
    Text(Request, oneshot::Sender<String>),
    Explain(Box<Asked>, oneshot::Sender<Box<Explanation>>),
    DrainListeners(oneshot::Sender<()>),
    /// The files were looked at; who asked for it wants to know what came of it.
    Loaded(Loaded, Vec<Answer>),
    /// The names of a load are known, or have had their time: its number, and what it has brought.
    Settled(u64, Box<Set>, Vec<Answer>),
    /// A name has other addresses.
    Resolved(Arc<str>),
    /// An instance says something, or somebody asks about instances.
    Registration(registration_api::Call, oneshot::Sender<registration_api::Answer>),
    /// What a shard wants to know of a name.
    Answered(usize, NameAnswer),
    /// The ready file cannot be written.
    ReadyFailed(String),
    /// Somebody asks for a look: what will be said of it, or why there is none.
    Reload(oneshot::Sender<Result<oneshot::Receiver<String>, &'static str>>),
    Signal(Signal),
    /// Somebody asks for a newer process.
    Upgrade(Order, Asker),
    /// The newer process is ready, or has failed.
    HandedOver(Result<Box<Successor>, String>),
    /// The older process has spoken: whether this one goes on.
    TakenOver(bool),
    /// A load that a signal asked for has ended.
    Reloaded,
    /// The admin API asks for the documents, or brings some.
    Resources(resources::Ask),
}

/// What an HTTP server asks the actor for.
enum Request {
    Metrics(Gauges),
    Listeners,
    ConfigDump,
    Dns,
    Certificates,
    Ready,
    Status,
    Process(Gauges),
}

#[derive(Debug, Clone, Copy)]
enum Signal {
    Terminate,
    Interrupt,
    Hangup,
    User1,
    User2,
}

struct Shard {
    outbox: Outbox<ToShard>,
    heartbeat: Heartbeat,
    thread: JoinHandle<std::thread::Result<()>>,
    seen: stall::Seen,
    stalled: bool,
    applied: u64,
    secured: u64,
    drained: bool,
    /// Connections that did not end in time.
    cut: u64,
}

struct Collection {
    asked: Instant,
    missing: Vec<usize>,
    gauges: Gauges,
    clusters: BTreeMap<String, Vec<ClusterView>>,
    answer: Vec<oneshot::Sender<Collected>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Starting,
    Serving,
    /// TERM has come; connections are still accepted.
    Leaving,
    /// Connections end.
    Draining,
    Over,
}

struct Control {
    options: Options,
    shards: Vec<Shard>,
    listeners: Listeners,
    publisher: Publisher,
    discovery: Discovery,
    /// Loads so far: one that waits for its names is overtaken by the next.
    loads: u64,
    keys: Keys,
    configuration: Configuration,
    /// None when the resources do not come from files.
    watch: Option<Watch>,
    metrics: Metrics,
    log: access_log::Writer,
    life: Life,
    collecting: Option<Collection>,
    ended: Ended,
    servers: Servers,
    listeners_drained: bool,
    /// The way out, once it is taken.
    plan: Option<Plan>,
    /// How far along it the shards know themselves to be.
    drain: Drain,
    /// An upgrade that is under way.
    upgrading: Option<Upgrading>,
    /// The process whose place this one takes, until it is told that this one is ready.
    parent: Option<Arc<Parent>>,
    /// Whether another process serves in the place of this one.
    is_replaced: bool,
    /// Whether the admin socket is that one's now.
    left_admin: bool,
    systemd: Systemd,
    /// What the published snapshot was made from.
    written: Written,
    settings: Settings,
    began: Instant,
    events: mpsc::Sender<Event>,
    /// Whether ports were opened that are no change of the version that has them.
    ports_opened: bool,
    /// Doors that wait for the first checks.
    closed: Option<Closed>,
    /// Writes the ready file.
    ready_written: Option<tokio::task::JoinHandle<()>>,
}

/// Runs the process: opens the ports, publishes the snapshot, and obeys signals until the end. Must be called inside a
/// local task set of a current-thread runtime.
pub async fn run(
    options: Options,
    settings: Settings,
    (outcome, files): (Outcome, Option<Files>),
    (keys, mut inherited): (Store, Inherited),
    (links, bells): (Vec<ShardLink>, Arc<Bells>),
    (metrics, seed): (Metrics, u64),
    log: access_log::Writer,
) -> Result<Ended, StartError> {
    let (events, mut inbox) = mpsc::channel(1024);
    let mut servers = Servers::open(&options, keys.pinned(), &mut inherited, &events)?;
    let (parent, found) = (inherited.parent(), inherited.take_found());
    if parent.is_none() {
        servers.serve()?;
    }
    let mut shards = Vec::new();
    for (index, link) in links.into_iter().enumerate() {
        let (events, mut from) = (events.clone(), link.inbox);
        tokio::task::spawn_local(async move {
            while let Some(message) = from.recv().await {
                if events.send(Event::Shard(index, message)).await.is_err() {
                    return;
                }
            }
        });
        shards.push(Shard {
            outbox: link.outbox,
            heartbeat: link.heartbeat,
            thread: link.thread,
            seen: stall::Seen::new(clock::now()),
            stalled: false,
            applied: 0,
            secured: 0,
            drained: false,
            cut: 0,
        });
    }
    life::spawn_signals(&events)?;
    let watch = files
        .map(|files| Watch::start(files, events.clone()))
        .transpose()?;
    let keys = Keys::new(keys);
    let congestion_control = &settings.congestion_control;
    let listeners = Listeners::new(
        options.bind_address,
        options.port_map.clone(),
        congestion_control.clone(),
        inherited,
    );
    let names = Names::new(&settings, seed, events.clone());
    let mut discovery = Discovery::new(names.clone(), settings.egress_allowed.clone());
    discovery.take_over(found, clock::now());
    let mut control = Control {
        options,
        shards,
        listeners,
        publisher: Publisher::new(bells),
        discovery,
        loads: 0,
        keys,
        configuration: Configuration::default(),
        watch,
        metrics,
        log,
        life: Life::Starting,
        collecting: None,
        ended: Ended::Asked,
        servers,
        listeners_drained: false,
        plan: None,
        drain: Drain::No,
        upgrading: None,
        parent,
        is_replaced: false,
        left_admin: false,
        systemd: Systemd::from_env(),
        events,
        ports_opened: false,
        ready_written: None,
        closed: None,
        written: Written {
            sources: outcome.sources,
            origins: outcome.compiled.origins,
            diagnostics: outcome.diagnostics,
        },
        settings,
        began: clock::now(),
    };
    control.configuration.quarantine(outcome.quarantined);
    if let Some(watch) = &control.watch {
        control.configuration.keeps(watch.unkept());
    }
    control
        .discovery
        .registration
        .set_services(outcome.compiled.services);
    let mut settled = std::pin::pin!(names.settle(discovery::names_of(&outcome.compiled.snapshot)));
    let mut first = Some(outcome.compiled.snapshot);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while control.life != Life::Over {
        tokio::select! {
            () = &mut settled, if first.is_some() => {
                // Unless the files were changed meanwhile, and what they say now is published.
                let snapshot = first.take().filter(|_| control.publisher.current().is_none());
                let failed = snapshot.map(|snapshot| control.publish(snapshot, None)).unwrap_or_default();
                // A process that takes another one's place has what that one could open.
                if control.parent.is_some() {
                    control.ports_failed(&failed);
                } else if let Some(error) = failed.into_iter().next() {
                    return Err(error.into());
                }
            }
            Some(event) = inbox.recv() => {
                control.handle(event);
                for _ in 0..EVENTS_AT_ONCE {
                    let Ok(event) = inbox.try_recv() else { break };
                    control.handle(event);
                }
                control.send_endpoints();
            }
            _ = tick.tick() => {
                control.tick();
                control.send_endpoints();
            }
        }
    }
    // Whoever waits for what nobody looks at any more hears that the process ends.
    drop(inbox);
    let last_answers = control.servers.last_answers();
    let ended = control.stop();
    last_answers.await;
    Ok(ended)
}

impl Control {
    /// Hands a version to the shards. Answers the ports that could not be opened: the rest is served without them.
    fn publish(&mut self, mut snapshot: Snapshot, secrets: Option<Secrets>) -> Vec<ListenerError> {
        let (mut sockets, failed) = self.listeners.open(&snapshot, self.shards.len());
        let tls = self.keys.load(&snapshot, secrets);
        self.configuration.keys(self.keys.problems());
        self.discovery.fill(&mut snapshot, &self.publisher);
        if self.publisher.current().is_none() {
            self.closed = Closed::of(&snapshot, &mut sockets, clock::now());
        }
        self.send_version(snapshot, sockets, &tls);
        failed
    }

    fn send_version(
        &mut self,
        snapshot: Snapshot,
        mut sockets: Vec<Vec<(ListenerKey, OwnedFd)>>,
        tls: &Arc<TlsSet>,
    ) {
        self.metrics.set_clusters(&snapshot.clusters);
        let (publication, difference) = self.publisher.publish(snapshot);
        let version = publication.snapshot.version;
        self.configuration
            .published(version, difference, self.keys.number(), clock::now());
        for (index, shard) in self.shards.iter_mut().enumerate() {
            let sockets = sockets.get_mut(index).map(std::mem::take).unwrap_or_default();
            shard.outbox.send(ToShard::Apply {
                publication: Arc::clone(&publication),
                tls: Arc::clone(tls),
                sockets,
            });
        }
    }

    /// Takes what the files say now: it is applied when its names are known.
    fn take_load(&mut self, loaded: Loaded, answers: Vec<Answer>) {
        if !self.takes_versions() {
            return self.miss(answers);
        }
        let set = match loaded {
            Loaded::Set(set) => set,
            Loaded::Unchanged => {
                self.metrics.count_reload("unchanged");
                self.configuration.readable();
                return self.configuration.answer(answers);
            }
            Loaded::Unreadable(error) => {
                // They are looked at again and again.
                if self.configuration.unreadable(&error) {
                    tracing::error!(
                        error,
                        "the files cannot be read: the configuration stays as it is"
                    );
                }
                self.metrics.count_reload("failed");
                return self.configuration.answer(answers);
            }
        };
        self.loads += 1;
        let (number, names) = (self.loads, discovery::names_of(&set.outcome.compiled.snapshot));
        let known = self.discovery.names().clone();
        if known.are_settled(names.iter().map(|name| &**name)) {
            return self.apply(*set, answers);
        }
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            known.settle(names).await;
            let _ended = events.send(Event::Settled(number, set, answers)).await;
        });
    }

    /// What is not taken now is loaded again if this process goes on after all; who waits for it hears that it is not.
    fn miss(&mut self, answers: Vec<Answer>) {
        if let Some(upgrading) = &mut self.upgrading {
            upgrading.missed_load = true;
        } else {
            tracing::info!("the files are not loaded: this process is on its way out");
        }
        drop(answers);
    }

    /// Applies what the files have said.
    fn apply(&mut self, set: Set, answers: Vec<Answer>) {
        if !self.takes_versions() {
            return self.miss(answers);
        }
        let Set { outcome, times } = set;
        for found in outcome
            .diagnostics
            .iter()
            .filter(|found| found.severity == Severity::Error)
        {
            tracing::error!("{found}");
        }
        let warnings_of = |diagnostics: &'_ [Diagnostic]| -> Vec<String> {
            let warnings = diagnostics
                .iter()
                .filter(|found| found.severity == Severity::Warning);
            warnings.map(ToString::to_string).collect()
        };
        let known: HashSet<String> = warnings_of(&self.written.diagnostics).into_iter().collect();
        let warnings = warnings_of(&outcome.diagnostics).into_iter();
        for warning in warnings
            .filter(|warning| !known.contains(warning))
            .take(WARNINGS_LOGGED)
        {
            tracing::warn!("{warning}");
        }
        for held in &outcome.quarantined {
            tracing::error!(
                resources = held.resources.join(", "),
                file = held.file,
                line = held.line,
                column = held.column,
                serves_last = held.serves_last,
                "a document stays behind: {}",
                held.reason
            );
        }
        let result = if outcome.quarantined.is_empty() {
            "applied"
        } else {
            "degraded"
        };
        self.metrics.count_reload(result);
        self.configuration.loaded(times, answers);
        self.configuration.quarantine(outcome.quarantined);
        self.written = Written {
            sources: outcome.sources,
            origins: outcome.compiled.origins,
            diagnostics: outcome.diagnostics,
        };
        self.discovery
            .registration
            .set_services(outcome.compiled.services);
        let failed = self.publish(outcome.compiled.snapshot, Some(outcome.compiled.secrets));
        self.ports_failed(&failed);
    }

    /// Whether another version may be served: not by a process that is about to end, or whose ports are closed for good.
    fn takes_versions(&self) -> bool {
        !self.listeners_drained
            && self.upgrading.is_none()
            && matches!(self.life, Life::Starting | Life::Serving)
    }

    fn ports_failed(&mut self, failed: &[ListenerError]) {
        for error in failed {
            tracing::error!(%error, "everything else is served; the port is tried again");
        }
        self.configuration
            .ports(failed.iter().map(ToString::to_string).collect());
    }

    /// Tries again to open the ports that could not be opened.
    fn retry_ports(&mut self, now: Instant) {
        if !self.takes_versions() || !self.configuration.is_retry_due(now) {
            return;
        }
        // With the endpoints as they are by now.
        let Some(current) = self.publisher.effective() else {
            return;
        };
        let (sockets, failed) = self.listeners.open(&current.snapshot, self.shards.len());
        if sockets.iter().any(|sockets| !sockets.is_empty()) {
            let (_, tls) = self.keys.last_change();
            self.send_version(current.snapshot.clone(), sockets, &tls);
            self.ports_opened = true;
        }
        self.configuration
            .ports(failed.iter().map(ToString::to_string).collect());
    }

    /// A version is served by every shard.
    fn applied(&mut self, version: u64) {
        let Some(applied) = self.configuration.applied(version, clock::now()) else {
            return;
        };
        self.keys.secured(applied.keys);
        if self.life == Life::Starting {
            if self.closed.is_none() {
                self.announce();
            }
            return;
        }
        let Difference {
            listeners,
            hosts,
            clusters,
        } = applied.difference;
        tracing::info!(
            version,
            listeners = %applied.counts(listeners),
            hosts = %applied.counts(hosts),
            clusters = %applied.counts(clusters),
            read_ms = applied.times.read.as_millis(),
            compile_ms = applied.times.compile.as_millis(),
            publish_ms = applied.publish.as_millis(),
            "the configuration is applied"
        );
        self.metrics.set_stages(applied.times, applied.publish);
        if listeners != Changes::default() || std::mem::take(&mut self.ports_opened) {
            self.write_ready_file();
        }
    }

    /// Hands the endpoints of clusters to the shards where they are others than before.
    fn send_endpoints(&mut self) {
        for (key, set) in self.discovery.take_changes(&self.publisher) {
            for (shard, update) in self.publisher.change_endpoints(&key, set, clock::now()) {
                if let Some(shard) = self.shards.get_mut(shard) {
                    shard.outbox.send(ToShard::Endpoints(update));
                }
            }
        }
    }

    /// Looks after keys, and hands those that are new to the shards.
    fn refresh_keys(&mut self) {
        if let Some((number, tls)) = self.keys.refresh() {
            self.servers.renew_admin_keys(self.keys.store().pinned());
            for shard in &mut self.shards {
                shard.outbox.send(ToShard::Secure {
                    number,
                    tls: Arc::clone(&tls),
                });
            }
        }
        self.configuration.keys(self.keys.problems());
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Shard(index, message) => self.handle_shard(index, message),
            Event::Collect(answer) => self.collect(answer),
            Event::Text(request, answer) => {
                let text = match request {
                    Request::Metrics(gauges) => self.render_metrics(&gauges),
                    Request::Listeners => report::listeners(&self.listeners),
                    Request::ConfigDump => report::config_dump(self.publisher.effective().as_ref()),
                    Request::Dns => report::names(self.discovery.names()),
                    Request::Certificates => report::certificates(self.keys.store()),
                    Request::Ready => {
                        let serves = self.life == Life::Serving && !self.listeners_drained;
                        if serves || self.is_replaced {
                            self.configuration.readiness()
                        } else {
                            String::new()
                        }
                    }
                    Request::Status => self.configuration.status().to_string(),
                    Request::Process(gauges) => self.report_process(&gauges),
                };
                let _asker_gone = answer.send(text);
            }
            Event::Explain(asked, answer) => {
                let _asker_gone = answer.send(Box::new(self.explain(*asked)));
            }
            Event::DrainListeners(answer) => {
                tracing::warn!(
                    "the listeners are drained on request: no traffic is accepted until a restart"
                );
                self.listeners_drained = true;
                self.leave(Plan::staying(clock::now(), self.options.drain_delay));
                let _asker_gone = answer.send(());
            }
            Event::Loaded(loaded, answers) => self.take_load(loaded, answers),
            Event::Settled(number, set, answers) if number == self.loads => self.apply(*set, answers),
            // Another one has come since.
            Event::Settled(_, _, answers) => self.configuration.answer(answers),
            Event::Answered(shard, answer) => {
                if let Some(shard) = self.shards.get_mut(shard) {
                    shard.outbox.send(ToShard::Resolved(answer));
                }
            }
            Event::Resolved(name) => self.discovery.changed(&name),
            Event::Registration(call, answer) => {
                let _asker_gone = answer.send(self.register(call));
            }
            // Whoever waits for it would wait for ever.
            Event::ReadyFailed(text) => {
                self.ended = Ended::Environment(text);
                self.life = Life::Over;
            }
            Event::Reload(asker) => {
                let (answer, answered) = oneshot::channel();
                let told = match &self.watch {
                    _ if self.upgrading.is_some() => {
                        Err("a newer process is starting, which loads the files")
                    }
                    _ if !self.takes_versions() => {
                        Err("this process is on its way out, and loads nothing more")
                    }
                    Some(watch) => {
                        watch.reload(Some(answer));
                        Ok(answered)
                    }
                    None => {
                        self.configuration.answer(vec![answer]);
                        Ok(answered)
                    }
                };
                let _asker_gone = asker.send(told);
            }
            Event::Signal(signal) => self.handle_signal(signal),
            Event::Upgrade(order, asker) => self.begin_upgrade(order, Some(asker)),
            Event::HandedOver(ended) => self.handed_over(ended),
            Event::TakenOver(true) => self.speak_up(),
            Event::TakenOver(false) => self.life = Life::Over,
            Event::Resources(ask) => self.ask_for_resources(ask),
            Event::Reloaded => self.systemd.ready("serving"),
        }
    }

    fn handle_shard(&mut self, index: usize, message: ToControl) {
        match message {
            ToControl::Applied { version } => {
                if let Some(shard) = self.shards.get_mut(index) {
                    shard.applied = version;
                }
                let current = self
                    .publisher
                    .current()
                    .map_or(0, |publication| publication.snapshot.version);
                if self.shards.iter().all(|shard| shard.applied >= current) {
                    self.publisher.served(current);
                    self.applied(current);
                    // What the version before was made of is freed by now.
                    heap::give_back();
                }
            }
            ToControl::EndpointsApplied(update) => {
                let (next, since) = self.publisher.endpoints_applied(index, &update);
                if let (Some(next), Some(shard)) = (next, self.shards.get_mut(index)) {
                    shard.outbox.send(ToShard::Endpoints(next));
                }
                if let Some(since) = since {
                    self.metrics
                        .endpoints_applied(clock::now().saturating_duration_since(since));
                }
            }
            ToControl::Resolve(name) => {
                let (names, events) = (self.discovery.names().clone(), self.events.clone());
                tokio::task::spawn_local(async move {
                    let answer = names.resolve(name).await;
                    let _ended = events.send(Event::Answered(index, answer)).await;
                });
            }
            ToControl::Secured { number } => {
                if let Some(shard) = self.shards.get_mut(index) {
                    shard.secured = number;
                }
                let everywhere = self.shards.iter().map(|shard| shard.secured).min();
                self.keys.secured(everywhere.unwrap_or(number));
            }
            ToControl::ListenFailed { listener, error } => {
                tracing::error!(
                    shard = index,
                    port = listener.port,
                    error,
                    "a listener could not be opened"
                );
            }
            ToControl::Retired(publication) => drop(publication),
            ToControl::Stats { stats, clusters } => self.take_stats(index, &stats, clusters),
            ToControl::Ejected(changes) => {
                for (cluster, change) in changes {
                    let address = self.publisher.shown(&cluster, change.address);
                    let cluster = cluster.as_str();
                    match change.ejected {
                        Some(time) => tracing::warn!(cluster, %address, ?time, "an endpoint is ejected"),
                        None => tracing::info!(cluster, %address, "an ejected endpoint is back"),
                    }
                    self.metrics.count_ejection(cluster, change.ejected.is_some());
                }
            }
            ToControl::Checked(changes) => {
                for (cluster, change) in changes {
                    let address = self.publisher.shown(&cluster, change.address);
                    let (cluster, epoch) = (cluster.as_str(), change.epoch);
                    match change.failure {
                        Some(failure) => {
                            tracing::warn!(cluster, %address, %failure, epoch, "an endpoint is unhealthy");
                        }
                        None => tracing::info!(cluster, %address, epoch, "an endpoint is healthy"),
                    }
                    self.metrics.count_verdict(cluster, change.failure.is_none());
                }
            }
            ToControl::Drained { cut } => {
                if let Some(shard) = self.shards.get_mut(index) {
                    shard.drained = true;
                    shard.cut = cut;
                }
            }
        }
    }

    fn collect(&mut self, answer: oneshot::Sender<Collected>) {
        match &mut self.collecting {
            // Two askers share one collection.
            Some(collection) => collection.answer.push(answer),
            None => {
                self.collecting = Some(Collection {
                    asked: clock::now(),
                    missing: (0..self.shards.len()).collect(),
                    gauges: Gauges::default(),
                    clusters: BTreeMap::new(),
                    answer: vec![answer],
                });
                for shard in &mut self.shards {
                    shard.outbox.send(ToShard::CollectStats);
                }
            }
        }
    }

    fn take_stats(&mut self, index: usize, stats: &ShardStats, clusters: Vec<ClusterView>) {
        self.metrics.add(stats);
        let Some(collection) = &mut self.collecting else {
            return;
        };
        collection.missing.retain(|&missing| missing != index);
        collection.gauges.merge(&stats.gauges);
        for cluster in clusters {
            collection
                .clusters
                .entry(cluster.name.clone())
                .or_default()
                .push(cluster);
        }
        if collection.missing.is_empty() {
            self.answer_collection();
        }
    }

    fn answer_collection(&mut self) {
        let Some(collection) = self.collecting.take() else {
            return;
        };
        for answer in collection.answer {
            let collected = Collected {
                gauges: collection.gauges.clone(),
                clusters: collection.clusters.clone(),
                publication: self.publisher.effective(),
            };
            let _asker_gone = answer.send(collected);
        }
    }

    fn render_metrics(&self, gauges: &Gauges) -> String {
        let held = self.publisher.permits_held();
        self.metrics.set_certificates(self.keys.store());
        self.metrics.set_names(self.discovery.names());
        self.metrics.set_oversleeps(crate::io::uring::overslept());
        self.metrics.set_instances(self.discovery.registration.len());
        let (documents, ports) = self.configuration.left_behind();
        self.metrics.set_left_behind(documents, ports);
        if let Some(publication) = self.publisher.current() {
            self.metrics.set_limits(&publication.shared);
        }
        let version = self
            .publisher
            .current()
            .map_or(0, |publication| publication.snapshot.version);
        self.metrics
            .render(gauges, held, version, self.shards.len(), self.log.losses())
    }

    fn tick(&mut self) {
        let now = clock::now();
        self.go_on(now);
        self.open_doors(now);
        if !self.shards.iter().any(|shard| shard.stalled) {
            self.systemd.ping(now);
        }
        if self
            .collecting
            .as_ref()
            .is_some_and(|collection| now - collection.asked > COLLECT_TIMEOUT)
        {
            tracing::warn!("a shard did not send its counters in time");
            self.answer_collection();
        }
        self.refresh_keys();
        self.expire_instances();
        self.discovery.names().look();
        self.retry_ports(now);
        for (index, shard) in self.shards.iter_mut().enumerate() {
            shard.outbox.flush();
            if shard.thread.is_finished() && self.life != Life::Over {
                tracing::error!(shard = index, "the shard ended; the process ends with it");
                self.ended = Ended::ShardDied;
                self.life = Life::Over;
                return;
            }
            stall::watch(index, shard, now, &self.metrics);
        }
    }

    fn stop(mut self) -> Ended {
        self.cancel_upgrade();
        self.release_files();
        for shard in &mut self.shards {
            shard.outbox.send(ToShard::Stop);
            shard.outbox.flush();
        }
        // A shard that stands still must not keep the process for ever.
        let until = clock::now() + SHARDS_END;
        while clock::now() < until && self.shards.iter().any(|shard| !shard.thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(2));
        }
        for (index, shard) in self.shards.into_iter().enumerate() {
            if !shard.thread.is_finished() {
                tracing::error!(shard = index, "the shard does not end: the process does");
                self.ended = Ended::ShardDied;
                continue;
            }
            match shard.thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(failure)) if failure.is::<executor::BuildError>() => {
                    if let Some(error) = failure.downcast_ref::<executor::BuildError>() {
                        self.ended = Ended::Environment(error.to_string());
                    }
                }
                Ok(Err(panic)) | Err(panic) => {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text
                        .or_else(|| panic.downcast_ref::<&str>().copied())
                        .unwrap_or("a panic");
                    tracing::error!(shard = index, reason = text, "the shard failed");
                    self.ended = Ended::ShardDied;
                }
            }
        }
        if !self.left_admin {
            self.servers.admin().address().remove();
        }
        if !self.log.stop(LOG_ENDS) {
            tracing::error!("the access log takes nothing: its last lines are lost");
        }
        self.ended
    }
}
