//! Endpoints: what attempts say about them, how they begin to behave, and versions with others.

use super::*;

impl World<'_> {
    pub(super) fn report(&mut self, id: u64, signal: Signal) {
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

    pub(super) fn sweep(&mut self, shard: usize) {
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

    pub(super) fn expire(&mut self, shard: usize) {
        let at = self.at();
        for ConnId(conn) in self.shards[shard].cluster.expire(at) {
            self.close(conn);
        }
        self.retire(shard);
        self.after(100, Event::Expire(shard));
    }

    /// An upstream closes a connection that idles, or says that it takes no more requests on one.
    pub(super) fn upstream_closes(&mut self, shard: usize) {
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
    pub(super) fn storm(&mut self) {
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

    pub(super) fn kill(&mut self, port: u16) {
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
    pub(super) fn swap(&mut self) {
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

    pub(super) fn publish(&mut self) {
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
    pub(super) fn deliver(&mut self, shard: usize) {
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
    pub(super) fn survey(&mut self) {
        if self.is_over {
            return;
        }
        let later = 100 + self.random.below(300);
        self.after(later, Event::Survey);
        let (at, shard) = (self.at(), self.random.below(self.shards.len() as u64) as usize);
        if self.scenario.is_limited {
            return;
        }
        self.oracle.looked(shard);
        let mut counts = BTreeMap::new();
        for _ in 0..SURVEY {
            let choice = Choice {
                hash: None,
                avoid: &[],
                group: Group::ALL,
                without: Levels::NONE,
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
                without: Levels::NONE,
                is_kept: false,
            });
            *counts.entry(port).or_default() += 1;
        }
        self.note(format_args!("survey of shard {shard}: {counts:?}"));
        self.oracle.surveyed(shard, &counts);
    }
}
