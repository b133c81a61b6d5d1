//! An explanation as text for a terminal: what happens first, then the way there, then why not otherwise.

use super::{Explanation, PassedShown, ValueOrigin, ValueShown};
use crate::Place;
use crate::diagnostic::printable;
use std::fmt::Write as _;

/// Most rules before the one that decides that are shown; JSON has more.
const PASSED_SHOWN: usize = 20;
/// Most endpoints of one destination that are shown.
const ENDPOINTS_SHOWN: usize = 16;
/// Width of what stands before a line's text.
const LABEL: usize = 13;

struct Text {
    out: String,
    color: bool,
}

/// The text; with `color` for a terminal that has it.
pub fn render(found: &Explanation, color: bool) -> String {
    let mut text = Text {
        out: String::new(),
        color,
    };
    text.head(found);
    text.way(found);
    for destination in &found.destinations {
        text.destination(destination, found.outcome.kind == "forward");
    }
    text.passed(found);
    if !found.notes.is_empty() {
        text.out.push_str("\nwhat may help\n");
        for note in &found.notes {
            let _infallible = writeln!(text.out, "  {}", printable(note));
        }
    }
    text.out
}

fn place(place: &Place) -> String {
    format!("{}:{}:{}", place.file, place.line, place.column)
}

fn at(found: Option<&Place>) -> String {
    found.map(place).unwrap_or_default()
}

impl Text {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.color && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// A line `label  text  where`.
    fn line(&mut self, label: &str, text: &str, origin: &str) {
        let label = self.paint("1", &format!("{:<LABEL$}", printable(label)));
        let mut line = format!("{label} {}", printable(text));
        if !origin.is_empty() {
            let origin = self.paint("2", &printable(origin));
            let _infallible = write!(line, "  {origin}");
        }
        self.out.push_str(line.trim_end());
        self.out.push('\n');
    }

    fn head(&mut self, found: &Explanation) {
        let request = &found.request;
        let _infallible = writeln!(self.out, "{} {}", request.method, printable(&request.url));
        let outcome = &found.outcome;
        let mut line = String::new();
        if let Some(status) = outcome.status {
            let _infallible = write!(line, "{status} ");
        }
        if outcome.flags != "-" {
            let _infallible = write!(line, "{} ", outcome.flags);
        }
        line.push_str(&outcome.text);
        let code = if outcome.routed { "32" } else { "31" };
        let line = self.paint(code, &printable(&line));
        let _infallible = writeln!(self.out, "-> {line}\n");
        if let Some(location) = &outcome.location {
            self.line("location", location, "");
        }
        if let Some(body) = outcome.body.as_ref().filter(|body| !body.is_empty()) {
            self.line("body", &format!("{body:?}"), "");
        }
    }

    fn way(&mut self, found: &Explanation) {
        if let Some(listener) = &found.listener {
            let bind = listener
                .bind
                .as_ref()
                .map_or(String::new(), |bind| format!(" at {bind}"));
            self.line(
                "listener",
                &format!("port {}{bind}, {}", listener.port, listener.accepts),
                "",
            );
        }
        if let Some(chain) = &found.chain {
            let sni = found.request.sni.as_deref().unwrap_or("none");
            self.line(
                "name",
                &format!("{sni}, by {} of {}", chain.name, chain.server),
                "",
            );
        }
        for server in &found.servers {
            let text = format!(
                "Gateway {}, servers[{}] {} {}, hosts {}",
                server.gateway,
                server.server,
                server.protocol,
                server.port_name,
                server.hosts.join(", ")
            );
            self.line("server", &text, &at(server.at.as_ref()));
        }
        if let Some(host) = &found.virtual_host {
            let plural = if host.routes == 1 { "" } else { "s" };
            let text = format!(
                "{}, by {}, {} route{plural}",
                found.request.host, host.domain, host.routes
            );
            self.line("virtual host", &text, "");
        }
        if let Some(rule) = &found.rule {
            let mut text = format!("{}, {}", rule.resource, rule.field);
            if !rule.name.is_empty() {
                let _infallible = write!(text, ", named {}", rule.name);
            }
            self.line("rule", &text, &at(rule.at.as_ref()));
            if let Some(delegated) = &rule.delegated_at {
                let text = format!("by VirtualService {}", rule.virtual_service);
                self.line("  delegated", &text, &place(delegated));
            }
            if rule.conditions.is_empty() {
                let what = if found.outcome.kind == "bytes" {
                    "connection"
                } else {
                    "request"
                };
                self.line("  match", &format!("every {what}"), "");
            }
            for condition in &rule.conditions {
                self.line("  match", condition, "");
            }
        }
        self.values("", &found.values);
    }

    fn values(&mut self, label: &str, values: &[ValueShown]) {
        for value in values {
            let origin = match &value.origin {
                ValueOrigin::Written(written) => place(written),
                ValueOrigin::Default { default } => format!("default ({default})"),
            };
            let note = if value.executed { "" } else { " (not executed yet)" };
            let text = format!("{}: {}{note}", value.name, value.value);
            self.line(&format!("  {label}"), &text, &origin);
        }
    }

    fn destination(&mut self, found: &super::DestinationShown, is_request: bool) {
        let text = format!("{}, weight {} ({} %)", found.cluster, found.weight, found.percent);
        self.line("destination", &text, &at(found.at.as_ref()));
        if is_request {
            self.line("  gets", &format!("{} for {}", found.path, found.authority), "");
        }
        self.values("", &found.values);
        for (service, written) in &found.services {
            self.line("  service", service, &at(written.as_ref()));
        }
        self.values("policy", &found.policy);
        if let Some(problem) = &found.problem {
            let label = self.paint("1", &format!("{:<LABEL$}", "  problem"));
            let problem = self.paint("31", &printable(problem));
            let _infallible = writeln!(self.out, "{label} {problem}");
        }
        let discovery = &found.compiled["cluster"]["discovery"];
        for named in discovery["names"].as_array().into_iter().flatten() {
            let text = format!(
                "{}:{}, by {}",
                named["name"].as_str().unwrap_or(""),
                named["port"],
                discovery["resolution"].as_str().unwrap_or("")
            );
            self.line("  name", &text, "");
        }
        for endpoint in found.endpoints.iter().take(ENDPOINTS_SHOWN) {
            let mut text = endpoint["address"].as_str().unwrap_or("").to_owned();
            if let Some(weight) = endpoint["weight"].as_u64().filter(|weight| *weight != 1) {
                let _infallible = write!(text, ", weight {weight}");
            }
            if let Some(locality) = endpoint["locality"].as_str().filter(|text| !text.is_empty()) {
                let _infallible = write!(text, ", in {locality}");
            }
            // Whatever a running gateway knows of it, by the names of its admin API.
            for (name, value) in endpoint["live"].as_object().into_iter().flatten() {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let _infallible = write!(text, ", {} {value}", name.replace('_', " "));
            }
            self.line("  endpoint", &text, "");
        }
        let more = found.endpoints.len().saturating_sub(ENDPOINTS_SHOWN);
        if more > 0 {
            self.line("  endpoint", &format!("and {more} more"), "");
        }
    }

    fn passed(&mut self, found: &Explanation) {
        if found.passed_over.is_empty() {
            return;
        }
        self.out.push_str(if found.rule.is_some() {
            "\nrules before it\n"
        } else {
            "\nrules that do not take it\n"
        });
        let shown = nearest_of(&found.passed_over);
        let count = shown.len();
        for passed in shown {
            let rule = &passed.rule;
            let name = if rule.name.is_empty() {
                String::new()
            } else {
                format!(", named {}", rule.name)
            };
            let origin = self.paint("2", &printable(&at(rule.at.as_ref())));
            let line = format!("  {}, {}{name}", rule.resource, rule.field);
            let line = format!("{}  {origin}", printable(&line));
            let reason = printable(&passed.reason);
            let _infallible = writeln!(self.out, "{}\n    {reason}", line.trim_end());
        }
        let more = found.passed_over.len() - count + found.passed_over_more;
        if more > 0 {
            let _infallible = writeln!(self.out, "  and {more} more, which -o json has");
        }
    }
}

/// All, or of many those whose path fits, and the last of the others, in order.
fn nearest_of(all: &[PassedShown]) -> Vec<&PassedShown> {
    let near = all.iter().filter(|passed| passed.near).count().min(PASSED_SHOWN);
    let others = all.iter().filter(|passed| !passed.near).count();
    let mut far_to_skip = others.saturating_sub(PASSED_SHOWN - near);
    let mut near_left = near;
    all.iter()
        .filter(|passed| {
            if passed.near {
                let takes = near_left > 0;
                near_left = near_left.saturating_sub(1);
                takes
            } else {
                let takes = far_to_skip == 0;
                far_to_skip = far_to_skip.saturating_sub(1);
                takes
            }
        })
        .collect()
}
