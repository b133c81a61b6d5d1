//! openssl as a peer: a client that says exactly what it offers and prints every alert, and a server of its own.

use crate::cert::Leaf;
use crate::deadline::{SOON, eventually_some};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use tempfile::TempDir;

/// Arguments for `s_client` not to read the system's roots, which is most of what a connection would cost, and which
/// nobody here asks.
pub const WITHOUT_ROOTS: [&str; 3] = ["-no-CAfile", "-no-CApath", "-no-CAstore"];

/// What a peer that hangs is given before it is ended, in seconds.
const PATIENCE: &str = "20";

/// Alerts by their numbers (RFC 8446, 6).
#[allow(missing_docs, reason = "the names are those of the RFC")]
pub mod alert {
    pub const HANDSHAKE_FAILURE: u8 = 40;
    pub const CERTIFICATE_REVOKED: u8 = 44;
    pub const CERTIFICATE_EXPIRED: u8 = 45;
    pub const UNKNOWN_CA: u8 = 48;
    pub const ACCESS_DENIED: u8 = 49;
    pub const DECODE_ERROR: u8 = 50;
    pub const PROTOCOL_VERSION: u8 = 70;
    pub const INTERNAL_ERROR: u8 = 80;
    pub const UNRECOGNIZED_NAME: u8 = 112;
    pub const CERTIFICATE_REQUIRED: u8 = 116;
}

/// Runs openssl with an input; answers its output, and panics when it fails.
pub fn run(args: &[&str], input: &[u8]) -> Vec<u8> {
    let (success, out, errors) = feed(Command::new("openssl").args(args), input);
    assert!(success, "openssl {args:?}: {}", String::from_utf8_lossy(&errors));
    out
}

/// Base64 in one line.
pub fn base64(bytes: &[u8]) -> String {
    let text = run(&["base64", "-A"], bytes);
    String::from_utf8(text).expect("text").trim().to_owned()
}

/// Runs a command with an input to its end.
fn feed(command: &mut Command, input: &[u8]) -> (bool, Vec<u8>, Vec<u8>) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl runs (Debian package openssl)");
    // One that ends early takes no more, and says itself why.
    let _as_far_as_it_reads = child.stdin.take().expect("a pipe").write_all(input);
    let output = child.wait_with_output().expect("its output");
    (output.status.success(), output.stdout, output.stderr)
}

/// A client to be: `openssl s_client`.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    args: Vec<String>,
}

impl Client {
    /// One that asks for this name.
    pub fn new(address: SocketAddr, name: &str) -> Self {
        Self::nameless(address).args(&["-servername", name])
    }

    /// One that asks for no name.
    pub fn nameless(address: SocketAddr) -> Self {
        Self {
            address,
            args: WITHOUT_ROOTS.map(str::to_owned).to_vec(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Shows this certificate.
    #[must_use]
    pub fn with(self, leaf: &Leaf) -> Self {
        let path = |path: &std::path::Path| path.to_str().expect("a path of text").to_owned();
        self.args(&["-cert", &path(&leaf.certificate), "-key", &path(&leaf.key)])
    }

    /// Shakes hands, sends nothing, and waits until the peer closes; use it where the peer refuses.
    pub fn refused(&self) -> Talk {
        self.send(b"")
    }

    /// Shakes hands, sends these bytes, and ends in an orderly way without waiting for an answer.
    pub fn say(&self, bytes: &[u8]) -> Talk {
        self.talk(bytes, &[])
    }

    /// Shakes hands and stays.
    pub fn stay(&self) -> Pipe {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-connect"]);
        command.arg(self.address.to_string()).args(&self.args);
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl runs (Debian package openssl)");
        Pipe { child }
    }

    /// Shakes hands, sends these bytes, and takes what comes until the peer closes.
    pub fn send(&self, bytes: &[u8]) -> Talk {
        self.talk(bytes, &["-ign_eof"])
    }

    /// GET on a connection that is closed behind it.
    pub fn get(&self, host: &str, path: &str) -> Talk {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
    }

    fn talk(&self, bytes: &[u8], more: &[&str]) -> Talk {
        let mut command = Command::new("timeout");
        command.args([PATIENCE, "openssl", "s_client", "-connect"]);
        command.arg(self.address.to_string()).args(&self.args).args(more);
        if !self.args.iter().any(|arg| arg == "-servername") {
            command.arg("-noservername");
        }
        let (_, out, errors) = feed(&mut command, bytes);
        let text = String::from_utf8_lossy(&out) + String::from_utf8_lossy(&errors);
        Talk {
            text: text.into_owned(),
        }
    }
}

/// A client that carries bytes between a test and its peer; it is killed when dropped, without an orderly end.
#[derive(Debug)]
pub struct Pipe {
    child: Child,
}

impl Pipe {
    /// Sends all of it while it reads, and answers as many bytes as were sent.
    pub fn exchange(&mut self, body: &[u8]) -> Vec<u8> {
        let input = self.child.stdin.as_mut().expect("a pipe");
        let output = self.child.stdout.as_mut().expect("a pipe");
        thread::scope(|scope| {
            scope.spawn(|| {
                input.write_all(body).expect("the bytes are taken");
                input.flush().expect("the bytes are taken");
            });
            let mut back = vec![0; body.len()];
            output.read_exact(&mut back).expect("as much as was sent");
            back
        })
    }

    /// Sends a request of HTTP and answers what comes back, to the end of its body; less if the peer closes.
    pub fn ask(&mut self, request: &str) -> String {
        // One that is closed already says so below.
        let _taken = self
            .child
            .stdin
            .as_mut()
            .expect("a pipe")
            .write_all(request.as_bytes());
        let output = self.child.stdout.as_mut().expect("a pipe");
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            if output.read(&mut byte).expect("it can be read") == 0 {
                return String::from_utf8(answer).expect("text");
            }
            answer.extend(byte);
        }
        let length = u64::try_from(length_of(&answer)).expect("a length");
        output
            .take(length)
            .read_to_end(&mut answer)
            .expect("it can be read");
        String::from_utf8(answer).expect("text")
    }
}

/// What a head says that its body is long.
fn length_of(head: &[u8]) -> usize {
    let head = std::str::from_utf8(head).expect("text");
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    let length = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    length
        .map(|(_, value)| value.parse().expect("a length"))
        .next()
        .unwrap_or(0)
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What `openssl s_client` printed.
#[derive(Debug, Clone)]
pub struct Talk {
    /// All of it.
    pub text: String,
}

impl Talk {
    /// The number of the alert that it was sent.
    pub fn alert(&self) -> Option<u8> {
        let (_, rest) = self.text.split_once("SSL alert number ")?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    }

    /// What was agreed on, such as `TLSv1.3`, if anything was.
    pub fn protocol(&self) -> Option<&str> {
        let line = self.summary()?;
        let version = line.split(", ").nth(1)?;
        (version != "(NONE)").then_some(version)
    }

    /// The cipher suite by openssl's name.
    pub fn cipher(&self) -> Option<&str> {
        self.summary()?.rsplit_once(" is ").map(|(_, cipher)| cipher)
    }

    /// Whether the handshake resumed a session.
    pub fn is_resumed(&self) -> bool {
        self.summary().is_some_and(|line| line.starts_with("Reused, "))
    }

    /// How many tickets came in TLS 1.3.
    pub fn tickets(&self) -> usize {
        self.text
            .matches("Post-Handshake New Session Ticket arrived")
            .count()
    }

    /// What stands behind this label on a line, such as `Peer signature type`.
    pub fn value(&self, label: &str) -> Option<&str> {
        self.text
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(label)?.strip_prefix(": "))
    }

    /// Whether the peer showed this certificate.
    pub fn showed(&self, leaf: &Leaf) -> bool {
        self.text.contains(leaf.certificate_pem().trim())
    }

    /// The status of an HTTP answer in it.
    pub fn status(&self) -> Option<u16> {
        let at = self.text.find("HTTP/1.1 ")?;
        self.text.get(at + 9..at + 12)?.parse().ok()
    }

    /// `New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384`.
    fn summary(&self) -> Option<&str> {
        self.text.lines().find(|line| line.contains(", Cipher is "))
    }
}

/// `openssl s_server`, which answers each line with the line reversed; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Server {
    /// Starts one with this certificate.
    pub fn reversing(leaf: &Leaf) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().join("out");
        let output = File::create(&path).expect("a file");
        let child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-rev", "-cert"])
            .arg(&leaf.certificate)
            .arg("-key")
            .arg(&leaf.key)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a handle"))
            .stderr(output)
            .spawn()
            .expect("openssl runs (Debian package openssl)");
        let address = eventually_some(SOON, "the address of openssl s_server", || {
            let said = fs::read_to_string(&path).ok()?;
            assert!(!said.contains("rror"), "openssl s_server: {said}");
            let line = said.lines().find_map(|line| line.strip_prefix("ACCEPT "))?;
            line.parse().ok()
        });
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cert::Authority;

    #[test]
    fn openssl_talks_to_itself() {
        let leaf = Authority::new().server(&["a.example"]);
        let server = Server::reversing(&leaf);
        let client = Client::new(server.address(), "a.example");
        let talk = client
            .clone()
            .args(&["-tls1_2"])
            .talk(b"abc\nCLOSE\n", &["-ign_eof"]);
        assert!(talk.text.contains("cba\n"), "{}", talk.text);
        assert_eq!((talk.protocol(), talk.alert()), (Some("TLSv1.2"), None));
        assert!(talk.showed(&leaf) && !talk.is_resumed());
        assert_eq!(talk.value("Peer signature type"), Some("ECDSA"));
        let talk = client
            .args(&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"])
            .refused();
        assert_eq!((talk.protocol(), talk.alert()), (None, Some(40)));
    }

    #[test]
    fn base64_is_one_line() {
        assert_eq!(base64(&[0; 60]).len(), 80);
    }
}
