//! Chromium without a window: a browser that has what users have.

use crate::cert::Leaf;
use crate::deadline::{SOON, within};
use rustix::process::{Pid, Signal, kill_process_group};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A running one, with a profile of its own; it ends when dropped.
#[derive(Debug)]
pub struct Chromium {
    child: Child,
    _profile: TempDir,
}

impl Chromium {
    /// Opens `https://HOST:PORT/PATH` at this address, and believes this certificate whoever has issued it.
    pub fn open(host: &str, address: SocketAddr, path: &str, leaf: &Leaf) -> Self {
        let url = format!("https://{host}:{}{path}", address.port());
        Self::start(&url, host, &[leaf], &[])
    }

    /// Opens an address through a proxy that speaks TLS, and believes the certificates of both.
    pub fn open_through(proxy: (&str, SocketAddr, &Leaf), url: &str, leaf: &Leaf) -> Self {
        let (name, at, shown) = proxy;
        let asked = format!("--proxy-server=https://{name}:{}", at.port());
        Self::start(url, name, &[shown, leaf], &[asked])
    }

    /// Opens an address; this host is on this machine, nothing else is looked up, and these certificates are believed.
    fn start(url: &str, host: &str, leaves: &[&Leaf], arguments: &[String]) -> Self {
        let hashes: Vec<String> = leaves.iter().map(|leaf| leaf.spki_hash()).collect();
        let profile = TempDir::new().expect("a temporary folder");
        let child = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!(
                "--host-resolver-rules=MAP {host} 127.0.0.1, MAP * ~NOTFOUND"
            ))
            .arg(format!(
                "--ignore-certificate-errors-spki-list={}",
                hashes.join(",")
            ))
            .args(arguments)
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Its processes are a group, which ends as a whole.
            .process_group(0)
            .spawn()
            .expect("chromium runs (Debian package chromium)");
        Self {
            child,
            _profile: profile,
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _gone = kill_process_group(group, signal);
        }
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        // It writes its profile until then.
        let ended = within(SOON, || (!self.is_running()).then_some(()));
        if ended.is_none() {
            self.signal(Signal::KILL);
            let _status = self.child.wait();
        }
    }
}
