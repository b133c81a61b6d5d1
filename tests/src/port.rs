//! Ports from the kernel.

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

/// How `/proc/net/tcp` calls a socket that listens.
const LISTENS: &str = "0A";

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

/// The loopback address that a process listens on over IPv4, by the kernel's tables.
pub fn listening(process: u32) -> Option<SocketAddr> {
    let files = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let sockets: Vec<String> = files
        .filter_map(|file| Some(fs::read_link(file.ok()?.path()).ok()?.display().to_string()))
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let row: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (row.get(1)?, row.get(3)?, row.get(9)?);
        let is_it = *state == LISTENS && sockets.contains(&format!("socket:[{inode}]"));
        let (_, port) = local.split_once(':').filter(|_| is_it)?;
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    })
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
