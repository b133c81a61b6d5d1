//! nghttpd, the server of nghttp2, as an upstream: it sends back what it gets, with a trailer.

use crate::cert::Leaf;
use crate::deadline::{SOON, within};
use crate::port::listening;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The trailer of its answers.
pub const TRAILER: (&str, &str) = ("x-checked", "yes");

/// A running one; killed when dropped.
#[derive(Debug)]
pub struct Nghttpd {
    address: SocketAddr,
    child: Child,
    _folder: TempDir,
}

impl Nghttpd {
    /// Starts one, with TLS if it gets a certificate.
    pub fn start(leaf: Option<&Leaf>) -> Self {
        Self::with_trailer(leaf, TRAILER)
    }

    /// Starts one without TLS that answers calls of gRPC with what they have sent.
    pub fn grpc() -> Self {
        Self::with_trailer(None, ("grpc-status", "0"))
    }

    fn with_trailer(leaf: Option<&Leaf>, trailer: (&str, &str)) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut command = Command::new("nghttpd");
        command
            .arg("--address=127.0.0.1")
            .arg(format!("--htdocs={}", folder.path().display()))
            .arg(format!("--trailer={}: {}", trailer.0, trailer.1))
            .arg("--echo-upload");
        if leaf.is_none() {
            command.arg("--no-tls");
        }
        command.arg("0");
        if let Some(leaf) = leaf {
            command.arg(&leaf.key).arg(&leaf.certificate);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nghttpd runs (Debian package nghttp2-server)");
        // It says the port that it was given, not the one that it got.
        let found = within(SOON, || listening(child.id()));
        Self {
            address: found.expect("nghttpd listens"),
            child,
            _folder: folder,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Nghttpd {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
