//! The world: shards that share a cluster, clients that come and go, connections, and a queue of what happens next.
//!
//! What a shell does between the core and its sockets is done here with numbers in the place of sockets: requests look
//! for a connection, wait, are sent, answered, tried again, given up. Everything follows from the seed; nothing reads a
//! clock or depends on the order of a hash table, so that a seed's trace is the same to the byte each time.

mod connections;
mod endpoints;
mod requests;

use super::defect::Defect;
use super::oracle::{Facts, Oracle, Pick, Rule, Violation};
use super::scenario::{Scenario, Spot, TRAFFIC_MS, address, ms};
use super::upstream::{Behaviour, Connect, Reaction};
use http::{Method, StatusCode};
use isthmus_core::attempt::{
    Answer, Attempts, Before, BodyProgress, Failure, Judged, RetryOn, Timeouts, Verdict,
};
use isthmus_core::cluster::breaker::{Victim, WaiterId};
use isthmus_core::cluster::hash::hash;
use isthmus_core::cluster::locality::Levels;
use isthmus_core::cluster::outlier::Signal;
use isthmus_core::cluster::pool::Group;
use isthmus_core::cluster::retry_budget::{RequestCount, RetryPermit};
use isthmus_core::cluster::{
    Acquired, AcquiredStream, Choice, Cluster, ClusterSpec, ConnId, EndpointId, SharedId,
};
use isthmus_core::header::HeaderList;
use isthmus_core::random::Random;
use isthmus_core::reply::Cause;
use isthmus_core::shared::{Bell, ClusterShared, Limits, Permit};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Streams at a time on a connection.
const STREAMS_MAX: u32 = 3;
/// How long an answer or a turn is waited for where nothing else ends the wait.
const IDLE_MS: u64 = 2_000;
/// How long all that has begun may take to end once upstreams are well.
const SETTLING_MS: u64 = 60_000;
/// Requests of a survey.
const SURVEY: u32 = 60;

#[derive(Debug)]
struct Bells(Box<[AtomicBool]>);

impl Bell for Bells {
    fn ring(&self, shard: usize) {
        if let Some(bell) = self.0.get(shard) {
            bell.store(true, Ordering::Release);
        }
    }
}

/// What happens next; to a shard, a connection, an attempt or a request by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive,
    Connected(u32, bool),
    Head(u64),
    Body(u64, bool),
    AttemptIdles(u64),
    TryIsOver(u64, u32),
    Deadline(u64),
    Retry(u64),
    Abort(u64),
    ConnectionEnds(u32),
    Bell(usize),
    Deliver(usize),
    Sweep(usize),
    Expire(usize),
    UpstreamCloses(usize),
    Storm,
    Swap,
    Survey,
}

struct Shard {
    cluster: Cluster,
    /// Who waits, by place.
    waiting: BTreeMap<WaiterId, u64>,
    /// Something has changed that the first of them should look at.
    is_stirred: bool,
    /// An endpoint was picked for a request that found no permit.
    is_kept: bool,
    is_called: bool,
    is_behind: bool,
}

struct Conn {
    shard: usize,
    port: u16,
    came: u64,
    permit: Option<Permit>,
    shared: Option<SharedId>,
    is_made: bool,
    is_idle: bool,
    /// Its peer has closed it, and nobody has noticed.
    is_dead: bool,
    /// No more requests on it.
    drains: bool,
    requests: u32,
    attempts: BTreeSet<u64>,
}

struct Attempt {
    request: u64,
    shard: usize,
    endpoint: EndpointId,
    port: u16,
    came: u64,
    conn: u32,
    is_reused: bool,
    is_sent: bool,
    reaction: Reaction,
    admitted: Option<Permit>,
    began: u64,
}

struct Request<'s> {
    shard: usize,
    attempts: Attempts<'s>,
    attempts_max: u32,
    timeouts: Timeouts,
    /// What the shell goes by; the rules know better.
    deadline: Option<u64>,
    is_due: Option<u64>,
    hash: Option<u64>,
    before: Before,
    replayable: bool,
    number: u32,
    current: Option<u64>,
    parked: Option<u64>,
    outlasts: bool,
    /// It is to be sent again in a moment.
    pauses: bool,
    /// Bytes of an answer went to the client.
    answers: bool,
    place: Option<WaiterId>,
    permit: Option<RetryPermit>,
    parked_permit: Option<RetryPermit>,
    unasked: bool,
    count: Option<RequestCount>,
}

/// What a seed has come to.
pub(crate) struct Outcome {
    pub(crate) trace: String,
    pub(crate) violation: Option<Violation>,
    /// Of all that have come: how many were answered.
    pub(crate) requests: u64,
    pub(crate) answered: u64,
    pub(crate) retries: u64,
    pub(crate) ejections: u64,
}

pub(crate) struct World<'s> {
    scenario: &'s Scenario,
    defect: Option<Defect>,
    /// What happens.
    random: Random,
    /// What the core draws from.
    draws: Random,
    start: Instant,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next: u64,
    next_conn: u32,
    bells: Arc<Bells>,
    spots: Vec<Spot>,
    limits: Limits,
    spec: Arc<ClusterSpec>,
    shared: Arc<ClusterShared>,
    shards: Vec<Shard>,
    conns: BTreeMap<u32, Conn>,
    attempts: BTreeMap<u64, Attempt>,
    requests: BTreeMap<u64, Request<'s>>,
    behaviours: BTreeMap<u16, Behaviour>,
    /// When each was ejected last.
    ejected_at: BTreeMap<u16, u64>,
    lost: Vec<Permit>,
    lost_retries: Vec<RetryPermit>,
    oracle: Oracle<'s>,
    is_over: bool,
    outcome: Outcome,
}

impl<'s> World<'s> {
    pub(crate) fn new(scenario: &'s Scenario, defect: Option<Defect>) -> Self {
        let mut random = Random::from_seed(scenario.seed);
        let mut draws = Random::from_seed(random.next_u64());
        let start = Instant::now();
        let bells = Arc::new(Bells(
            (0..scenario.shards).map(|_| AtomicBool::new(false)).collect(),
        ));
        let limits = scenario.limits(&mut random);
        let spots = scenario.first.clone();
        let spec = Arc::new(scenario.spec(&spots, limits));
        let shared = ClusterShared::for_shards(limits, scenario.shards, Arc::clone(&bells) as _, start);
        let shared = Arc::new(shared.with_endpoints(spots.iter().map(|spot| address(spot.port))));
        let shard = |shard| {
            let (spec, shared) = (Arc::clone(&spec), Arc::clone(&shared));
            Shard {
                cluster: Cluster::new(spec, shared, start, &mut draws).on_shard(shard),
                waiting: BTreeMap::new(),
                is_stirred: false,
                is_kept: false,
                is_called: false,
                is_behind: false,
            }
        };
        let shards: Vec<Shard> = (0..scenario.shards).map(shard).collect();
        let mut world = Self {
            scenario,
            defect,
            random,
            draws,
            start,
            now: 0,
            queue: BinaryHeap::new(),
            next: 0,
            next_conn: 0,
            bells,
            spots,
            limits,
            spec,
            shared,
            shards,
            conns: BTreeMap::new(),
            attempts: BTreeMap::new(),
            requests: BTreeMap::new(),
            behaviours: BTreeMap::new(),
            ejected_at: BTreeMap::new(),
            lost: Vec::new(),
            lost_retries: Vec::new(),
            oracle: Oracle::new(scenario),
            is_over: false,
            outcome: Outcome {
                trace: String::new(),
                violation: None,
                requests: 0,
                answered: 0,
                retries: 0,
                ejections: 0,
            },
        };
        world.publish();
        (0..scenario.shards).for_each(|shard| world.deliver(shard));
        world.first_events();
        world
    }

    fn is(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn at(&self) -> Instant {
        self.start + ms(self.now)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.random.below(n) == 0
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.next += 1;
        self.queue.push(Reverse((self.now + ms, self.next, event)));
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let _memory = writeln!(self.outcome.trace, "{:>6} {what}", self.now);
    }

    fn first_events(&mut self) {
        self.after(1, Event::Arrive);
        for shard in 0..self.scenario.shards {
            self.after(1 + shard as u64, Event::Sweep(shard));
            self.after(50, Event::Expire(shard));
            self.after(100, Event::UpstreamCloses(shard));
        }
        self.after(150, Event::Storm);
        self.after(400, Event::Swap);
        self.after(250, Event::Survey);
    }

    pub(crate) fn run(mut self) -> Outcome {
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            self.now = at;
            self.oracle.at(at);
            self.note(format_args!("{event:?}"));
            self.handle(event);
            self.serve();
            self.call();
            self.check();
            if self.oracle.violation.is_some() || (self.is_over && self.is_quiet()) {
                break;
            }
            if at > TRAFFIC_MS + SETTLING_MS {
                let left = format!(
                    "{} requests, {} attempts",
                    self.requests.len(),
                    self.attempts.len()
                );
                self.oracle.broken(Rule::EverybodyIsServed, left);
                break;
            }
        }
        if self.oracle.violation.is_none() {
            self.close_all();
        }
        self.outcome.violation = self.oracle.violation.take();
        self.outcome
    }

    /// Nothing is under way.
    fn is_quiet(&self) -> bool {
        let is_told = self.shards.iter().any(|shard| shard.is_called || shard.is_behind);
        self.requests.is_empty() && !is_told && self.conns.values().all(|conn| conn.is_made && !conn.drains)
    }

    /// The process ends: nothing is held any more.
    fn close_all(&mut self) {
        for shard in 0..self.shards.len() {
            let idle = self.shards[shard].cluster.drain();
            for ConnId(conn) in idle {
                self.close(conn);
            }
            self.retire(shard);
        }
        let ended: Vec<u32> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.drains)
            .map(|(key, _)| *key)
            .collect();
        ended.into_iter().for_each(|conn| self.close(conn));
        let (connections, pending) = (self.shared.connections.held(), self.shared.pending.held());
        if (self.conns.len(), connections, pending) != (0, 0, 0) {
            let what = format!("{connections} permits and {pending} places are held in the end");
            self.oracle.broken(Rule::PermitsAreConnections, what);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive => self.arrive(),
            Event::Connected(conn, is_made) => self.connected(conn, is_made),
            Event::Head(attempt) => self.head(attempt),
            Event::Body(attempt, is_whole) => self.body(attempt, is_whole),
            Event::AttemptIdles(attempt) => self.attempt_idles(attempt),
            Event::TryIsOver(request, number) => self.try_is_over(request, number),
            Event::Deadline(request) => self.deadline(request),
            Event::Retry(id) => {
                let request = self.requests.get_mut(&id);
                if request.is_some_and(|request| std::mem::take(&mut request.pauses)) {
                    self.begin_attempt(id);
                }
            }
            Event::Abort(request) => self.give_up(request, Defect::PermitKeptOnAbort),
            Event::ConnectionEnds(conn) => {
                if self.conns.get(&conn).is_some_and(|conn| conn.attempts.is_empty()) {
                    self.close(conn);
                }
            }
            Event::Bell(shard) => self.answer_bell(shard),
            Event::Deliver(shard) => self.deliver(shard),
            Event::Sweep(shard) => self.sweep(shard),
            Event::Expire(shard) => self.expire(shard),
            Event::UpstreamCloses(shard) => self.upstream_closes(shard),
            Event::Storm => self.storm(),
            Event::Swap => self.swap(),
            Event::Survey => self.survey(),
        }
    }

    /// What must hold after each step.
    fn check(&mut self) {
        let count =
            |is: &dyn Fn(&Request<'_>) -> bool| self.requests.values().filter(|request| is(request)).count();
        let waits = |shard: usize| count(&|request| request.shard == shard && request.place.is_some());
        let idles = |shard: usize| {
            let all = self.conns.values().filter(|conn| conn.shard == shard);
            let unused = |conn: &&Conn| {
                conn.is_idle
                    || (conn.shared.is_some() && conn.is_made && conn.attempts.is_empty() && !conn.drains)
            };
            all.filter(unused).count()
        };
        let facts = Facts {
            connections_held: self.shared.connections.held(),
            connections: self.conns.len() as u32,
            requests_held: self.shared.requests.held(),
            requests: self
                .attempts
                .values()
                .filter(|attempt| attempt.admitted.is_some())
                .count() as u32,
            pending_held: self.shared.pending.held(),
            waiting: (0..self.shards.len())
                .map(|shard| (waits(shard), idles(shard)))
                .collect(),
            is_told_soon: self.shards.iter().any(|shard| shard.is_called)
                || self
                    .conns
                    .values()
                    .any(|conn| conn.drains && conn.attempts.is_empty()),
            retries_held: self.shared.retries.retries(),
            retries: (count(&|request| request.permit.is_some() || request.unasked)
                + count(&|request| request.parked_permit.is_some())) as u32,
            counted_held: self.shared.retries.requests(),
            counted: count(&|request| request.count.is_some()) as u32,
        };
        self.oracle.check(&facts);
        for (id, request) in &self.requests {
            if request.is_due.is_some_and(|due| self.now > due) {
                self.oracle.broken(Rule::DeadlinesHold, format!("request {id}"));
            }
        }
        for (shard, Shard { cluster, .. }) in self.shards.iter().enumerate() {
            for (address, _, active, idle) in cluster.view() {
                let (port, came) = (address.port(), self.oracle.came(shard, address.port()));
                let all = self.attempts.values();
                let own = all.filter(|one| one.shard == shard && (one.port, one.came) == (port, came));
                let conns = self
                    .conns
                    .values()
                    .filter(|conn| conn.is_idle && conn.shard == shard);
                let kept = conns
                    .filter(|conn| (conn.port, conn.came) == (port, came))
                    .count();
                let own = own.count() as u32;
                if (own, kept) != (active, idle) {
                    let what = format!(
                        "{port} on shard {shard}: {active} in flight, should be {own}; {idle} idle, {kept}"
                    );
                    self.oracle.broken(Rule::EveryAcquireIsReleasedOnce, what);
                }
            }
        }
    }
}

/// What a request has found.
enum Got {
    /// A connection that is there.
    Conn(u32, EndpointId),
    /// Leave to make one.
    New(EndpointId, SocketAddr, Permit),
    /// No endpoint.
    Nothing,
    /// No permit.
    Full,
}
