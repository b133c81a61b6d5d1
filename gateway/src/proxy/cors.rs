//! Cross-origin requests: preflights are answered here, and other answers are marked (`core::route::Cors`).

use super::Context;
use super::exchange::Exchange;
use super::local::{self, Answer};
use crate::downstream::Downstream;
use http::StatusCode;
use isthmus_core::header::HeaderList;
use isthmus_core::reply::Flags;
use isthmus_core::route::{Cors, CorsRequest};
use std::ops::ControlFlow;

/// Looks at where a request comes from; Break when it was a preflight, which is answered then. What the answer to
/// another has to say is noted in the exchange.
pub(super) async fn meet(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    policy: &Cors,
) -> ControlFlow<()> {
    let judged = policy.judge(&x.request, &mut context.scratch.borrow_mut());
    let allowed = match judged {
        CorsRequest::Other => return ControlFlow::Continue(()),
        CorsRequest::Allowed => {
            policy.write_allowed(&x.request, x.cors.get_or_insert_default());
            return ControlFlow::Continue(());
        }
        CorsRequest::Preflight => true,
        CorsRequest::Refused => false,
    };
    x.response.clear();
    policy.write_preflight(&x.request, allowed, &mut x.response.headers);
    let answer = Answer {
        status: StatusCode::OK,
        flags: Flags::NONE,
        detail: "cors_response",
        location: None,
        body: &[],
        operations: &[],
        close: false,
    };
    local::send(context, conn, x, answer).await;
    ControlFlow::Break(())
}

/// Writes what was noted into an answer, in the place of what it says there already.
pub(super) fn mark(noted: Option<&HeaderList>, fields: &mut HeaderList) {
    for (id, _, value) in noted.into_iter().flat_map(HeaderList::iter) {
        fields.set(id, value);
    }
}
