//! VirtualServices for the same host: which rules come first, and which do not meet at all.

use super::View;
use super::hosts::HostSet;
use crate::diagnostic::Severity;
use crate::index::{MESH, expand, export_to, name_of};
use crate::report::{Finding, Report};
use crate::resource::Written;
use crate::resource::virtual_service::VirtualService;
use crate::yaml::Path;
use isthmus_core::name::HostPattern;
use std::borrow::Cow;
use std::collections::HashMap;

/// Reports VirtualServices that share a host.
pub(crate) fn check(view: &View<'_>, report: &mut Report<'_>) {
    at_gateways(view, report);
    in_the_mesh(view, report);
    elsewhere(view, report);
}

/// The position of the host of a VirtualService that has something in common with a pattern.
fn host_at(written: &Written<VirtualService>, pattern: &HostPattern) -> usize {
    let patterns = written.spec.hosts.iter().map(|host| pattern_of(host, written));
    let mut fitting = patterns.enumerate().filter(|(_, own)| own.overlaps(pattern));
    fitting.next().map_or(0, |(at, _)| at)
}

fn pattern_of(host: &str, written: &Written<VirtualService>) -> HostPattern {
    HostPattern::parse(&expand(host, &written.meta.namespace))
}

/// Says whose rules come first at a gateway.
fn at_gateways(view: &View<'_>, report: &mut Report<'_>) {
    let all = &view.resources.virtual_services;
    let list = Path::SPEC.key("hosts");
    for found in &view.facts.overlaps {
        let (Some(later), Some(first)) = (all.get(found.later), all.get(found.first)) else {
            continue;
        };
        let pattern = &found.pattern;
        let message = format!(
            "the rules for `{pattern}` on port {} come after those of {}",
            found.key.port,
            name_of(&first.meta)
        );
        let help = "the older resource comes first, else the one written first; only rules that take every request \
                    come last of all";
        let related = report.related(
            &first.meta.origin,
            &list.index(host_at(first, pattern)),
            "these rules come first",
        );
        report.tell(Finding {
            help: Some(help.to_owned()),
            related: vec![related],
            ..Finding::new(
                Severity::Hint,
                "shared-host",
                &later.meta.origin,
                &list.index(host_at(later, pattern)),
                message,
            )
        });
    }
}

/// Whether mesh clients are served by a VirtualService.
fn is_for_mesh(written: &Written<VirtualService>) -> bool {
    let spec = &written.spec;
    let mesh = |name: &String| name == MESH;
    !spec.hosts.is_empty() && (spec.gateways.is_empty() || spec.gateways.iter().any(mesh))
}

/// Hosts of VirtualServices that one audience sees: position of the VirtualService and of the host.
#[derive(Default)]
struct Seen {
    names: HashMap<HostPattern, (usize, usize)>,
    wildcards: HostSet<(usize, usize)>,
}

impl Seen {
    /// Who has the same name, or a wildcard with names in common; an exact name and a wildcard are told apart by every
    /// client.
    fn find(&self, pattern: &HostPattern) -> Option<(usize, usize)> {
        match pattern {
            HostPattern::Exact(_) => self.names.get(pattern).copied(),
            _ => self.wildcards.overlapping(pattern),
        }
    }

    fn insert(&mut self, pattern: &HostPattern, at: (usize, usize)) {
        match pattern {
            HostPattern::Exact(_) => {
                self.names.entry(pattern.clone()).or_insert(at);
            }
            _ => self.wildcards.insert(pattern, at),
        }
    }
}

/// Reports VirtualServices that mesh clients of some namespace see for the same host.
fn in_the_mesh(view: &View<'_>, report: &mut Report<'_>) {
    let options = view.context.options;
    let all: Vec<&Written<VirtualService>> = view.virtual_services().collect();
    // Those that every namespace sees, those that any sees, and by namespace.
    let (mut to_all, mut to_any) = (Seen::default(), Seen::default());
    let mut by_namespace: HashMap<&str, Seen> = HashMap::new();
    let list = Path::SPEC.key("hosts");
    for (at, written) in all.iter().enumerate().filter(|(_, written)| is_for_mesh(written)) {
        let Written { meta, spec } = written;
        let shown_to = export_to(&spec.export_to, &options.mesh.virtual_service_export_to);
        let everywhere = shown_to.is_empty() || shown_to.iter().any(|name| name == "*");
        let namespaces = || {
            let names = shown_to.iter().filter(|name| name.as_str() != "~");
            names.map(|name| {
                if name == "." {
                    meta.namespace.as_str()
                } else {
                    name.as_str()
                }
            })
        };
        for (host_at, host) in spec.hosts.iter().enumerate() {
            let pattern = pattern_of(host, written);
            let own = || namespaces().find_map(|name| by_namespace.get(name)?.find(&pattern));
            let first = to_all
                .find(&pattern)
                .or_else(|| if everywhere { to_any.find(&pattern) } else { own() })
                .filter(|(first, _)| *first != at);
            let here = (at, host_at);
            to_any.insert(&pattern, here);
            if everywhere {
                to_all.insert(&pattern, here);
            } else {
                for name in namespaces() {
                    by_namespace.entry(name).or_default().insert(&pattern, here);
                }
            }
            let Some((first, first_host)) = first.and_then(|(at, host)| Some((all.get(at)?, host))) else {
                continue;
            };
            let message = format!(
                "mesh clients also see `{pattern}` in {}: other proxies may take either",
                name_of(&first.meta)
            );
            let related = report.related(&first.meta.origin, &list.index(first_host), "the same host");
            // Where there is no door for them, it is others who suffer.
            let severity = if view.facts.mesh_door {
                Severity::Warning
            } else {
                Severity::Hint
            };
            report.tell(Finding {
                help: Some("make them one VirtualService".to_owned()),
                related: vec![related],
                ..Finding::new(
                    severity,
                    "mesh-host-conflict",
                    &meta.origin,
                    &list.index(host_at),
                    message,
                )
            });
        }
    }
}

/// Hints at rules of mesh clients for a service that requests through a gateway do not meet.
fn elsewhere(view: &View<'_>, report: &mut Report<'_>) {
    let mut choosing: HashMap<Cow<'_, str>, (&Written<VirtualService>, usize)> = HashMap::new();
    for written in view.virtual_services().filter(|written| is_for_mesh(written)) {
        let mut targets = written.spec.http.iter().flat_map(|rule| &rule.route);
        if !targets.any(|destination| !destination.target.subset.is_empty()) {
            continue;
        }
        for (at, host) in written.spec.hosts.iter().enumerate() {
            let host = expand(host, &written.meta.namespace);
            choosing.entry(host).or_insert((written, at));
        }
    }
    if choosing.is_empty() {
        return;
    }
    let used = view.resources.virtual_services.iter().enumerate();
    for (_, written) in used.filter(|(at, _)| view.facts.used.contains(at)) {
        let Written { meta, spec } = written;
        let list = Path::SPEC.key("http");
        for (rule_at, rule) in spec.http.iter().enumerate() {
            let rule_path = list.index(rule_at);
            let routes = rule_path.key("route");
            for (at, destination) in rule.route.iter().enumerate() {
                let target = &destination.target;
                let host = expand(&target.host, &meta.namespace);
                let Some((other, host_at)) = choosing.get(&host).filter(|_| target.subset.is_empty()) else {
                    continue;
                };
                if std::ptr::eq(*other, written) {
                    continue;
                }
                let hosts = Path::SPEC.key("hosts");
                let related = report.related(
                    &other.meta.origin,
                    &hosts.index(*host_at),
                    "for mesh clients only",
                );
                let message = format!(
                    "{} chooses subsets of `{host}` for mesh clients: requests that come here do not meet its rules",
                    name_of(&other.meta)
                );
                let help = "to choose here too, name a `subset`, or delegate to those rules";
                let item = routes.index(at);
                let path = item.key("destination");
                report.tell(Finding {
                    help: Some(help.to_owned()),
                    related: vec![related],
                    ..Finding::new(
                        Severity::Hint,
                        "subset-without-effect",
                        &meta.origin,
                        &path.key("host"),
                        message,
                    )
                });
            }
        }
    }
}
