//! What a service manager is told (sd_notify(3)): that the process serves, loads anew, ends, lives, and who has taken
//! its place. Without `NOTIFY_SOCKET` in the environment nothing is told.

use crate::io::clock;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// See the module.
pub(super) struct Systemd {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// How often a sign of life is due: half of what it is waited for.
    watchdog: Option<Duration>,
    pinged: Option<Instant>,
}

fn address(name: &OsStr) -> std::io::Result<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

impl Systemd {
    /// As the environment says.
    pub(super) fn from_env() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let to = std::env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let opened = address(&name).and_then(|address| Ok((UnixDatagram::unbound()?, address)));
            let opened = opened.and_then(|(socket, address)| {
                // A manager that does not read must not hold the process up.
                socket.set_nonblocking(true)?;
                Ok((socket, address))
            });
            opened
                .inspect_err(|error| tracing::warn!(%error, "NOTIFY_SOCKET cannot be used"))
                .ok()
        });
        let is_other = number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&time| time > 0 && !is_other);
        Self {
            to,
            watchdog: watchdog.map(|micros| Duration::from_micros(micros) / 2),
            pinged: None,
        }
    }

    fn tell(&self, text: &str) {
        if let Some((socket, address)) = &self.to
            && let Err(error) = socket.send_to_addr(text.as_bytes(), address)
        {
            tracing::warn!(%error, "the service manager cannot be told");
        }
    }

    /// Whether anybody listens.
    pub(super) fn is_there(&self) -> bool {
        self.to.is_some()
    }

    /// Traffic is served, or a load has ended.
    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// A load begins.
    pub(super) fn reloading(&self) {
        self.tell(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}",
            clock::monotonic_micros()
        ));
    }

    /// The process is about to end.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Another process is the service now.
    pub(super) fn main_process(&self, process: u32) {
        self.tell(&format!("MAINPID={process}"));
    }

    /// A sign of life, when one is due.
    pub(super) fn ping(&mut self, now: Instant) {
        let Some(every) = self.watchdog else { return };
        let since = |pinged: Instant| now.saturating_duration_since(pinged);
        if self.pinged.is_none_or(|pinged| since(pinged) >= every) {
            self.pinged = Some(now);
            self.tell("WATCHDOG=1");
        }
    }
}
