//! The compiler: what the resources mean, as one snapshot.
//!
//! `cluster` turns services and DestinationRules into clusters, which `balancer` says how to balance and `health` how to
//! check, `listener` Gateways into listeners with the virtual hosts of each `table`, of which `memo` keeps those that stay as they were, and `route` the rules of one VirtualService, joined with those of its delegates by `delegate`, into
//! routes, with `retry` for what is sent again or twice and `policy` for faults and what browsers are told; `stream` does
//! the same for whole connections, `tls` says what is presented and demanded, `source` which clients rules can be about, `origin` where the policies of clusters were
//! written.

pub(crate) mod balancer;
pub(crate) mod cluster;
pub(crate) mod delegate;
pub(crate) mod health;
pub(crate) mod listener;
pub(crate) mod memo;
pub(crate) mod origin;
mod policy;
pub(crate) mod retry;
pub(crate) mod route;
pub(crate) mod source;
pub(crate) mod stream;
mod table;
pub(crate) mod tls;

use crate::Options;
use crate::analyze::View;
use crate::cache::Cache;
use crate::index::Rules;
use crate::origins::Origins;
use crate::registry::Registry;
use crate::report::Report;
use crate::resource::virtual_service::VirtualService;
use crate::resource::{Resources, Written};
use crate::services::Services;
use delegate::Delegates;
use health::Checks;
use isthmus_core::snapshot::Snapshot;
use std::sync::Arc;

/// What the compiler looks things up in.
pub(crate) struct Context<'a> {
    pub(crate) options: &'a Options,
    pub(crate) registry: Registry<'a>,
    pub(crate) rules: Rules<'a>,
    pub(crate) checks: Checks<'a>,
    pub(crate) virtual_services: &'a [Written<VirtualService>],
    pub(crate) delegates: Delegates<'a>,
    pub(crate) clients: source::Clients,
}

/// Compiles everything that was written without errors.
pub(crate) fn compile(
    resources: &Resources,
    options: &Options,
    report: &mut Report<'_>,
    cache: &mut Cache,
) -> (Snapshot, Origins, Services) {
    let context = Context {
        options,
        registry: Registry::new(resources, options),
        rules: Rules::new(&resources.destination_rules, options),
        checks: Checks::new(&resources.health_check_policies, options),
        virtual_services: &resources.virtual_services,
        delegates: delegate::collect(&resources.virtual_services),
        clients: source::Clients::new(resources, options),
    };
    let memo = cache.hosts(&context.clients);
    let listeners = listener::compile(resources, &context, report, memo);
    let (clusters, services) = cluster::compile(&context);
    let snapshot = Snapshot {
        version: options.version,
        listeners: listeners.listeners,
        clusters,
        sources: Arc::new(context.clients.sources.clone()),
    };
    let origins = Origins {
        documents: report.places(),
        routes: listeners.origins,
        streams: listeners.streams,
        servers: listeners.servers,
        clusters: origin::clusters(&context),
        options: options.clone(),
        tls: listeners
            .uses
            .into_iter()
            .chain(tls::uses(&resources.destination_rules, &context))
            .collect(),
        refused_secrets: resources
            .refused
            .iter()
            .filter_map(|id| id.strip_prefix("Secret ")?.split_once('/'))
            .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
            .collect(),
    };
    let view = View {
        resources,
        context: &context,
        snapshot: &snapshot,
        origins: &origins,
        facts: &listeners.facts,
    };
    crate::analyze::analyze(&view, report);
    (snapshot, origins, services)
}
