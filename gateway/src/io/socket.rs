//! Listening sockets: made and bound on control, so that a port that is taken is known before traffic is announced;
//! accepted from on each shard.
//!
//! The runtime's own listener changes the descriptor's flags with every accept and leaks accepted sockets into
//! children; this one takes connections in batches with accept4 and changes nothing, so that a listening socket can be
//! shared with another process.
// unsafe: one descriptor is handed to the runtime to wait for readability; accept4 returns raw descriptors.
#![allow(unsafe_code)]

use futures_lite::AsyncRead;
use glommio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::task::Poll;

/// Connections that wait in the kernel for a shard to take them; the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Has the connections that a listening socket accepts use a congestion control. Fails when the kernel does not have
/// it, or does not allow it to this process.
pub fn set_congestion_control(socket: &impl AsFd, name: &str) -> io::Result<()> {
    rustix::net::sockopt::set_tcp_congestion(socket, name).map_err(Into::into)
}

/// Binds one listening socket for each shard to `address`, whose port may be 0: the first then chooses and the others
/// follow. They do not listen yet. Fails when anybody listens there already.
pub fn bind_all(address: SocketAddr, shards: usize) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    if address.port() != 0 {
        // SO_REUSEPORT would let two gateways of one user share a port without a word; a plain socket that tries to
        // listen finds out.
        let plain = new_socket(address)?;
        plain.bind(&address.into())?;
        plain.listen(1)?;
    }
    let mut address = address;
    let mut sockets = Vec::with_capacity(shards);
    for _ in 0..shards.max(1) {
        let socket = new_socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        if let Some(bound) = socket.local_addr()?.as_socket() {
            address.set_port(bound.port());
        }
        sockets.push(OwnedFd::from(socket));
    }
    Ok((address, sockets))
}

/// Begins to listen on a bound socket.
pub fn listen(socket: &impl AsFd) -> io::Result<()> {
    socket2::SockRef::from(socket).listen(BACKLOG)
}

/// Waits until a listening socket has a connection to accept, or a set of sockets ([`super::readiness`]) something to
/// tell; may answer too early.
pub(super) async fn readable(socket: &OwnedFd) -> io::Result<()> {
    let duplicate = socket.try_clone()?;
    // SAFETY: the duplicate is owned and given away here. The runtime's stream only waits for readability: it submits
    // a poll when it is made, is asked once, and never reads.
    let mut waiting = unsafe { TcpStream::from_raw_fd(duplicate.into_raw_fd()) };
    let mut asked = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut asked, true) {
            return Poll::Ready(());
        }
        Pin::new(&mut waiting).poll_read(cx, &mut []).map(|_| ())
    })
    .await;
    Ok(())
}

/// Accepts up to `max` connections that wait, and waits itself while there is none. They are non-blocking and not
/// inherited by children.
pub async fn accept(socket: &OwnedFd, max: usize, into: &mut Vec<(OwnedFd, SocketAddr)>) -> io::Result<()> {
    loop {
        accept_waiting(socket, max, into)?;
        if !into.is_empty() {
            return Ok(());
        }
        readable(socket).await?;
    }
}

/// Accepts up to `max` connections that wait already.
pub fn accept_waiting(socket: &OwnedFd, max: usize, into: &mut Vec<(OwnedFd, SocketAddr)>) -> io::Result<()> {
    while into.len() < max {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        match rustix::net::acceptfrom_with(socket, flags) {
            Ok((fd, peer)) => {
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                let peer = peer.unwrap_or_else(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
                into.push((fd, canonical(peer)));
            }
            Err(rustix::io::Errno::AGAIN) => break,
            // The client gave up between the kernel's queue and us.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED | rustix::io::Errno::PROTO) => {}
            Err(error) if into.is_empty() => return Err(error.into()),
            Err(_) => break,
        }
    }
    Ok(())
}

/// An IPv4 client of a dual-stack socket under its IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
