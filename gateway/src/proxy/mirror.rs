//! Mirrors: copies of requests to other clusters, whose answers are nobody's (VirtualService `mirror`, `mirrors[]`).
//!
//! A copy is a task of its own with an exchange of its own, which ends where the client would begin: [`Source`] plays
//! the client, out of a [`Pipe`] that the request's body is copied to. The request never waits for it: a mirror that is
//! slow, dead or overloaded loses copies, and each loss is counted with its reason.

use super::Context;
use super::attempt::{Answered, attempt, reusable};
use super::body::{End, Moved, Sending, TURN_BYTES, poll_request};
use super::exchange::{Exchange, Outcome};
use super::tee::Pipe;
use crate::clusters::ClusterHandle;
use crate::downstream::Downstream;
use crate::downstream::tls::Secured;
use crate::io::h1::{Chunk, ReadError};
use crate::io::timer::Timer;
use crate::io::{clock, executor, spawn};
use bytes::{Buf, Bytes};
use isthmus_core::attempt::{RetryPolicy, Timeouts};
use isthmus_core::drain::Drain;
use isthmus_core::h1::encode::ResponseContext;
use isthmus_core::header::HeaderList;
use isthmus_core::message::ResponseHead;
use isthmus_core::reply::Cause;
use isthmus_core::route::Forward;
use isthmus_core::stats::Mirrored;
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

/// How long a copy may take when its route has no limit: nobody waits for it, but something must end it.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One of a cluster's copies under way.
struct InFlight(Rc<Cell<u32>>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Starts the copies that the route asks for, once the request is as its destination is to get it.
pub(super) fn start(context: &Rc<Context>, conn: &impl Downstream, x: &mut Exchange, forward: &Forward) {
    if !x.request.upgrade.is_empty() {
        return;
    }
    for mirror in &forward.mirrors {
        const ALL: u64 = 1_000_000;
        let part = u64::from(mirror.per_million);
        if part < ALL && context.random.borrow_mut().below(ALL) >= part {
            continue;
        }
        let dropped = |reason| {
            let mut stats = context.stats.borrow_mut();
            stats.mirrored(&mirror.cluster, Mirrored::Dropped(reason));
        };
        let Some(cluster) = context.clusters.get(&mirror.cluster) else {
            dropped(Cause::NoCluster.label());
            continue;
        };
        let count = cluster.mirrors();
        if count.get() >= context.settings.mirrors_in_flight {
            dropped("overflow");
            continue;
        }
        count.set(count.get() + 1);
        let in_flight = InFlight(Rc::clone(count));
        let pipe = Rc::new(Pipe::new(context.settings.mirror_buffer_bytes));
        if let Some(whole) = conn.whole_body() {
            pipe.push(Bytes::copy_from_slice(whole));
            pipe.end(&HeaderList::default());
        } else if conn.is_body_done() {
            pipe.end(&HeaderList::default());
        } else {
            x.tee.add(Rc::clone(&pipe));
        }
        let source = Source {
            is_done: conn.is_body_done(),
            pipe,
            piece: Bytes::new(),
            taken: 0,
            peer: conn.peer(),
            local: conn.local_addr(),
            phase: context.wheel.timer(),
            timeout: x.timeouts.total.unwrap_or(TIMEOUT),
            deadline: context.wheel.timer(),
            is_late: false,
        };
        let mut copy = Exchange::take(context);
        copy.request.clone_from(&x.request);
        // The copy has nobody who could be told to go on.
        copy.request.expects_continue = false;
        copy.outcome = Outcome::default();
        let key = cluster.key_of(&x.request, x.client, conn.peer(), conn.local_addr());
        copy.hash = key.hash();
        copy.route_timer.clear();
        copy.timeouts = Timeouts {
            total: Some(source.timeout),
            per_try: None,
        };
        spawn::spawn(
            &context.tasks,
            run(Rc::clone(context), source, copy, cluster, in_flight),
        );
    }
}

async fn run(
    context: Rc<Context>,
    mut source: Source,
    mut x: Box<Exchange>,
    cluster: Rc<ClusterHandle>,
    in_flight: InFlight,
) {
    // The request itself goes first.
    executor::turn().await;
    x.started = clock::now();
    x.forwarded = x.started;
    x.timed_from = None;
    if source.is_done {
        let now = x.started;
        x.begin_time(now);
    }
    let once = RetryPolicy::off();
    let became = match attempt(&context, &mut source, &mut x, &cluster, &once, None).await {
        Ok(answered) => discard(&context, &mut source, &mut x, &cluster, answered).await,
        Err(End::Reply(reply)) => Mirrored::Failed(reply.cause.label()),
        Err(End::ClientGone) => source.lost(),
    };
    if let Some(key) = cluster.key() {
        context.stats.borrow_mut().mirrored(key, became);
    }
    x.route_timer.clear();
    x.tee.clear();
    x.give_back(&context);
    drop(in_flight);
}

/// Reads the answer to its end, and throws it away.
async fn discard(
    context: &Context,
    source: &mut Source,
    x: &mut Exchange,
    cluster: &ClusterHandle,
    answered: Answered,
) -> Mirrored {
    let Answered {
        lease,
        mut upstream,
        sent: mut sending,
    } = answered;
    let keep_alive = x.response.keep_alive;
    let limit = context.settings.request_body_bytes;
    let became = loop {
        let (mut up, mut down) = (TURN_BYTES, TURN_BYTES);
        let Exchange {
            trailers,
            to_upstream,
            route_timer,
            tee,
            ..
        } = &mut *x;
        let moved = poll_fn(|cx| {
            if !matches!(sending, Sending::Done | Sending::Stopped) {
                let moved = poll_request(
                    source,
                    &mut upstream,
                    to_upstream,
                    trailers,
                    &mut sending,
                    limit,
                    tee,
                    &mut up,
                    cx,
                );
                match moved {
                    Poll::Ready(Ok(Moved::Turn)) => return Poll::Ready(None),
                    Poll::Ready(Ok(Moved::All)) | Poll::Pending => {}
                    Poll::Ready(Err(End::Reply(_))) => sending = Sending::Stopped,
                    Poll::Ready(Err(End::ClientGone)) => return Poll::Ready(Some(source.lost())),
                }
            }
            if route_timer.poll(cx).is_ready() {
                return Poll::Ready(Some(Mirrored::Failed(Cause::UpstreamTimeout.label())));
            }
            loop {
                match upstream.poll_data(cx) {
                    Poll::Ready(Ok(Chunk::Data(_))) if down == 0 => return Poll::Ready(None),
                    Poll::Ready(Ok(Chunk::Data(there))) => {
                        upstream.take(there);
                        down = down.saturating_sub(there);
                    }
                    Poll::Ready(Ok(Chunk::End)) => return Poll::Ready(Some(Mirrored::Sent)),
                    Poll::Ready(Err(_)) => {
                        return Poll::Ready(Some(Mirrored::Failed(Cause::UpstreamBrokeOff.label())));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
        match moved {
            Some(became) => break became,
            None => executor::turn().await,
        }
    };
    let is_whole = became == Mirrored::Sent && sending == Sending::Done && keep_alive;
    let connection = is_whole.then(|| reusable(upstream, x, cluster)).flatten();
    lease.finish(connection, clock::now());
    became
}

/// The client of a copy: it has the request's body to give, and takes any answer.
struct Source {
    pipe: Rc<Pipe>,
    piece: Bytes,
    is_done: bool,
    taken: u64,
    peer: SocketAddr,
    local: Option<SocketAddr>,
    phase: Timer,
    /// How long the mirror may take for what is left of the body when the client has sent all of it.
    timeout: Duration,
    deadline: Timer,
    is_late: bool,
}

impl Source {
    /// Why the body did not come to its end.
    fn lost(&self) -> Mirrored {
        if self.is_late {
            return Mirrored::Failed(Cause::UpstreamTimeout.label());
        }
        Mirrored::Dropped(self.pipe.reason().unwrap_or("incomplete"))
    }
}

impl Downstream for Source {
    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.local
    }

    fn secured(&self) -> Option<&Secured> {
        None
    }

    fn drain(&self) -> Drain {
        Drain::No
    }

    fn requests(&self) -> u32 {
        0
    }

    fn phase(&self) -> &Timer {
        &self.phase
    }

    fn is_body_done(&self) -> bool {
        self.is_done
    }

    fn whole_body(&self) -> Option<&[u8]> {
        None
    }

    fn poll_data(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<Chunk, ReadError>> {
        // A mirror that does not take what it has must learn that it was cut off.
        self.pipe.listen(cx);
        if self.pipe.is_ended() {
            if !self.deadline.is_set() {
                self.deadline.set(self.timeout);
            }
            self.is_late = self.deadline.poll(cx).is_ready();
        }
        if self.is_late || self.pipe.reason().is_some() {
            return Poll::Ready(Err(ReadError::Closed { clean: false }));
        }
        if self.piece.is_empty() {
            match std::task::ready!(self.pipe.poll_piece(cx)) {
                Ok(Some(piece)) => self.piece = piece,
                Ok(None) => {
                    self.is_done = true;
                    return Poll::Ready(Ok(Chunk::End));
                }
                Err(()) => return Poll::Ready(Err(ReadError::Closed { clean: false })),
            }
        }
        Poll::Ready(Ok(Chunk::Data(self.piece.len())))
    }

    fn data(&self) -> &[u8] {
        &self.piece
    }

    fn take(&mut self, used: usize) {
        self.piece.advance(used.min(self.piece.len()));
        self.taken += used as u64;
    }

    fn body_bytes(&self) -> u64 {
        self.taken
    }

    fn trailers(&self, into: &mut HeaderList) {
        self.pipe.trailers(into);
    }

    fn has_unread(&self) -> bool {
        // What the primary's client is slow to send is not the mirror's affair: no pause is its fault.
        true
    }

    fn poll_gone(&mut self, _cx: &mut TaskContext<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn interim_head(&mut self, _head: &ResponseHead) {}

    fn response_head(&mut self, _head: &ResponseHead, _context: ResponseContext) -> bool {
        false
    }

    fn poll_write(&mut self, _cx: &mut TaskContext<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }

    fn poll_write_all(
        &mut self,
        _cx: &mut TaskContext<'_>,
        body: &[u8],
        at: &mut usize,
    ) -> Poll<io::Result<()>> {
        *at = body.len();
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self, _trailers: &HeaderList) {}

    fn poll_flush(&mut self, _cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn begin_tunnel(&mut self) {}

    fn queued(&self) -> usize {
        0
    }
}
