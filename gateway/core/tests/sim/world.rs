//! The world: shards that share a cluster, clients that come and go, connections, and a queue of what happens next.
//!
//! What a shell does between the core and its sockets is done here with numbers in the place of sockets: requests look
//! for a connection, wait, are sent, answered, tried again, given up. Everything follows from the seed; nothing reads a
//! clock or depends on the order of a hash table, so that a seed's trace is the same to the byte each time.

use super::defect::Defect;
use super::oracle::{Facts, Oracle, Pick, Rule, Violation};
use super::scenario::{Scenario, Spot, TRAFFIC_MS, address, ms};
use super::upstream::{Behaviour, Connect, Reaction};
use http::{Method, StatusCode};
use isthmus_core::attempt::{Answer, Attempts, BodyProgress, Failure, Judged, RetryOn, Timeouts, Verdict};
use isthmus_core::cluster::breaker::{Victim, WaiterId};
use isthmus_core::cluster::hash::hash;
use isthmus_core::cluster::outlier::Signal;
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
    avoids: bool,
    avoid: Vec<EndpointId>,
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

    // Requests.

    fn arrive(&mut self) {
        if self.now >= TRAFFIC_MS {
            self.is_over = true;
            self.behaviours.clear();
            return;
        }
        let gap = self.random.below(2 * self.scenario.gap);
        self.after(gap, Event::Arrive);
        self.next += 1;
        let id = self.next;
        let policy = &self.scenario.policies[self.random.below(2) as usize];
        let method = [Method::GET, Method::POST][self.random.below(2) as usize].clone();
        let timeouts = match self.defect {
            Some(Defect::PerTryAboveTotal) => Timeouts {
                total: self.scenario.total,
                per_try: policy.per_try_timeout,
            },
            _ => Timeouts::new(self.scenario.total, policy.per_try_timeout, None, None),
        };
        if let (Some(per_try), Some(total)) = (timeouts.per_try, timeouts.total)
            && per_try >= total
        {
            let what = format!("{per_try:?} of {total:?}");
            self.oracle.broken(Rule::AttemptsHaveLessThanTheWhole, what);
        }
        let is_keyed = self.scenario.table.is_some() && !self.one_in(6);
        let key = self.random.below(6);
        let deadline = timeouts.total.map(|total| self.now + total.as_millis() as u64);
        let count = self
            .shared
            .retries
            .begin_request(&self.scenario.retries, self.at());
        let shard = self.random.below(self.shards.len() as u64) as usize;
        let request = Request {
            shard,
            attempts: Attempts::new(policy, None, &method, false),
            // One beside the retries, for a pooled connection that was dead.
            attempts_max: 2 + if policy.on == RetryOn::NONE {
                0
            } else {
                policy.retries
            },
            timeouts,
            deadline,
            is_due: deadline,
            hash: is_keyed.then(|| hash(&[b'k', key as u8])),
            avoids: policy.ignore_previous_hosts && !is_keyed,
            avoid: Vec::new(),
            replayable: !self.one_in(5),
            number: 0,
            current: None,
            parked: None,
            outlasts: false,
            pauses: false,
            answers: false,
            place: None,
            permit: None,
            parked_permit: None,
            unasked: false,
            count,
        };
        self.requests.insert(id, request);
        self.oracle.begun();
        self.outcome.requests += 1;
        self.note(format_args!("request {id} on shard {shard}"));
        if let Some(deadline) = deadline {
            self.after(deadline - self.now, Event::Deadline(id));
        }
        if self.one_in(10) {
            let later = self.random.below(200);
            self.after(later, Event::Abort(id));
        }
        self.begin_attempt(id);
    }

    fn begin_attempt(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        if request.answers {
            self.oracle
                .broken(Rule::NoRetryAfterBytes, format!("request {id}"));
        }
        request.number = request.attempts.start();
        let number = request.number;
        if number > request.attempts_max {
            self.oracle
                .broken(Rule::AttemptsAreBounded, format!("{number} of request {id}"));
        }
        if let Some(per_try) = request.timeouts.per_try {
            self.after(per_try.as_millis() as u64, Event::TryIsOver(id, number));
        }
        self.look(id);
    }

    /// A request looks for a connection, if it is its turn.
    fn look(&mut self, id: u64) {
        let now = self.at();
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (shard, place) = (request.shard, request.place);
        let fresh = request.attempts.needs_fresh_connection();
        let avoid = request.avoid.clone();
        let hash = match self.defect {
            Some(Defect::HashMovedByOthers) => {
                let count = self.spots.len() as u64;
                request.hash.map(|hash| hash.wrapping_mul(2 * count + 1))
            }
            _ => request.hash,
        };
        if !self.shards[shard].cluster.is_turn(place) {
            return self.join(id);
        }
        let Ok(mut admitted) = self.shards[shard].cluster.admit() else {
            return self.refuse(id);
        };
        loop {
            let choice = Choice {
                hash,
                avoid: &avoid,
                now,
            };
            match self.acquire(shard, choice, fresh) {
                Got::Nothing => return self.refuse(id),
                Got::Full => {
                    self.shards[shard].is_kept = true;
                    let victim = match self.defect {
                        Some(Defect::IdleNeverReclaimed) => None,
                        _ => self.shards[shard].cluster.give_up_idle(),
                    };
                    match victim {
                        Some(Victim::Idle(ConnId(conn))) => {
                            self.close(conn);
                            self.shards[shard].cluster.take_grants();
                        }
                        Some(Victim::Shared(_)) => {
                            self.retire(shard);
                            return self.join(id);
                        }
                        None => return self.join(id),
                    }
                }
                Got::Conn(conn, endpoint) => {
                    let is_dead = self.conns[&conn].is_dead;
                    if is_dead && self.one_in(2) {
                        // Noticed: it is closed, and the next is tried.
                        self.close(conn);
                        self.shards[shard].cluster.release(endpoint, None, now);
                        continue;
                    }
                    return self.begin(id, conn, endpoint, true, admitted.take());
                }
                Got::New(endpoint, address, permit) => {
                    let conn = self.connect(shard, endpoint, address.port(), permit);
                    return self.begin(id, conn, endpoint, false, admitted.take());
                }
            }
        }
    }

    fn acquire(&mut self, shard: usize, choice: Choice<'_>, fresh: bool) -> Got {
        let Self {
            shards, conns, draws, ..
        } = self;
        let cluster = &mut shards[shard].cluster;
        if !self.scenario.is_http2 {
            return match cluster.acquire(choice, fresh, draws) {
                Acquired::Use { conn, endpoint, .. } => Got::Conn(conn.0, endpoint),
                Acquired::Open {
                    endpoint,
                    address,
                    permit,
                } => Got::New(endpoint, address, permit),
                Acquired::NoEndpoint => Got::Nothing,
                Acquired::Overflow => Got::Full,
            };
        }
        match cluster.acquire_stream(choice, |_| true, draws) {
            AcquiredStream::Share { conn, endpoint } => {
                let of = |(_, other): &(&u32, &Conn)| other.shard == shard && other.shared == Some(conn);
                let (key, _) = conns.iter().find(of).expect("a connection that is shared");
                Got::Conn(*key, endpoint)
            }
            AcquiredStream::Open {
                endpoint,
                address,
                permit,
            } => Got::New(endpoint, address, permit),
            AcquiredStream::NoEndpoint => Got::Nothing,
            AcquiredStream::Overflow => Got::Full,
        }
    }

    fn connect(&mut self, shard: usize, endpoint: EndpointId, port: u16, permit: Permit) -> u32 {
        let now = self.at();
        self.next_conn += 1;
        let key = self.next_conn;
        let cluster = &mut self.shards[shard].cluster;
        let shared = self
            .scenario
            .is_http2
            .then(|| cluster.share(endpoint, STREAMS_MAX, now));
        let conn = Conn {
            shard,
            port,
            came: self.oracle.came(shard, port),
            permit: Some(permit),
            shared,
            is_made: false,
            is_idle: false,
            is_dead: false,
            drains: false,
            requests: 0,
            attempts: BTreeSet::new(),
        };
        self.conns.insert(key, conn);
        match self.behaviour(port).connect(self.now, &mut self.random) {
            Connect::Made(later) => self.after(later, Event::Connected(key, true)),
            Connect::Failed(later) => self.after(later, Event::Connected(key, false)),
        }
        key
    }

    fn behaviour(&self, port: u16) -> Behaviour {
        self.behaviours.get(&port).copied().unwrap_or(Behaviour::Well)
    }

    /// An attempt begins on a connection, which may still have to be made.
    fn begin(&mut self, id: u64, conn: u32, endpoint: EndpointId, is_reused: bool, admitted: Option<Permit>) {
        self.leave(id);
        self.next += 1;
        let attempt = self.next;
        let (shard, port, hash, avoids) = {
            let request = self.requests.get_mut(&id).expect("it has just looked");
            request.current = Some(attempt);
            (
                request.shard,
                self.conns[&conn].port,
                request.hash,
                request.avoids,
            )
        };
        let is_kept = std::mem::take(&mut self.shards[shard].is_kept);
        let told = self.lie(shard, port);
        self.note(format_args!(
            "request {id}: attempt {attempt} on {conn} to {port}"
        ));
        self.oracle.picked(Pick {
            shard,
            port: told,
            request: id,
            hash,
            avoids,
            is_kept,
        });
        let used = self.conns.get_mut(&conn).expect("it was picked");
        used.is_idle = false;
        used.requests += 1;
        used.attempts.insert(attempt);
        let (is_made, drains, requests, streams) = (
            used.is_made,
            used.drains,
            used.requests,
            used.attempts.len() as u32,
        );
        if drains {
            self.oracle
                .broken(Rule::PicksDoNotDrain, format!("connection {conn}"));
        }
        if self.scenario.requests_max > 0 && requests > self.scenario.requests_max {
            let what = format!("{requests} on connection {conn}");
            self.oracle.broken(Rule::ConnectionsAreUsedUp, what);
        }
        if streams > if self.scenario.is_http2 { STREAMS_MAX } else { 1 } {
            let what = format!("{streams} on connection {conn}");
            self.oracle.broken(Rule::StreamsWithinLimit, what);
        }
        let begun = Attempt {
            request: id,
            shard,
            endpoint,
            port,
            came: self.oracle.came(shard, port),
            conn,
            is_reused,
            is_sent: false,
            reaction: Reaction::Silence,
            admitted,
            began: self.now,
        };
        self.attempts.insert(attempt, begun);
        if is_made {
            self.send(attempt);
        }
    }

    /// The endpoint that the rules are told of.
    fn lie(&mut self, shard: usize, port: u16) -> u16 {
        let ejected = |world: &Self, is: bool| {
            let mut ports = world.oracle.ports(shard);
            ports.find(|port| world.oracle.is_ejected(shard, *port) == is)
        };
        let lied = match self.defect {
            Some(Defect::EjectedIsPicked) => ejected(self, true),
            Some(Defect::PanicInverted) if self.scenario.panic_percent > 0 => {
                let panics = self.oracle.panics(shard);
                ejected(self, !panics)
            }
            Some(Defect::SpillWithoutOverprovisioning) => {
                let (available, far) = self.oracle.nearest(shard);
                let spills = self.random.below(1_000) >= available;
                far.first().copied().filter(|_| spills)
            }
            _ => None,
        };
        lied.unwrap_or(port)
    }

    fn connected(&mut self, key: u32, is_made: bool) {
        let Some(conn) = self.conns.get_mut(&key) else {
            return;
        };
        conn.is_made = true;
        let (shard, shared, attempts) = (conn.shard, conn.shared, conn.attempts.clone());
        if is_made {
            let max = 1 + self.random.below(u64::from(STREAMS_MAX)) as u32;
            if let Some(shared) = shared {
                self.shards[shard].cluster.resize(shared, max);
            }
            self.shards[shard].is_stirred = true;
            attempts.into_iter().for_each(|attempt| self.send(attempt));
            return;
        }
        if let Some(shared) = shared {
            self.shards[shard].cluster.unshare(shared);
        }
        self.let_go(key, Defect::PermitKeptOnConnectFailure);
        for attempt in attempts {
            self.fail(attempt, Failure::Connect(Cause::ConnectFailed), false);
        }
        self.close(key);
    }

    fn send(&mut self, id: u64) {
        let Some(attempt) = self.attempts.get(&id) else {
            return;
        };
        let (port, is_dead) = (attempt.port, self.conns[&attempt.conn].is_dead);
        let (reaction, later) = match is_dead {
            true => (Reaction::Reset, 1),
            false => self.behaviour(port).react(self.now, &mut self.random),
        };
        let attempt = self.attempts.get_mut(&id).expect("it was there");
        attempt.is_sent = true;
        attempt.reaction = reaction;
        if reaction != Reaction::Silence {
            self.after(later, Event::Head(id));
        }
        self.after(IDLE_MS, Event::AttemptIdles(id));
    }

    fn head(&mut self, id: u64) {
        let Some(attempt) = self.attempts.get(&id) else {
            return;
        };
        let (of, reaction, is_reused) = (attempt.request, attempt.reaction, attempt.is_reused);
        let request = self.requests.get(&of).expect("the request of an attempt");
        if request.answers {
            return;
        }
        if request.parked == Some(id) {
            return self.parked_ends(id, reaction);
        }
        match reaction {
            Reaction::Answer(status) => self.answered(of, id, status),
            Reaction::Refused => self.fail(id, Failure::Refused, false),
            _ => self.fail(id, Failure::Reset { reused: is_reused }, true),
        }
    }

    fn answered(&mut self, id: u64, attempt: u64, status: u16) {
        self.report(attempt, Signal::Status(status));
        let took = ms(self.now - self.attempts[&attempt].began);
        let (endpoint, at) = (self.attempts[&attempt].endpoint, self.at());
        let request = self.requests.get(&id).expect("it is answered");
        self.shards[request.shard]
            .cluster
            .observe(endpoint, Some(took), at);
        let mut fields = HeaderList::default();
        if status >= 429 && self.one_in(5) {
            fields.append(b"retry-after", if self.one_in(2) { b"0" } else { b"1" });
        }
        let mut attempts = self.requests[&id].attempts.clone();
        let request = &self.requests[&id];
        let answer = Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: &fields,
            replayable: request.replayable,
            left: request
                .deadline
                .map(|deadline| ms(deadline.saturating_sub(self.now))),
            wait_max: ms(1_500),
        };
        let mut draws = self.draws.clone();
        let judged = attempts.answered(answer, &mut draws, || self.admit(id, false));
        self.draws = draws;
        let request = self.requests.get_mut(&id).expect("it is answered");
        request.attempts = attempts;
        match judged {
            Judged::PassOn(flags) if !flags.is_empty() && request.parked.is_some() => {
                request.current = None;
                request.outlasts = true;
                self.finish(attempt, true);
            }
            Judged::PassOn(_) => self.pass_on(id, attempt),
            Judged::Retry(wait) => {
                self.avoid(id, attempt);
                self.requests.get_mut(&id).expect("it is answered").current = None;
                let is_drained = self.one_in(2);
                self.finish(attempt, is_drained);
                self.retry(id, wait);
            }
        }
    }

    /// The answer goes to the client.
    fn pass_on(&mut self, id: u64, attempt: u64) {
        let request = self.requests.get_mut(&id).expect("it is answered");
        request.answers = true;
        // What was to be tried beside the answer is not.
        request.pauses = false;
        let other = request.parked.take();
        request.parked_permit = None;
        if let Some(other) = other {
            self.abandon(other, None);
        }
        self.outcome.answered += 1;
        let (later, is_whole) = (1 + self.random.below(20), !self.one_in(12));
        self.after(later, Event::Body(attempt, is_whole));
    }

    fn body(&mut self, attempt: u64, is_whole: bool) {
        let Some(of) = self.attempts.get(&attempt).map(|attempt| attempt.request) else {
            return;
        };
        if !is_whole && self.is(Defect::RetryAfterBytes) {
            return self.fail(attempt, Failure::Reset { reused: false }, true);
        }
        self.requests.get_mut(&of).expect("it is answered").current = None;
        self.finish(attempt, is_whole);
        self.end(of);
    }

    /// An attempt beside which another is made has come to something.
    fn parked_ends(&mut self, id: u64, reaction: Reaction) {
        let of = self.attempts[&id].request;
        let request = self.requests.get_mut(&of).expect("the request of an attempt");
        let good = match reaction {
            Reaction::Answer(status) => {
                let status = StatusCode::from_u16(status).expect("a status");
                request.attempts.is_good(status, &HeaderList::default())
            }
            _ => false,
        };
        request.parked = None;
        let permit = request.parked_permit.take();
        if good {
            request.permit = permit;
            let other = request.current.replace(id);
            self.leave(of);
            if let Some(other) = other {
                self.abandon(other, None);
            }
            return self.pass_on(of, id);
        }
        drop(permit);
        let outlasts = request.outlasts;
        self.finish(id, false);
        if outlasts {
            self.end(of);
        }
    }

    fn fail(&mut self, id: u64, failure: Failure, sent: bool) {
        let Some(of) = self.attempts.get(&id).map(|attempt| attempt.request) else {
            return;
        };
        let at = self.at();
        if self.requests[&of].parked == Some(id) {
            return self.parked_ends(id, Reaction::Reset);
        }
        let (shard, endpoint) = (self.attempts[&id].shard, self.attempts[&id].endpoint);
        self.shards[shard].cluster.observe(endpoint, None, at);
        if !matches!(failure, Failure::Reset { reused: true }) {
            self.report(id, Signal::NoAnswer);
        }
        self.avoid(of, id);
        self.requests
            .get_mut(&of)
            .expect("the request of an attempt")
            .current = None;
        self.finish(id, false);
        let mut attempts = self.requests[&of].attempts.clone();
        let progress = BodyProgress {
            sent,
            replayable: self.requests[&of].replayable,
        };
        let mut draws = self.draws.clone();
        let verdict = attempts.failed(failure, progress, &mut draws, || self.admit(of, false));
        self.draws = draws;
        let request = self.requests.get_mut(&of).expect("the request of an attempt");
        request.attempts = attempts;
        match verdict {
            Verdict::Retry(wait) => self.retry(of, wait),
            Verdict::GiveUp(_) if request.parked.is_some() => request.outlasts = true,
            Verdict::GiveUp(_) => self.end(of),
        }
    }

    /// Notes that the attempt's endpoint has failed the request.
    fn avoid(&mut self, id: u64, attempt: u64) {
        let attempt = &self.attempts[&attempt];
        let request = self.requests.get_mut(&id).expect("the request of an attempt");
        if request.avoids {
            self.oracle.failed(id, attempt.port, attempt.came);
            if self.defect != Some(Defect::RetryOnSameEndpoint) {
                request.avoid.push(attempt.endpoint);
            }
        }
    }

    fn retry(&mut self, id: u64, wait: Duration) {
        let later = wait.as_micros().div_ceil(1_000) as u64;
        let extends = self.is(Defect::DeadlineExtendedByRetry);
        let request = self.requests.get_mut(&id).expect("it is tried again");
        request.pauses = true;
        if extends {
            let total = request.timeouts.total.map(|total| total.as_millis() as u64);
            request.deadline = total.map(|total| self.now + total);
        }
        self.after(later, Event::Retry(id));
    }

    /// Asks for a retry. The one before it has ended, unless another is made `beside` it.
    fn admit(&mut self, id: u64, beside: bool) -> bool {
        let at = self.at();
        let request = self.requests.get_mut(&id).expect("it is tried again");
        let before = request.permit.take();
        match self.defect {
            _ if beside => request.parked_permit = before,
            Some(Defect::BudgetNotGivenBack) => self.lost_retries.extend(before),
            _ => drop(before),
        }
        if self.is(Defect::BudgetNotAsked) {
            self.requests.get_mut(&id).expect("it is tried again").unasked = true;
            self.oracle.retried();
            return true;
        }
        let permit = self.shared.retries.begin_retry(&self.scenario.retries, at);
        let request = self.requests.get_mut(&id).expect("it is tried again");
        let may = permit.is_some();
        if may {
            self.oracle.retried();
            self.outcome.retries += 1;
            request.permit = permit;
        } else if beside {
            request.permit = request.parked_permit.take();
        }
        may
    }

    fn try_is_over(&mut self, id: u64, number: u32) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        if request.number != number || request.answers || request.timeouts.per_try.is_none() {
            return;
        }
        if request.place.is_some() {
            // It waits for a connection: there is none in time.
            return self.refuse(id);
        }
        let Some(current) = request.current else { return };
        if !self.attempts[&current].is_sent {
            return self.fail(current, Failure::TryTimeout { connected: false }, false);
        }
        let progress = BodyProgress {
            sent: true,
            replayable: request.replayable,
        };
        if request.parked.is_none() && self.scenario.retries.hedges.0 > 0 {
            let mut attempts = request.attempts.clone();
            let hedges = attempts.hedge(progress, || self.admit(id, true));
            let request = self.requests.get_mut(&id).expect("its try is over");
            request.attempts = attempts;
            if hedges {
                request.parked = request.current.take();
                request.timeouts.per_try = None;
                self.avoid(id, current);
                self.report(current, Signal::NoAnswer);
                return self.begin_attempt(id);
            }
        }
        self.fail(current, Failure::TryTimeout { connected: true }, true);
    }

    fn attempt_idles(&mut self, attempt: u64) {
        if let Some(attempt) = self.attempts.get(&attempt) {
            self.give_up(attempt.request, Defect::PermitKeptOnTimeout);
        }
    }

    fn deadline(&mut self, id: u64) {
        match self.requests.get(&id).and_then(|request| request.deadline) {
            Some(later) if later > self.now => self.after(later - self.now, Event::Deadline(id)),
            Some(_) => self.give_up(id, Defect::PermitKeptOnTimeout),
            None => {}
        }
    }

    /// The request has found no connection.
    fn refuse(&mut self, id: u64) {
        self.leave(id);
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        match request.parked {
            Some(_) => request.outlasts = true,
            None => self.end(id),
        }
    }

    /// The client is gone, or the time is over.
    fn give_up(&mut self, id: u64, keeps: Defect) {
        self.leave(id);
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        for attempt in [request.current, request.parked].into_iter().flatten() {
            self.abandon(attempt, Some(keeps));
        }
        self.end(id);
    }

    fn end(&mut self, id: u64) {
        self.leave(id);
        self.note(format_args!("request {id} ends"));
        let ended = self.requests.remove(&id);
        if self.is(Defect::BudgetNotGivenBack) {
            self.lost_retries.extend(ended.and_then(|request| request.permit));
        }
    }

    // Places and connections.

    fn join(&mut self, id: u64) {
        let request = self.requests.get_mut(&id).expect("it has just looked");
        let shard = &mut self.shards[request.shard];
        match request.place {
            Some(place) => shard.cluster.wait_on(place),
            None => match shard.cluster.wait() {
                Ok(place) => {
                    request.place = Some(place);
                    shard.waiting.insert(place, id);
                    self.after(IDLE_MS, Event::TryIsOver(id, u32::MAX));
                }
                Err(_) => {
                    shard.cluster.forget_pick();
                    return self.refuse(id);
                }
            },
        }
        let shard = self.requests[&id].shard;
        let shard = &mut self.shards[shard];
        shard.is_stirred |= shard.cluster.has_granted();
    }

    fn leave(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        if let Some(place) = request.place.take() {
            let shard = &mut self.shards[request.shard];
            shard.waiting.remove(&place);
            shard.cluster.leave(place);
            let shard = request.shard;
            self.look_around(shard);
        }
    }

    /// Lets the first of those that wait look, wherever something has changed.
    fn serve(&mut self) {
        while let Some(shard) = self.shards.iter().position(|shard| shard.is_stirred) {
            self.shards[shard].is_stirred = false;
            while let Some(first) = self.shards[shard].cluster.first_waiter() {
                let Some(id) = self.shards[shard].waiting.get(&first).copied() else {
                    break;
                };
                self.look(id);
                let still = self
                    .requests
                    .get(&id)
                    .is_some_and(|request| request.place == Some(first));
                if still {
                    break;
                }
            }
        }
    }

    /// Bells that were rung are heard a little later.
    fn call(&mut self) {
        for shard in 0..self.shards.len() {
            if self.bells.0[shard].swap(false, Ordering::AcqRel) && !self.shards[shard].is_called {
                if self.is(Defect::BellNotHeard) {
                    continue;
                }
                self.shards[shard].is_called = true;
                let later = self.random.below(3);
                self.after(later, Event::Bell(shard));
            }
        }
    }

    fn answer_bell(&mut self, shard: usize) {
        self.shards[shard].is_called = false;
        self.look_around(shard);
    }

    /// Takes what others have handed over, and gives them what they want.
    fn look_around(&mut self, shard: usize) {
        self.shards[shard].cluster.take_grants();
        if !self.is(Defect::IdleNeverReclaimed) {
            for victim in self.shards[shard].cluster.reclaim() {
                if let Victim::Idle(ConnId(conn)) = victim {
                    self.close(conn);
                }
            }
            self.retire(shard);
        }
        self.shards[shard].is_stirred = true;
    }

    /// An attempt has ended; its connection is kept if it can carry another.
    fn finish(&mut self, id: u64, reusable: bool) {
        let at = self.at();
        let attempt = self.attempts.remove(&id).expect("an attempt ends once");
        let (shard, endpoint, key) = (attempt.shard, attempt.endpoint, attempt.conn);
        if self.is(Defect::EndpointNotReleased) && !reusable && self.one_in(4) {
            self.unhook(id, key);
            return;
        }
        if self.scenario.is_http2 {
            let shared = self.conns[&key].shared.expect("a shared connection");
            self.release_stream(shard, endpoint, shared);
        } else {
            let turn_is_over = self.turn_is_over(shard);
            let says_close = self.one_in(8);
            let conn = self.conns.get_mut(&key).expect("the connection of an attempt");
            conn.drains |= says_close;
            let max = self.scenario.requests_max;
            let is_used_up =
                max > 0 && conn.requests >= max && self.defect != Some(Defect::ConnectionUsedTooOften);
            let drains = conn.drains && self.defect != Some(Defect::DrainingIsPicked);
            if reusable && !turn_is_over && !is_used_up && !drains {
                conn.is_idle = true;
                let cluster = &mut self.shards[shard].cluster;
                match cluster.release(endpoint, Some(ConnId(key)), at) {
                    Some(_) => self.close(key),
                    None => cluster.call_first(),
                }
            } else {
                self.close(key);
                self.shards[shard].cluster.release(endpoint, None, at);
            }
        }
        if self.is(Defect::EndpointReleasedTwice) && self.one_in(4) {
            self.shards[shard].cluster.release(endpoint, None, at);
        }
        self.unhook(id, key);
        self.retire(shard);
        self.shards[shard].is_stirred = true;
    }

    fn turn_is_over(&mut self, shard: usize) -> bool {
        let at = self.at();
        self.shards[shard].cluster.is_turn_over(at) && self.defect != Some(Defect::IdleNeverReclaimed)
    }

    fn release_stream(&mut self, shard: usize, endpoint: EndpointId, shared: SharedId) {
        let at = self.at();
        let is_over = self.shards[shard].cluster.release_stream(endpoint, shared, at);
        let turn_is_over = self.turn_is_over(shard);
        let cluster = &mut self.shards[shard].cluster;
        if turn_is_over {
            cluster.unshare(shared);
        } else if !is_over {
            cluster.call_first();
        }
    }

    /// An attempt is cut off: nobody wants its answer.
    fn abandon(&mut self, id: u64, keeps: Option<Defect>) {
        let at = self.at();
        let attempt = self.attempts.remove(&id).expect("an attempt ends once");
        let (shard, key) = (attempt.shard, attempt.conn);
        match self.conns[&key].shared {
            Some(shared) => self.release_stream(shard, attempt.endpoint, shared),
            None => {
                self.shards[shard].cluster.release(attempt.endpoint, None, at);
                if let Some(keeps) = keeps {
                    self.let_go(key, keeps);
                }
                self.close(key);
            }
        }
        self.unhook(id, key);
        self.retire(shard);
        self.shards[shard].is_stirred = true;
    }

    fn unhook(&mut self, attempt: u64, key: u32) {
        let Some(conn) = self.conns.get_mut(&key) else {
            return;
        };
        conn.attempts.remove(&attempt);
        if conn.drains && conn.shared.is_some() && conn.attempts.is_empty() {
            self.after(1, Event::ConnectionEnds(key));
        }
    }

    /// With the defect of this name, the connection's permit is not given back with it.
    fn let_go(&mut self, key: u32, keeps: Defect) {
        if self.is(keeps)
            && let Some(conn) = self.conns.get_mut(&key)
        {
            self.lost.extend(conn.permit.take());
        }
    }

    /// A connection has ended.
    fn close(&mut self, key: u32) {
        let Some(conn) = self.conns.remove(&key) else {
            return;
        };
        drop(conn.permit);
        if self.is(Defect::PermitReleasedTwice)
            && let Some(other) = self.conns.values_mut().find(|other| other.permit.is_some())
        {
            drop(other.permit.take());
        }
        self.shards[conn.shard].is_stirred = true;
    }

    /// Lets those connections end whose streams are handed out no more.
    fn retire(&mut self, shard: usize) {
        let cluster = &self.shards[shard].cluster;
        let mut ended = Vec::new();
        for (key, conn) in self
            .conns
            .iter_mut()
            .filter(|(_, conn)| conn.shard == shard && !conn.drains)
        {
            if conn.shared.is_some_and(|shared| !cluster.is_shared(shared)) {
                conn.drains = true;
                if conn.attempts.is_empty() {
                    ended.push(*key);
                }
            }
        }
        for key in ended {
            self.after(1, Event::ConnectionEnds(key));
        }
    }

    // Endpoints.

    fn report(&mut self, id: u64, signal: Signal) {
        let at = self.at();
        let attempt = &self.attempts[&id];
        let (shard, port, came) = (attempt.shard, attempt.port, attempt.came);
        let cluster = &mut self.shards[shard].cluster;
        let is_success = matches!(signal, Signal::Status(status) if status < 500);
        let is_gateway = matches!(signal, Signal::Status(502..=504));
        let mut change = match self.defect {
            Some(Defect::SuccessDoesNotReset) if is_success => None,
            _ => cluster.record(attempt.endpoint, signal, at),
        };
        if self.defect == Some(Defect::GatewayErrorCountsTwice) && is_gateway {
            change = change.or_else(|| cluster.record(attempt.endpoint, signal, at));
        }
        let ejected = change.and_then(|change| change.ejected);
        let ejected = ejected.map(|ejected| ejected.as_millis() as u64);
        if let Some(ejected) = ejected {
            self.outcome.ejections += 1;
            self.ejected_at.insert(port, self.now);
            self.note(format_args!("{port} is ejected for {ejected}"));
        }
        self.oracle.recorded(shard, (port, came), signal, ejected);
    }

    fn sweep(&mut self, shard: usize) {
        let at = self.at();
        let changes = self.shards[shard].cluster.sweep_outliers(at);
        let mut back: BTreeSet<u16> = changes.iter().map(|change| change.address.port()).collect();
        if let (true, Some(policy)) = (self.is(Defect::BaseTimeNotMultiplied), &self.scenario.outlier) {
            let shared = self.shards[shard].cluster.shared();
            for (port, since) in &self.ejected_at {
                let known = shared
                    .endpoints
                    .get(&address(*port))
                    .filter(|known| known.is_ejected());
                if let Some(known) = known.filter(|_| at >= self.start + ms(*since) + policy.base)
                    && shared.ejections.look(known, at + ms(1_000_000), policy.interval)
                {
                    back.insert(*port);
                }
            }
        }
        if !back.is_empty() {
            self.note(format_args!("{back:?} are back"));
        }
        self.oracle.swept(shard, &back);
        if !(self.is_over && self.is_quiet()) {
            let later = 20 + self.random.below(80);
            self.after(later, Event::Sweep(shard));
        }
    }

    fn expire(&mut self, shard: usize) {
        let at = self.at();
        for ConnId(conn) in self.shards[shard].cluster.expire(at) {
            self.close(conn);
        }
        self.retire(shard);
        self.after(100, Event::Expire(shard));
    }

    /// An upstream closes a connection that idles, or says that it takes no more requests on one.
    fn upstream_closes(&mut self, shard: usize) {
        let candidates: Vec<u32> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.shard == shard && conn.is_made && !conn.drains)
            .filter(|(_, conn)| conn.is_idle || conn.shared.is_some())
            .map(|(key, _)| *key)
            .collect();
        if let Some(key) = candidates.get(self.random.below(candidates.len() as u64) as usize) {
            let is_noticed = self.one_in(2);
            let keeps = self.is(Defect::DrainingIsPicked);
            let conn = self.conns.get_mut(key).expect("a candidate");
            match conn.shared {
                Some(_) if keeps => conn.drains = true,
                Some(shared) => self.shards[shard].cluster.unshare(shared),
                None if is_noticed => {
                    self.shards[shard].cluster.forget(ConnId(*key));
                    self.close(*key);
                }
                None => conn.is_dead = true,
            }
            self.retire(shard);
        }
        let later = 50 + self.random.below(200);
        self.after(later, Event::UpstreamCloses(shard));
    }

    /// Some endpoints begin to behave in another way; those that die take their connections with them, or not.
    fn storm(&mut self) {
        if self.is_over || !self.scenario.is_rough {
            return;
        }
        for _ in 0..=self.random.below(3) {
            let Some(spot) = self
                .spots
                .get(self.random.below(self.spots.len() as u64) as usize)
            else {
                continue;
            };
            let port = spot.port;
            let behaviour = Behaviour::any(&mut self.random, self.now);
            self.note(format_args!("{port} is {behaviour}"));
            self.behaviours.insert(port, behaviour);
            if self.one_in(3) {
                self.kill(port);
            }
        }
        let later = 100 + self.random.below(500);
        self.after(later, Event::Storm);
    }

    fn kill(&mut self, port: u16) {
        let conns: Vec<u32> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.port == port && conn.is_made)
            .map(|(key, _)| *key)
            .collect();
        for key in conns {
            let conn = self.conns.get_mut(&key).expect("it was there");
            conn.is_dead = true;
            let (shard, shared, attempts) = (conn.shard, conn.shared, conn.attempts.clone());
            for id in attempts {
                let attempt = self.attempts.get_mut(&id).expect("an attempt of a connection");
                attempt.reaction = Reaction::Reset;
                let answers = self.requests[&attempt.request].answers;
                let event = if answers {
                    Event::Body(id, false)
                } else {
                    Event::Head(id)
                };
                self.after(1, event);
            }
            if let Some(shared) = shared {
                self.shards[shard].cluster.unshare(shared);
                self.retire(shard);
            }
        }
    }

    /// Another version: other endpoints, other limits; the shards hear of it one by one.
    fn swap(&mut self) {
        if self.is_over {
            return;
        }
        let count = match self.random.below(4) {
            // All at once, or one or two.
            0 => 12,
            _ => 1 + self.random.below(2),
        };
        for _ in 0..count {
            let port = 1 + self.random.below(12) as u16;
            match self.spots.iter().position(|spot| spot.port == port) {
                Some(at) if self.spots.len() > 1 => drop(self.spots.remove(at)),
                Some(_) => {}
                None => self.spots.push(self.scenario.spot(port)),
            }
        }
        if self.one_in(2) {
            self.limits = self.scenario.limits(&mut self.random);
        }
        self.publish();
        for shard in 0..self.shards.len() {
            self.shards[shard].is_behind = true;
            let later = self.random.below(30);
            self.after(later, Event::Deliver(shard));
        }
        let later = 200 + self.random.below(1_500);
        self.after(later, Event::Swap);
    }

    fn publish(&mut self) {
        let mut spec = self.scenario.spec(&self.spots, self.limits);
        match self.defect {
            Some(Defect::EjectionAboveMaximum) => {
                if let Some(outlier) = &mut spec.outlier {
                    outlier.max_percent = 100;
                }
            }
            Some(Defect::WarmupAboveOne) => {
                let first = self.scenario.first.len() as u16;
                let endpoints = &mut Arc::make_mut(&mut spec.endpoints).endpoints;
                let new = endpoints
                    .iter_mut()
                    .filter(|endpoint| endpoint.address.port() > first);
                new.for_each(|endpoint| endpoint.weight *= 4);
            }
            _ => {}
        }
        self.spec = Arc::new(spec);
        self.shared.set_limits(self.limits);
        if self.is(Defect::LimitOffByOne) && self.limits.connections != u32::MAX {
            self.shared.connections.set_limit(self.limits.connections + 1);
        }
        let addresses = self.spots.iter().map(|spot| address(spot.port));
        self.shared = Arc::new(self.shared.with_endpoints(addresses));
        let (spots, limits) = (&self.spots, self.limits);
        self.oracle.publish(spots, limits);
        let ports: Vec<u16> = spots.iter().map(|spot| spot.port).collect();
        self.note(format_args!("endpoints {ports:?}, {limits:?}"));
    }

    /// A shard takes the newest version over.
    fn deliver(&mut self, shard: usize) {
        let (at, spec) = (self.at(), Arc::clone(&self.spec));
        self.shards[shard].is_behind = false;
        let cluster = &mut self.shards[shard].cluster;
        cluster.share_counts(Arc::clone(&self.shared));
        if self.defect != Some(Defect::RemovedIsPicked) {
            for ConnId(conn) in cluster.reconcile(spec, at, &mut self.draws) {
                self.close(conn);
            }
        }
        self.retire(shard);
        self.oracle.applied(shard);
        if self.is(Defect::WaiterLostOnSwap) {
            self.shards[shard].waiting.clear();
        }
        self.shards[shard].is_stirred = true;
    }

    /// Many requests come to one shard at one moment, and end at once.
    fn survey(&mut self) {
        if self.is_over {
            return;
        }
        let later = 100 + self.random.below(300);
        self.after(later, Event::Survey);
        let (at, shard) = (self.at(), self.random.below(self.shards.len() as u64) as usize);
        if self.scenario.is_limited {
            return;
        }
        let mut counts = BTreeMap::new();
        for _ in 0..SURVEY {
            let choice = Choice {
                hash: None,
                avoid: &[],
                now: at,
            };
            let acquired = self.shards[shard].cluster.acquire(choice, true, &mut self.draws);
            let Acquired::Open {
                endpoint, address, ..
            } = acquired
            else {
                return;
            };
            self.shards[shard].cluster.release(endpoint, None, at);
            let port = self.lie(shard, address.port());
            self.oracle.picked(Pick {
                shard,
                port,
                request: 0,
                hash: None,
                avoids: false,
                is_kept: false,
            });
            *counts.entry(port).or_default() += 1;
        }
        self.note(format_args!("survey of shard {shard}: {counts:?}"));
        self.oracle.surveyed(shard, &counts);
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
