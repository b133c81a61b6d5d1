//! Ports from the kernel.

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

/// A loopback port that is held but not listened on: connecting to it is refused.
///
/// It is bound with SO_REUSEPORT, so that a server which sets that option too can listen on it, die and come back,
/// while no other process can be given it in between.
#[derive(Debug)]
pub struct HeldPort {
    address: SocketAddr,
    _socket: OwnedFd,
}

impl HeldPort {
    /// Takes a free port.
    pub fn take() -> Self {
        let held = socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket");
        sockopt::set_socket_reuseport(&held, true).expect("SO_REUSEPORT");
        bind(&held, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a free port on loopback");
        let address = getsockname(&held)
            .expect("the socket's name")
            .try_into()
            .expect("an internet address");
        Self {
            address,
            _socket: held,
        }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::TcpStream;

    #[test]
    fn a_held_port_refuses_and_is_not_given_away() {
        let held = HeldPort::take();
        assert_eq!(
            TcpStream::connect(held.address()).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        assert_eq!(
            std::net::TcpListener::bind(held.address()).unwrap_err().kind(),
            ErrorKind::AddrInUse
        );
    }
}
