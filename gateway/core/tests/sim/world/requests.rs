//! Clients' requests: they come, look for a connection, are answered, fail, are tried again, and end.

use super::*;

impl World<'_> {
    pub(super) fn arrive(&mut self) {
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
            before: Before::new(policy, is_keyed),
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

    pub(super) fn begin_attempt(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        if request.answers {
            self.oracle
                .broken(Rule::NoRetryAfterBytes, format!("request {id}"));
        }
        request.number = request.attempts.start();
        let number = request.number;
        request.before.begin(number);
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
    pub(super) fn look(&mut self, id: u64) {
        let now = self.at();
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (shard, place) = (request.shard, request.place);
        let fresh = request.attempts.needs_fresh_connection();
        let avoid = request.before.endpoints().to_vec();
        let without = match self.defect {
            Some(Defect::LocalitiesNotLeftOut) => Levels::NONE,
            _ => request.before.without(),
        };
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
                group: Group::ALL,
                without,
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

    pub(super) fn acquire(&mut self, shard: usize, choice: Choice<'_>, fresh: bool) -> Got {
        self.oracle.looked(shard);
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

    pub(super) fn connect(&mut self, shard: usize, endpoint: EndpointId, port: u16, permit: Permit) -> u32 {
        let now = self.at();
        self.next_conn += 1;
        let key = self.next_conn;
        let cluster = &mut self.shards[shard].cluster;
        let shared = self
            .scenario
            .is_http2
            .then(|| cluster.share(endpoint, Group::ALL, STREAMS_MAX, now));
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

    pub(super) fn behaviour(&self, port: u16) -> Behaviour {
        self.behaviours.get(&port).copied().unwrap_or(Behaviour::Well)
    }

    /// An attempt begins on a connection, which may still have to be made.
    pub(super) fn begin(
        &mut self,
        id: u64,
        conn: u32,
        endpoint: EndpointId,
        is_reused: bool,
        admitted: Option<Permit>,
    ) {
        self.leave(id);
        self.next += 1;
        let attempt = self.next;
        let (shard, port, hash, avoids, without) = {
            let request = self.requests.get_mut(&id).expect("it has just looked");
            request.current = Some(attempt);
            (
                request.shard,
                self.conns[&conn].port,
                request.hash,
                request.before.avoids(),
                request.before.without(),
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
            without,
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
    pub(super) fn lie(&mut self, shard: usize, port: u16) -> u16 {
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

    pub(super) fn connected(&mut self, key: u32, is_made: bool) {
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

    pub(super) fn send(&mut self, id: u64) {
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

    pub(super) fn head(&mut self, id: u64) {
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

    pub(super) fn answered(&mut self, id: u64, attempt: u64, status: u16) {
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
    pub(super) fn pass_on(&mut self, id: u64, attempt: u64) {
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

    pub(super) fn body(&mut self, attempt: u64, is_whole: bool) {
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
    pub(super) fn parked_ends(&mut self, id: u64, reaction: Reaction) {
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

    pub(super) fn fail(&mut self, id: u64, failure: Failure, sent: bool) {
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
    pub(super) fn avoid(&mut self, id: u64, attempt: u64) {
        let attempt = &self.attempts[&attempt];
        let request = self.requests.get_mut(&id).expect("the request of an attempt");
        if request.before.avoids() {
            self.oracle.failed(id, attempt.port, attempt.came);
        }
        if self.defect != Some(Defect::RetryOnSameEndpoint) {
            let level = self.shards[attempt.shard].cluster.level(attempt.endpoint);
            request.before.note(attempt.endpoint, level);
        }
    }

    pub(super) fn retry(&mut self, id: u64, wait: Duration) {
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
    pub(super) fn admit(&mut self, id: u64, beside: bool) -> bool {
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

    pub(super) fn try_is_over(&mut self, id: u64, number: u32) {
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

    pub(super) fn attempt_idles(&mut self, attempt: u64) {
        if let Some(attempt) = self.attempts.get(&attempt) {
            self.give_up(attempt.request, Defect::PermitKeptOnTimeout);
        }
    }

    pub(super) fn deadline(&mut self, id: u64) {
        match self.requests.get(&id).and_then(|request| request.deadline) {
            Some(later) if later > self.now => self.after(later - self.now, Event::Deadline(id)),
            Some(_) => self.give_up(id, Defect::PermitKeptOnTimeout),
            None => {}
        }
    }

    /// The request has found no connection.
    pub(super) fn refuse(&mut self, id: u64) {
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
    pub(super) fn give_up(&mut self, id: u64, keeps: Defect) {
        self.leave(id);
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        for attempt in [request.current, request.parked].into_iter().flatten() {
            self.abandon(attempt, Some(keeps));
        }
        self.end(id);
    }

    pub(super) fn end(&mut self, id: u64) {
        self.leave(id);
        self.note(format_args!("request {id} ends"));
        let ended = self.requests.remove(&id);
        if self.is(Defect::BudgetNotGivenBack) {
            self.lost_retries.extend(ended.and_then(|request| request.permit));
        }
    }
}
