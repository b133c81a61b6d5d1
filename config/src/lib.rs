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
mod cache;
mod compile;
pub mod diagnostic;
pub mod diff;
pub mod explain;
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
mod validate;
pub mod view;
mod yaml;

pub use cache::Cache;
pub use judge::{SecretAsked, SecretJudge};
pub use origins::{KeyProblem, Origins, Place, TlsAsked};
pub use resource::schema::{FieldInfo, KINDS, Status, feature_table, fields, mesh_fields, own_fields};
pub use sarif::to_sarif;

use diagnostic::{Diagnostic, Severity};
use isthmus_core::cluster::locality::Locality;
use isthmus_core::snapshot::Snapshot;
use services::Services;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The text of one file.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name in diagnostics.
    pub name: String,
    /// Its content.
    pub text: String,
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
    pub services: Services,
    /// Secrets among the documents, by namespace and name: their values by key.
    pub secrets: Secrets,
    /// Everything that is worth saying, in the order of the files.
    pub diagnostics: Vec<Diagnostic>,
    /// Documents of kinds that a gateway does not execute, by kind.
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

/// Reads files, and directories with all that is below them, whose names end in `.yaml`, `.yml` or `.json`, in the
/// order of their names. An error names its path.
pub fn read_paths(paths: &[PathBuf]) -> std::io::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in paths {
        read_path(path, true, &mut sources).map_err(|(path, error)| {
            std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
    }
    Ok(sources)
}

type PathError = (PathBuf, std::io::Error);

/// `given` is true for what the operator named, which is read whatever its name.
fn read_path(path: &Path, given: bool, sources: &mut Vec<Source>) -> Result<(), PathError> {
    let with_path = |error| (path.to_owned(), error);
    if std::fs::metadata(path).map_err(with_path)?.is_dir() {
        let entries: Result<Vec<_>, _> = std::fs::read_dir(path).map_err(with_path)?.collect();
        let mut entries = entries.map_err(with_path)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            // Kubernetes mounts keep their versions in `..data` and its like, beside links to the current files.
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            // A link to a directory could lead back here.
            let linked_directory =
                entry.file_type().is_ok_and(|kind| kind.is_symlink()) && entry.path().is_dir();
            if !hidden && !linked_directory {
                read_path(&entry.path(), false, sources)?;
            }
        }
        return Ok(());
    }
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or("");
    if given || matches!(extension, "yaml" | "yml" | "json") {
        let bytes = std::fs::read(path).map_err(with_path)?;
        sources.push(Source {
            name: path.display().to_string(),
            text: text_of(bytes),
        });
    }
    Ok(())
}

/// The text of a file. Bytes that are no UTF-8 become a character that no document may have, so that they are reported
/// at their place and spoil their own document only.
fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        let chunks = error.as_bytes().utf8_chunks();
        let chunk = |chunk: std::str::Utf8Chunk<'_>| {
            let mark = if chunk.invalid().is_empty() { "" } else { "\u{1}" };
            format!("{}{mark}", chunk.valid())
        };
        chunks.map(chunk).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn bytes_that_are_no_text_are_an_error_of_their_document() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), b"a: 1\n---\nb: \"\xff\"\n").unwrap();
        let sources = read_paths(&[folder.path().to_owned()]).unwrap();
        let compiled = compile(&sources, &Options::default());
        let places: Vec<_> = compiled
            .diagnostics
            .iter()
            .map(|found| (found.line, found.code))
            .collect();
        // Where the parser says: the line of the marker, or the one behind it.
        assert!(
            matches!(places.last(), Some((2..=3, "syntax"))),
            "{:?}",
            compiled.diagnostics
        );
    }

    #[test]
    fn directories_are_read_in_order_and_errors_name_their_path() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        for name in ["c.yaml", "b/z.json", "a.yml", "a.txt", ".hidden.yaml"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let sources = read_paths(&[folder.path().to_owned()]).unwrap();
        let texts: Vec<&str> = sources.iter().map(|source| source.text.as_str()).collect();
        assert_eq!(texts, ["a.yml", "b/z.json", "c.yaml"]);
        let missing = folder.path().join("missing.yaml");
        let error = read_paths(std::slice::from_ref(&missing)).unwrap_err();
        assert!(error.to_string().contains("missing.yaml"), "{error}");
    }
}
