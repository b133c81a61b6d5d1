//! The ring of a shard: asked for before anything is built, and set up with the flags that halve its cost.
//!
//! glommio 0.9 offers no way to choose io_uring set-up flags. Without IORING_SETUP_COOP_TASKRUN every completion that
//! another core raises interrupts this one. The liburing that glommio links is an archive whose member `syscall.o`
//! holds four functions; this file defines the same four symbols, and since this crate comes before glommio's archive
//! on the link line, the linker takes these. A wrong order would be a duplicate symbol, and [`flagged_rings`] proves
//! at start-up that the flag took effect.
//!
//! The same place mends a sleep of glommio 0.9 that nothing ends: its loop can go to sleep although tasks can run, and
//! with the shard's ticker among them no timer is left that would wake it. So no sleep is longer than
//! [`bound_sleeps`] says; whoever sleeps on is woken as by a signal, goes round once, and runs what can run.
// unsafe: system calls that no safe crate covers; each block states what it relies on.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const IORING_SETUP_IOPOLL: u32 = 1;
const IORING_SETUP_COOP_TASKRUN: u32 = 1 << 8;
/// Only the thread that makes a ring submits to it: so does glommio, whose foreign wakes only write an eventfd.
const IORING_SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const IORING_ENTER_GETEVENTS: u32 = 1;
/// The signal mask is a [`GetEvents`] with a limit of time (5.11).
const IORING_ENTER_EXT_ARG: u32 = 1 << 3;
/// liburing's probe makes a ring of two entries; it needs no flag.
const PROBE_ENTRIES: libc::c_uint = 2;
/// Locked memory that glommio asks for, for each executor.
pub const MEMLOCK_BYTES: u64 = 512 * 1024;

static RINGS: AtomicU32 = AtomicU32::new(0);
static FLAGGED: AtomicU32 = AtomicU32::new(0);
static OVERSLEPT: AtomicU64 = AtomicU64::new(0);
/// What a kernel says that knows IORING_ENTER_EXT_ARG, in the features of a ring.
const IORING_FEAT_EXT_ARG: u32 = 1 << 8;
/// Whether the kernel does not know IORING_ENTER_EXT_ARG: the last ring that was made has said so.
static UNBOUNDED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The longest sleep of this thread's rings, in nanoseconds; 0 for ever.
    static LONGEST_SLEEP: Cell<i64> = const { Cell::new(0) };
}

/// `struct io_uring_getevents_arg` (include/uapi/linux/io_uring.h).
#[repr(C)]
struct GetEvents {
    signals: u64,
    signals_bytes: u32,
    pad: u32,
    /// Address of a [`Time`].
    time: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct Time {
    seconds: i64,
    nanoseconds: i64,
}

/// `struct io_uring_params` (include/uapi/linux/io_uring.h): 120 bytes.
#[repr(C)]
#[derive(Default)]
pub struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread: [u32; 2],
    /// What the kernel knows, once the ring is made.
    features: u32,
    rest: [u32; 24],
}

const _: () = assert!(std::mem::size_of::<Params>() == 120);

/// Makes a ring, with COOP_TASKRUN where the kernel knows it (5.19).
///
/// # Safety
/// `params` is null or points to a `struct io_uring_params` that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sys_io_uring_setup(entries: libc::c_uint, params: *mut Params) -> libc::c_int {
    // SAFETY: the caller gives io_uring_setup's own arguments; they are passed on as they are.
    let plain = |params: *mut Params| unsafe {
        libc::syscall(libc::SYS_io_uring_setup, entries, params) as libc::c_int
    };
    // SAFETY: null or valid for writes, as this function demands; nobody else refers to it during the call.
    let Some(wanted) = (unsafe { params.as_mut() }) else {
        return plain(params);
    };
    // A ring that is polled for disk I/O never sleeps and takes no flag.
    if wanted.flags & IORING_SETUP_IOPOLL != 0 || entries <= PROBE_ENTRIES {
        return plain(wanted);
    }
    RINGS.fetch_add(1, Relaxed);
    let original = wanted.flags;
    // A kernel that does not know a flag refuses the ring.
    for flags in [
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER,
        IORING_SETUP_COOP_TASKRUN,
    ] {
        wanted.flags = original | flags;
        let ring = plain(wanted);
        if ring >= 0 {
            FLAGGED.fetch_add(1, Relaxed);
            note_features(wanted.features);
            return ring;
        }
        if io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
            return ring;
        }
    }
    wanted.flags = original;
    let ring = plain(wanted);
    if ring >= 0 {
        note_features(wanted.features);
    }
    ring
}

/// Sleeps are bounded as far as the kernel can.
fn note_features(features: u32) {
    UNBOUNDED.store(features & IORING_FEAT_EXT_ARG == 0, Relaxed);
}

/// Submits and waits.
///
/// # Safety
/// As io_uring_enter(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sys_io_uring_enter2(
    fd: libc::c_uint,
    to_submit: libc::c_uint,
    min_complete: libc::c_uint,
    flags: libc::c_uint,
    sig: *mut libc::c_void,
    size: libc::c_int,
) -> libc::c_int {
    // SAFETY: the caller gives io_uring_enter's own arguments, which are passed on as they are; or `argument` is
    // exchanged for a struct that lives through the call, with its size and the flag that names it.
    let enter = |flags: u32, argument: *mut libc::c_void, size: usize| unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            fd,
            to_submit,
            min_complete,
            flags,
            argument,
            size,
        ) as libc::c_int
    };
    let plain = || enter(flags, sig, size as usize);
    let longest = LONGEST_SLEEP.get();
    let sleeps = min_complete > 0 && flags & IORING_ENTER_GETEVENTS != 0 && sig.is_null();
    if !sleeps || longest == 0 || UNBOUNDED.load(Relaxed) {
        return plain();
    }
    let time = Time {
        seconds: longest / 1_000_000_000,
        nanoseconds: longest % 1_000_000_000,
    };
    let mut events = GetEvents {
        signals: 0,
        signals_bytes: 0,
        pad: 0,
        time: (&raw const time) as u64,
    };
    let argument = (&raw mut events).cast();
    let entered = enter(flags | IORING_ENTER_EXT_ARG, argument, size_of::<GetEvents>());
    if entered >= 0 {
        return entered;
    }
    // SAFETY: the C library gives the address of this thread's own variable.
    let errno = unsafe { &mut *libc::__errno_location() };
    if *errno == libc::ETIME {
        OVERSLEPT.fetch_add(1, Relaxed);
        // An end that glommio knows: as if a signal had come.
        *errno = libc::EINTR;
    }
    entered
}

/// Submits and waits, with the kernel's size of a signal set.
///
/// # Safety
/// As io_uring_enter(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sys_io_uring_enter(
    fd: libc::c_uint,
    to_submit: libc::c_uint,
    min_complete: libc::c_uint,
    flags: libc::c_uint,
    sig: *mut libc::c_void,
) -> libc::c_int {
    const SIGNAL_SET_BYTES: libc::c_int = 8;
    // SAFETY: as above.
    unsafe { __sys_io_uring_enter2(fd, to_submit, min_complete, flags, sig, SIGNAL_SET_BYTES) }
}

/// Registers buffers, files and probes.
///
/// # Safety
/// As io_uring_register(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sys_io_uring_register(
    fd: libc::c_uint,
    opcode: libc::c_uint,
    arg: *const libc::c_void,
    count: libc::c_uint,
) -> libc::c_int {
    // SAFETY: the caller gives io_uring_register's own arguments; they are passed on as they are.
    unsafe { libc::syscall(libc::SYS_io_uring_register, fd, opcode, arg, count) as libc::c_int }
}

/// How many sleeping rings were made through this file, and how many of them took the flag: two for each executor.
pub fn flagged_rings() -> (u32, u32) {
    (RINGS.load(Relaxed), FLAGGED.load(Relaxed))
}

/// Lets no ring of this thread sleep for longer than `longest`; zero lets them. Without effect on kernels older than
/// 5.11.
pub fn bound_sleeps(longest: Duration) {
    LONGEST_SLEEP.set(i64::try_from(longest.as_nanos()).unwrap_or(i64::MAX));
}

/// How often a ring of this process has slept until the bound: as often as a ticker was slept over.
pub fn overslept() -> u64 {
    OVERSLEPT.load(Relaxed)
}

/// Why a shard cannot run here, with the mend.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The kernel, a seccomp profile or a sysctl refuses io_uring.
    #[error(
        "io_uring is not available ({0}). Allow it: kernel 5.8 or newer (5.19 or newer is faster); \
         sysctl kernel.io_uring_disabled=0; in a container a seccomp profile that permits io_uring_setup, \
         io_uring_enter and io_uring_register (the default profiles of Docker 25 and containerd 2 forbid them)"
    )]
    Ring(io::Error),
    /// Too little memory may be locked.
    #[error(
        "the limit of locked memory is {limit} bytes; each shard needs {MEMLOCK_BYTES}. Raise it: `ulimit -l 8192`, \
         systemd LimitMEMLOCK=infinity, docker --ulimit memlock=-1"
    )]
    Memlock {
        /// The hard limit.
        limit: u64,
    },
}

/// Asks the kernel for a ring before glommio does, because glommio panics where it is refused; and raises the limit
/// of locked memory as far as it may.
pub fn probe() -> Result<(), Unavailable> {
    let mut params = Params::default();
    // SAFETY: `params` is a zeroed struct of the kernel's size that outlives the call.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, PROBE_ENTRIES, &raw mut params) };
    if ring < 0 {
        return Err(Unavailable::Ring(io::Error::last_os_error()));
    }
    // SAFETY: the call above made this descriptor, and nothing else knows it.
    drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(ring as libc::c_int) });

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Memlock);
    if limit.current.is_some_and(|current| current < MEMLOCK_BYTES) {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        let enough = limit.maximum.is_none_or(|maximum| maximum >= MEMLOCK_BYTES);
        if !enough || setrlimit(Resource::Memlock, raised).is_err() {
            return Err(Unavailable::Memlock {
                limit: limit.maximum.unwrap_or(u64::MAX),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::null_mut;

    #[test]
    fn a_wait_that_is_refused_leaves_the_next_one_bounded() {
        let mut params = Params::default();
        // SAFETY: `params` is a zeroed struct of the kernel's size that outlives the call.
        let ring = unsafe { __sys_io_uring_setup(2 * PROBE_ENTRIES, &raw mut params) };
        assert!(ring >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the call above made this descriptor, and nothing else knows it.
        let _ring = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(ring) };
        assert!(params.features & IORING_FEAT_EXT_ARG != 0 && !UNBOUNDED.load(Relaxed));
        bound_sleeps(Duration::from_millis(5));
        let wait = |flags| {
            // SAFETY: the ring has nothing to submit, and no memory is given.
            let entered = unsafe {
                __sys_io_uring_enter(
                    ring as libc::c_uint,
                    0,
                    1,
                    IORING_ENTER_GETEVENTS | flags,
                    null_mut(),
                )
            };
            assert_eq!(entered, -1);
            io::Error::last_os_error().raw_os_error()
        };
        const NO_SUCH_FLAG: u32 = 1 << 30;
        assert_eq!(wait(NO_SUCH_FLAG), Some(libc::EINVAL));
        let before = overslept();
        assert_eq!(
            wait(0),
            Some(libc::EINTR),
            "nothing comes, and it does not wait for ever"
        );
        assert!(overslept() > before);
    }
}
