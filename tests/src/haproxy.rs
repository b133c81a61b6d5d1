//! A real HAProxy: in front of an upstream, as a server of HTTP/2 that others have tried out, or as a [`Sleeve`] that
//! puts TLS around a connection or takes it off.

use crate::cert::Leaf;
use crate::deadline::{SOON, within};
use crate::port::HeldPort;
use std::fs;
use std::net::SocketAddr;
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
        let child = run(&folder, &configuration, &[cleartext.address(), secured.address()]);
        Self {
            cleartext,
            secured,
            _folder: folder,
            child,
        }
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

/// An HAProxy that changes how something is spoken: it puts TLS around bytes, takes it off, or speaks HTTP/2 for
/// clients of HTTP/1.1; killed when dropped.
#[derive(Debug)]
pub struct Sleeve {
    port: HeldPort,
    _folder: TempDir,
    child: Child,
}

impl Sleeve {
    /// Takes TLS off before this upstream; clients are offered this protocol by ALPN.
    pub fn before(upstream: SocketAddr, leaf: &Leaf, alpn: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let pair = folder.path().join("pair.pem");
        fs::write(&pair, leaf.certificate_pem() + &leaf.key_pem()).expect("a file");
        let bind = format!("ssl crt {} alpn {alpn}", pair.display());
        Self::launch(folder, "tcp", &bind, &upstream.to_string())
    }

    /// Speaks HTTP/2 to this server for clients of HTTP/1.1, and extended CONNECT (RFC 8441) for their WebSockets.
    pub fn raising(server: SocketAddr) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        Self::launch(folder, "http", "", &format!("{server} proto h2 ws h2"))
    }

    /// Puts TLS around connections to this server, and asks for a name and a protocol.
    pub fn towards(server: SocketAddr, name: &str, alpn: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let to = format!("{server} ssl verify none sni str({name}) alpn {alpn}");
        Self::launch(folder, "tcp", "", &to)
    }

    fn launch(folder: TempDir, mode: &str, bind: &str, server: &str) -> Self {
        let port = HeldPort::take();
        let configuration = format!(
            "defaults
  mode {mode}
  timeout connect 10s
  timeout client 60s
  timeout server 60s
  timeout tunnel 60s
frontend f
  bind {} {bind}
  default_backend b
backend b
  server s {server}
",
            port.address(),
        );
        let child = run(&folder, &configuration, &[port.address()]);
        Self {
            port,
            _folder: folder,
            child,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }
}

impl Drop for Sleeve {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Starts one and waits until it listens.
fn run(folder: &TempDir, configuration: &str, ports: &[SocketAddr]) -> Child {
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
    for address in ports {
        let up = within(SOON, || listens(*address).then_some(()));
        assert!(up.is_some(), "haproxy does not listen on {address}");
    }
    child
}

/// Whether somebody listens there, by the kernel's table: a connection to find out would be carried on.
fn listens(address: SocketAddr) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let port = format!(":{:04X}", address.port());
    let mut rows = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.any(|row| row.get(1).is_some_and(|local| local.ends_with(&port)) && row.get(3) == Some(&"0A"))
}
