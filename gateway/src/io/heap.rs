//! The heap, where it must be told something.

// unsafe: a call of the allocator's own interface.
#![allow(unsafe_code)]

/// Gives memory that this thread has freed back to the system. Compiling a configuration takes several times what the
/// configuration keeps, and the allocator holds on to it for a thread that may not compile again for days.
pub fn give_back() {
    // SAFETY: it may be called at any time by any thread, and concerns the calling thread's free memory only.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
