//! Traps of prefixes: a prefix of text is not one of path segments, and what replaces it is put there as it is.

use super::View;
use crate::diagnostic::Severity;
use crate::report::{Finding, Report};
use crate::resource::Written;
use crate::resource::virtual_service::VirtualService;
use crate::yaml::Path;
use isthmus_core::route::TextMatch;

/// Hints at what prefixes do besides what they were written for.
pub(crate) fn check(view: &View<'_>, report: &mut Report<'_>) {
    for (_, written) in view.loud() {
        rewrites(written, report);
        prefixes(written, report);
    }
}

/// A prefix that is more than `/`.
fn prefix(text: &TextMatch) -> Option<&str> {
    match text {
        TextMatch::Prefix(prefix) if prefix.len() > 1 => Some(prefix),
        _ => None,
    }
}

/// Hints at rewrites that leave two slashes, or none, where there was one.
fn rewrites(written: &Written<VirtualService>, report: &mut Report<'_>) {
    let list = Path::SPEC.key("http");
    for (at, rule) in written.spec.http.iter().enumerate() {
        let new = rule.rewrite.as_ref().map_or("", |rewrite| rewrite.uri.as_str());
        if new.is_empty() {
            continue;
        }
        let found = rule.matches.iter().enumerate().find_map(|(at, matched)| {
            let old = prefix(matched.uri.as_ref()?)?;
            (old.ends_with('/') != new.ends_with('/')).then_some((at, old))
        });
        let Some((matched, old)) = found else { continue };
        let shown = |rest: &str| format!("`{old}{rest}` becomes `{new}{rest}`");
        let (message, help) = if new.ends_with('/') {
            (
                shown("/x"),
                format!(
                    "match `{old}/` and rewrite that to `{new}`, and `{old}` itself in a match of its own"
                ),
            )
        } else {
            (
                shown("x"),
                format!("let both end with a slash, or neither: `{new}/`"),
            )
        };
        let rule_path = list.index(at);
        let rewrite = rule_path.key("rewrite");
        let matches = rule_path.key("match");
        let matched = matches.index(matched);
        let related = report.related(&written.meta.origin, &matched.key("uri"), "is replaced as text");
        report.tell(Finding {
            help: Some(help),
            related: vec![related],
            ..Finding::new(
                Severity::Hint,
                "rewrite-slashes",
                &written.meta.origin,
                &rewrite.key("uri"),
                message,
            )
        });
    }
}

/// Hints, once in a VirtualService, at a prefix that takes more than the path that it names.
fn prefixes(written: &Written<VirtualService>, report: &mut Report<'_>) {
    let list = Path::SPEC.key("http");
    let mut open = written.spec.http.iter().enumerate().flat_map(|(rule_at, rule)| {
        let matches = rule.matches.iter().enumerate();
        matches.filter_map(move |(at, matched)| {
            let prefix = prefix(matched.uri.as_ref()?)?;
            (!prefix.ends_with('/')).then_some((rule_at, at, prefix))
        })
    });
    let Some((rule_at, at, first)) = open.next() else {
        return;
    };
    let more = match open.count() {
        0 => String::new(),
        1 => ", and so does one more below".to_owned(),
        others => format!(", and so do {others} more below"),
    };
    let message = format!("the prefix `{first}` also takes `{first}-and-more`{more}");
    let help = format!("for the path and what is below it, match `exact: {first}` and `prefix: {first}/`");
    let rule = list.index(rule_at);
    let matches = rule.key("match");
    let matched = matches.index(at);
    let uri = matched.key("uri");
    report.add(
        Severity::Hint,
        "open-prefix",
        &written.meta.origin,
        &uri.key("prefix"),
        message,
        Some(help),
    );
}
