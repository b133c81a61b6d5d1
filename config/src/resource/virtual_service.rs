//! VirtualService as written: rules that say where requests for some hosts go.
//!
//! Only text matches are already what they mean, because a pattern that cannot be compiled is a mistake of writing.

use super::cors::CorsPolicy;
use super::fault::{ABORT, Fault};
use super::retries::{Mirror, Retries};
use super::{Meta, duration_of};
use crate::diagnostic::Severity;
use crate::report::{Origin, Report};
use crate::yaml::{Node, Path};
use ipnet::IpNet;
use isthmus_core::route::{Regex, RegexError, TextMatch};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// `VirtualService.spec`.
#[derive(Debug)]
pub(crate) struct VirtualService {
    pub(crate) hosts: Vec<String>,
    pub(crate) gateways: Vec<String>,
    pub(crate) export_to: Vec<String>,
    pub(crate) http: Vec<HttpRoute>,
    /// Whether any of them has a `delegate`.
    pub(crate) delegates: bool,
    pub(crate) tls: Vec<StreamRoute>,
    pub(crate) tcp: Vec<StreamRoute>,
}

/// `http[]`. There are tens of thousands of them, and most have few of the fields that are boxed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct HttpRoute {
    pub(crate) name: String,
    pub(crate) matches: Vec<HttpMatch>,
    pub(crate) route: Vec<HttpDestination>,
    pub(crate) redirect: Option<Box<Redirect>>,
    pub(crate) direct_response: Option<Box<DirectResponse>>,
    pub(crate) rewrite: Option<Box<Rewrite>>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) headers: Option<Box<Headers>>,
    pub(crate) delegate: Option<Box<Delegate>>,
    /// Written as null, or not a map.
    pub(crate) is_empty: bool,
    pub(crate) fault: Option<Box<Fault>>,
    pub(crate) cors_policy: Option<Box<CorsPolicy>>,
    pub(crate) retries: Option<Box<Retries>>,
    pub(crate) mirrors: Vec<Mirror>,
}

/// `tls[]` or `tcp[]`: a rule for whole connections.
#[derive(Debug)]
pub(crate) struct StreamRoute {
    pub(crate) matches: Vec<StreamMatch>,
    pub(crate) route: Vec<StreamDestination>,
}

/// `match[]` of such a rule.
#[derive(Debug, Default)]
pub(crate) struct StreamMatch {
    /// Only of `tls[]`.
    pub(crate) sni_hosts: Vec<String>,
    pub(crate) port: Option<i64>,
    pub(crate) gateways: Vec<String>,
    pub(crate) source_labels: BTreeMap<String, String>,
    pub(crate) source_namespace: String,
    /// Only of `tcp[]`.
    pub(crate) source_subnet: Option<IpNet>,
}

/// `route[]` of such a rule.
#[derive(Debug)]
pub(crate) struct StreamDestination {
    pub(crate) target: Target,
    pub(crate) weight: i64,
}

/// `destination`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) subset: String,
    pub(crate) port: Option<i64>,
}

impl Target {
    /// Reads the `destination` in `node`.
    fn read(node: &Node) -> Self {
        Self::of(node.get("destination").unwrap_or(&Node::Null))
    }

    /// Reads a destination.
    pub(crate) fn of(destination: &Node) -> Self {
        Self {
            host: destination.text("host").unwrap_or("").to_owned(),
            subset: destination.text("subset").unwrap_or("").to_owned(),
            port: destination
                .get("port")
                .map(|port| port.int("number").map_or(0, clamped)),
        }
    }
}

/// A whole number, of which what lies beyond 64 bits is of no interest: it is no port and no weight.
fn clamped(number: i128) -> i64 {
    number.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// A range of addresses, or one.
fn subnet(text: &str) -> Option<IpNet> {
    let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(one)
}

impl StreamRoute {
    fn read(node: &Node) -> Self {
        let matches = node.list("match").iter().map(|node| StreamMatch {
            sni_hosts: node.texts("sniHosts"),
            port: node.int("port").filter(|port| *port != 0).map(clamped),
            gateways: node.texts("gateways"),
            source_labels: node.text_map("sourceLabels"),
            source_namespace: node.text("sourceNamespace").unwrap_or("").to_owned(),
            source_subnet: node.text("sourceSubnet").and_then(subnet),
        });
        let route = node.list("route").iter().map(|node| StreamDestination {
            target: Target::read(node),
            weight: node.int("weight").map_or(0, clamped),
        });
        Self {
            matches: matches.collect(),
            route: route.collect(),
        }
    }
}

/// `http[].match[]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct HttpMatch {
    pub(crate) name: String,
    pub(crate) uri: Option<TextMatch>,
    pub(crate) ignore_uri_case: bool,
    pub(crate) scheme: Option<TextMatch>,
    pub(crate) method: Option<TextMatch>,
    pub(crate) authority: Option<TextMatch>,
    pub(crate) headers: Vec<(String, TextMatch)>,
    pub(crate) without_headers: Vec<(String, TextMatch)>,
    pub(crate) query_params: Vec<(String, TextMatch)>,
    pub(crate) port: Option<i64>,
    pub(crate) gateways: Vec<String>,
    pub(crate) source_labels: BTreeMap<String, String>,
    pub(crate) source_namespace: String,
    pub(crate) stat_prefix: String,
}

/// `http[].route[]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HttpDestination {
    pub(crate) target: Target,
    pub(crate) weight: i64,
    pub(crate) headers: Option<Box<Headers>>,
}

impl HttpDestination {
    /// All of a rule's requests to a port of a host.
    pub(crate) fn to(host: &str, port: i64) -> Self {
        Self {
            target: Target {
                host: host.to_owned(),
                subset: String::new(),
                port: Some(port),
            },
            weight: 0,
            headers: None,
        }
    }
}

/// `http[].redirect`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Redirect {
    pub(crate) uri: String,
    pub(crate) prefix_rewrite: Option<String>,
    pub(crate) authority: String,
    pub(crate) port: Option<i128>,
    pub(crate) derive_port: Option<String>,
    pub(crate) scheme: String,
    pub(crate) code: i128,
}

/// `http[].directResponse`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DirectResponse {
    pub(crate) status: i128,
    pub(crate) text: Option<String>,
    /// As written, in base64.
    pub(crate) bytes: Option<String>,
}

/// `http[].rewrite`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rewrite {
    pub(crate) uri: String,
    pub(crate) authority: String,
    pub(crate) uri_regex: Option<UriRegexRewrite>,
}

/// `http[].rewrite.uriRegexRewrite`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UriRegexRewrite {
    pub(crate) pattern: String,
    pub(crate) rewrite: String,
}

/// `http[].delegate`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Delegate {
    pub(crate) name: String,
    /// Empty for the root's own.
    pub(crate) namespace: String,
}

/// `headers`, of a rule or a destination.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Headers {
    pub(crate) request: HeaderOperations,
    pub(crate) response: HeaderOperations,
}

/// `headers.request` or `headers.response`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct HeaderOperations {
    pub(crate) set: BTreeMap<String, String>,
    pub(crate) add: BTreeMap<String, String>,
    pub(crate) remove: Vec<String>,
}

impl VirtualService {
    pub(crate) fn read(spec: &Node, meta: &Meta, report: &mut Report<'_>) -> Self {
        let resets = meta.annotations.get(ABORT).is_some_and(|way| way == "reset");
        let origin = &meta.origin;
        let http = Path::SPEC.key("http");
        let rules = spec.list("http").iter().enumerate();
        Self {
            delegates: spec
                .list("http")
                .iter()
                .any(|rule| rule.get("delegate").is_some()),
            hosts: spec.texts("hosts"),
            gateways: spec.texts("gateways"),
            export_to: spec.texts("exportTo"),
            http: rules
                .map(|(at, node)| HttpRoute::read(node, resets, &http.index(at), origin, report))
                .collect(),
            tls: spec.list("tls").iter().map(StreamRoute::read).collect(),
            tcp: spec.list("tcp").iter().map(StreamRoute::read).collect(),
        }
    }
}

static NO_HEADERS: Headers = Headers {
    request: HeaderOperations::NONE,
    response: HeaderOperations::NONE,
};

impl HttpRoute {
    /// `headers`, empty when nothing is written.
    pub(crate) fn operations(&self) -> &Headers {
        self.headers.as_deref().unwrap_or(&NO_HEADERS)
    }

    /// Reads a rule; `resets` is whether its resource makes aborts resets.
    pub(crate) fn read(
        node: &Node,
        resets: bool,
        path: &Path<'_>,
        origin: &Origin,
        report: &mut Report<'_>,
    ) -> Self {
        let list = path.key("match");
        let matches = node.list("match").iter().enumerate();
        Self {
            name: node.text("name").unwrap_or("").to_owned(),
            matches: matches
                .map(|(at, node)| HttpMatch::read(node, &list.index(at), origin, report))
                .collect(),
            route: node.list("route").iter().map(HttpDestination::read).collect(),
            redirect: node.get("redirect").map(Redirect::read).map(Box::new),
            direct_response: node.get("directResponse").map(DirectResponse::read).map(Box::new),
            rewrite: node.get("rewrite").map(|node| {
                Box::new(Rewrite {
                    uri: node.text("uri").unwrap_or("").to_owned(),
                    authority: node.text("authority").unwrap_or("").to_owned(),
                    uri_regex: node.get("uriRegexRewrite").map(|node| UriRegexRewrite {
                        pattern: node.text("match").unwrap_or("").to_owned(),
                        rewrite: node.text("rewrite").unwrap_or("").to_owned(),
                    }),
                })
            }),
            timeout: duration_of(node, "timeout"),
            headers: node.get("headers").map(Headers::read).map(Box::new),
            delegate: node.get("delegate").map(|node| {
                Box::new(Delegate {
                    name: node.text("name").unwrap_or("").to_owned(),
                    namespace: node.text("namespace").unwrap_or("").to_owned(),
                })
            }),
            is_empty: *node == Node::Null,
            fault: node
                .get("fault")
                .map(|fault| Box::new(Fault::read(fault, resets))),
            cors_policy: node
                .get("corsPolicy")
                .map(|cors| Box::new(CorsPolicy::read(cors, &path.key("corsPolicy"), origin, report))),
            retries: node.get("retries").map(Retries::read).map(Box::new),
            mirrors: Mirror::read_all(node),
        }
    }
}

impl HttpMatch {
    pub(crate) fn read(node: &Node, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) -> Self {
        let one = |name: &str, may_be_empty: bool, report: &mut Report<'_>| {
            node.get(name)
                .map(|value| text_match(value, may_be_empty, &path.key(name), origin, report))
        };
        let many = |name: &str, report: &mut Report<'_>| -> Vec<(String, TextMatch)> {
            let list = path.key(name);
            let entries = node.get(name).map_or(&[][..], Node::entries).iter();
            entries
                .map(|(key, value)| {
                    (
                        key.clone(),
                        text_match(value, false, &list.key(key), origin, report),
                    )
                })
                .collect()
        };
        Self {
            name: node.text("name").unwrap_or("").to_owned(),
            uri: one("uri", true, report),
            ignore_uri_case: node.flag("ignoreUriCase"),
            scheme: one("scheme", false, report),
            method: one("method", false, report),
            authority: one("authority", false, report),
            headers: many("headers", report),
            without_headers: many("withoutHeaders", report),
            query_params: many("queryParams", report),
            port: node.int("port").filter(|port| *port != 0).map(clamped),
            gateways: node.texts("gateways"),
            source_labels: node.text_map("sourceLabels"),
            source_namespace: node.text("sourceNamespace").unwrap_or("").to_owned(),
            stat_prefix: node.text("statPrefix").unwrap_or("").to_owned(),
        }
    }
}

/// Reads a `StringMatch`. One without a form, or the regex `*`, asks for presence only.
pub(crate) fn text_match(
    node: &Node,
    may_be_empty: bool,
    path: &Path<'_>,
    origin: &Origin,
    report: &mut Report<'_>,
) -> TextMatch {
    let forms = ["exact", "prefix", "regex"].map(|form| node.text(form).map(|text| (form, text)));
    let mut written = forms.into_iter().flatten();
    let (first, second) = (written.next(), written.next());
    if let (Some((a, _)), Some((b, _))) = (first, second) {
        let message = format!("`{a}` and `{b}` exclude each other");
        report.error("exclusive-fields", origin, &path.key(b), message);
    }
    let Some((form, text)) = first else {
        // An unknown form must not become one that matches everything, even where it is only warned of.
        if !node.entries().is_empty() {
            let message = "one of `exact`, `prefix` and `regex` is needed";
            report.error("missing-field", origin, path, message);
            return TextMatch::Exact("".into());
        }
        return TextMatch::Present;
    };
    let path = path.key(form);
    match (form, text) {
        ("exact", _) => TextMatch::Exact(text.into()),
        (_, "") if !may_be_empty => {
            report.error("bad-value", origin, &path, format!("`{form}` must not be empty"));
            TextMatch::Present
        }
        ("prefix", _) => TextMatch::Prefix(text.into()),
        (_, "*") => TextMatch::Present,
        _ => match Regex::new(text) {
            Ok(regex) => TextMatch::Regex(regex),
            Err(error) => {
                regex_error(&error, origin, &path, report);
                TextMatch::Present
            }
        },
    }
}

/// Reports a pattern that cannot be compiled.
pub(crate) fn regex_error(error: &RegexError, origin: &Origin, path: &Path<'_>, report: &mut Report<'_>) {
    let reason = error.to_string();
    let reason = reason.lines().last().unwrap_or("").trim_start_matches("error: ");
    let message = format!("not a regular expression: {reason}");
    let help = Some("the syntax is that of RE2".to_owned());
    report.add(Severity::Error, "bad-regex", origin, path, message, help);
}

impl HttpDestination {
    /// `headers`, empty when nothing is written.
    pub(crate) fn operations(&self) -> &Headers {
        self.headers.as_deref().unwrap_or(&NO_HEADERS)
    }

    fn read(node: &Node) -> Self {
        Self {
            target: Target::read(node),
            weight: node.int("weight").map_or(0, clamped),
            headers: node.get("headers").map(Headers::read).map(Box::new),
        }
    }
}

impl Redirect {
    fn read(node: &Node) -> Self {
        let text = |name| node.text(name).unwrap_or("").to_owned();
        Self {
            uri: text("uri"),
            prefix_rewrite: node
                .text("prefixRewrite")
                .filter(|text| !text.is_empty())
                .map(str::to_owned),
            authority: text("authority"),
            port: node.int("port"),
            derive_port: node.text("derivePort").map(str::to_owned),
            scheme: text("scheme"),
            code: node.int("redirectCode").unwrap_or(0),
        }
    }
}

impl DirectResponse {
    fn read(node: &Node) -> Self {
        let body = node.get("body").unwrap_or(&Node::Null);
        Self {
            status: node.int("status").unwrap_or(0),
            text: body.text("string").map(str::to_owned),
            bytes: body.text("bytes").map(str::to_owned),
        }
    }
}

impl Headers {
    fn read(headers: &Node) -> Self {
        let operations = |name| headers.get(name).map(HeaderOperations::read).unwrap_or_default();
        Self {
            request: operations("request"),
            response: operations("response"),
        }
    }
}

impl HeaderOperations {
    const NONE: Self = Self {
        set: BTreeMap::new(),
        add: BTreeMap::new(),
        remove: Vec::new(),
    };

    fn read(node: &Node) -> Self {
        Self {
            set: node.text_map("set"),
            add: node.text_map("add"),
            remove: node.texts("remove"),
        }
    }
}
