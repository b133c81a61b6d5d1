//! What VirtualServices are read against: all resources that are none.
//!
//! It changes seldom, and the many VirtualServices often. While it is the same, services are the same clusters; a
//! VirtualService in the same words means the same, and of one that nothing was to be said of there is nothing to be said.
//! One that delegates is apart, and so is a delegate: they depend on each other.

use crate::origins::ClusterOrigin;
use crate::resource::virtual_service::VirtualService;
use crate::resource::{Resources, Written};
use crate::services::Services;
use foldhash::fast::FixedState;
use isthmus_core::cluster::ClusterSpec;
use isthmus_core::name::ClusterMap;
use isthmus_core::snapshot::content_hash;
use std::collections::HashSet;
use std::sync::Arc;

/// Hashes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Around {
    /// Of what is said.
    pub(crate) said: u64,
    /// Of that, and of which documents say it.
    pub(crate) placed: u64,
}

impl Around {
    pub(crate) fn new(resources: &Resources) -> Self {
        let Resources {
            gateways,
            virtual_services: _,
            destination_rules,
            service_entries,
            workload_entries,
            workload_groups,
            health_check_policies,
            services,
            endpoint_slices,
            secrets,
            workloads,
            foreign_gateways,
            // Nothing is remembered where anything is wrong.
            faulty: _,
            refused: _,
            passed_over: _,
            count: _,
            named: _,
        } = resources;
        let mut all = Listed::default();
        all.add(gateways);
        all.add(destination_rules);
        all.add(service_entries);
        all.add(workload_entries);
        all.add(workload_groups);
        all.add(health_check_policies);
        all.add(services);
        all.add(endpoint_slices);
        all.add(secrets);
        all.add(workloads);
        let mut foreign: Vec<&String> = foreign_gateways.iter().collect();
        foreign.sort();
        let said = content_hash(&(&all.numbers, foreign));
        Self {
            said,
            placed: content_hash(&(said, &all.places)),
        }
    }
}

/// The numbers of resources, and where they are.
#[derive(Default)]
struct Listed {
    numbers: Vec<u64>,
    places: Vec<(usize, Option<usize>)>,
}

impl Listed {
    fn add<T>(&mut self, list: &[Written<T>]) {
        // No resource has the number 0: it ends a list.
        self.numbers
            .extend(list.iter().map(|written| written.meta.number).chain([0]));
        let origins = list.iter().map(|written| &written.meta.origin);
        self.places
            .extend(origins.map(|origin| (origin.document, origin.item)));
    }
}

/// Whether what a VirtualService means and is worth saying of it depends on no other.
pub(crate) fn is_alone(spec: &VirtualService) -> bool {
    !spec.hosts.is_empty() && !spec.delegates
}

/// Of whom nothing was to be said.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    around: Around,
    /// VirtualServices, by number.
    virtual_services: HashSet<u64, FixedState>,
    /// The others, for themselves.
    others: bool,
}

impl Quiet {
    /// Those among the VirtualServices, in their order, and whether the others are.
    pub(crate) fn among(&self, resources: &Resources, around: Around) -> (Vec<bool>, bool) {
        let is_same = self.around.said == around.said;
        let is_quiet = |written: &Written<VirtualService>| {
            is_same && self.virtual_services.contains(&written.meta.number)
        };
        let all = resources.virtual_services.iter();
        (all.map(is_quiet).collect(), is_same && self.others)
    }

    /// Notes of whom nothing was to be said.
    pub(crate) fn note(&mut self, around: Around, quiet: impl Iterator<Item = u64>, others: bool) {
        self.around = around;
        self.virtual_services.clear();
        self.virtual_services.extend(quiet);
        self.others = others;
    }

    /// Something is wrong, and may be the reason for what was not said.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// What services are.
#[derive(Debug, Clone)]
pub(crate) struct Upstreams {
    pub(crate) clusters: ClusterMap<Arc<ClusterSpec>>,
    pub(crate) services: Arc<Services>,
    pub(crate) origins: Arc<ClusterMap<ClusterOrigin>>,
}
