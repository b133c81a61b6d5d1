//! Places in the queue, and connections: who waits, what is kept for the next, what ends.

use super::*;

impl World<'_> {
    pub(super) fn join(&mut self, id: u64) {
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

    pub(super) fn leave(&mut self, id: u64) {
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
    pub(super) fn serve(&mut self) {
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
    pub(super) fn call(&mut self) {
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

    pub(super) fn answer_bell(&mut self, shard: usize) {
        self.shards[shard].is_called = false;
        self.look_around(shard);
    }

    /// Takes what others have handed over, and gives them what they want.
    pub(super) fn look_around(&mut self, shard: usize) {
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
    pub(super) fn finish(&mut self, id: u64, reusable: bool) {
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

    pub(super) fn turn_is_over(&mut self, shard: usize) -> bool {
        let at = self.at();
        self.shards[shard].cluster.is_turn_over(at) && self.defect != Some(Defect::IdleNeverReclaimed)
    }

    pub(super) fn release_stream(&mut self, shard: usize, endpoint: EndpointId, shared: SharedId) {
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
    pub(super) fn abandon(&mut self, id: u64, keeps: Option<Defect>) {
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

    pub(super) fn unhook(&mut self, attempt: u64, key: u32) {
        let Some(conn) = self.conns.get_mut(&key) else {
            return;
        };
        conn.attempts.remove(&attempt);
        if conn.drains && conn.shared.is_some() && conn.attempts.is_empty() {
            self.after(1, Event::ConnectionEnds(key));
        }
    }

    /// With the defect of this name, the connection's permit is not given back with it.
    pub(super) fn let_go(&mut self, key: u32, keeps: Defect) {
        if self.is(keeps)
            && let Some(conn) = self.conns.get_mut(&key)
        {
            self.lost.extend(conn.permit.take());
        }
    }

    /// A connection has ended.
    pub(super) fn close(&mut self, key: u32) {
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
    pub(super) fn retire(&mut self, shard: usize) {
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
}
