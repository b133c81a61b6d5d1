//! Findings across resources: what is well written for itself, and yet does not do what its author means.
//!
//! [`analyze`] runs behind the compiler and sees everything: the resources as they were written, the registry and the
//! index of rules, and the snapshot with the origins of its routes. It changes nothing; what it has to say are warnings
//! (a document may refer to what another file brings) and hints, each with the places of everything that has a part in
//! it. Each module has one subject, finds its own with an index and never with all pairs, and is called from here.

mod policy;
pub(crate) mod reach;

use crate::compile::Context;
use crate::origins::Origins;
use crate::report::Report;
use crate::resource::Resources;
use isthmus_core::snapshot::Snapshot;

/// What is analyzed.
pub(crate) struct View<'a> {
    /// Everything that was written without errors.
    pub(crate) resources: &'a Resources,
    /// What names are looked up in.
    pub(crate) context: &'a Context<'a>,
    /// What it all means.
    pub(crate) snapshot: &'a Snapshot,
    /// Where the routes of the snapshot were written.
    pub(crate) origins: &'a Origins,
}

/// Reports what is noticed across resources.
pub(crate) fn analyze(view: &View<'_>, report: &mut Report<'_>) {
    policy::check(view, report);
    if view.context.options.proofs {
        reach::finding::check(view, report);
    }
}
