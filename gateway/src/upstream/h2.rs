//! A connection to an endpoint that carries several requests at a time, in HTTP/2.
//!
//! The first request that wants one starts [`drive`] in a task of its own, which connects, and then moves the frames of
//! all streams until the connection ends; whoever wants a stream waits until the connection is ready. So no request
//! owns the connection: one that is cancelled, or whose client goes away, ends its own stream only. [`Stream`] is the
//! upstream's side of one exchange.

use super::Open;
use super::connect::{self, Wanted};
use crate::io::buffer::Pool;
use crate::io::h1::{Chunk, ReadError};
use crate::io::h2::{Exchange, Link, Mover};
use crate::io::timer::{Timer, Wheel};
use http::Method;
use isthmus_core::h1::HeadError;
use isthmus_core::h2::head::{is_speakable, read_interim, read_response, write_request};
use isthmus_core::h2::{Options, Role};
use isthmus_core::header::HeaderList;
use isthmus_core::limits::MessageLimits;
use isthmus_core::message::{BodyLength, RequestHead, ResponseHead, Version};
use isthmus_core::protocol::Http2Keepalive;
use isthmus_core::reply::Cause;
use isthmus_core::shared::Permit;
use rustls::ClientConfig;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Room for one stream's data, and for that of all streams of a connection. Clients of all kinds share a connection, and
/// some do not take what they have asked for: their streams must not use up the room of the others, so that the
/// connection's is as large as can be.
const WINDOWS: (u32, u32) = (128 * 1024, (1 << 31) - 1);
/// Streams that an upstream is taken to allow before it has said how many.
pub const STREAMS_AT_FIRST: u32 = 100;

/// That a peer does not keep to HTTP/2, or speaks something else.
const NOT_HTTP2: Cause = Cause::UpstreamHead(HeadError::Version);

/// How long an upstream that is told why its connection ends may take to read it.
const GOODBYE: Duration = Duration::from_secs(1);

enum State {
    Connecting,
    Ready(Rc<Link>),
    /// It takes no more streams; those that it has go on.
    Retired,
    Failed(Cause),
}

/// One connection, as those who want streams of it see it.
pub struct Connection {
    /// Where it leads; of several addresses the first, until one of them has answered.
    pub address: Cell<SocketAddr>,
    /// The name that its TLS was asked for; None for plaintext.
    pub name: Option<Box<str>>,
    /// What was shown and demanded; None for plaintext.
    pub config: Option<Arc<ClientConfig>>,
    local: Cell<Option<SocketAddr>>,
    state: RefCell<State>,
    waiting: RefCell<Vec<Waker>>,
    /// Whether the upstream has said what it can do.
    is_settled: Cell<bool>,
    /// Whether it was to take no more streams before it could take any.
    is_unwanted: Cell<bool>,
    requests: Cell<u32>,
}

impl Connection {
    /// A connection that [`drive`] is about to make.
    pub fn new(address: SocketAddr, name: Option<Box<str>>, config: Option<Arc<ClientConfig>>) -> Self {
        Self {
            address: Cell::new(address),
            name,
            config,
            local: Cell::new(None),
            state: RefCell::new(State::Connecting),
            waiting: RefCell::default(),
            is_settled: Cell::new(false),
            is_unwanted: Cell::new(false),
            requests: Cell::new(0),
        }
    }

    /// Whether it takes another stream, as far as is known.
    pub fn is_usable(&self) -> bool {
        match &*self.state.borrow() {
            State::Connecting => !self.is_unwanted.get(),
            State::Ready(link) => link.engine().takes_streams(),
            State::Retired | State::Failed(_) => false,
        }
    }

    /// Requests that it has carried.
    pub fn requests(&self) -> u32 {
        self.requests.get()
    }

    /// Lets the streams that it has end, and then the connection.
    pub fn retire(&self) {
        let state = {
            let mut state = self.state.borrow_mut();
            match *state {
                State::Ready(_) => std::mem::replace(&mut *state, State::Retired),
                _ => return self.is_unwanted.set(true),
            }
        };
        if let State::Ready(link) = state {
            link.retire();
        }
        self.wake();
    }

    /// Waits until the connection is made, or could not be; if `settled`, until the upstream has said what it can do.
    pub fn poll_ready(&self, settled: bool, cx: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        match &*self.state.borrow() {
            State::Ready(_) if settled && !self.is_settled.get() => {
                self.wait(cx);
                Poll::Pending
            }
            State::Connecting => {
                self.wait(cx);
                Poll::Pending
            }
            State::Failed(cause) => Poll::Ready(Err(*cause)),
            // One that has gone meanwhile leaves the stream out, which says more.
            State::Ready(_) | State::Retired => Poll::Ready(Ok(())),
        }
    }

    /// Has the task woken, once, when something changes.
    fn wait(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
    }

    fn becomes(&self, state: State) {
        // Dropped after the borrow: what goes may wake others.
        let _before = self.state.replace(state);
        self.wake();
    }

    fn wake(&self) {
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }

    fn stream(&self, head: &RequestHead) -> Result<Exchange, ReadError> {
        let ended = head.body.is_empty() && head.upgrade.is_empty();
        if !is_speakable(head) {
            return Err(ReadError::Unspeakable);
        }
        let link = match &*self.state.borrow() {
            State::Ready(link) => Rc::clone(link),
            _ => return Err(ReadError::LeftOut),
        };
        if !head.upgrade.is_empty() && !link.engine().takes_connect() {
            return Err(ReadError::Unspeakable);
        }
        let (is_secure, to) = (self.name.is_some(), self.address.get());
        let is_head = head.method == Method::HEAD;
        let opened = link
            .engine_mut()
            .open(ended, is_head, |block| write_request(head, is_secure, to, block));
        // A connection that takes no stream has not seen the request, whatever is wrong with it.
        let key = opened.ok_or(ReadError::LeftOut)?;
        let length = match head.body {
            // What comes in HTTP/2 may have trailers behind a body of known length.
            BodyLength::Known(length) if head.version != Version::Http2 => Some(length),
            _ => None,
        };
        let mut exchange = Exchange::new(&link, key);
        exchange.has_sent_head(length, ended);
        link.kick();
        Ok(exchange)
    }
}

/// What happens to a connection that concerns who hands out its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The upstream allows so many streams at a time.
    Limit(u32),
    /// The connection has ended.
    Over,
}

/// What a connection is made and kept with.
pub struct Means {
    /// What it is to be like.
    pub wanted: Wanted,
    /// The right to it.
    pub permit: Permit,
    /// Its place in the count of open connections.
    pub open: Open,
    /// How it finds out that the upstream is gone.
    pub keepalive: Option<Http2Keepalive>,
}

/// Makes the connection and moves its frames until it ends. Each change is told to `changed`.
pub async fn drive(
    connection: Rc<Connection>,
    means: Means,
    (pool, wheel): (&Pool, &Wheel),
    limits: MessageLimits,
    changed: impl Fn(Change),
) {
    let mut ending = Ending {
        connection,
        cause: Cause::UpstreamReset,
        changed,
    };
    let Ending {
        connection, changed, ..
    } = &ending;
    if let Err(cause) = Box::pin(run(connection, &means, (pool, wheel), limits, changed)).await {
        ending.cause = cause;
    }
}

/// Says that a connection has ended when it has, also by a panic: those who wait for it are not left waiting.
struct Ending<C: Fn(Change)> {
    connection: Rc<Connection>,
    cause: Cause,
    changed: C,
}

impl<C: Fn(Change)> Drop for Ending<C> {
    fn drop(&mut self) {
        self.connection.becomes(State::Failed(self.cause));
        (self.changed)(Change::Over);
    }
}

async fn run(
    connection: &Connection,
    means: &Means,
    (pool, wheel): (&Pool, &Wheel),
    limits: MessageLimits,
    changed: &impl Fn(Change),
) -> Result<(), Cause> {
    let deadline = wheel.timer();
    let (stream, address) = connect::open(connection.address.get(), &means.wanted, pool, wheel).await?;
    connection.address.set(address);
    let socket = Rc::new(stream);
    connection.local.set(socket.local_addr());
    let options = Options {
        role: Role::Client,
        stream_window: WINDOWS.0,
        connection_window: WINDOWS.1,
        streams: STREAMS_AT_FIRST,
        header_bytes: limits.header_bytes,
        header_count: limits.header_count,
        limits: None,
    };
    let mut mover = Mover::to_server(socket, pool, options);
    let link = Rc::clone(mover.link());
    let mut pulse = means.keepalive.map(|keepalive| Pulse::new(keepalive, wheel));
    connection.becomes(if connection.is_unwanted.get() {
        // Those who wait for it are sent to another one.
        link.retire();
        State::Retired
    } else {
        State::Ready(Rc::clone(&link))
    });
    // An upstream that never says what it can do is not there.
    deadline.set(means.wanted.timeout);
    let mut limit = None;
    poll_fn(|cx| {
        let ended = mover.poll(cx);
        let (is_settled, allowed) = {
            let engine = link.engine();
            (engine.is_settled(), engine.allowed())
        };
        if is_settled && !connection.is_settled.replace(true) {
            deadline.clear();
            connection.wake();
        }
        // Before that, it is what the connection was told to begin with.
        if is_settled && limit != Some(allowed) {
            limit = Some(allowed);
            changed(Change::Limit(allowed));
        }
        if ended.is_ready() {
            let found = link.engine().misbehaviour();
            if let Some(found) = found {
                let cause = found.detail();
                tracing::debug!(address = %connection.address.get(), cause, "an HTTP/2 connection to an upstream broke off");
            }
            return Poll::Ready(match (is_settled, found) {
                (true, _) => Ok(()),
                (false, Some(_)) => Err(NOT_HTTP2),
                (false, None) => Err(Cause::ConnectFailed),
            });
        }
        if link.engine().is_over() && !deadline.is_set() {
            // What it is told last is worth no longer wait.
            deadline.set(GOODBYE);
        }
        if deadline.poll(cx).is_ready() {
            return Poll::Ready(match is_settled {
                true => Ok(()),
                false => Err(Cause::ConnectTimeout),
            });
        }
        match &mut pulse {
            Some(pulse) => pulse.poll(&link, cx).map(Ok),
            None => Poll::Pending,
        }
    })
    .await
}

/// Asks the upstream from time to time whether it is there.
struct Pulse {
    keepalive: Http2Keepalive,
    timer: Timer,
    is_asked: bool,
}

impl Pulse {
    fn new(keepalive: Http2Keepalive, wheel: &Wheel) -> Self {
        let timer = wheel.timer();
        timer.set(keepalive.interval);
        Self {
            keepalive,
            timer,
            is_asked: false,
        }
    }

    /// Ready when the upstream has not answered in time.
    fn poll(&mut self, link: &Link, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.is_asked && link.engine().is_present() {
                self.is_asked = false;
                self.timer.set(self.keepalive.interval);
            }
            if self.timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.is_asked {
                return Poll::Ready(());
            }
            self.is_asked = true;
            link.engine_mut().ask_presence();
            link.kick();
            self.timer.set(self.keepalive.timeout);
        }
    }
}

/// Why a connection has ended, when more is known than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The upstream has never begun to speak HTTP/2 on it, which is the first that a server does (RFC 9113, 3.4): it may
    /// read the request later, in what waits for it, or have read it and answer as it pleases.
    NeverBegun(Cause),
    /// The upstream has broken a rule of the protocol.
    Broken(Cause),
}

/// The upstream's side of one exchange.
pub struct Stream {
    connection: Rc<Connection>,
    /// None when the request could not be put on its way.
    exchange: Option<Exchange>,
    /// Whether the answer's head is there.
    has_head: bool,
    /// Why the request could not be put on its way.
    failed: Option<ReadError>,
    /// Whether the request asks for another protocol.
    is_upgrade: bool,
}

impl Stream {
    /// A stream of a connection that is ready.
    pub fn new(connection: Rc<Connection>) -> Self {
        Self {
            connection,
            exchange: None,
            has_head: false,
            failed: None,
            is_upgrade: false,
        }
    }

    /// Whether the connection has carried other requests before.
    pub fn is_reused(&self) -> bool {
        self.connection.requests() > 0
    }

    /// This end's address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.connection.local.get()
    }

    /// Puts the request's head on its way.
    pub fn begin(&mut self, head: &RequestHead) {
        self.is_upgrade = !head.upgrade.is_empty();
        match self.connection.stream(head) {
            Ok(exchange) => {
                self.connection.requests.set(self.connection.requests() + 1);
                self.exchange = Some(exchange);
            }
            Err(error) => self.failed = Some(error),
        }
    }

    /// Whether anything of the request was handed over.
    pub fn has_sent(&self) -> bool {
        self.exchange.is_some()
    }

    /// Why the connection has ended, if it has and that is known.
    pub fn ended(&self) -> Option<Ended> {
        let is_broken = self.exchange.as_ref()?.is_broken();
        if self.connection.is_settled.get() {
            return is_broken.then_some(Ended::Broken(NOT_HTTP2));
        }
        match *self.connection.state.borrow() {
            _ if is_broken => Some(Ended::NeverBegun(NOT_HTTP2)),
            State::Failed(cause) => Some(Ended::NeverBegun(cause)),
            _ => None,
        }
    }

    fn exchange(&mut self) -> io::Result<&mut Exchange> {
        self.exchange
            .as_mut()
            .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// See [`super::Upstream::poll_write`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.exchange()?.poll_write(cx, data)
    }

    /// See [`super::Upstream::poll_write_all`].
    pub fn poll_write_all(
        &mut self,
        cx: &mut Context<'_>,
        body: &[u8],
        at: &mut usize,
    ) -> Poll<io::Result<()>> {
        self.exchange()?.poll_write_all(cx, body, at)
    }

    /// See [`super::Upstream::finish`].
    pub fn finish(&mut self, trailers: &HeaderList) {
        if let Some(exchange) = &mut self.exchange {
            exchange.finish(trailers);
        }
    }

    /// See [`super::Upstream::poll_response`].
    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), ReadError>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let Some(exchange) = self.exchange.as_mut().filter(|_| !self.has_head) else {
            return Poll::Pending;
        };
        let is_upgrade = self.is_upgrade;
        let read = exchange.poll_head(cx, |fields, has_body| {
            if fields.status().is_some_and(|status| status < 200) {
                return read_interim(fields, head).map(|()| None);
            }
            read_response(fields, method, is_upgrade, has_body, head).map(Some)
        });
        let belongs = std::task::ready!(read)?.map_err(ReadError::Head)?;
        self.has_head = belongs.is_some();
        if belongs == Some(false) {
            // Whatever comes all the same belongs to no message (RFC 9110, 6.4.1).
            exchange.ignore();
        }
        Poll::Ready(Ok(()))
    }

    /// See [`super::Upstream::poll_data`].
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>> {
        match &mut self.exchange {
            Some(exchange) => exchange.poll_data(cx),
            None => Poll::Ready(Err(ReadError::Closed { clean: false })),
        }
    }

    /// See [`super::Upstream::data`].
    pub fn data(&self) -> &[u8] {
        self.exchange.as_ref().map_or(&[], Exchange::data)
    }

    /// See [`super::Upstream::take`].
    pub fn take(&mut self, used: usize) {
        if let Some(exchange) = &mut self.exchange {
            exchange.take(used);
        }
    }

    /// See [`super::Upstream::trailers`].
    pub fn trailers(&self, into: &mut HeaderList) {
        into.clear();
        if let Some(exchange) = &self.exchange {
            exchange.trailers(into);
        }
    }

    /// See [`super::Upstream::body_bytes`].
    pub fn body_bytes(&self) -> u64 {
        self.exchange.as_ref().map_or(0, Exchange::taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_waits_for_a_connection_is_told_however_its_task_ends() {
        let connection = Rc::new(Connection::new(([127, 0, 0, 1], 1).into(), None, None));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        assert!(connection.poll_ready(false, &mut cx).is_pending());
        let told = Cell::new(None);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ending = Ending {
                connection: Rc::clone(&connection),
                cause: Cause::UpstreamReset,
                changed: |change| told.set(Some(change)),
            };
            panic!("a defect");
        }));
        assert!(ended.is_err());
        assert!(woken.0.load(Ordering::SeqCst));
        assert_eq!(told.get(), Some(Change::Over));
        assert_eq!(
            connection.poll_ready(false, &mut cx),
            Poll::Ready(Err(Cause::UpstreamReset))
        );
        assert!(!connection.is_usable());
    }
}
