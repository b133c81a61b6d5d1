//! The bytes of a connection to a target: TCP alone, or TLS by `openssl s_client` with ALPN `h2`. Both are read with a
//! deadline.

use crate::deadline::SOON;
use crate::openssl::WITHOUT_ROOTS;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// The name that is asked for in TLS, and the authority of every request.
pub const AUTHORITY: &str = "h2.example";

/// Where the peer is, and what is below HTTP/2 there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it speaks TLS, and takes `h2` by ALPN; without TLS the client begins with HTTP/2 at once.
    pub tls: bool,
}

impl Target {
    /// One that speaks HTTP/2 by prior knowledge (RFC 9113, 3.3).
    pub fn cleartext(address: SocketAddr) -> Self {
        Self { address, tls: false }
    }

    /// One that speaks HTTP/2 over TLS (RFC 9113, 3.2).
    pub fn tls(address: SocketAddr) -> Self {
        Self { address, tls: true }
    }

    /// The scheme of requests to it.
    pub fn scheme(self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// One connection. It ends, and the process that carries it ends, when dropped.
#[derive(Debug)]
pub(super) enum Transport {
    Tcp(TcpStream),
    Tls {
        child: Child,
        /// None when this side has said that it sends no more.
        input: Option<ChildStdin>,
        output: ChildStdout,
    },
}

impl Transport {
    pub(super) fn open(target: Target) -> io::Result<Self> {
        if target.tls {
            return Self::open_tls(target.address);
        }
        let stream = TcpStream::connect_timeout(&target.address, SOON)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(SOON))?;
        Ok(Self::Tcp(stream))
    }

    fn open_tls(address: SocketAddr) -> io::Result<Self> {
        let mut child = Command::new("openssl")
            .args([
                "s_client",
                "-quiet",
                "-alpn",
                "h2",
                "-servername",
                AUTHORITY,
                "-connect",
            ])
            .arg(address.to_string())
            .args(WITHOUT_ROOTS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().expect("a pipe");
        Ok(Self::Tls { child, input, output })
    }

    /// Sends all of it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Tls { input: None, .. } => Err(io::ErrorKind::BrokenPipe.into()),
            Self::Tls {
                input: Some(pipe), ..
            } => {
                pipe.write_all(bytes)?;
                pipe.flush()
            }
        }
    }

    /// Says that nothing more is sent. There is no half of a connection with s_client: it ends, and all of it with it.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Tls { child, input, .. } => {
                drop(input.take());
                child.kill()
            }
        }
    }

    /// Reads what is there, and waits so long for something; None when nothing came. 0 octets are the end.
    pub(super) fn read(&mut self, buffer: &mut [u8], patience: Duration) -> io::Result<Option<usize>> {
        let descriptor: BorrowedFd<'_> = match &*self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Tls { output, .. } => output.as_fd(),
        };
        let time = Timespec::try_from(patience).map_err(io::Error::other)?;
        if poll(
            &mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)],
            Some(&time),
        )? == 0
        {
            return Ok(None);
        }
        let count = match self {
            Self::Tcp(stream) => stream.read(buffer)?,
            Self::Tls { output, .. } => output.read(buffer)?,
        };
        Ok(Some(count))
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        if let Self::Tls { child, .. } = self {
            let _gone = child.kill();
            let _status = child.wait();
        }
    }
}
