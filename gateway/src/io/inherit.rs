//! Sockets that a supervisor opened before it started this process (sd_listen_fds(3)): LISTEN_FDS says how many there
//! are, from descriptor 3 on, and LISTEN_FDNAMES what they are called.
// unsafe: the environment is the only witness that these descriptors are this process's own.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor.
const FIRST: RawFd = 3;
/// More than anybody passes.
const FILES_MAX: RawFd = 1024;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The descriptors that were passed, with their names (empty when they have none). None are left for a second call.
pub fn take() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let is_ours = number("LISTEN_PID") == Some(std::process::id());
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok());
    let Some(count) = count.filter(|_| is_ours && !TAKEN.swap(true, Ordering::AcqRel)) else {
        return Vec::new();
    };
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut found = Vec::new();
    for number in FIRST..FIRST + count.min(FILES_MAX) {
        let name = names.next().unwrap_or("").to_owned();
        // SAFETY: whoever set LISTEN_PID to this process has opened the descriptors for it, nothing else was told of
        // them, and TAKEN lets this run once. The runtime has opened nothing of these numbers: they were taken.
        let file = unsafe { OwnedFd::from_raw_fd(number) };
        if rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC).is_ok() {
            found.push((name, file));
        } else {
            // It is not open: there is nothing to close.
            std::mem::forget(file);
        }
    }
    found
}
