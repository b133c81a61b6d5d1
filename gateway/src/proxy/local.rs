//! Answers that the gateway gives itself: errors, redirects, direct responses.

use super::exchange::{After, Exchange};
use super::{Context, cors, fields};
use crate::downstream::Downstream;
use crate::io::clock;
use crate::io::h1::Chunk;
use http::StatusCode;
use isthmus_core::grpc;
use isthmus_core::h1::encode::ResponseContext;
use isthmus_core::header::{HeaderId, HeaderOperations};
use isthmus_core::message::BodyLength;
use isthmus_core::overload;
use isthmus_core::reply::{Cause, Flags, LocalReply};
use std::future::poll_fn;
use std::task::Poll;

/// An answer's parts.
pub(super) struct Answer<'a> {
    pub(super) status: StatusCode,
    pub(super) flags: Flags,
    pub(super) detail: &'static str,
    pub(super) location: Option<&'a str>,
    pub(super) body: &'a [u8],
    pub(super) operations: &'a [HeaderOperations],
    /// The connection must end with this answer.
    pub(super) close: bool,
}

/// Answers with an error.
pub(super) async fn refuse(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    reply: LocalReply,
    close: bool,
) {
    refuse_with(context, conn, x, reply, &[], close).await;
}

/// Answers with an error, whose fields are changed by `operations`: those of the destination that was picked.
pub(super) async fn refuse_with(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    reply: LocalReply,
    operations: &[HeaderOperations],
    close: bool,
) {
    context.count_cause(reply.cause);
    x.response.clear();
    if context.settings.debug_cause {
        x.response
            .headers
            .append_known(HeaderId::XIsthmusCause, reply.cause.label().as_bytes());
    }
    let fields = &mut x.response.headers;
    match reply.cause {
        Cause::Overflow => fields.append(b"x-envoy-overloaded", b"true"),
        Cause::Overload(_) => {
            fields.append(b"x-envoy-local-overloaded", b"true");
            fields.append(b"retry-after", overload::RETRY_AFTER_S);
        }
        _ => {}
    }
    let mut answer = Answer {
        status: reply.status,
        flags: reply.flags,
        detail: reply.cause.detail(),
        location: None,
        body: reply.cause.text().as_bytes(),
        operations,
        close,
    };
    if x.request.is_call() && x.request.upgrade.is_empty() {
        // Its clients look at nothing but these fields, whatever the status is (Envoy answers so, too).
        let fields = &mut x.response.headers;
        let status = match reply.cause {
            Cause::FaultAbort(Some(status)) => status,
            // Not the route's patience has ended but the call's own, which its client knows by this name.
            Cause::UpstreamTimeout
                if x.timeouts.total.is_some() && x.timeouts.total == super::http::deadline(&x.request) =>
            {
                grpc::Status::DeadlineExceeded
            }
            _ => grpc::Status::of_http(reply.status),
        };
        fields.append_known(HeaderId::ContentType, grpc::CONTENT_TYPE.as_bytes());
        fields.append_known(
            HeaderId::GrpcStatus,
            itoa::Buffer::new().format(status.number()).as_bytes(),
        );
        let message = grpc::encode_message(reply.cause.text().trim_end());
        fields.append(b"grpc-message", message.as_bytes());
        (answer.status, answer.body) = (StatusCode::OK, &[]);
    }
    send(context, conn, x, answer).await;
}

/// Writes an answer, and says in the outcome what becomes of the connection. Fields that are in the exchange's response
/// already are kept.
pub(super) async fn send(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    answer: Answer<'_>,
) {
    let head = &mut x.response;
    head.status = answer.status;
    let bodyless = answer.status == StatusCode::NO_CONTENT
        || answer.status == StatusCode::NOT_MODIFIED
        || answer.status.is_informational();
    let head_request = x.request.method == http::Method::HEAD;
    if let Some(location) = answer.location {
        head.headers.append_known(HeaderId::Location, location.as_bytes());
    }
    if !answer.body.is_empty() && !bodyless {
        head.headers.append_known(HeaderId::ContentType, b"text/plain");
    }
    fields::change_response(conn, x, conn.scheme(), answer.operations);
    let head = &mut x.response;
    cors::mark(x.cors.as_deref(), &mut head.headers);
    head.headers
        .append_known(HeaderId::Date, httpdate::fmt_http_date(clock::wall()).as_bytes());
    if !context.settings.pass_server_header {
        head.headers.set(HeaderId::Server, b"isthmus");
    }
    let length = answer.body.len() as u64;
    (head.body, head.declared_length) = match (bodyless, head_request) {
        (true, _) => (BodyLength::None, None),
        (false, true) => (BodyLength::None, Some(length)),
        (false, false) => (BodyLength::Known(length), None),
    };
    // What the client has already sent of its body is read, so that the connection can go on; a body that is still
    // under way cannot be waited for, and one that was announced with Expect may never come.
    let keep_alive = !answer.close
        && x.request.keep_alive
        && !conn.is_draining()
        && !context.is_last_request(conn.requests())
        && (conn.is_body_done() || (!x.request.expects_continue && skip_buffered(conn).await));
    let form = ResponseContext {
        version: x.request.version,
        head_request,
        keep_alive,
    };
    conn.response_head(&x.response, form);
    let body: &[u8] = if x.response.body.is_empty() {
        &[]
    } else {
        answer.body
    };
    conn.phase().set(context.settings.stream_idle_timeout);
    let mut at = 0;
    let written = poll_fn(|cx| {
        if let Poll::Ready(written) = conn.poll_write_all(cx, body, &mut at) {
            return Poll::Ready(written.is_ok());
        }
        conn.phase().poll(cx).map(|()| false)
    })
    .await;
    x.outcome.status = Some(answer.status);
    x.outcome.flags = x.outcome.flags.with(answer.flags);
    x.outcome.detail = answer.detail;
    x.outcome.response_bytes = at as u64;
    x.outcome.after = match (written, keep_alive) {
        (false, _) => {
            x.outcome.flags = x.outcome.flags.with(Flags::DC);
            After::Abort
        }
        (true, true) => After::KeepAlive,
        (true, false) => After::Close,
    };
}

/// Most bytes of a refused request's body that are read so that its connection can go on.
const SKIP_MAX: usize = 64 * 1024;

/// Reads the body as far as it has arrived; answers whether that was all of it.
async fn skip_buffered(conn: &mut impl Downstream) -> bool {
    let mut skipped = 0;
    poll_fn(|cx| {
        loop {
            match conn.poll_data(cx) {
                Poll::Ready(Ok(Chunk::Data(_))) if skipped > SKIP_MAX => return Poll::Ready(false),
                Poll::Ready(Ok(Chunk::Data(there))) => {
                    conn.take(there);
                    skipped += there;
                }
                Poll::Ready(Ok(Chunk::End)) => return Poll::Ready(true),
                // Nothing is waited for: the wake-up that this registers is harmless.
                Poll::Ready(Err(_)) | Poll::Pending => return Poll::Ready(false),
            }
        }
    })
    .await
}
