//! A real HAProxy in front of an upstream: what a server of HTTP/2 does that others have tried out.

use crate::cert::Leaf;
use crate::deadline::{SOON, within};
use crate::port::HeldPort;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// An HAProxy that passes every request on over HTTP/1.1; killed when dropped.
#[derive(Debug)]
pub struct Haproxy {
    cleartext: HeldPort,
    secured: HeldPort,
    _folder: TempDir,
    child: Child,
}

impl Haproxy {
    /// Starts one with two ports: one speaks HTTP/2 alone, the other TLS with this certificate and HTTP/2 by ALPN.
    pub fn start(upstream: SocketAddr, leaf: &Leaf) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let (cleartext, secured) = (HeldPort::take(), HeldPort::take());
        // HAProxy reads a certificate and its key from one file.
        let pair = folder.path().join("pair.pem");
        fs::write(&pair, leaf.certificate_pem() + &leaf.key_pem()).expect("a file");
        let configuration = format!(
            "defaults
  mode http
  timeout connect 10s
  timeout client 30s
  timeout server 30s
frontend f
  bind {} proto h2
  bind {} ssl crt {} alpn h2,http/1.1
  default_backend b
backend b
  server s {upstream}
",
            cleartext.address(),
            secured.address(),
            pair.display(),
        );
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, configuration).expect("a file");
        let child = Command::new("haproxy")
            .args(["-db", "-q", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("haproxy runs (Debian package haproxy)");
        let haproxy = Self {
            cleartext,
            secured,
            _folder: folder,
            child,
        };
        for address in [haproxy.cleartext(), haproxy.secured()] {
            let up = within(SOON, || TcpStream::connect(address).ok());
            assert!(up.is_some(), "haproxy does not listen on {address}");
        }
        haproxy
    }

    /// Where it speaks HTTP/2 by prior knowledge.
    pub fn cleartext(&self) -> SocketAddr {
        self.cleartext.address()
    }

    /// Where it speaks TLS.
    pub fn secured(&self) -> SocketAddr {
        self.secured.address()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
