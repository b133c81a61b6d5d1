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
use crate::around::{Around, Upstreams, is_alone};
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
) -> (Snapshot, Origins, Arc<Services>) {
    let around = Around::new(resources);
    let context = Context {
        options,
        registry: Registry::new(resources, options),
        rules: Rules::new(&resources.destination_rules, options),
        checks: Checks::new(&resources.health_check_policies, options),
        virtual_services: &resources.virtual_services,
        delegates: delegate::collect(&resources.virtual_services),
        clients: source::Clients::new(resources, options),
    };
    let memo = cache.hosts(&context.clients, around);
    let listeners = listener::compile(resources, &context, report, memo);
    let upstreams = cache.upstreams(around, || {
        let (clusters, services) = cluster::compile(&context);
        let upstreams = Upstreams {
            clusters,
            services: Arc::new(services),
            origins: Arc::new(origin::clusters(&context)),
        };
        (upstreams, !cluster::are_named_by_rules(&context))
    });
    let snapshot = Snapshot {
        version: options.version,
        listeners: listeners.listeners,
        clusters: upstreams.clusters,
        sources: Arc::new(context.clients.sources.clone()),
    };
    let origins = Origins {
        documents: report.places(),
        routes: listeners.origins,
        streams: listeners.streams,
        servers: listeners.servers,
        clusters: upstreams.origins,
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
    let (quiet, others_are_quiet) = match report.errors() {
        0 => cache.quiet.among(resources, around),
        // What is wrong may be the reason for what was not said, or for what is to be said now.
        _ => (Vec::new(), false),
    };
    let view = View {
        resources,
        context: &context,
        snapshot: &snapshot,
        origins: &origins,
        facts: &listeners.facts,
        quiet: &quiet,
        others_are_quiet,
    };
    let marks = report.marks();
    let others_were_quiet = crate::analyze::analyze(&view, report);
    if report.errors() > 0 {
        cache.quiet.forget();
    } else {
        let all = resources.virtual_services.iter();
        let quiet = all.filter(|written| {
            let document = written.meta.origin.document;
            is_alone(&written.spec) && report.is_as_marked(&marks, document)
        });
        let quiet = quiet.map(|written| written.meta.number);
        cache.quiet.note(around, quiet, others_were_quiet);
    }
    (snapshot, origins, upstreams.services)
}
