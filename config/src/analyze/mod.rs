//! Findings across resources: what is well written for itself, and yet does not do what its author means.
//!
//! [`analyze`] runs behind the compiler and sees everything: the resources as they were written, those with errors too;
//! the registry and the index of rules; the snapshot with the origins of its routes; and what the compiler decided
//! between resources ([`facts`]). It changes nothing. What it has to say are warnings (a document may refer to what
//! another file brings) and hints, each with the places of everything that has a part in it. Each module has one
//! subject, finds its own with an index and never with all pairs, and is called from here.

mod actions;
mod egress;
pub(crate) mod facts;
mod gateways;
mod health;
mod hosts;
mod overlaps;
mod policy;
pub(crate) mod reach;
mod references;
mod rules;
mod services;

use crate::compile::Context;
use crate::origins::Origins;
use crate::report::Report;
use crate::resource::gateway::Gateway;
use crate::resource::virtual_service::VirtualService;
use crate::resource::{Resources, Written};
use facts::Facts;
use isthmus_core::snapshot::Snapshot;

/// What is analyzed.
pub(crate) struct View<'a> {
    /// Everything that was written.
    pub(crate) resources: &'a Resources,
    /// What names are looked up in.
    pub(crate) context: &'a Context<'a>,
    /// What it all means.
    pub(crate) snapshot: &'a Snapshot,
    /// Where the routes of the snapshot were written.
    pub(crate) origins: &'a Origins,
    /// What the compiler decided between resources.
    pub(crate) facts: &'a Facts,
    /// VirtualServices that are known to have nothing to be said of them, in their order ([`crate::around`]).
    pub(crate) quiet: &'a [bool],
    /// The same of all other resources, for themselves.
    pub(crate) others_are_quiet: bool,
}

impl<'a> View<'a> {
    /// All Gateways, those with errors last.
    pub(crate) fn gateways(&self) -> impl Iterator<Item = &'a Written<Gateway>> + use<'a> {
        let resources = self.resources;
        resources.gateways.iter().chain(&resources.faulty.gateways)
    }

    /// Whether nothing is to be said of the VirtualService at a position, for itself.
    pub(crate) fn is_quiet(&self, at: usize) -> bool {
        self.quiet.get(at).copied().unwrap_or(false)
    }

    /// All VirtualServices that something may be to be said of, with their positions.
    pub(crate) fn loud(&self) -> impl Iterator<Item = (usize, &'a Written<VirtualService>)> + use<'a, '_> {
        self.virtual_services()
            .enumerate()
            .filter(|(at, _)| !self.is_quiet(*at))
    }

    /// All VirtualServices, those with errors last; the position is that of the facts.
    pub(crate) fn virtual_services(&self) -> impl Iterator<Item = &'a Written<VirtualService>> + use<'a> {
        let resources = self.resources;
        resources
            .virtual_services
            .iter()
            .chain(&resources.faulty.virtual_services)
    }
}

/// How many misspelt names are compared with all that there are; each comparison takes as long as there are names.
const GUESSES_MAX: usize = 100;

/// Reports what is noticed across resources. Answers whether nothing was to be said of what is no VirtualService, for
/// itself.
pub(crate) fn analyze(view: &View<'_>, report: &mut Report<'_>) -> bool {
    gateways::check(view, report);
    references::check(view, report);
    overlaps::check(view, report);
    let told = report.told();
    if !view.others_are_quiet {
        policy::check(view, report);
        health::check(view, report);
        services::check(view, report);
    }
    let others_are_quiet = report.told() == told;
    policy::unreached(view, report);
    rules::check(view, report);
    actions::check(view, report);
    egress::check(view, report);
    if view.context.options.proofs {
        reach::finding::check(view, report);
    }
    others_are_quiet
}
