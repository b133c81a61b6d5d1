//! Explanations: which rule takes a request, what it does with it, where each of its values was written, and why the
//! rules before it do not take it.
//!
//! The decision is that of the indexed look-up, which shards make too; the reasons come from reading the same table
//! rule by rule, from the report of the compiler, and from the documents, which are opened again to find lines and
//! what was written. An [`Explanation`] is plain data with a stable form in JSON: fields are added, and none is
//! renamed. [`render`] makes it text.

mod asked;
mod build;
mod decide;
mod documents;
mod notes;
mod text;

pub use asked::{AskError, Asked, Scheme};
pub use decide::{By, Decided, Decision, Verdict, decide};
pub use text::render;

use crate::Source;
use crate::diagnostic::Diagnostic;
use crate::origins::{Origins, Place};
use isthmus_core::limits::Settings;
use isthmus_core::snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that an explanation draws from.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// What is executed.
    pub snapshot: &'a Snapshot,
    /// Where it was written.
    pub origins: &'a Origins,
    /// What was compiled.
    pub sources: &'a [Source],
    /// What there was to say about it.
    pub diagnostics: &'a [Diagnostic],
    /// The process's settings, as far as they change what rules see.
    pub settings: &'a Settings,
}

impl Known<'_> {
    /// Explains a request.
    pub fn explain(&self, asked: &Asked) -> Explanation {
        build::explain(self, asked)
    }
}

/// Where a value comes from: a place in a file, or what holds when nothing is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ValueOrigin {
    /// It was written there.
    Written(Place),
    /// It holds by default.
    Default {
        /// Whose default: `seed`, `current`, `Istio`, `mesh config`.
        default: String,
    },
}

/// A value and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueShown {
    /// The field, as a path in its rule or policy: `rewrite.uri`, `outlierDetection.interval`.
    pub name: String,
    /// The value as it was written, or the default.
    pub value: String,
    /// Where it comes from.
    pub origin: ValueOrigin,
    /// False for what is known and not executed yet.
    pub executed: bool,
}

/// The request as rules see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestShown {
    /// The method.
    pub method: String,
    /// The URL as asked.
    pub url: String,
    /// The authority with its port.
    pub authority: String,
    /// The key of virtual hosts: lower case, no port.
    pub host: String,
    /// Path and query, normalized.
    pub path: String,
    /// `http`, `https`, `tcp` or `tls`.
    pub scheme: String,
    /// The name that TLS is asked for.
    pub sni: Option<String>,
    /// The client's address.
    pub source: String,
    /// The fields that rules see, in order, those that the gateway adds included.
    pub headers: Vec<(String, String)>,
}

/// What happens in one word, and what the client gets if the gateway answers by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// `forward`, `fault`, `preflight`, `redirect`, `direct_response`, `https_redirect`, `bytes`, `refused`,
    /// `wrong_protocol` or `no_listener`.
    pub kind: String,
    /// Whether a rule takes the request.
    pub routed: bool,
    /// The status of the gateway's own answer.
    pub status: Option<u16>,
    /// Response flags of the access log, `-` for none.
    pub flags: String,
    /// The cause as metrics name it, of what is refused.
    pub cause: Option<String>,
    /// The same for people.
    pub text: String,
    /// Location of a redirect.
    pub location: Option<String>,
    /// Body of a direct response.
    pub body: Option<String>,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerShown {
    /// The Gateway's port.
    pub port: u16,
    /// The address of `bind`.
    pub bind: Option<String>,
    /// `http`, `tcp` or `tls`.
    pub accepts: String,
}

/// A server of a Gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerShown {
    /// `namespace/name` of the Gateway.
    pub gateway: String,
    /// Position in `spec.servers`.
    pub server: usize,
    /// `port.name`.
    pub port_name: String,
    /// `port.protocol`.
    pub protocol: String,
    /// Its hosts without their namespaces.
    pub hosts: Vec<String>,
    /// Where it was written.
    pub at: Option<Place>,
}

/// A chain of a TLS listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainShown {
    /// `namespace/gateway/port name` of its server.
    pub server: String,
    /// The name or wildcard that the client's name was found by.
    pub name: String,
}

/// A virtual host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostShown {
    /// Its name.
    pub name: String,
    /// The domain that the request's host was found by.
    pub domain: String,
    /// All of them.
    pub domains: Vec<String>,
    /// Number of its routes.
    pub routes: usize,
}

/// A rule of a VirtualService, or one match of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleShown {
    /// `namespace/name` of the VirtualService that has the hosts.
    pub virtual_service: String,
    /// `Kind namespace/name` of the resource that the rule is in: a delegate, or the same.
    pub resource: String,
    /// `spec.http[2].match[0]`, or what else it is.
    pub field: String,
    /// What access logs call the route.
    pub name: String,
    /// Where it was written.
    pub at: Option<Place>,
    /// Where the rule was written that delegates to it.
    pub delegated_at: Option<Place>,
    /// What it asks for.
    pub conditions: Vec<String>,
}

/// A rule that does not take the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedShown {
    /// Which.
    pub rule: RuleShown,
    /// The first condition that the request misses, or why the rule is not in the table at all.
    pub reason: String,
    /// Whether the path is what the rule wants: then the reason is near.
    pub near: bool,
}

/// One destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationShown {
    /// The cluster.
    pub cluster: String,
    /// Host of the service.
    pub host: String,
    /// Port of the service.
    pub port: u16,
    /// The subset; empty for the whole service.
    pub subset: String,
    /// Its weight beside the others'.
    pub weight: u32,
    /// Its share of the requests in percent, rounded down.
    pub percent: u32,
    /// Where it was written.
    pub at: Option<Place>,
    /// What is written for it alone.
    pub values: Vec<ValueShown>,
    /// Path and query that it gets.
    pub path: String,
    /// Authority that it gets.
    pub authority: String,
    /// `Kind namespace/name` of the resources that describe the service, and where they are.
    pub services: Vec<(String, Option<Place>)>,
    /// What the traffic policy says, block by block, and the defaults of what it does not.
    pub policy: Vec<ValueShown>,
    /// What keeps requests from it: unknown, or without endpoints.
    pub problem: Option<String>,
    /// The endpoints; from a running gateway each has what is known of it now under `live`.
    pub endpoints: Vec<Value>,
    /// The destination and the cluster as they are executed.
    pub compiled: Value,
}

/// What becomes of a request, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Version of the snapshot.
    pub version: u64,
    /// The request.
    pub request: RequestShown,
    /// What happens.
    pub outcome: Outcome,
    /// Where it comes in.
    pub listener: Option<ListenerShown>,
    /// The chain of a TLS listener.
    pub chain: Option<ChainShown>,
    /// The servers of Gateways that let it in.
    pub servers: Vec<ServerShown>,
    /// The virtual host.
    pub virtual_host: Option<HostShown>,
    /// The rule that takes it.
    pub rule: Option<RuleShown>,
    /// What the rule says, and the defaults of what it does not.
    pub values: Vec<ValueShown>,
    /// The route as it is executed.
    pub route: Value,
    /// Where it may go.
    pub destinations: Vec<DestinationShown>,
    /// The rules before it, in order.
    pub passed_over: Vec<PassedShown>,
    /// How many more of them there are.
    pub passed_over_more: usize,
    /// What may help when it is not what was expected.
    pub notes: Vec<String>,
}
