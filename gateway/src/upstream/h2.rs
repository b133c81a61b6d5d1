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
use crate::io::h2::{self as codec, Receiver, SEND_BUFFER, Sender, Wire};
use crate::io::timer::Wheel;
use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use http::Method;
use isthmus_core::h2::head::{read_interim, read_response, write_request};
use isthmus_core::header::HeaderList;
use isthmus_core::limits::MessageLimits;
use isthmus_core::message::{BodyLength, RequestHead, ResponseHead, Version};
use isthmus_core::protocol::Http2Keepalive;
use isthmus_core::reply::Cause;
use isthmus_core::shared::Permit;
use rustls::ClientConfig;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Room for one stream's data, and for that of all streams of a connection. Clients of all kinds share a connection, and
/// some do not take what they have asked for: their streams must not use up the room of the others, so that the
/// connection's is as large as can be.
const WINDOWS: (u32, u32) = (128 * 1024, (1 << 31) - 1);
/// Streams that an upstream is taken to allow before it has said how many.
pub const STREAMS_AT_FIRST: u32 = 100;

enum State {
    Connecting,
    Ready(SendRequest<Bytes>),
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
        match &mut *self.state.borrow_mut() {
            State::Connecting => !self.is_unwanted.get(),
            // Only looked at: an error says that the upstream has announced its end.
            State::Ready(send) => !matches!(
                send.poll_ready(&mut Context::from_waker(Waker::noop())),
                Poll::Ready(Err(_))
            ),
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
        // Dropped after the borrow: the last handle wakes the connection's task.
        drop(state);
    }

    /// Waits until the connection is made, or could not be; if `settled`, until the upstream has said what it can do.
    pub fn poll_ready(&self, settled: bool, cx: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        match &*self.state.borrow() {
            State::Ready(_) if settled && !self.is_settled.get() => {
                self.waiting.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
            State::Connecting => {
                self.waiting.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
            State::Failed(cause) => Poll::Ready(Err(*cause)),
            // One that has gone meanwhile leaves the stream out, which says more.
            State::Ready(_) | State::Retired => Poll::Ready(Ok(())),
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

    fn stream(&self, head: &RequestHead) -> Result<(ResponseFuture, Sender), ReadError> {
        let ended = head.body.is_empty() && head.upgrade.is_empty();
        let mut request =
            write_request(head, self.name.is_some(), self.address.get()).ok_or(ReadError::Unspeakable)?;
        if !head.upgrade.is_empty() {
            let protocol = h2::ext::Protocol::from(head.upgrade.as_str());
            request.extensions_mut().insert(protocol);
        }
        let mut send = match &*self.state.borrow() {
            // A handle of its own, since one handle waits for its last stream to be opened.
            State::Ready(send) => send.clone(),
            _ => return Err(ReadError::LeftOut),
        };
        if !head.upgrade.is_empty() && !send.is_extended_connect_protocol_enabled() {
            return Err(ReadError::Unspeakable);
        }
        // A connection that takes no stream has not seen the request, whatever is wrong with it.
        let (response, stream) = send
            .send_request(request, ended)
            .map_err(|_| ReadError::LeftOut)?;
        let length = match head.body {
            // What comes in HTTP/2 may have trailers behind a body of known length.
            BodyLength::Known(length) if head.version != Version::Http2 => Some(length),
            _ => None,
        };
        Ok((response, Sender::new(stream, length, ended)))
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
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .initial_max_send_streams(STREAMS_AT_FIRST as usize)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(codec::SMALL_DATA_BUDGET);
    deadline.set(means.wanted.timeout);
    let wire = Wire::to_server(Rc::clone(&socket), pool);
    let is_settled = wire.is_settled();
    let mut handshake = pin!(builder.handshake(wire));
    let (send, mut engine) = poll_fn(|cx| match handshake.as_mut().poll(cx) {
        Poll::Ready(shaken) => Poll::Ready(shaken.map_err(|_| Cause::ConnectFailed)),
        Poll::Pending => deadline.poll(cx).map(|()| Err(Cause::ConnectTimeout)),
    })
    .await?;
    deadline.clear();
    let mut pulse = means
        .keepalive
        .and_then(|keepalive| Pulse::new(keepalive, &mut engine, wheel));
    connection.becomes(if connection.is_unwanted.get() {
        // Those who wait for it are sent to another one.
        State::Retired
    } else {
        State::Ready(send)
    });
    // An upstream that never says what it can do is not there.
    deadline.set(means.wanted.timeout);
    let mut limit = None;
    poll_fn(|cx| {
        let ended = Pin::new(&mut engine).poll(cx);
        if !connection.is_settled.get() && is_settled.get() {
            connection.is_settled.set(true);
            deadline.clear();
            connection.wake();
        }
        let allowed = u32::try_from(engine.max_concurrent_send_streams()).unwrap_or(u32::MAX);
        // Before that, the library answers what it was told to begin with.
        if connection.is_settled.get() && limit != Some(allowed) {
            limit = Some(allowed);
            changed(Change::Limit(allowed));
        }
        if let Poll::Ready(ended) = ended {
            if let Err(error) = ended {
                tracing::debug!(address = %connection.address.get(), %error, "an HTTP/2 connection to an upstream broke off");
            }
            return Poll::Ready(Ok(()));
        }
        if deadline.poll(cx).is_ready() {
            return Poll::Ready(Err(Cause::ConnectTimeout));
        }
        match &mut pulse {
            Some(pulse) => pulse.poll(cx).map(Ok),
            None => Poll::Pending,
        }
    })
    .await
}

/// Asks the upstream from time to time whether it is there.
struct Pulse {
    keepalive: Http2Keepalive,
    pings: h2::PingPong,
    timer: crate::io::timer::Timer,
    is_asked: bool,
}

impl Pulse {
    fn new(
        keepalive: Http2Keepalive,
        engine: &mut client::Connection<Wire, Bytes>,
        wheel: &Wheel,
    ) -> Option<Self> {
        let timer = wheel.timer();
        timer.set(keepalive.interval);
        Some(Self {
            keepalive,
            pings: engine.ping_pong()?,
            timer,
            is_asked: false,
        })
    }

    /// Ready when the upstream has not answered in time.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.is_asked {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.is_asked = false;
                        self.timer.set(self.keepalive.interval);
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return self.timer.poll(cx),
                }
            } else if self.timer.poll(cx).is_ready() {
                if self.pings.send_ping(h2::Ping::opaque()).is_err() {
                    return Poll::Ready(());
                }
                self.is_asked = true;
                self.timer.set(self.keepalive.timeout);
            } else {
                return Poll::Pending;
            }
        }
    }
}

/// The upstream's side of one exchange.
pub struct Stream {
    connection: Rc<Connection>,
    /// None when the request could not be put on its way, and once the answer's head is there.
    response: Option<ResponseFuture>,
    sender: Option<Sender>,
    receiver: Receiver,
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
            response: None,
            sender: None,
            receiver: Receiver::unknown(),
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
            Ok((response, sender)) => {
                self.connection.requests.set(self.connection.requests() + 1);
                self.response = Some(response);
                self.sender = Some(sender);
            }
            Err(error) => self.failed = Some(error),
        }
    }

    /// Whether anything of the request was handed over.
    pub fn has_sent(&self) -> bool {
        self.sender.is_some()
    }

    fn sender(&mut self) -> io::Result<&mut Sender> {
        self.sender
            .as_mut()
            .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// See [`super::Upstream::poll_write`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.sender()?.poll_write(cx, data)
    }

    /// See [`super::Upstream::poll_write_all`].
    pub fn poll_write_all(
        &mut self,
        cx: &mut Context<'_>,
        body: &[u8],
        at: &mut usize,
    ) -> Poll<io::Result<()>> {
        self.sender()?.poll_write_all(cx, body, at)
    }

    /// See [`super::Upstream::finish`].
    pub fn finish(&mut self, trailers: &HeaderList) {
        if let Some(sender) = &mut self.sender {
            sender.finish(trailers);
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
        let Some(response) = &mut self.response else {
            return Poll::Pending;
        };
        if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
            let (parts, ()) = interim.into_parts();
            read_interim(&parts, head).map_err(ReadError::Head)?;
            return Poll::Ready(Ok(()));
        }
        let (parts, body) = match std::task::ready!(Pin::new(response).poll(cx)) {
            Ok(answer) => answer.into_parts(),
            Err(error) => return Poll::Ready(Err(codec::read_error(error))),
        };
        self.response = None;
        self.receiver = Receiver::new(body);
        let has_body = !self.receiver.is_done();
        if !read_response(&parts, method, self.is_upgrade, has_body, head) {
            // Whatever comes all the same belongs to no message (RFC 9110, 6.4.1).
            self.receiver = Receiver::none();
        }
        Poll::Ready(Ok(()))
    }

    /// See [`super::Upstream::poll_data`].
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>> {
        self.receiver.poll_data(cx)
    }

    /// See [`super::Upstream::data`].
    pub fn data(&self) -> &[u8] {
        self.receiver.data()
    }

    /// See [`super::Upstream::take`].
    pub fn take(&mut self, used: usize) {
        self.receiver.take(used);
    }

    /// See [`super::Upstream::trailers`].
    pub fn trailers(&self, into: &mut HeaderList) {
        self.receiver.trailers(into);
    }

    /// See [`super::Upstream::body_bytes`].
    pub fn body_bytes(&self) -> u64 {
        self.receiver.taken()
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
