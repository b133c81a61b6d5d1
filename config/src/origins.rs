//! Where the routes of a snapshot were written: a side table for whoever explains a decision, so that the snapshot
//! itself, which shards hold, knows nothing of files.

use crate::Source;
use crate::diagnostic::{Diagnostic, Severity};
use crate::report::{DocumentPlace, Origin};
use crate::yaml::Path;
use isthmus_core::listener::ListenerKey;
use isthmus_core::tls::ServerTls;
use std::collections::HashMap;
use std::sync::Arc;

/// A rule in its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RouteOrigin {
    pub(crate) own: RuleOrigin,
    /// The rule that delegates to it.
    pub(crate) root: Option<RuleOrigin>,
}

/// By listener and table, virtual host and route.
pub(crate) type RouteOrigins = HashMap<(ListenerKey, usize), Vec<Vec<RouteOrigin>>>;

/// A place that asks for keys.
#[derive(Debug, Clone)]
pub(crate) struct TlsUse {
    pub(crate) server: Arc<ServerTls>,
    pub(crate) origin: Origin,
    /// Position in `spec.servers`.
    pub(crate) at: usize,
}

impl TlsUse {
    pub(crate) fn server(server: Arc<ServerTls>, origin: &Origin, at: usize) -> Self {
        Self {
            server,
            origin: origin.clone(),
            at,
        }
    }
}

/// A place in a file, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub(crate) tls: Vec<TlsUse>,
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

    /// What servers present and demand, in the order of the resources.
    pub fn servers(&self) -> impl Iterator<Item = &Arc<ServerTls>> {
        self.tls.iter().map(|found| &found.server)
    }

    /// What is wrong with the keys of a server, by its position in [`Self::servers`]: a problem of its `tls`.
    pub fn server_problem(
        &self,
        sources: &[Source],
        server: usize,
        severity: Severity,
        code: &'static str,
        message: String,
    ) -> Option<Diagnostic> {
        let found = self.tls.get(server)?;
        let document = self.documents.get(found.origin.document)?;
        let source = sources.get(document.source)?;
        let list = Path::SPEC.key("servers");
        let server = list.index(found.at);
        let path = server.key("tls");
        let (line, column) = document.locate(&source.text, found.origin.item, &path)?;
        Some(Diagnostic {
            severity,
            code,
            file: source.name.clone(),
            line,
            column,
            resource: found.origin.resource.to_string(),
            field: path.to_string(),
            message,
            help: None,
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
