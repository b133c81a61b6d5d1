//! Tasks: the only place that starts them. A task's panic is caught here, counted, and ends that task only.

use pin_project_lite::pin_project;
use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Counts of a shard's tasks.
#[derive(Debug, Default)]
pub struct Tasks {
    live: Cell<u64>,
    panics: Cell<u64>,
}

impl Tasks {
    /// Tasks that have not ended.
    pub fn live(&self) -> u64 {
        self.live.get()
    }

    /// Tasks that ended by a panic since this was last asked.
    pub fn take_panics(&self) -> u64 {
        self.panics.take()
    }
}

struct Alive(Rc<Tasks>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get().saturating_sub(1));
    }
}

pin_project! {
    // Written by hand because an async block would hold the future twice.
    struct Guarded<F> {
        #[pin]
        future: Option<F>,
        alive: Alive,
    }
}

impl<F: Future<Output = ()>> Future for Guarded<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(future) = this.future.as_mut().as_pin_mut() else {
            return Poll::Ready(());
        };
        // After a panic the future is dropped at once, so nobody sees it half changed; what it shares with others
        // keeps its books by RAII.
        match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(()),
            Err(_) => {
                let tasks = &this.alive.0;
                tasks.panics.set(tasks.panics.get() + 1);
                if catch_unwind(AssertUnwindSafe(|| this.future.set(None))).is_err() {
                    tasks.panics.set(tasks.panics.get() + 1);
                }
                Poll::Ready(())
            }
        }
    }
}

/// Starts a task on this shard. The runtime polls it once before this returns: hold no borrow that the task may want.
/// It moves the future several times first: what is large comes [`boxed`].
pub fn spawn(tasks: &Rc<Tasks>, future: impl Future<Output = ()> + 'static) {
    tasks.live.set(tasks.live.get() + 1);
    let alive = Alive(Rc::clone(tasks));
    glommio::spawn_local(Guarded {
        future: Some(future),
        alive,
    })
    .detach();
}

/// Makes a large future where it stays. Boxed as usual it would be made elsewhere first, and then be moved.
pub fn boxed<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    let room = Box::new_uninit();
    Box::into_pin(Box::write(room, make()))
}

/// Starts a task of the executor itself, which no count shows. Its panic ends the shard: without it nothing would run.
pub(super) fn spawn_uncounted(future: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(future).detach();
}
