//! `http[].fault` as written.

use super::duration_of;
use crate::yaml::Node;
use isthmus_core::grpc::Status;
use std::time::Duration;

/// `fault`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Fault {
    pub(crate) delay: Option<Delay>,
    pub(crate) abort: Option<Abort>,
}

/// `fault.delay`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Delay {
    pub(crate) share: WrittenShare,
    pub(crate) fixed: Option<Duration>,
    pub(crate) has_exponential: bool,
}

/// `fault.abort`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Abort {
    pub(crate) share: WrittenShare,
    pub(crate) http_status: Option<i128>,
    pub(crate) grpc_status: Option<String>,
    pub(crate) has_http2_error: bool,
    /// The VirtualService says that connections are to be reset (annotation [`ABORT`]).
    pub(crate) resets: bool,
}

/// Annotation of a VirtualService that says how its `fault.abort` ends requests: `reset`.
pub(crate) const ABORT: &str = "isthmus.dev/abort";

/// How many requests: `percentage`, and the older `percent`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WrittenShare {
    /// `percentage.value`, which is 0 when only `percentage` is there.
    pub(crate) percentage: Option<f64>,
    pub(crate) percent: Option<i128>,
}

impl WrittenShare {
    fn read(node: &Node) -> Self {
        let percentage = node.get("percentage").filter(|value| **value != Node::Null);
        Self {
            percentage: percentage.map(|percentage| {
                let value = percentage.get("value").and_then(Node::as_number);
                value.unwrap_or(0.0)
            }),
            percent: node.int("percent"),
        }
    }

    /// The percentage that counts; None when none is written.
    pub(crate) fn percent(&self) -> Option<f64> {
        self.percentage.or(self.percent.map(|percent| percent as f64))
    }
}

impl Fault {
    /// Reads `fault`; `resets` is whether the resource's annotation makes aborts resets.
    pub(crate) fn read(node: &Node, resets: bool) -> Self {
        let there = |name| node.get(name).filter(|value| **value != Node::Null);
        Self {
            delay: there("delay").map(|delay| Delay {
                share: WrittenShare::read(delay),
                fixed: duration_of(delay, "fixedDelay"),
                has_exponential: delay
                    .get("exponentialDelay")
                    .is_some_and(|value| *value != Node::Null),
            }),
            abort: there("abort").map(|abort| Abort {
                share: WrittenShare::read(abort),
                http_status: abort.int("httpStatus"),
                grpc_status: abort.text("grpcStatus").map(str::to_owned),
                has_http2_error: abort.get("http2Error").is_some_and(|value| *value != Node::Null),
                resets,
            }),
        }
    }
}

impl Abort {
    /// The status of gRPC, when one is written that exists.
    pub(crate) fn grpc(&self) -> Option<Status> {
        Status::from_name(self.grpc_status.as_deref()?)
    }
}
