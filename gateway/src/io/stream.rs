//! A connection on a shard, plaintext or TLS: reads wait through the ring, writes are vectored system calls.
// unsafe: raw descriptors handed to and borrowed from the runtime's stream type.
#![allow(unsafe_code)]

use super::buffer::Pool;
use super::tls::{HandshakeError, Raw, Session};
use glommio::net::TcpStream;
use isthmus_core::cluster::TcpKeepalive;
use rustix::net::{RecvFlags, SendFlags};
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
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
    /// Whether the peer is to know of the end in the moment that it comes. The ring may hold on to a socket for a while
    /// after it was closed, and whoever counts connections would meanwhile count one that is here no more.
    ends_at_once: bool,
}

/// The socket itself.
struct Socket {
    stream: RefCell<TcpStream>,
    /// This end's address, once it was asked for: a connection keeps it, and every access-log line names it.
    local: Cell<Option<SocketAddr>>,
}

impl Stream {
    /// Takes over a connected non-blocking socket.
    pub fn from_fd(fd: OwnedFd) -> Self {
        // SAFETY: the descriptor is owned, open, and given away here; the stream closes it.
        let stream = unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) };
        Self::new(stream, false)
    }

    fn new(stream: TcpStream, ends_at_once: bool) -> Self {
        // Messages are written whole, so there is nothing for Nagle's algorithm to wait for. Failure leaves a delay.
        let _unimportant = stream.set_nodelay(true);
        Self {
            socket: Socket {
                stream: RefCell::new(stream),
                local: Cell::new(None),
            },
            tls: None,
            is_reset: Cell::new(false),
            ends_at_once,
        }
    }

    /// Connects within `timeout`; a timeout is an error of kind `TimedOut`. The peer knows that the connection has ended
    /// before this is dropped.
    pub async fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let timeout = timeout.max(Duration::from_millis(1));
        let stream = TcpStream::connect_timeout(address, timeout)
            .await
            .map_err(io::Error::from)?;
        Ok(Self::new(stream, true))
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

    /// Whether nothing has come on an idle connection, as far as the ring has said: no system call. False also when the
    /// ring was not asked, which [`Self::liveness`] then settles.
    pub fn is_quiet(&self) -> bool {
        if self
            .tls
            .as_ref()
            .is_some_and(|session| !session.borrow_mut().is_clean())
        {
            return false;
        }
        let mut nobody = Context::from_waker(std::task::Waker::noop());
        self.poll_read(&mut nobody, &mut []).is_pending()
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
            local.set(self.socket.stream.borrow().local_addr().ok());
        }
        local.get()
    }

    /// The address of the other end.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket.stream.borrow().peer_addr().ok()
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
        if self.ends_at_once {
            let _gone_already = match self.is_reset.get() {
                false => rustix::net::shutdown(&*self, rustix::net::Shutdown::Write),
                // What is not connected any more was reset.
                true => rustix::net::connect_unspec(&*self),
            };
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Raw for Socket {
    fn poll_read(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        use futures_lite::AsyncRead;
        Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, room)
    }

    fn poll_write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        use futures_lite::AsyncWrite;
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
                Err(rustix::io::Errno::AGAIN) => {
                    // The runtime's own write registers for writability; it tries once more before it does.
                    return Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, first);
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream owns the descriptor and keeps it open as long as this borrow of it lasts.
        unsafe { BorrowedFd::borrow_raw(self.stream.borrow().as_raw_fd()) }
    }
}
