//! `http[].corsPolicy` as written.

use super::duration_of;
use super::virtual_service::{regex_error, text_match};
use crate::report::{Origin, Report};
use crate::yaml::{Node, Path};
use isthmus_core::route::{Regex, TextMatch};
use std::time::Duration;

/// `corsPolicy`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct CorsPolicy {
    /// `allowOrigin`, the older form of `allowOrigins`.
    pub(crate) allow_origin: Vec<String>,
    pub(crate) allow_origins: Vec<TextMatch>,
    pub(crate) allow_methods: Vec<String>,
    pub(crate) allow_headers: Vec<String>,
    pub(crate) expose_headers: Vec<String>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) allow_credentials: bool,
    /// `unmatchedPreflights: IGNORE`.
    pub(crate) keeps_unmatched: bool,
}

impl CorsPolicy {
    pub(crate) fn read(node: &Node, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) -> Self {
        let list = path.key("allowOrigins");
        let origins = node.list("allowOrigins").iter().enumerate();
        Self {
            allow_origin: node.texts("allowOrigin"),
            allow_origins: origins
                .map(|(at, node)| origin_match(node, &list.index(at), origin, report))
                .collect(),
            allow_methods: node.texts("allowMethods"),
            allow_headers: node.texts("allowHeaders"),
            expose_headers: node.texts("exposeHeaders"),
            max_age: duration_of(node, "maxAge"),
            allow_credentials: node.flag("allowCredentials"),
            keeps_unmatched: node.text("unmatchedPreflights") == Some("IGNORE"),
        }
    }
}

/// Reads an origin: a text must be there, and the regex `*` is none here.
fn origin_match(node: &Node, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) -> TextMatch {
    let none = TextMatch::Exact("".into());
    let forms = ["exact", "prefix", "regex"];
    if !forms
        .iter()
        .any(|form| node.text(form).is_some_and(|text| !text.is_empty()))
    {
        let message = "an origin needs one of exact, prefix and regex";
        report.error("missing-field", origin, path, message);
        return none;
    }
    if node.text("regex") == Some("*")
        && let Err(error) = Regex::new("*")
    {
        regex_error(&error, origin, &path.key("regex"), report);
        return none;
    }
    text_match(node, true, path, origin, report)
}
