//! Attempts: a request is sent until an upstream begins to answer, or no retry is left.
//!
//! `core::attempt` decides; here are the connections, the bytes and the clocks that it decides about. What ends the wait
//! for an upstream, whatever it is for, is one function: the client is gone, or the time is over.

use super::body::{End, Moved, Sending, TURN_BYTES, poll_request};
use super::exchange::{Exchange, Outcome};
use super::watch::{status_of, watched};
use super::{Context, pending, upgrade};
use crate::clusters::{ClusterHandle, Lease, Start, StartStream, TlsName};
use crate::downstream::Downstream;
use crate::io::h1::{Chunk, ReadError};
use crate::io::timer::Timer;
use crate::io::{clock, executor, spawn};
use crate::upstream::h2::Ended;
use crate::upstream::{self, Upstream};
use http::{Method, StatusCode};
use isthmus_core::attempt::{
    Answer, Attempts, Before, BodyProgress, Failure, Judged, Overrides, RetryPolicy, Timeouts, Verdict,
};
use isthmus_core::cluster::Choice;
use isthmus_core::cluster::outlier::Signal;
use isthmus_core::cluster::pool::Group;
use isthmus_core::cluster::retry_budget::RetryPermit;
use isthmus_core::drain::Drain;
use isthmus_core::h1::HeadError;
use isthmus_core::header::HeaderId;
use isthmus_core::message::{BodyLength, ResponseHead, Version};
use isthmus_core::reply::{Cause, Flags, LocalReply};
use isthmus_core::route::split_port;
use isthmus_core::tls::Offer;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

/// An upstream has answered: its head is in the exchange.
pub(super) struct Answered {
    pub(super) lease: Lease,
    pub(super) upstream: Upstream,
    pub(super) sent: Sending,
}

/// Sends the request until an upstream begins to answer for good.
pub(super) async fn attempt(
    context: &Rc<Context>,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    cluster: &Rc<ClusterHandle>,
    policy: &RetryPolicy,
    overrides: Option<&Overrides>,
) -> Result<Answered, End> {
    let is_call = x.request.is_call();
    let mut attempts = Attempts::new(policy, overrides, &x.request.method, is_call);
    // What a client says behind its wish for another protocol is for that one.
    x.is_at_hand = conn.is_body_done() || conn.whole_body().is_some() || !x.request.upgrade.is_empty();
    if !x.is_at_hand {
        let shares = cluster.version(x.request.version) == Version::Http2;
        if attempts.replays_bodies(shares) {
            x.tee.keep();
        }
    }
    let attempted = attempt_all(context, conn, x, cluster, policy, &mut attempts).await;
    if x.tee.is_lost() {
        context.stats.borrow_mut().counters.unreplayable_bodies += 1;
    }
    let is_being_sent = matches!(
        attempted,
        Ok(Answered {
            sent: Sending::Replaying(_),
            ..
        })
    );
    x.tee.release(is_being_sent);
    attempted
}

async fn attempt_all(
    context: &Rc<Context>,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    cluster: &Rc<ClusterHandle>,
    policy: &RetryPolicy,
    attempts: &mut Attempts<'_>,
) -> Result<Answered, End> {
    let mut before = Before::new(policy, x.hash.is_some());
    // Held until the retry is answered, or the next one takes its place.
    let mut permit: Option<RetryPermit> = None;
    let mut parked: Option<Box<Parked>> = None;
    loop {
        let number = attempts.start();
        before.begin(number);
        if number > 1 {
            context.stats.borrow_mut().counters.retries += 1;
        }
        x.request.headers.set(
            HeaderId::XEnvoyAttemptCount,
            itoa::Buffer::new().format(number).as_bytes(),
        );
        // The clock is read once for the first attempt and the request.
        let now = if number == 1 { x.forwarded } else { clock::now() };
        if let Some(expected) = x.timeouts.expected(x.elapsed(now)) {
            let ms = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX).max(1);
            x.request.headers.set(
                HeaderId::XEnvoyExpectedRqTimeoutMs,
                itoa::Buffer::new().format(ms).as_bytes(),
            );
        }
        if let Some(per_try) = x.timeouts.per_try {
            // Like the whole's, it counts from the end of the request.
            let is_complete = x.is_at_hand || conn.is_body_done();
            x.try_timer
                .set(if is_complete { per_try } else { Duration::ZERO });
        }
        let fresh = attempts.needs_fresh_connection();
        let method = x.request.method.clone();
        let tried = {
            let mut current = pin!(try_once(context, conn, x, cluster, &before, fresh, now));
            match &mut parked {
                None => current.await?,
                Some(other) => {
                    let mut is_over = false;
                    let first = poll_fn(|cx| {
                        if !is_over && let Poll::Ready(is_good) = other.poll(attempts, &method, cx) {
                            if is_good {
                                return Poll::Ready(None);
                            }
                            is_over = true;
                        }
                        current.as_mut().poll(cx).map(Some)
                    })
                    .await;
                    match first {
                        Some(tried) => {
                            let tried = tried?;
                            if is_over {
                                parked = None;
                            }
                            tried
                        }
                        None => Tried::Outrun,
                    }
                }
            }
        };
        let (lease, failure, progress) = match tried {
            Tried::Outrun => match parked.take() {
                Some(other) => return Ok(other.wins(x)),
                None => continue,
            },
            Tried::Failed(lease, failure, progress) => (lease, failure, progress),
            Tried::Refused(cause) => {
                return Box::pin(outlast(context, conn, x, attempts, parked, cause.into())).await;
            }
            Tried::TooLate(lease, upstream, progress) => {
                let now = clock::now();
                let mut beside = None;
                let hedges = parked.is_none()
                    && cluster.hedges() > 0
                    && attempts.hedge(progress, || admit(context, cluster, now, &mut beside));
                if hedges {
                    context.stats.borrow_mut().counters.hedges += 1;
                    before.note(lease.endpoint(), lease.level());
                    // Its time was over, whatever comes of it.
                    lease.report(Signal::NoAnswer, now);
                    lease.observe(None, now);
                    let permit = std::mem::replace(&mut permit, beside);
                    parked = Some(Box::new(Parked::new(lease, upstream, permit, x)));
                    // Neither is given up any more before the whole's time is over: there is no third.
                    x.timeouts.per_try = None;
                    x.try_timer.clear();
                    continue;
                }
                (lease, Failure::TryTimeout { connected: true }, progress)
            }
            Tried::Answered(lease, upstream, sent) => {
                let judged = judge(context, conn, x, cluster, attempts, &mut permit);
                let wait = match judged {
                    // Spent: but the other may still do better.
                    Judged::PassOn(flags) if !flags.is_empty() && parked.is_some() => {
                        drop_answer(x, cluster, lease, upstream, sent).await;
                        let mut reply = LocalReply::from(Cause::UpstreamReset);
                        reply.flags = reply.flags.with(flags);
                        return Box::pin(outlast(context, conn, x, attempts, parked, reply)).await;
                    }
                    Judged::PassOn(flags) => {
                        x.outcome.flags = x.outcome.flags.with(flags);
                        return Ok(Answered {
                            lease,
                            upstream,
                            sent,
                        });
                    }
                    Judged::Retry(wait) => wait,
                };
                before.note(lease.endpoint(), lease.level());
                drop_answer(x, cluster, lease, upstream, sent).await;
                pause(context, conn, x, wait).await?;
                continue;
            }
        };
        let now = clock::now();
        lease.observe(None, now);
        // A connection that idled too long, or has had its time, says nothing about its endpoint.
        if !matches!(failure, Failure::Reset { reused: true } | Failure::LeftOut) {
            lease.report(Signal::NoAnswer, now);
        }
        before.note(lease.endpoint(), lease.level());
        lease.finish(None, now);
        let verdict = {
            let mut random = context.random.borrow_mut();
            attempts.failed(failure, progress, &mut random, || {
                admit(context, cluster, now, &mut permit)
            })
        };
        match verdict {
            Verdict::GiveUp(reply) => {
                return Box::pin(outlast(context, conn, x, attempts, parked, reply)).await;
            }
            Verdict::Retry(wait) if wait.is_zero() => {}
            Verdict::Retry(wait) => pause(context, conn, x, wait).await?,
        }
    }
}

/// What one attempt has come to.
enum Tried {
    /// A final answer's head is in the exchange.
    Answered(Lease, Upstream, Sending),
    /// Its own time is over; the upstream has all of the request, and may still answer.
    TooLate(Lease, Upstream, BodyProgress),
    /// It has failed.
    Failed(Lease, Failure, BodyProgress),
    /// It could not begin.
    Refused(Cause),
    /// One that was made before it has a good answer.
    Outrun,
}

async fn try_once(
    context: &Rc<Context>,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    cluster: &Rc<ClusterHandle>,
    before: &Before,
    fresh: bool,
    now: Instant,
) -> Result<Tried, End> {
    let (lease, mut upstream) = match connect(context, conn, x, cluster, before, fresh, now).await? {
        Connected::Yes(lease, upstream) => (lease, upstream),
        Connected::Refused(cause) => return Ok(Tried::Refused(cause)),
        Connected::No(lease, cause) => {
            let progress = progress(conn, x, false);
            return Ok(Tried::Failed(lease, Failure::Connect(cause), progress));
        }
        Connected::TooLate(lease) => {
            let failure = Failure::TryTimeout { connected: false };
            return Ok(Tried::Failed(lease, failure, progress(conn, x, false)));
        }
    };
    let began = if upstream.is_reused() { now } else { clock::now() };
    Ok(
        match watched(
            &lease,
            send(context, conn, x, cluster, &mut upstream, began).await,
        )? {
            Sent::Answered(sent) => {
                let time = x.outcome.upstream_time;
                // The clock has just been read for this.
                let now = began + time.unwrap_or_default();
                lease.report(Signal::Status(status_of(x)), now);
                if time.is_some() {
                    lease.observe(time, now);
                }
                Tried::Answered(lease, upstream, sent)
            }
            Sent::TooLate(Sending::Done, progress) => Tried::TooLate(lease, upstream, progress),
            Sent::TooLate(_, progress) => {
                Tried::Failed(lease, Failure::TryTimeout { connected: true }, progress)
            }
            Sent::Failed(failure, progress) => Tried::Failed(lease, failure, progress),
        },
    )
}

/// Interim answers that an attempt beside another may have; they go nowhere.
const PARKED_INTERIM_MAX: u32 = 16;

/// An attempt that has used its own time up, beside which another is made: the first good answer counts.
struct Parked {
    lease: Lease,
    upstream: Upstream,
    head: ResponseHead,
    host: Option<SocketAddr>,
    interim: u32,
    /// When it is a retry: it is at work as long as this is here.
    _permit: Option<RetryPermit>,
}

impl Parked {
    fn new(lease: Lease, upstream: Upstream, permit: Option<RetryPermit>, x: &Exchange) -> Self {
        Self {
            _permit: permit,
            lease,
            upstream,
            head: ResponseHead::default(),
            host: x.outcome.upstream_host,
            interim: 0,
        }
    }

    /// Ready when it has ended, with whether by a good answer.
    fn poll(&mut self, attempts: &Attempts<'_>, method: &Method, cx: &mut TaskContext<'_>) -> Poll<bool> {
        loop {
            let read = std::task::ready!(self.upstream.poll_response(cx, method, &mut self.head));
            if read.is_err() || self.head.status == StatusCode::SWITCHING_PROTOCOLS {
                return Poll::Ready(false);
            }
            if !self.head.status.is_informational() {
                return Poll::Ready(attempts.is_good(self.head.status, &self.head.headers));
            }
            self.interim += 1;
            if self.interim > PARKED_INTERIM_MAX {
                return Poll::Ready(false);
            }
        }
    }

    /// Its answer is that of the exchange.
    fn wins(mut self: Box<Self>, x: &mut Exchange) -> Answered {
        std::mem::swap(&mut x.response, &mut self.head);
        x.outcome.upstream_host = self.host;
        x.outcome.upstream_local = self.upstream.local_addr();
        x.outcome.upstream_time = Some(clock::now().saturating_duration_since(x.forwarded));
        Answered {
            lease: self.lease,
            upstream: self.upstream,
            sent: Sending::Done,
        }
    }
}

/// No attempt is left but perhaps one whose own time is over: its good answer, or this reply. Callers box it: few get
/// here, and its state would make every request's larger.
async fn outlast(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    attempts: &Attempts<'_>,
    parked: Option<Box<Parked>>,
    reply: LocalReply,
) -> Result<Answered, End> {
    let Some(mut other) = parked else {
        return Err(End::Reply(reply));
    };
    // A route without a time of its own must not wait for ever.
    conn.phase().set(context.settings.stream_idle_timeout);
    let is_good = poll_fn(|cx| {
        if let Poll::Ready(is_good) = other.poll(attempts, &x.request.method, cx) {
            return Poll::Ready(Ok(is_good));
        }
        if conn.phase().poll(cx).is_ready() {
            return Poll::Ready(Err(End::Reply(Cause::StreamIdle.into())));
        }
        interrupted(conn, &x.route_timer, cx)
    })
    .await?;
    if is_good {
        return Ok(other.wins(x));
    }
    Err(End::Reply(reply))
}

/// What is known of the request at the moment of a failure; `sent` tells whether the connection got any of it.
fn progress(conn: &impl Downstream, x: &Exchange, sent: bool) -> BodyProgress {
    let is_taken = !x.is_at_hand && (conn.body_bytes() > 0 || conn.is_body_done());
    BodyProgress {
        sent,
        replayable: !is_taken || x.tee.is_whole(),
    }
}

/// Asks the cluster for a retry. The one whose permit this was has ended.
fn admit(context: &Context, cluster: &ClusterHandle, now: Instant, permit: &mut Option<RetryPermit>) -> bool {
    *permit = None;
    *permit = cluster.begin_retry(now);
    if permit.is_none() {
        context.stats.borrow_mut().counters.retry_overflows += 1;
    }
    permit.is_some()
}

fn judge(
    context: &Context,
    conn: &impl Downstream,
    x: &Exchange,
    cluster: &ClusterHandle,
    attempts: &mut Attempts<'_>,
    permit: &mut Option<RetryPermit>,
) -> Judged {
    // What has gone on in another protocol is nothing that could be judged.
    if x.response.status == StatusCode::SWITCHING_PROTOCOLS {
        return Judged::PassOn(Flags::NONE);
    }
    let answer = Answer {
        status: x.response.status,
        headers: &x.response.headers,
        replayable: progress(conn, x, true).replayable,
        left: x.timeouts.total.map(|total| match x.timed_from {
            None => total,
            Some(_) if attempts.is_interested(x.response.status) => {
                total.saturating_sub(x.elapsed(clock::now()))
            }
            Some(_) => total,
        }),
        wait_max: context.settings.retry_after_max,
    };
    let mut random = context.random.borrow_mut();
    attempts.answered(answer, &mut random, || {
        admit(context, cluster, clock::now(), permit)
    })
}

/// Bytes of an answer that nobody gets which are read so that its connection can be kept.
const DROPPED_BYTES: usize = 64 * 1024;

/// Ends an attempt whose answer nobody gets. Its connection is kept when the answer has all come, as that of an error has.
async fn drop_answer(
    x: &Exchange,
    cluster: &ClusterHandle,
    lease: Lease,
    mut upstream: Upstream,
    sent: Sending,
) {
    let mut room = DROPPED_BYTES;
    let is_whole = sent == Sending::Done
        && x.response.keep_alive
        && poll_fn(|cx| {
            loop {
                match upstream.poll_data(cx) {
                    Poll::Ready(Ok(Chunk::Data(there))) if there <= room => {
                        room -= there;
                        upstream.take(there);
                    }
                    Poll::Ready(Ok(Chunk::End)) => return Poll::Ready(true),
                    _ => return Poll::Ready(false),
                }
            }
        })
        .await;
    let kept = is_whole.then(|| reusable(upstream, x, cluster)).flatten();
    lease.finish(kept, clock::now());
}

/// The connection of an exchange that has ended well, if it can carry another.
pub(super) fn reusable(
    upstream: Upstream,
    x: &Exchange,
    cluster: &ClusterHandle,
) -> Option<Box<upstream::Connection>> {
    let Upstream::H1(mut connection) = upstream else {
        return None;
    };
    // An upstream that sends a body where none may be would do so now.
    connection.is_doubtful = x.request.method == Method::HEAD
        || matches!(
            x.response.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    // Bytes behind the answer belong to no request: the connection cannot be trusted with another.
    let is_good =
        !connection.is_for_one && !connection.reader.has_unread() && !cluster.is_used_up(connection.requests);
    is_good.then_some(connection)
}

/// Waits before a retry, unless the client goes away or the time is over.
async fn pause(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    wait: Duration,
) -> Result<(), End> {
    let timer = context.wheel.timer();
    timer.set(wait);
    poll_fn(|cx| {
        if timer.poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        interrupted(conn, &x.route_timer, cx)
    })
    .await
}

/// The deadlines of a wait for an upstream.
#[derive(Clone, Copy)]
pub(super) struct Timers<'x> {
    pub(super) route: &'x Timer,
    /// None when attempts have no time of their own, so that nobody looks.
    attempt: Option<&'x Timer>,
}

impl<'x> Timers<'x> {
    fn of(route: &'x Timer, attempt: &'x Timer, timeouts: Timeouts) -> Self {
        Self {
            route,
            attempt: timeouts.per_try.map(|_| attempt),
        }
    }

    fn is_too_late(&self, cx: &mut TaskContext<'_>) -> bool {
        self.attempt.is_some_and(|timer| timer.poll(cx).is_ready())
    }

    /// What ends the wait for a connection: None when it is the attempt's own time.
    pub(super) fn interrupted<T>(
        &self,
        conn: &mut impl Downstream,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Result<Option<T>, End>> {
        let ended = interrupted(conn, self.route, cx);
        if ended.is_pending() && self.is_too_late(cx) {
            return Poll::Ready(Ok(None));
        }
        ended
    }
}

/// What ends any wait for an upstream: the client is gone, or the route's time is over, or the process's.
fn interrupted<T>(
    conn: &mut impl Downstream,
    route_timer: &Timer,
    cx: &mut TaskContext<'_>,
) -> Poll<Result<T, End>> {
    if conn.poll_gone(cx).is_ready() {
        return Poll::Ready(Err(End::ClientGone));
    }
    if conn.drain() == Drain::Cut {
        return Poll::Ready(Err(End::Reply(Cause::Drained.into())));
    }
    route_timer
        .poll(cx)
        .map(|()| Err(End::Reply(Cause::UpstreamTimeout.into())))
}

enum Connected {
    Yes(Lease, Upstream),
    No(Lease, Cause),
    /// The attempt's time was over before there was a connection.
    TooLate(Lease),
    Refused(Cause),
}

async fn connect(
    context: &Rc<Context>,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    cluster: &Rc<ClusterHandle>,
    before: &Before,
    fresh: bool,
    now: Instant,
) -> Result<Connected, End> {
    let careful = !x.request.method.is_idempotent() || !conn.is_body_done();
    let name = cluster.tls_name(split_port(&x.request.authority).0);
    let group = name.as_ref().map_or(Group::ALL, TlsName::group);
    let name = name.as_deref();
    let choice = Choice {
        hash: x.hash,
        avoid: before.endpoints(),
        without: before.without(),
        group,
        now,
    };
    if cluster.version(x.request.version) == Version::Http2 {
        let timers = Timers::of(&x.route_timer, &x.try_timer, x.timeouts);
        let parts = (&mut x.outcome, timers, !x.request.upgrade.is_empty());
        return connect_stream(context, conn, parts, cluster, choice, name).await;
    }
    let mut place = None;
    let started = loop {
        match cluster.start(choice, fresh, careful, name, &context.random, &mut place) {
            Start::Wait => {
                let idle = context.settings.stream_idle_timeout;
                let timers = Timers::of(&x.route_timer, &x.try_timer, x.timeouts);
                pending::turn(conn, place.as_ref(), timers, idle).await?;
            }
            started => break started,
        }
    };
    drop(place);
    match started {
        Start::Refuse(cause) => Ok(Connected::Refused(cause)),
        Start::Reuse(lease, upstream) => {
            context.stats.borrow_mut().counters.upstream_reuses += 1;
            x.outcome.upstream_host = Some(upstream.address);
            Ok(Connected::Yes(lease, Upstream::H1(upstream)))
        }
        // Waited for above.
        Start::Wait => Ok(Connected::Refused(Cause::Overflow)),
        Start::Connect(lease, address, permit) => {
            x.outcome.upstream_host = Some(address);
            let mut wanted = match cluster.wanted(name, Offer::Http1, conn.peer(), conn.local_addr()) {
                Ok(wanted) => wanted,
                Err(cause) => return Ok(Connected::Refused(cause)),
            };
            wanted.targets = lease.targets();
            let open = context.clusters.count_open();
            // Boxed: connecting is rare, and its state would make every request's larger.
            let connecting = Box::pin(upstream::connect::connect(
                address,
                wanted,
                permit,
                &context.pool,
                &context.wheel,
                context.limits,
                open,
            ));
            let mut connecting = pin!(connecting);
            let timers = Timers::of(&x.route_timer, &x.try_timer, x.timeouts);
            let connected = poll_fn(|cx| {
                if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
                    return Poll::Ready(Ok(Some(connected)));
                }
                timers.interrupted(conn, cx)
            })
            .await?;
            let Some(connected) = connected else {
                context.stats.borrow_mut().counters.upstream_connect_failures += 1;
                return Ok(Connected::TooLate(lease));
            };
            let mut stats = context.stats.borrow_mut();
            match connected {
                Ok(upstream) => {
                    stats.counters.upstream_connects += 1;
                    x.outcome.upstream_host = Some(upstream.address);
                    Ok(Connected::Yes(lease, Upstream::H1(upstream)))
                }
                Err(cause) => {
                    stats.counters.upstream_connect_failures += 1;
                    Ok(Connected::No(lease, cause))
                }
            }
        }
    }
}

/// Counts a connection that was not made.
fn unmade(context: &Context, cause: Cause) -> Failure {
    context.stats.borrow_mut().counters.upstream_connect_failures += 1;
    Failure::Connect(cause)
}

/// Gets a stream of a connection that others use, too.
async fn connect_stream(
    context: &Rc<Context>,
    conn: &mut impl Downstream,
    (outcome, timers, is_upgrade): (&mut Outcome, Timers<'_>, bool),
    cluster: &Rc<ClusterHandle>,
    choice: Choice<'_>,
    name: Option<&str>,
) -> Result<Connected, End> {
    let ends = (conn.peer(), conn.local_addr());
    let (random, clusters) = (&context.random, &context.clusters);
    let mut place = None;
    let started = loop {
        match cluster.start_stream(choice, name, ends, random, clusters, &mut place) {
            StartStream::Wait => {
                let idle = context.settings.stream_idle_timeout;
                pending::turn(conn, place.as_ref(), timers, idle).await?;
            }
            started => break started,
        }
    };
    drop(place);
    let (lease, connection) = match started {
        StartStream::Share(lease, connection) => {
            context.stats.borrow_mut().counters.upstream_reuses += 1;
            (lease, connection)
        }
        StartStream::Open(lease, connection, means) => {
            let (driven, owner, here) = (Rc::clone(&connection), Rc::clone(cluster), Rc::clone(context));
            spawn::spawn(&context.tasks, async move {
                let told = Rc::clone(&driven);
                let changed = move |change| owner.changed(&told, change);
                let with = (&here.pool, &here.wheel);
                upstream::h2::drive(driven, *means, with, here.limits, changed).await;
            });
            context.stats.borrow_mut().counters.upstream_connects += 1;
            (lease, connection)
        }
        StartStream::Refuse(cause) => return Ok(Connected::Refused(cause)),
        // Waited for above.
        StartStream::Wait => return Ok(Connected::Refused(Cause::Overflow)),
    };
    outcome.upstream_host = Some(connection.address.get());
    let ready = poll_fn(|cx| {
        if let Poll::Ready(ready) = connection.poll_ready(is_upgrade, cx) {
            return Poll::Ready(Ok(Some(ready)));
        }
        timers.interrupted(conn, cx)
    })
    .await?;
    let Some(ready) = ready else {
        return Ok(Connected::TooLate(lease));
    };
    match ready {
        Ok(()) => {
            outcome.upstream_host = Some(connection.address.get());
            let stream = Box::new(upstream::h2::Stream::new(connection));
            Ok(Connected::Yes(lease, Upstream::H2(stream)))
        }
        Err(cause) => {
            context.stats.borrow_mut().counters.upstream_connect_failures += 1;
            Ok(Connected::No(lease, cause))
        }
    }
}

/// What the wait for an answer ends with.
enum Event {
    /// The upload could go on, but others must have their turn.
    Turn,
    /// The attempt's time is over.
    TooLate,
    /// A head of an answer, or a failure.
    Read(Result<(), ReadError>),
}

enum Sent {
    /// A final response's head is in the exchange.
    Answered(Sending),
    /// The attempt's time is over; so far the request was sent.
    TooLate(Sending, BodyProgress),
    /// The attempt failed before that.
    Failed(Failure, BodyProgress),
}

/// Sends the request on one connection and waits for the head of a final response. The body is passed on meanwhile.
async fn send(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    cluster: &ClusterHandle,
    upstream: &mut Upstream,
    started: Instant,
) -> Result<Sent, End> {
    let reused = upstream.is_reused();
    let is_upgrade = !x.request.upgrade.is_empty();
    if is_upgrade {
        upgrade::ask(
            &mut x.request,
            upstream.version(),
            &mut context.random.borrow_mut(),
        );
    }
    // A body that has come as a whole meanwhile is sent as one, and then its head says so.
    let is_untouched = conn.body_bytes() == 0 && !conn.is_body_done();
    let whole = conn.whole_body().filter(|_| is_untouched).map(<[u8]>::len);
    if let (BodyLength::Chunked, Some(length)) = (x.request.body, whole) {
        x.request.body = BodyLength::Known(length as u64);
    }
    if let (Some(_), Some(body)) = (whole, conn.whole_body()) {
        x.tee.record_whole(body);
    }
    x.to_upstream.reset();
    upstream.begin(&mut x.to_upstream, &x.request, |requests| {
        cluster.is_used_up(requests)
    });
    let mut sending = if x.is_at_hand || whole.is_some() {
        Sending::Whole(0)
    } else {
        Sending::Replaying(0)
    };
    // Nothing waits for a clock where the request's time counts already, or not at all.
    let mut is_timed = x.timeouts.total.is_none_or(|_| x.timed_from.is_some())
        && x.timeouts.per_try.is_none_or(|_| x.try_timer.is_set());
    let mut interim = 0;
    let limit = context.settings.request_body_bytes;
    // Who has to move next: the client with its body, or the upstream.
    let mut on_client = false;
    let mut invited = !x.request.expects_continue;
    conn.phase().set(context.settings.stream_idle_timeout);
    loop {
        let Exchange {
            request,
            response,
            trailers,
            to_upstream,
            route_timer,
            try_timer,
            timeouts,
            tee,
            ..
        } = &mut *x;
        let timers = Timers::of(route_timer, try_timer, *timeouts);
        let mut turn = TURN_BYTES;
        let mut is_all = false;
        let event = poll_fn(|cx| {
            let mut has_more = false;
            match poll_request(
                conn,
                upstream,
                to_upstream,
                trailers,
                &mut sending,
                limit,
                tee,
                &mut turn,
                cx,
            ) {
                Poll::Ready(Ok(Moved::All)) => is_all = true,
                Poll::Ready(Ok(Moved::Turn)) => has_more = true,
                Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                Poll::Pending => {}
            }
            if is_all && !is_timed {
                return Poll::Ready(Ok(Event::Turn));
            }
            if let Poll::Ready(read) = upstream.poll_response(cx, &request.method, response) {
                return Poll::Ready(Ok(Event::Read(read)));
            }
            // An interim response may still be on its way to the client.
            if let Poll::Ready(Err(_)) = conn.poll_flush(cx) {
                return Poll::Ready(Err(End::ClientGone));
            }
            let is_http2 = request.version == Version::Http2;
            if sending.looks_for_client(conn, is_http2) && conn.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(End::ClientGone));
            }
            if conn.drain() == Drain::Cut {
                return Poll::Ready(Err(End::Reply(Cause::Drained.into())));
            }
            if timers.route.poll(cx).is_ready() {
                return Poll::Ready(Err(End::Reply(Cause::UpstreamTimeout.into())));
            }
            if timers.is_too_late(cx) {
                return Poll::Ready(Ok(Event::TooLate));
            }
            // Bytes that wait to be written mean that the upstream is slow, not the client; and a client that asked
            // whether it may go on waits for the upstream's word.
            let waits_for_client = sending == Sending::Streaming
                && to_upstream.is_flushed()
                && !conn.has_unread()
                && (invited || conn.body_bytes() > 0);
            if waits_for_client != on_client {
                on_client = waits_for_client;
                conn.phase().set(if on_client {
                    context.settings.body_timeout
                } else {
                    context.settings.stream_idle_timeout
                });
            }
            if conn.phase().poll(cx).is_ready() {
                let cause = if on_client {
                    Cause::BodyTimeout
                } else {
                    Cause::StreamIdle
                };
                return Poll::Ready(Err(End::Reply(cause.into())));
            }
            // The upload could go on; everything else has been looked at.
            if has_more {
                Poll::Ready(Ok(Event::Turn))
            } else {
                Poll::Pending
            }
        })
        .await?;
        let read = match event {
            Event::Turn if is_all => {
                // The request's time counts from its end, as Envoy counts it, and a retry does not count it anew.
                is_timed = true;
                let now = clock::now();
                x.begin_time(now);
                if let Some(per_try) = x.timeouts.per_try.filter(|_| !x.try_timer.is_set()) {
                    x.try_timer.set(per_try);
                }
                continue;
            }
            Event::Turn => {
                executor::turn().await;
                continue;
            }
            Event::TooLate => {
                let progress = progress(conn, x, upstream.has_sent(&x.to_upstream));
                return Ok(Sent::TooLate(sending, progress));
            }
            Event::Read(read) => read,
        };
        let progress = progress(conn, x, upstream.has_sent(&x.to_upstream));
        let failure = match read {
            Ok(()) if x.response.status == StatusCode::SWITCHING_PROTOCOLS => {
                if upgrade::agree(&x.request, &mut x.response, upstream.version()) {
                    x.outcome.upstream_time = Some(clock::now().saturating_duration_since(started));
                    x.outcome.upstream_local = upstream.local_addr();
                    return Ok(Sent::Answered(Sending::Streaming));
                }
                Failure::Final(Cause::UpstreamHead(HeadError::Upgrade))
            }
            // To a request for a tunnel over HTTP/2, a success says that there is one (RFC 8441, 5).
            Ok(()) if is_upgrade && x.request.version == Version::Http2 && x.response.status.is_success() => {
                Failure::Final(Cause::UpstreamHead(HeadError::Upgrade))
            }
            Ok(()) if x.response.status.is_informational() => {
                interim += 1;
                if interim > context.settings.interim_responses {
                    Failure::Final(Cause::UpstreamInterim)
                } else {
                    let wanted = x.response.status != StatusCode::CONTINUE || x.request.expects_continue;
                    if wanted && x.request.version != Version::Http10 {
                        conn.interim_head(&x.response);
                        invited |= x.response.status == StatusCode::CONTINUE;
                    }
                    continue;
                }
            }
            Ok(()) => {
                x.outcome.upstream_time = Some(clock::now().saturating_duration_since(started));
                x.outcome.upstream_local = upstream.local_addr();
                return Ok(Sent::Answered(sending));
            }
            Err(ReadError::Closed { .. } | ReadError::Io(_)) => match upstream.ended() {
                // Only what may be worked on twice is sent again as if nobody had got it (RFC 9110, 9.2.2).
                Some(Ended::NeverBegun(cause)) if x.request.method.is_idempotent() => unmade(context, cause),
                Some(Ended::NeverBegun(cause)) => {
                    let _counted = unmade(context, cause);
                    Failure::Broken(cause)
                }
                Some(Ended::Broken(cause)) if interim == 0 => Failure::Broken(cause),
                Some(Ended::Broken(cause)) => Failure::Final(cause),
                None if interim == 0 && !upstream.has_unread() => Failure::Reset { reused },
                None => Failure::Final(Cause::UpstreamReset),
            },
            Err(ReadError::Refused) => Failure::Refused,
            Err(ReadError::LeftOut) => Failure::LeftOut,
            Err(ReadError::Reset) => Failure::Reset { reused: false },
            Err(ReadError::Unspeakable) if is_upgrade => {
                Failure::Final(Cause::UpstreamHead(HeadError::Upgrade))
            }
            Err(ReadError::Unspeakable) => Failure::Final(Cause::RequestPath),
            Err(ReadError::Head(error)) => Failure::Final(Cause::UpstreamHead(error)),
            Err(ReadError::Body(error)) => Failure::Final(Cause::UpstreamBody(error)),
        };
        return Ok(Sent::Failed(failure, progress));
    }
}
