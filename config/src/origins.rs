//! Where the parts of a snapshot were written: a side table for whoever explains a decision, so that the snapshot
//! itself, which shards hold, knows nothing of files.

use crate::diagnostic::{Diagnostic, Severity, code_of};
use crate::report::{DocumentPlace, Origin};
use crate::yaml::Path;
use crate::{Options, Source};
use isthmus_core::listener::ListenerKey;
use isthmus_core::name::{ClusterMap, HostPattern};
use isthmus_core::tls::{CaSource, ClientTls, CredentialName, KeySource, ServerTls};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// In place of the position of a rule: what follows from a resource as a whole.
pub(crate) const WHOLE_RESOURCE: usize = usize::MAX;

/// A rule in its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RuleOrigin {
    /// Position among the documents of the run.
    pub(crate) document: usize,
    /// Position among the items, when the document is a Kubernetes List.
    pub(crate) item: Option<usize>,
    /// Position in `spec.http`.
    pub(crate) rule: usize,
    /// Position in `match`, when it is one match of the rule as written.
    pub(crate) matched: Option<usize>,
}

/// Where one route comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RouteOrigin {
    pub(crate) own: RuleOrigin,
    /// The rule that delegates to it.
    pub(crate) root: Option<RuleOrigin>,
    /// The Gateway that it was compiled for: [`ServerOrigin::gateway_at`].
    pub(crate) gateway: usize,
}

/// By listener and table, virtual host and route.
pub(crate) type RouteOrigins = HashMap<(ListenerKey, usize), Vec<Vec<RouteOrigin>>>;

/// A rule for bytes in its document.
#[derive(Debug, Clone)]
pub(crate) struct StreamOrigin {
    pub(crate) origin: Origin,
    /// `tcp` or `tls`.
    pub(crate) list: &'static str,
    /// Position in that list of the spec.
    pub(crate) rule: usize,
    /// Position in its `match`.
    pub(crate) matched: Option<usize>,
}

impl StreamOrigin {
    pub(crate) fn new(origin: &Origin, list: &'static str, rule: usize, matched: Option<usize>) -> Self {
        Self {
            origin: origin.clone(),
            list,
            rule,
            matched,
        }
    }
}

/// By listener, and by chain on a TLS port.
pub(crate) type StreamOrigins = HashMap<(ListenerKey, Option<usize>), StreamOrigin>;

/// A server of a Gateway that opens a listener, or is one of several on it.
#[derive(Debug, Clone)]
pub(crate) struct ServerOrigin {
    pub(crate) listener: ListenerKey,
    /// Position of its Gateway among all.
    pub(crate) gateway_at: usize,
    /// `namespace/name` of it.
    pub(crate) gateway: String,
    /// Position in `spec.servers`.
    pub(crate) server: usize,
    pub(crate) port_name: String,
    pub(crate) protocol: String,
    /// Without their namespaces.
    pub(crate) hosts: Vec<HostPattern>,
    pub(crate) origin: Origin,
}

/// A traffic policy in its document.
#[derive(Debug, Clone)]
pub(crate) struct PolicyPlace {
    pub(crate) origin: Origin,
    /// Position in `spec.subsets`, if it is a subset's.
    pub(crate) subset: Option<usize>,
    /// Position in its `portLevelSettings`, if it is a port's.
    pub(crate) port: Option<usize>,
}

/// What a cluster follows from.
#[derive(Debug, Clone)]
pub(crate) struct ClusterOrigin {
    /// The resources that describe its service.
    pub(crate) services: Vec<Origin>,
    /// The policies that apply: each block is that of the first that has it.
    pub(crate) policies: Vec<PolicyPlace>,
    /// The HealthCheckPolicy of its endpoints.
    pub(crate) health: Option<Origin>,
}

/// A place that asks for keys.
#[derive(Debug, Clone)]
pub(crate) struct TlsUse {
    pub(crate) asked: TlsAsked,
    pub(crate) origin: Origin,
    pub(crate) place: TlsPlace,
}

/// What a place asks for.
#[derive(Debug, Clone)]
pub enum TlsAsked {
    /// `servers[].tls` of a Gateway.
    Server(Arc<ServerTls>),
    /// `tls` of a DestinationRule.
    Client(Arc<ClientTls>),
}

/// What is wrong with keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyProblem {
    /// No credential has the name.
    NotFound,
    /// They cannot be used.
    Unusable,
    /// They are used nonetheless.
    Doubtful,
}

impl TlsAsked {
    /// The field that names what a message is about, and the credential if it is one: a file whose path is in the
    /// message, else what the keys come from.
    fn named_in(&self, message: &str) -> (Option<&'static str>, Option<&CredentialName>) {
        let (keys, ca, crl, certificate) = match self {
            Self::Server(policy) => {
                let ca = policy.ca.as_ref();
                (&policy.keys[..], ca, policy.crl.as_deref(), "serverCertificate")
            }
            Self::Client(policy) => {
                let ca = Some(&policy.ca);
                (
                    policy.key.as_slice(),
                    ca,
                    policy.crl.as_deref(),
                    "clientCertificate",
                )
            }
        };
        let mut files = Vec::new();
        let mut credential = None;
        for key in keys {
            match key {
                KeySource::Files {
                    certificate: chain,
                    key,
                } => files.extend([(&**key, "privateKey"), (&**chain, certificate)]),
                KeySource::Credential(name) => {
                    credential.get_or_insert((name, "credentialName"));
                }
            }
        }
        match ca {
            Some(CaSource::File(file)) => files.push((file, "caCertificates")),
            // An authority of its own, when the keys come from elsewhere.
            Some(CaSource::Credential(name)) if credential.is_none_or(|(known, _)| known != name) => {
                let about = message.contains(&*name.name);
                if about || credential.is_none() {
                    let field = match (self, credential) {
                        (Self::Client(_), None) => "credentialName",
                        _ => "caCertCredentialName",
                    };
                    credential = Some((name, field));
                }
            }
            _ => {}
        }
        files.extend(crl.map(|file| (file, "caCrl")));
        let file = files
            .into_iter()
            .find(|(path, _)| !path.is_empty() && message.contains(path));
        match (file, credential) {
            (Some((_, field)), _) => (Some(field), None),
            (None, Some((name, field))) => (Some(field), Some(name)),
            (None, None) => (None, None),
        }
    }
}

/// Where in its resource a `tls` is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TlsPlace {
    /// Position in `spec.servers`.
    Server(usize),
    /// In a traffic policy: position in `spec.subsets` if it is a subset's, and in its `portLevelSettings` if it is a
    /// port's.
    Policy(Option<usize>, Option<usize>),
}

/// A place in a file, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Origins {
    pub(crate) documents: Vec<DocumentPlace>,
    /// As in the snapshot.
    pub(crate) routes: RouteOrigins,
    pub(crate) streams: StreamOrigins,
    pub(crate) servers: Vec<ServerOrigin>,
    pub(crate) clusters: Arc<ClusterMap<ClusterOrigin>>,
    pub(crate) tls: Vec<TlsUse>,
    /// Secrets that are left out for their errors, by namespace and name.
    pub(crate) refused_secrets: HashSet<(String, String)>,
    /// What was compiled with: where defaults come from.
    pub(crate) options: Options,
}

impl Origins {
    /// Where a route was written, and, when its rule is a delegate's, where the rule was that delegates to it. `table`,
    /// `host` and `route` are positions in the listener and its table, `sources` what was compiled.
    pub fn of_route(
        &self,
        sources: &[Source],
        (listener, table): (&ListenerKey, usize),
        host: usize,
        route: usize,
    ) -> Vec<Place> {
        let found = self
            .routes
            .get(&(listener.clone(), table))
            .and_then(|hosts| hosts.get(host)?.get(route));
        let rules = found.map(|origin| std::iter::once(origin.own).chain(origin.root));
        rules
            .into_iter()
            .flatten()
            .filter_map(|rule| self.place(sources, rule))
            .collect()
    }

    /// What servers and upstreams' clients present and demand, in the order of the resources.
    pub fn tls(&self) -> impl Iterator<Item = &TlsAsked> {
        self.tls.iter().map(|found| &found.asked)
    }

    /// A warning about the keys of a `tls`, by its position in [`Self::tls`]. It points at the field that names what the
    /// message is about.
    pub fn tls_problem(
        &self,
        sources: &[Source],
        at: usize,
        problem: KeyProblem,
        message: String,
        help: &str,
    ) -> Option<Diagnostic> {
        let found = self.tls.get(at)?;
        let document = self.documents.get(found.origin.document)?;
        let source = sources.get(document.source)?;
        let (servers, subsets) = (Path::SPEC.key("servers"), Path::SPEC.key("subsets"));
        let outer = match found.place {
            TlsPlace::Server(at) => servers.index(at),
            TlsPlace::Policy(Some(subset), _) => subsets.index(subset),
            TlsPlace::Policy(None, _) => Path::SPEC,
        };
        let policy = match found.place {
            TlsPlace::Server(_) => None,
            TlsPlace::Policy(..) => Some(outer.key("trafficPolicy")),
        };
        let within = policy.as_ref().unwrap_or(&outer);
        let ports = within.key("portLevelSettings");
        let port = match found.place {
            TlsPlace::Policy(_, Some(port)) => Some(ports.index(port)),
            _ => None,
        };
        let tls = port.as_ref().unwrap_or(within).key("tls");
        let (field, credential) = found.asked.named_in(&message);
        let refused = |name: &CredentialName| {
            let id = (name.namespace.to_string(), name.name.to_string());
            self.refused_secrets.contains(&id)
        };
        let code = match (problem, credential) {
            (KeyProblem::NotFound, Some(name)) if refused(name) => "bad-credential",
            (KeyProblem::NotFound, _) => "unknown-credential",
            (_, Some(_)) => "bad-credential",
            (KeyProblem::Unusable, None) => "keys-unusable",
            (KeyProblem::Doubtful, None) => "keys-doubtful",
        };
        let inner = field.map(|field| tls.key(field));
        let path = inner.as_ref().unwrap_or(&tls);
        let (line, column) = document.locate(&source.text, found.origin.item, path)?;
        Some(Diagnostic {
            severity: Severity::Warning,
            code: code_of(code),
            name: code,
            file: source.name.clone(),
            line,
            column,
            resource: found.origin.resource.to_string(),
            field: path.to_string(),
            message,
            help: Some(help.to_owned()),
            related: Vec::new(),
        })
    }

    fn place(&self, sources: &[Source], origin: RuleOrigin) -> Option<Place> {
        let document = self.documents.get(origin.document)?;
        let source = sources.get(document.source)?;
        let rules = Path::SPEC.key("http");
        let rule = rules.index(origin.rule);
        let matches = rule.key("match");
        let (line, column) = match origin.matched {
            Some(at) => document.locate(&source.text, origin.item, &matches.index(at)),
            None => document.locate(&source.text, origin.item, &rule),
        }?;
        Some(Place {
            file: source.name.clone(),
            line,
            column,
        })
    }
}
