//! A TCP connection on a shard: reads wait through the ring, writes are vectored system calls.
// unsafe: raw descriptors handed to and borrowed from the runtime's stream type.
#![allow(unsafe_code)]

use glommio::net::TcpStream;
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
    stream: RefCell<TcpStream>,
    /// This end's address, once it was asked for: a connection keeps it, and every access-log line names it.
    local: Cell<Option<SocketAddr>>,
}

impl Stream {
    /// Takes over a connected non-blocking socket.
    pub fn from_fd(fd: OwnedFd) -> Self {
        // SAFETY: the descriptor is owned, open, and given away here; the stream closes it.
        let stream = unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) };
        Self::new(stream)
    }

    fn new(stream: TcpStream) -> Self {
        // Messages are written whole, so there is nothing for Nagle's algorithm to wait for. Failure leaves a delay.
        let _unimportant = stream.set_nodelay(true);
        Self {
            stream: RefCell::new(stream),
            local: Cell::new(None),
        }
    }

    /// Connects within `timeout`; a timeout is an error of kind `TimedOut`.
    pub async fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let timeout = timeout.max(Duration::from_millis(1));
        let stream = TcpStream::connect_timeout(address, timeout)
            .await
            .map_err(io::Error::from)?;
        Ok(Self::new(stream))
    }

    /// Reads at least a byte, or 0 at the end.
    pub fn poll_read(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        use futures_lite::AsyncRead;
        Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, room)
    }

    /// Writes as much as the socket takes, in one system call.
    pub fn poll_write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
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
                    let Some(part) = parts.iter().find(|part| !part.is_empty()) else {
                        return Poll::Ready(Ok(0));
                    };
                    return Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, part);
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Says that nothing more will be written. A connection that the peer has already closed is no error.
    pub fn shutdown_write(&self) {
        let _gone_already = rustix::net::shutdown(self, rustix::net::Shutdown::Write);
    }

    /// Makes the coming close a reset, so that the peer does not take a broken answer for a whole one.
    pub fn reset_on_close(&self) {
        let _gone_already = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    /// Whether nothing has come on an idle connection, as far as the ring has said: no system call. False also when the
    /// ring was not asked, which [`Self::liveness`] then settles.
    pub fn is_quiet(&self) -> bool {
        let mut nobody = Context::from_waker(std::task::Waker::noop());
        self.poll_read(&mut nobody, &mut []).is_pending()
    }

    /// Looks at an idle connection without waiting.
    pub fn liveness(&self) -> Liveness {
        let mut byte = [0u8; 1];
        match rustix::net::recv(self, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::AGAIN) => Liveness::Idle,
            _ => Liveness::Unusable,
        }
    }

    /// The address of this end.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        if self.local.get().is_none() {
            self.local.set(self.stream.borrow().local_addr().ok());
        }
        self.local.get()
    }

    /// The address of the other end.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.stream.borrow().peer_addr().ok()
    }

    /// Closes both directions at once.
    pub fn abort(&self) {
        let _gone_already = socket2::SockRef::from(self).shutdown(Shutdown::Both);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream owns the descriptor and keeps it open as long as this borrow of it lasts.
        unsafe { BorrowedFd::borrow_raw(self.stream.borrow().as_raw_fd()) }
    }
}
