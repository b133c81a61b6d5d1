//! What happens to a path on its way upstream, or into the Location of a redirect.

use super::matcher::{Regex, RegexError};
use crate::message::RequestHead;

/// What happens to the path (Istio `rewrite.uri`, `rewrite.uriRegexRewrite`, `redirect.uri`, `redirect.prefixRewrite`).
/// The query stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathRewrite {
    /// The first `matched` bytes are replaced.
    Prefix {
        /// Length of the matched prefix.
        matched: usize,
        /// What replaces it.
        with: Box<str>,
    },
    /// The whole path is replaced.
    Whole(Box<str>),
    /// Whatever a pattern finds in the path is replaced.
    Regex(RegexRewrite),
}

impl PathRewrite {
    /// The new path and query.
    pub fn apply(&self, request: &RequestHead) -> String {
        let query = request.path.get(request.path_len..).unwrap_or("");
        match self {
            Self::Prefix { matched, with } => {
                let rest = request.path_only().get(*matched..).unwrap_or("");
                format!("{with}{rest}{query}")
            }
            Self::Whole(path) => format!("{path}{query}"),
            Self::Regex(rewrite) => {
                let mut path = rewrite.apply(request.path_only());
                path.push_str(query);
                path
            }
        }
    }
}

/// Replaces all that a pattern finds (RE2 `GlobalReplace`: `\1` to `\9` are what its groups found, `\0` the whole,
/// `\\` a backslash).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegexRewrite {
    regex: Regex,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Part {
    Text(Box<str>),
    Group(usize),
}

/// Why a rewrite was refused.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// The pattern.
    #[error("{0}")]
    Pattern(#[from] RegexError),
    /// A backslash before something else than a digit or a backslash.
    #[error("a backslash must be followed by a digit or a backslash")]
    Escape,
    /// A group that the pattern does not have.
    #[error("the pattern has no group {0}")]
    Group(usize),
}

impl RegexRewrite {
    /// Compiles a pattern and what replaces it.
    pub fn new(pattern: &str, with: &str) -> Result<Self, RewriteError> {
        let regex = Regex::search(pattern)?;
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut characters = with.chars();
        while let Some(character) = characters.next() {
            if character != '\\' {
                text.push(character);
                continue;
            }
            match characters.next() {
                Some('\\') => text.push('\\'),
                Some(digit @ '0'..='9') => {
                    let group = digit as usize - '0' as usize;
                    if group >= regex.groups() {
                        return Err(RewriteError::Group(group));
                    }
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text).into()));
                    }
                    parts.push(Part::Group(group));
                }
                _ => return Err(RewriteError::Escape),
            }
        }
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }
        Ok(Self { regex, parts })
    }

    /// The pattern as written.
    pub fn pattern(&self) -> &str {
        self.regex.pattern()
    }

    /// What replaces it, as RE2 writes it.
    pub fn replacement(&self) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.replace('\\', "\\\\"),
            Part::Group(group) => format!("\\{group}"),
        };
        self.parts.iter().map(part).collect()
    }

    fn apply(&self, path: &str) -> String {
        let mut new = String::with_capacity(path.len());
        let mut end = 0;
        self.regex.each(path, |groups| {
            let Some(whole) = groups(0) else { return };
            new.push_str(path.get(end..whole.start).unwrap_or(""));
            end = whole.end;
            for part in &self.parts {
                match part {
                    Part::Text(text) => new.push_str(text),
                    Part::Group(group) => {
                        new.push_str(groups(*group).and_then(|found| path.get(found)).unwrap_or(""));
                    }
                }
            }
        });
        new.push_str(path.get(end..).unwrap_or(""));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str) -> RequestHead {
        let mut head = RequestHead::default();
        head.set_path(path);
        head
    }

    #[test]
    fn prefix_rewrite_replaces_only_what_matched() {
        let rewrite = PathRewrite::Prefix {
            matched: 4,
            with: "/".into(),
        };
        assert_eq!(rewrite.apply(&request("/foo/bar?x")), "//bar?x");
        assert_eq!(rewrite.apply(&request("/foo")), "/");
        assert_eq!(PathRewrite::Whole("/n".into()).apply(&request("/foo?x")), "/n?x");
    }

    #[test]
    fn regex_rewrite_replaces_all_that_it_finds() {
        for (pattern, with, path, expected) in [
            (
                r"^/service/([^/]+)(/.*)$",
                r"\2/instance/\1",
                "/service/foo/v1/api?q=/service",
                "/v1/api/instance/foo?q=/service",
            ),
            ("one", "two", "/one/xxx/one/?one", "/two/xxx/two/?one"),
            (r"(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
            ("b*", "-", "/abc", "-/-a-c-"),
            ("(a)|b", r"[\1\0\\]", "/ab", r"/[aa\][b\]"),
            ("none", "x", "/a", "/a"),
        ] {
            let rewrite = PathRewrite::Regex(RegexRewrite::new(pattern, with).unwrap());
            assert_eq!(rewrite.apply(&request(path)), expected, "{pattern}");
            let PathRewrite::Regex(rewrite) = rewrite else {
                unreachable!("it was made one above");
            };
            assert_eq!((rewrite.pattern(), &*rewrite.replacement()), (pattern, with));
        }
        assert!(matches!(
            RegexRewrite::new("(", ""),
            Err(RewriteError::Pattern(_))
        ));
        assert!(matches!(
            RegexRewrite::new("a", r"\1"),
            Err(RewriteError::Group(1))
        ));
        assert!(matches!(RegexRewrite::new("a", r"\x"), Err(RewriteError::Escape)));
        assert!(matches!(RegexRewrite::new("a", "\\"), Err(RewriteError::Escape)));
    }
}
