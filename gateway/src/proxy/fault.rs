//! Faults that a route injects on purpose: a request waits, or ends before it goes anywhere (`core::route::Fault`).

use super::exchange::{After, Exchange};
use super::{Context, local};
use crate::downstream::Downstream;
use crate::io::clock;
use http::StatusCode;
use isthmus_core::drain::Drain;
use isthmus_core::header::HeaderOperations;
use isthmus_core::message::Version;
use isthmus_core::reply::{Cause, Flags, LocalReply};
use isthmus_core::route::{AbortWith, Fault};
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::task::Poll;
use std::time::Duration;

/// Does to a request what chance says that its route does to it; Break when that was the end of it. `operations` change
/// the fields of an answer.
pub(super) async fn inject(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    fault: &Fault,
    operations: &[HeaderOperations],
) -> ControlFlow<()> {
    let delay = fault.delay(&mut context.random.borrow_mut());
    if let Some(time) = delay {
        x.outcome.flags = x.outcome.flags.with(Flags::DI);
        context.stats.borrow_mut().counters.fault_delays += 1;
        if hold_up(context, conn, time).await.is_break() {
            x.outcome.leave(context);
            return ControlFlow::Break(());
        }
        x.forwarded = clock::now();
    }
    let abort = fault.abort(&mut context.random.borrow_mut());
    let (status, cause) = match abort {
        None => return ControlFlow::Continue(()),
        Some(AbortWith::Status(status)) => (status, Cause::FaultAbort(None)),
        Some(AbortWith::Grpc(status)) => (StatusCode::OK, Cause::FaultAbort(Some(status))),
        Some(AbortWith::Reset) => {
            reset(context, x);
            return ControlFlow::Break(());
        }
    };
    if status.is_success() && !x.request.upgrade.is_empty() && x.request.version == Version::Http2 {
        // To a request for a tunnel, a success would say that there is one (RFC 8441, 5).
        reset(context, x);
        return ControlFlow::Break(());
    }
    let reply = LocalReply {
        status,
        flags: cause.flag(),
        cause,
    };
    local::refuse_with(context, conn, x, reply, operations, false).await;
    ControlFlow::Break(())
}

/// Ends the exchange without an answer.
fn reset(context: &Context, x: &mut Exchange) {
    context.count_cause(Cause::FaultReset);
    x.outcome.flags = x.outcome.flags.with(Flags::FI);
    x.outcome.detail = Cause::FaultReset.detail();
    x.outcome.after = After::Abort;
}

/// Waits; Break when the client goes away meanwhile. What it sends waits with it.
async fn hold_up(context: &Context, conn: &mut impl Downstream, time: Duration) -> ControlFlow<()> {
    let timer = context.wheel.timer();
    timer.set(time);
    let until = clock::now().checked_add(time);
    poll_fn(|cx| {
        while timer.poll(cx).is_ready() {
            // A shard that is behind with its ticks reckons from an earlier moment.
            let left = until.map_or(Duration::ZERO, |until| {
                until.saturating_duration_since(clock::now())
            });
            if left.is_zero() {
                return Poll::Ready(ControlFlow::Continue(()));
            }
            timer.set(left);
        }
        if conn.drain() == Drain::Cut {
            return Poll::Ready(ControlFlow::Break(()));
        }
        conn.poll_gone(cx).map(ControlFlow::Break)
    })
    .await
}
