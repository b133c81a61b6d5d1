//! What is told of a request that nothing takes: what is there in its place, and what the compiler said.

use super::build::{Builder, NOTES_MAX, PASSED_MAX, outcome, with_rule};
use super::documents::{At, written};
use super::{Outcome, PassedShown, RuleShown};
use crate::diagnostic::{Severity, nearest};
use crate::index::GatewayName;
use crate::view;
use crate::yaml::{Node, Path};
use isthmus_core::listener::{Accepts, Listener, ListenerKey};
use isthmus_core::name::HostPattern;
use isthmus_core::reply::Cause;
use isthmus_core::route::VirtualHost;

/// Findings of the compiler that say why something is not there.
const ABSENT: [&str; 13] = [
    "delegate-conflict",
    "duplicate-sni",
    "gateway-conflict",
    "mesh-only",
    "no-route",
    "not-exported",
    "not-selected",
    "port-conflict",
    "unknown-delegate",
    "unknown-gateway",
    "unknown-host",
    "unknown-subset",
    "unserved-host",
];

/// Most documents that are read for rules that are nowhere: a running gateway explains on its control thread.
const DOCUMENTS_READ_MAX: usize = 500;
/// What a rule for whole connections may ask of clients.
const SOURCES: [&str; 3] = ["sourceSubnet", "sourceLabels", "sourceNamespace"];

/// A match of a rule for whole connections.
struct Stream {
    at: At,
    /// `tls` or `tcp`.
    list: &'static str,
    rule: usize,
    matched: Option<usize>,
}

impl<'a> Builder<'a> {
    pub(super) fn refused(&mut self, listener: &'a Listener, host: Option<&VirtualHost>, cause: Cause) {
        let is_connection = matches!(cause, Cause::NoChain) || (cause == Cause::NoRoute && host.is_none());
        let text = match (cause, is_connection) {
            (Cause::NoChain, _) => match &self.out.request.sni {
                Some(name) => format!(
                    "no server of port {} has the name {name}: the handshake ends",
                    listener.key.port
                ),
                None => format!(
                    "no server of port {} takes clients that ask for no name, as the host `*` would: the handshake ends",
                    listener.key.port
                ),
            },
            (_, true) => "no rule for whole connections applies: the connection is closed".to_owned(),
            _ => cause.text().trim_end().to_owned(),
        };
        self.out.outcome = Outcome {
            status: (!is_connection).then(|| cause.status().as_u16()),
            flags: cause.flag().to_string(),
            cause: Some(cause.label().to_owned()),
            ..outcome("refused", text)
        };
        if is_connection {
            self.add_streams(listener);
        }
        match cause {
            Cause::NoChain => self.note_names(listener),
            Cause::NoVirtualHost => self.note_hosts(listener),
            Cause::Misdirected => self.note_misdirected(listener),
            _ => {}
        }
    }

    pub(super) fn no_listener(&mut self) {
        let port = self.asked.port.unwrap_or(self.asked.scheme.default_port());
        let text = match &self.asked.gateway {
            None => format!("no port {port} is open: connections are refused"),
            Some(gateway) => format!("the Gateway {gateway} opens no port {port} that is meant"),
        };
        self.out.outcome = outcome("no_listener", text);
        let open: Vec<String> = self
            .known
            .snapshot
            .listeners
            .iter()
            .take(NOTES_MAX)
            .map(|listener| format!("{} ({})", listener.key.port, view::transport(&listener.accepts)))
            .collect();
        self.out.notes.push(if open.is_empty() {
            "no port is open at all".to_owned()
        } else {
            format!("open ports are {}; --port chooses one", open.join(", "))
        });
    }

    /// The rules for whole connections, each with the reason why it does not take this one: those of the port, those of
    /// other ports, and those that are nowhere.
    fn add_streams(&mut self, listener: &Listener) {
        let here = &listener.key;
        // Elsewhere only those that a connection of its kind could mean.
        let list = match listener.accepts {
            Accepts::Tls(_) => "tls",
            Accepts::Http | Accepts::Tcp(_) => "tcp",
        };
        let streams = self.known.origins.streams.iter();
        let mut compiled: Vec<_> = streams
            .filter(|((key, _), origin)| key == here || origin.list == list)
            .collect();
        compiled.sort_by_key(|((key, chain), _)| (key != here, key.clone(), *chain));
        for ((key, _), origin) in &compiled {
            let rule = Stream {
                at: At::from(&origin.origin),
                list: origin.list,
                rule: origin.rule,
                matched: origin.matched,
            };
            if self.out.passed_over.len() >= PASSED_MAX {
                // Reasons take reading: those that nobody sees are counted only.
                self.out.passed_over_more += 1;
                continue;
            }
            let reason = self.why_not(&rule, key, here);
            self.pass_stream(&rule, reason, key == here);
        }
        let is_compiled = |rule: &Stream| {
            compiled.iter().any(|(_, origin)| {
                (At::from(&origin.origin), origin.list, origin.rule) == (rule.at, rule.list, rule.rule)
                    && (origin.matched.is_none() || origin.matched == rule.matched)
            })
        };
        for rule in self.written_streams() {
            if rule.list == list && !is_compiled(&rule) {
                let reason = self.why_nowhere(&rule, here);
                self.pass_stream(&rule, reason, false);
            }
        }
    }

    /// Every match of a rule for whole connections that is written anywhere, if it is not too much to read.
    fn written_streams(&mut self) -> Vec<Stream> {
        let mut found = Vec::new();
        let documents = self.known.origins.documents.len();
        if documents > DOCUMENTS_READ_MAX {
            return found;
        }
        for document in 0..documents {
            let whole = At { document, item: None };
            let items = self.documents.node(whole, &Path::Root.key("items"));
            let items = items.map(|node| node.items().len());
            let resources: Vec<At> = match items {
                None => vec![whole],
                Some(items) => (0..items)
                    .map(|item| At {
                        document,
                        item: Some(item),
                    })
                    .collect(),
            };
            for at in resources {
                let kind = self.documents.node(at, &Path::Root.key("kind"));
                if kind.and_then(Node::as_text) != Some("VirtualService") {
                    continue;
                }
                for list in ["tls", "tcp"] {
                    let rules = self.documents.node(at, &Path::SPEC.key(list));
                    for (rule, node) in rules.map_or(&[][..], Node::items).iter().enumerate() {
                        let matches = node.list("match").len();
                        let each = (0..matches).map(Some);
                        let each = each.chain((matches == 0).then_some(None));
                        found.extend(each.map(|matched| Stream {
                            at,
                            list,
                            rule,
                            matched,
                        }));
                    }
                }
            }
        }
        found
    }

    fn pass_stream(&mut self, rule: &Stream, reason: String, near: bool) {
        if self.out.passed_over.len() >= PASSED_MAX {
            self.out.passed_over_more += 1;
            return;
        }
        let resource = self.documents.resource(rule.at);
        let virtual_service = resource.split_once(' ').map_or("", |(_, name)| name).to_owned();
        let (field, at) = with_rule(rule.list, rule.rule, rule.matched, |path| {
            (path.to_string(), self.documents.place(rule.at, path))
        });
        let rule = RuleShown {
            virtual_service,
            resource,
            field,
            name: String::new(),
            at,
            delegated_at: None,
            conditions: Vec::new(),
        };
        self.out.passed_over.push(PassedShown { rule, reason, near });
    }

    fn matched_node(&mut self, rule: &Stream) -> Node {
        let node = with_rule(rule.list, rule.rule, rule.matched, |path| {
            self.documents.node(rule.at, path).cloned()
        });
        node.unwrap_or(Node::Null)
    }

    /// Why a rule of a port does not take the connection.
    fn why_not(&mut self, rule: &Stream, key: &ListenerKey, here: &ListenerKey) -> String {
        let node = self.matched_node(rule);
        let names = node.texts("sniHosts");
        let is_of = |name: &str| {
            names
                .iter()
                .any(|host| HostPattern::parse(&host.to_ascii_lowercase()).matches(name))
        };
        if rule.list == "tls" {
            let all = names.join(", ");
            match &self.out.request.sni {
                None => return format!("it is for the names {all}, and the client asks TLS for none"),
                Some(name) if !is_of(name) => return format!("its sniHosts are {all}, and not {name}"),
                Some(_) => {}
            }
        }
        if key != here {
            let bind = key.bind.map_or(String::new(), |bind| format!(" at {bind}"));
            return format!("it is on port {}{bind}, and this is port {}", key.port, here.port);
        }
        let matches = if rule.matched.is_some() {
            vec![node]
        } else {
            node.list("match").to_vec()
        };
        let asked: Vec<String> = SOURCES
            .iter()
            .flat_map(|key| matches.iter().filter_map(move |node| Some((key, node.get(key)?))))
            .map(|(key, node)| format!("{key} {}", written(node)))
            .collect();
        if asked.is_empty() {
            "an earlier rule takes its connections".to_owned()
        } else {
            format!("it is for clients with {}", asked.join(" or "))
        }
    }

    /// Why a rule is on no port.
    fn why_nowhere(&mut self, rule: &Stream, here: &ListenerKey) -> String {
        let of_port: Vec<(usize, String)> = self
            .known
            .origins
            .servers
            .iter()
            .filter(|server| server.listener == *here)
            .map(|server| (server.gateway_at, server.gateway.clone()))
            .collect();
        let bound = self.documents.node(rule.at, &Path::SPEC);
        let bound = bound.map_or(Vec::new(), |spec| spec.texts("gateways"));
        let resource = self.documents.resource(rule.at);
        let id = resource.split_once(' ').map_or("", |(_, id)| id);
        let namespace = id.split('/').next().unwrap_or("");
        let is_bound = bound.iter().any(|name| {
            GatewayName::parse(name, namespace).is_some_and(|name| {
                matches!(name, GatewayName::Named { id, .. } if of_port.iter().any(|(_, own)| *own == id))
            })
        });
        if !is_bound {
            let own: Vec<&str> = of_port.iter().map(|(_, own)| own.as_str()).collect();
            let bound = if bound.is_empty() {
                "no Gateway".to_owned()
            } else {
                bound.join(", ")
            };
            return format!(
                "its VirtualService is bound to {bound}, and port {} is of {}",
                here.port,
                own.join(", ")
            );
        }
        let node = self.matched_node(rule);
        let gateway = of_port.first().map_or(usize::MAX, |(at, _)| *at);
        self.why_left_out(&node, gateway, false)
    }

    fn note_list<'p>(&mut self, what: &str, wanted: &str, patterns: impl Iterator<Item = &'p HostPattern>) {
        let all: Vec<String> = patterns.map(ToString::to_string).collect();
        if let Some(near) = nearest(wanted, all.iter().map(String::as_str)) {
            self.out.notes.push(format!("the nearest {what} is {near}"));
        }
        let shown = all
            .iter()
            .take(NOTES_MAX)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let more = all.len().saturating_sub(NOTES_MAX);
        let rest = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        self.out.notes.push(if all.is_empty() {
            format!("there is no {what} at all")
        } else {
            format!("each {what} there is: {shown}{rest}")
        });
    }

    fn note_names(&mut self, listener: &'a Listener) {
        if let Accepts::Tls(names) = &listener.accepts {
            let wanted = self.out.request.sni.clone().unwrap_or_default();
            self.note_list("name", &wanted, names.names().iter().map(|(pattern, _)| pattern));
        }
    }

    fn note_hosts(&mut self, listener: &'a Listener) {
        let wanted = self.head.host.clone();
        let lets_in: Vec<String> = self
            .known
            .origins
            .servers
            .iter()
            .filter(|server| server.listener == listener.key)
            .filter(|server| server.hosts.iter().any(|host| host.matches(&wanted)))
            .map(|server| server.gateway.clone())
            .take(NOTES_MAX)
            .collect();
        self.out.notes.push(if lets_in.is_empty() {
            format!(
                "no server of a Gateway on port {} has the host {wanted:?}",
                listener.key.port
            )
        } else {
            format!(
                "{} would let {wanted:?} in, and no VirtualService that is bound there has it",
                lets_in.join(", ")
            )
        });
        let tables = listener.tables.iter().flat_map(|table| table.virtual_hosts());
        self.note_list("host", &wanted, tables.flat_map(|host| &host.domains));
    }

    fn note_misdirected(&mut self, listener: &'a Listener) {
        let Accepts::Tls(names) = &listener.accepts else {
            return;
        };
        let found = names
            .find(Some(&self.head.host))
            .and_then(|at| names.chains().get(at));
        if let Some(chain) = found {
            let note = format!(
                "the authority {} belongs to the server {}, and the connection to {}: their certificates or policies \
                 differ, so the client must open another connection",
                self.head.authority,
                chain.server,
                self.out.chain.as_ref().map_or("", |chain| chain.server.as_str())
            );
            self.out.notes.push(note);
        }
    }

    /// What the compiler said about what is not there.
    pub(super) fn add_findings(&mut self) {
        let found = self.known.diagnostics.iter();
        let telling = found.filter(|found| found.severity == Severity::Error || ABSENT.contains(&found.name));
        let notes: Vec<String> = telling
            .take(NOTES_MAX)
            .map(|found| match &*found.resource {
                "" => found.to_string(),
                resource => format!("{found} ({resource})"),
            })
            .collect();
        self.out.notes.extend(notes);
    }
}
