//! What an attempt says about its endpoint, for outlier detection.

use super::body::End;
use super::exchange::Exchange;
use crate::clusters::Lease;
use crate::io::clock;
use http::StatusCode;
use isthmus_core::cluster::outlier::Signal;
use isthmus_core::grpc;
use isthmus_core::header::HeaderId;
use isthmus_core::reply::Cause;

/// Notes when an upstream has not answered in time, however the attempt goes on.
pub(super) fn watched<T>(lease: &Lease, sent: Result<T, End>) -> Result<T, End> {
    if let Err(End::Reply(reply)) = &sent
        && reply.cause == Cause::UpstreamTimeout
    {
        lease.report(Signal::NoAnswer, clock::now());
    }
    sent
}

/// The status of the answer; that of a call which ends with its head, as HTTP would say it.
pub(super) fn status_of(x: &Exchange) -> u16 {
    let status = x.response.status;
    if status == StatusCode::OK && x.request.is_call() {
        let said = x.response.headers.get(HeaderId::GrpcStatus);
        if let Some(status) = said.and_then(grpc::Status::parse) {
            return status.to_http();
        }
    }
    status.as_u16()
}
