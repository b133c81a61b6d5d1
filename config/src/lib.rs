//! From what was written to what it means: the configuration of the gateway.
//!
//! [`compile`] takes the text of files with Istio and Kubernetes resources and gives a [`Snapshot`] that the runtime
//! executes, with every problem at once as [`diagnostic::Diagnostic`]s. The way is straight: `yaml` parses documents,
//! `resource` reads each as it was written, along the schema of its fields, `validate` checks it for itself,
//! `registry` and `index` bring the resources together, and `compile` says what they mean. A resource with an error
//! is left out; everything else is compiled.
//!
//! No runtime, no sockets, no clock: the same text gives the same snapshot.
#![forbid(unsafe_code)]

mod analyze;
mod around;
mod cache;
mod compile;
pub mod diagnostic;
pub mod diff;
pub mod explain;
mod files;
mod index;
mod judge;
pub mod keep;
pub mod mesh;
mod origins;
mod registry;
mod report;
mod resource;
mod sarif;
pub mod services;
pub mod settings;
mod text;
mod validate;
pub mod view;
mod yaml;

pub use cache::Cache;
pub use files::{Reader, no_resource, read_paths, read_text, stamps};
pub use judge::{SecretAsked, SecretJudge};
pub use origins::{KeyProblem, Origins, Place, TlsAsked};
pub use resource::schema::{FieldInfo, KINDS, Status, feature_table, fields, mesh_fields, own_fields};
pub use sarif::to_sarif;

use diagnostic::{Diagnostic, Severity};
use isthmus_core::cluster::locality::Locality;
use isthmus_core::snapshot::Snapshot;
use services::Services;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The text of one file.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name in diagnostics.
    pub name: String,
    /// Its content, which is the same part as before while it is the same ([`Reader`]).
    pub text: Arc<str>,
}

/// What holds when nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Defaults {
    /// As the concept pages of Istio 1.1 say: a timeout of 15 s, ROUND_ROBIN.
    #[default]
    Seed,
    /// As Istio does today: no timeout, LEAST_REQUEST.
    Current,
}

/// What the compiler must know beside the files.
#[derive(Debug, Clone)]
pub struct Options {
    /// What holds when nothing is written.
    pub defaults: Defaults,
    /// Labels of this gateway, which Gateways select; none: every Gateway selects it.
    pub labels: BTreeMap<String, String>,
    /// Namespace of this gateway, which `exportTo` and the look-up of DestinationRules are about. Empty: it is in none,
    /// and `exportTo` hides nothing from it.
    pub namespace: String,
    /// Where this gateway is.
    pub locality: Locality,
    /// Unknown fields are warnings, and unquoted wildcards are repaired.
    pub lenient: bool,
    /// What holds for the whole mesh.
    pub mesh: mesh::MeshConfig,
    /// Name of this machine, for `%HOSTNAME%`.
    pub hostname: String,
    /// Whether rules that no request reaches are looked for: some seconds for ten thousand rules, which a gateway that
    /// loads changed files has not.
    pub proofs: bool,
    /// Who looks into Secrets that a `tls` names; without one they are taken as they are.
    pub judge: Option<SecretJudge>,
    /// Version of the snapshot.
    pub version: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            defaults: Defaults::Seed,
            labels: BTreeMap::new(),
            namespace: String::new(),
            locality: Locality::default(),
            lenient: false,
            mesh: mesh::MeshConfig::default(),
            hostname: String::new(),
            proofs: true,
            judge: None,
            version: 1,
        }
    }
}

/// Secrets by namespace and name: their values by key.
pub type Secrets = BTreeMap<(String, String), BTreeMap<String, Vec<u8>>>;

/// What came out.
#[derive(Debug)]
pub struct Compiled {
    /// What the resources without errors mean.
    pub snapshot: Snapshot,
    /// Where its routes were written.
    pub origins: Origins,
    /// What instances that register themselves need to know.
    pub services: Arc<Services>,
    /// Secrets among the documents, by namespace and name: their values by key.
    pub secrets: Secrets,
    /// Everything that is worth saying, in the order of the files.
    pub diagnostics: Vec<Diagnostic>,
    /// Documents of kinds that a gateway does not execute, by version and kind.
    pub passed_over: BTreeMap<String, usize>,
    /// Number of resources that were read.
    pub resources: usize,
    /// The documents, in the order of the files.
    pub documents: Vec<Document>,
}

/// One document of a file, and what became of it.
#[derive(Debug, Clone)]
pub struct Document {
    /// Position of its file among the sources.
    pub source: usize,
    /// Line that it begins in, from 1; 0 when it could not be read.
    pub line: usize,
    /// Bytes of the file that it takes.
    pub span: std::ops::Range<usize>,
    /// `Kind namespace/name` of what it defines; none of what is passed over or could not be read.
    pub resources: Vec<Arc<str>>,
    /// Whether anything in it is wrong.
    pub has_errors: bool,
    /// What is remembered of it.
    pub(crate) known: Option<Arc<cache::Known>>,
}

impl Compiled {
    /// Whether any diagnostic is an error.
    pub fn has_errors(&self) -> bool {
        self.diagnostics
            .iter()
            .any(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

/// Compiles all files into one snapshot.
pub fn compile(sources: &[Source], options: &Options) -> Compiled {
    compile_known(sources, options, &mut Cache::default())
}

/// The same, with what is remembered of the compile before, which makes no difference but in time.
pub fn compile_known(sources: &[Source], options: &Options, cache: &mut Cache) -> Compiled {
    cache.begin(options);
    let compiled = compile_on(sources, options, cache);
    cache.end();
    compiled
}

/// One of the compiles of a round.
fn compile_on(sources: &[Source], options: &Options, cache: &mut Cache) -> Compiled {
    let mut report = report::Report::with(sources, options.lenient, cache);
    let resources = resource::read_all(&mut report, cache);
    let (snapshot, origins, services) = compile::compile(&resources, options, &mut report, cache);
    if let Some(judge) = options.judge {
        judge::judge(&resources, &origins, judge, &mut report);
    }
    let documents = report.outcome(&resources.named);
    Compiled {
        snapshot,
        origins,
        services,
        secrets: secrets(&resources),
        diagnostics: report.finish(),
        passed_over: resources.passed_over,
        resources: resources.count,
        documents,
    }
}

/// A list that takes no more room than it needs, for what is kept by the ten thousands: one whose length is not known
/// before has room for four.
fn tight<T>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut list: Vec<T> = items.collect();
    list.shrink_to_fit();
    list
}

/// The values of Secrets. Of two with one name the first counts.
fn secrets(resources: &resource::Resources) -> Secrets {
    let mut secrets = Secrets::new();
    for resource::Written { meta, spec } in &resources.secrets {
        let id = (meta.namespace.clone(), meta.name.clone());
        secrets.entry(id).or_insert_with(|| {
            let values = spec.values.iter();
            values
                .filter_map(|(key, value)| Some((key.clone(), value.clone()?)))
                .collect()
        });
    }
    secrets
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    /// The acceptance corpus. Without it a test says so loudly, and fails where CI is set.
    pub(crate) fn corpus() -> Option<PathBuf> {
        let given = std::env::var_os("ISTHMUS_CORPUS").map(PathBuf::from);
        let path = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"));
        if path.is_dir() {
            return Some(path);
        }
        eprintln!("NOT RUN: there is no corpus at {}", path.display());
        assert!(std::env::var_os("CI").is_none(), "the corpus must be there in CI");
        None
    }
}
