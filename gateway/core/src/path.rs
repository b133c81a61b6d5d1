//! Path normalization: one path, one meaning, before any rule looks at it (MeshConfig `pathNormalization`).

use crate::limits::PathNormalization;
use crate::message::RequestHead;

/// A path that cannot be normalized without leaving the root, or that hides an end of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the path climbs above the root or holds an encoded NUL")]
pub struct PathError;

/// Normalizes the path of a request in place; the query is left alone. `/../x` above the root is refused, as Envoy
/// refuses it.
pub fn normalize(head: &mut RequestHead, mode: PathNormalization) -> Result<(), PathError> {
    if mode == PathNormalization::None || head.path == "*" {
        return Ok(());
    }
    let path = head.path_only();
    let merges = matches!(
        mode,
        PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes
    );
    let decodes = mode == PathNormalization::DecodeAndMergeSlashes;
    let mut before = 0;
    let is_usual = path.bytes().all(|byte| {
        let usual = match byte {
            b'%' | b'\\' => false,
            b'.' => before != b'/',
            b'/' => !merges || before != b'/',
            _ => true,
        };
        before = byte;
        usual
    });
    if is_usual {
        return Ok(());
    }
    if path.contains("%00") {
        return Err(PathError);
    }
    let lower_percent = path.contains('%');
    let mut text = path.replace('\\', "/");
    if lower_percent {
        // Unreserved characters never need an escape (RFC 3986, 6.2.2.2); `%2e%2e` must not hide from the rules.
        text = decode_unreserved(&text, decodes);
    }
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = text.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." if last => segments.push(""),
            "." => {}
            ".." => {
                segments.pop().ok_or(PathError)?;
                if last {
                    segments.push("");
                }
            }
            "" if merges && !last => {}
            other => segments.push(other),
        }
    }
    let mut normal = String::with_capacity(head.path.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if normal.is_empty() {
        normal.push('/');
    }
    let length = normal.len();
    normal.push_str(head.path.get(head.path_len..).unwrap_or(""));
    head.path = normal;
    head.path_len = length;
    Ok(())
}

fn decode_unreserved(text: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let value = escape
            .get(1..3)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match value {
            // Behind a percent sign that escapes nothing, a digit would make an escape that nobody has looked at.
            Some(byte) if byte.is_ascii_hexdigit() && ends_open(&out) => {
                out.push_str(escape.get(..3).unwrap_or(escape));
            }
            Some(byte) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') => {
                out.push(byte as char);
            }
            Some(b'/' | b'\\') if slashes => out.push('/'),
            _ => {
                let length = if value.is_some() { 3 } else { 1 };
                out.push_str(escape.get(..length).unwrap_or(escape));
                rest = escape.get(length..).unwrap_or("");
                continue;
            }
        }
        rest = escape.get(3..).unwrap_or("");
    }
    out.push_str(rest);
    out
}

/// Whether a text ends in a percent sign with less than two digits.
fn ends_open(text: &str) -> bool {
    match text.as_bytes() {
        [.., b'%'] => true,
        [.., b'%', digit] => digit.is_ascii_hexdigit(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(path: &str, mode: PathNormalization) -> Result<String, PathError> {
        let mut head = RequestHead::default();
        head.set_path(path);
        normalize(&mut head, mode)?;
        assert_eq!(head.path_len, head.path.find('?').unwrap_or(head.path.len()));
        Ok(head.path)
    }

    #[test]
    fn dot_segments_are_resolved_and_slashes_kept() {
        for (path, expected) in [
            ("/a/b", "/a/b"),
            ("/a/./b/../c?x=/../y", "/a/c?x=/../y"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a\\..\\b", "/b"),
            ("/%2e%2E/a/%2e./b%2Fc%7e", "!"),
            ("/x/%2e%2E/a/%2e/b%2Fc%7e", "/a/b%2Fc~"),
            ("//a///b", "//a///b"),
            ("/../a", "!"),
            ("/a/%00b", "!"),
            ("/a%", "/a%"),
            ("/a%zz%4", "/a%zz%4"),
            // What is decoded makes no escape that could hide a slash, a dot or a NUL.
            ("/a%%32e%3%30%%300%+f", "/a%%32e%3%30%%300%+f"),
            ("/a%%7e%4%7e", "/a%~%4~"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a/...", "/a/..."),
        ] {
            let found = normal(path, PathNormalization::Base);
            assert_eq!(found.as_deref().unwrap_or("!"), expected, "{path}");
        }
    }

    #[test]
    fn slashes_are_merged_and_decoded_when_asked() {
        assert_eq!(
            normal("//a//b/", PathNormalization::MergeSlashes).unwrap(),
            "/a/b/"
        );
        assert_eq!(
            normal("/a%2F%5cb", PathNormalization::MergeSlashes).unwrap(),
            "/a%2F%5cb"
        );
        assert_eq!(
            normal("/a%2F%5cb%2f..%2fc", PathNormalization::DecodeAndMergeSlashes).unwrap(),
            "/a/c"
        );
        assert_eq!(normal("/../a", PathNormalization::None).unwrap(), "/../a");
    }
}
