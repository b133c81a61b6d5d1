//! What is told of a request that nothing takes: what is there in its place, and what the compiler said.

use super::Outcome;
use super::build::{Builder, NOTES_MAX, outcome};
use crate::diagnostic::{Severity, nearest};
use crate::view;
use isthmus_core::listener::{Accepts, Listener};
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
