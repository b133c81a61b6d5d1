//! A connection on a shard, plaintext or TLS. Reads and writes are system calls, made when the socket is known to have
//! something for them ([`super::readiness`]); writes are vectored.

use super::buffer::Pool;
use super::readiness::Watch;
use super::tls::{HandshakeError, Raw, Session};
use super::{clock, executor};
use isthmus_core::cluster::TcpKeepalive;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// What a look at an idle connection shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Open and silent.
    Idle,
    /// Closed, broken, or with bytes that nobody asked for: it must not be used.
    Unusable,
}

/// A connection. Both directions can be used at the same time, each by one task.
pub struct Stream {
    socket: Socket,
    /// Boxed, so that plaintext connections do not carry its room.
    tls: Option<Box<RefCell<Session>>>,
    /// Whether the coming close is a reset, and so says no goodbye.
    is_reset: Cell<bool>,
}

/// The socket itself.
struct Socket {
    // Before the descriptor, so that the set forgets the socket while it is open.
    watch: Watch,
    fd: OwnedFd,
    /// This end's address, once it was asked for: a connection keeps it, and every access-log line names it.
    local: Cell<Option<SocketAddr>>,
}

impl Stream {
    /// Takes over a connected non-blocking socket.
    pub fn from_fd(fd: OwnedFd) -> Self {
        // Messages are written whole, so there is nothing for Nagle's algorithm to wait for. Failure leaves a delay.
        let _unimportant = rustix::net::sockopt::set_tcp_nodelay(&fd, true);
        Self::watched(fd)
    }

    fn watched(fd: OwnedFd) -> Self {
        Self {
            socket: Socket {
                watch: Watch::new(&fd),
                fd,
                local: Cell::new(None),
            },
            tls: None,
            is_reset: Cell::new(false),
        }
    }

    /// Connects within `timeout`; a timeout is an error of kind `TimedOut`.
    pub async fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&fd, &address) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // From here on it has room to write as soon as it is connected, or has failed.
        let stream = Self::from_fd(fd);
        let mut late = pin!(executor::sleep(timeout.max(Duration::from_millis(1))));
        poll_fn(|cx| {
            if stream.socket.watch.poll_writable(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            late.as_mut()
                .poll(cx)
                .map(|()| Err(io::Error::from(io::ErrorKind::TimedOut)))
        })
        .await?;
        rustix::net::sockopt::socket_error(&stream)??;
        Ok(stream)
    }

    /// Connects to a unix socket within `timeout`, by its path, or by the name behind `@`.
    pub async fn connect_to_socket(path: &str, timeout: Duration) -> io::Result<Self> {
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
            None => SocketAddrUnix::new(path)?,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let until = clock::now() + timeout;
        loop {
            match rustix::net::connect(&fd, &address) {
                Ok(()) => return Ok(Self::watched(fd)),
                Err(Errno::INTR) => {}
                // Its queue is full, and nobody tells when there is room.
                Err(Errno::AGAIN) if clock::now() < until => executor::sleep(executor::TICK).await,
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Has the kernel probe the peer when the connection is silent. Failure leaves the system's way.
    pub fn set_keepalive(&self, keepalive: &TcpKeepalive) {
        let mut wanted = socket2::TcpKeepalive::new();
        if let Some(time) = keepalive.time {
            wanted = wanted.with_time(time);
        }
        if let Some(interval) = keepalive.interval {
            wanted = wanted.with_interval(interval);
        }
        if let Some(probes) = keepalive.probes {
            wanted = wanted.with_retries(probes);
        }
        let _unimportant = socket2::SockRef::from(self).set_tcp_keepalive(&wanted);
    }

    /// From here on the connection is TLS: [`Self::poll_handshake`] comes next.
    pub fn begin_tls(&mut self, connection: impl Into<rustls::Connection>, pool: &Pool) {
        self.tls = Some(Box::new(RefCell::new(Session::new(connection.into(), pool))));
    }

    /// Shakes hands; `begun` are bytes of it that were read before, and are empty once they are used.
    pub fn poll_handshake(
        &self,
        begun: &mut &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), HandshakeError>> {
        match &self.tls {
            Some(session) => session.borrow_mut().poll_handshake(begun, &self.socket, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// What was agreed on, if the connection is TLS.
    pub fn with_tls<T>(&self, look: impl FnOnce(&rustls::Connection) -> T) -> Option<T> {
        self.tls
            .as_ref()
            .map(|session| look(session.borrow().connection()))
    }

    /// Whether a read may bring something; without that, waits for it.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.tls {
            None => self.socket.poll_readable(cx),
            Some(session) => session.borrow().poll_readable(&self.socket, cx),
        }
    }

    /// Reads at least a byte, or 0 at the end.
    pub fn poll_read(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        match &self.tls {
            None => self.socket.poll_read(cx, room),
            Some(session) => session.borrow_mut().poll_read(&self.socket, cx, room),
        }
    }

    /// Reads from below TLS, to be thrown away.
    pub fn poll_read_raw(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_read(cx, room)
    }

    /// Writes as much as the socket takes, in one system call. With TLS, what it does not take may wait until
    /// [`Self::poll_flush`] or the next write.
    pub fn poll_write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &self.tls {
            None => self.socket.poll_write(cx, parts),
            Some(session) => session.borrow_mut().poll_write(&self.socket, cx, parts),
        }
    }

    /// Writes what TLS still holds back.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.tls {
            None => Poll::Ready(Ok(())),
            Some(session) => session.borrow_mut().poll_flush(&self.socket, cx),
        }
    }

    /// Says that nothing more will be written. A connection that the peer has already closed is no error.
    pub fn shutdown_write(&self) {
        self.say_goodbye();
        let _gone_already = rustix::net::shutdown(self, rustix::net::Shutdown::Write);
    }

    /// Makes the coming close a reset, so that the peer does not take a broken answer for a whole one.
    pub fn reset_on_close(&self) {
        self.is_reset.set(true);
        let _gone_already = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    /// Whether nothing has come on an idle connection, as far as the shard has heard: no system call. False also when
    /// it was not read empty, which [`Self::liveness`] then settles.
    pub fn is_quiet(&self) -> bool {
        if self
            .tls
            .as_ref()
            .is_some_and(|session| !session.borrow_mut().is_clean())
        {
            return false;
        }
        self.socket.watch.is_quiet()
    }

    /// Looks at an idle connection without waiting.
    pub fn liveness(&self) -> Liveness {
        let Some(session) = &self.tls else {
            let mut byte = [0u8; 1];
            return match rustix::net::recv(self, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
                Err(rustix::io::Errno::AGAIN) => Liveness::Idle,
                _ => Liveness::Unusable,
            };
        };
        if !session.borrow_mut().is_clean() {
            return Liveness::Unusable;
        }
        // A server may send session tickets when it likes: they say nothing about the connection.
        let mut bytes = [0u8; 2048];
        loop {
            match rustix::net::recv(self, &mut bytes[..], RecvFlags::DONTWAIT) {
                Err(rustix::io::Errno::AGAIN) => return Liveness::Idle,
                Ok((read, _)) if read > 0 => {
                    if !session
                        .borrow_mut()
                        .is_silent(bytes.get(..read).unwrap_or_default())
                    {
                        return Liveness::Unusable;
                    }
                }
                _ => return Liveness::Unusable,
            }
        }
    }

    fn say_goodbye(&self) {
        if let Some(session) = &self.tls {
            let mut nobody = Context::from_waker(std::task::Waker::noop());
            session.borrow_mut().close(&self.socket, &mut nobody);
        }
    }

    /// The address of this end.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let local = &self.socket.local;
        if local.get().is_none() {
            let found = rustix::net::getsockname(self).ok();
            local.set(found.and_then(|found| SocketAddr::try_from(found).ok()));
        }
        local.get()
    }

    /// The address of the other end.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        SocketAddr::try_from(rustix::net::getpeername(self).ok()??).ok()
    }

    /// Closes both directions at once.
    pub fn abort(&self) {
        let _gone_already = socket2::SockRef::from(self).shutdown(Shutdown::Both);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Who closes TLS says so, or the peer could not tell the end from a cut (RFC 8446, 6.1).
        if !self.is_reset.get() {
            self.say_goodbye();
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Raw for Socket {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.watch.poll_readable(cx)
    }

    fn poll_read(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_readable(cx));
        if room.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            match rustix::net::recv(self, &mut *room, RecvFlags::DONTWAIT) {
                Ok((_, read)) => {
                    if read < room.len() {
                        self.watch.read_short();
                    }
                    return Poll::Ready(Ok(read));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.watch.wait_read(cx);
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut filled = parts.iter().filter(|part| !part.is_empty());
        let (first, several) = (filled.next(), filled.next().is_some());
        let Some(first) = first else {
            return Poll::Ready(Ok(0));
        };
        loop {
            let sent = if several {
                let mut control = rustix::net::SendAncillaryBuffer::default();
                rustix::net::sendmsg(self, parts, &mut control, flags)
            } else {
                // One part needs no vector: the plain call is cheaper.
                rustix::net::send(self, first, flags)
            };
            match sent {
                Ok(written) => return Poll::Ready(Ok(written)),
                Err(rustix::io::Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.watch.wait_write(cx);
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Runs something on a shard of its own.
    fn on_shard<F: Future<Output = ()> + 'static>(body: impl FnOnce() -> F + Send + 'static) {
        let core = executor::granted_cores().first().copied().unwrap_or(0);
        let settings = executor::Settings::default();
        let shard = executor::spawn_shard("stream", core, settings, executor::Heartbeat::default(), |_| {
            body()
        });
        shard.unwrap().join().unwrap().unwrap();
    }

    async fn read(stream: &Stream, room: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| stream.poll_read(cx, room)).await
    }

    #[test]
    fn an_end_that_comes_with_the_last_bytes_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = std::thread::spawn(move || {
            for _ in 0..50 {
                listener.accept().unwrap().0.write_all(b"bytes").unwrap();
            }
        });
        on_shard(move || async move {
            for _ in 0..50 {
                let stream = Stream::connect(address, PATIENCE).await.unwrap();
                let mut room = [0; 64];
                assert_eq!(read(&stream, &mut room).await.unwrap(), 5);
                assert_eq!(read(&stream, &mut room).await.unwrap(), 0);
                assert_eq!(read(&stream, &mut room).await.unwrap(), 0, "it stays the end");
            }
        });
        peer.join().unwrap();
    }

    #[test]
    fn a_socket_that_is_full_is_written_on_when_there_is_room() {
        const ALL: usize = 32 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all.len()
        });
        on_shard(move || async move {
            let stream = Stream::connect(address, PATIENCE).await.unwrap();
            let (bytes, mut left) = (vec![7; 1 << 20], ALL);
            while left > 0 {
                let part = bytes.get(..left.min(bytes.len())).unwrap();
                left -= poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(part)]))
                    .await
                    .unwrap();
            }
        });
        assert_eq!(peer.join().unwrap(), ALL);
    }

    #[test]
    fn a_connection_that_nobody_takes_fails_and_a_quiet_one_is_quiet() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, gone) = (listener.local_addr().unwrap(), {
            let closed = TcpListener::bind("127.0.0.1:0").unwrap();
            closed.local_addr().unwrap()
        });
        on_shard(move || async move {
            let refused = Stream::connect(gone, PATIENCE)
                .await
                .err()
                .map(|error| error.kind());
            assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
            let nowhere = Stream::connect_to_socket("/nowhere.sock", PATIENCE).await.err();
            assert_eq!(nowhere.map(|error| error.kind()), Some(io::ErrorKind::NotFound));
            let stream = Stream::connect(address, PATIENCE).await.unwrap();
            let (mut other, _) = listener.accept().unwrap();
            assert!(stream.is_quiet() && stream.liveness() == Liveness::Idle);
            other.write_all(b"unasked").unwrap();
            poll_fn(|cx| stream.poll_readable(cx)).await;
            assert!(!stream.is_quiet() && stream.liveness() == Liveness::Unusable);
        });
    }
}
