//! The compiler: what the resources mean, as one snapshot.
//!
//! `cluster` turns services and DestinationRules into clusters, `listener` Gateways into listeners with their
//! virtual hosts, and `route` the rules of one VirtualService into routes.

pub(crate) mod cluster;
pub(crate) mod listener;
pub(crate) mod route;

use crate::Options;
use crate::index::Rules;
use crate::registry::Registry;
use crate::report::Report;
use crate::resource::Resources;
use isthmus_core::snapshot::Snapshot;

/// What the compiler looks things up in.
pub(crate) struct Context<'a> {
    pub(crate) options: &'a Options,
    pub(crate) registry: Registry<'a>,
    pub(crate) rules: Rules<'a>,
}

/// Compiles everything that was written without errors.
pub(crate) fn compile(resources: &Resources, options: &Options, report: &mut Report<'_>) -> Snapshot {
    let context = Context {
        options,
        registry: Registry::new(resources, &options.namespace),
        rules: Rules::new(&resources.destination_rules, &options.namespace),
    };
    Snapshot {
        version: options.version,
        listeners: listener::compile(resources, &context, report),
        clusters: cluster::compile(&context),
    }
}
