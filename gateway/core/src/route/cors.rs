//! Cross-origin requests of browsers: which origins may use a route, and what a browser is told about it (Istio
//! `http[].corsPolicy`; the Fetch standard, 3.2).
//!
//! A browser asks first, by a preflight, and reads answers only when they say that its page's origin may. A gateway
//! that knows the policy answers preflights by itself, and writes the fields into every other answer, in the place of
//! whatever the upstream says there. All of it is as Envoy does it.

use super::matcher::{Scratch, TextMatch};
use crate::header::{HeaderId, HeaderList};
use crate::message::RequestHead;
use http::Method;

/// What browsers are told about a route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Cors {
    /// Origins that may use it (`allowOrigins`, or the older `allowOrigin`).
    origins: Vec<TextMatch>,
    /// Whether any of them takes every origin, as the text `*` does.
    any: bool,
    /// What Access-Control-Allow-Methods says; nothing when empty.
    pub methods: Box<str>,
    /// What Access-Control-Allow-Headers says; nothing when empty.
    pub headers: Box<str>,
    /// What Access-Control-Expose-Headers says; nothing when empty.
    pub exposed: Box<str>,
    /// For how long a browser may remember the answer to a preflight, in seconds; None to say nothing of it.
    pub max_age: Option<u64>,
    /// Whether requests with credentials may be read.
    pub credentials: bool,
    /// Preflights of other origins are answered here, too, in a way that allows nothing (`unmatchedPreflights: IGNORE`);
    /// otherwise the upstream answers them.
    pub keeps_unmatched: bool,
}

/// What a request is to a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CorsRequest {
    /// None of its business, or of an origin that is not allowed: passed on, and its answer is not touched.
    Other,
    /// Of an origin that is allowed: its answer must say so.
    Allowed,
    /// A preflight that is answered here.
    Preflight,
    /// A preflight of an origin that is not allowed, which is answered here as well.
    Refused,
}

impl Cors {
    /// A policy for these origins that says nothing else.
    pub fn new(origins: Vec<TextMatch>) -> Self {
        let scratch = &mut Scratch::default();
        Self {
            any: origins.iter().any(|origin| origin.matches(b"*", scratch)),
            origins,
            ..Self::default()
        }
    }

    /// The origins.
    pub fn origins(&self) -> &[TextMatch] {
        &self.origins
    }

    /// What a request is. One with several origins is of none.
    pub fn judge(&self, request: &RequestHead, scratch: &mut Scratch) -> CorsRequest {
        let Some(origin) = origin(request) else {
            return CorsRequest::Other;
        };
        let asked = request.headers.get(HeaderId::AccessControlRequestMethod);
        let preflight = request.method == Method::OPTIONS && asked.is_some_and(|method| !method.is_empty());
        let allowed = self.any || self.origins.iter().any(|wanted| wanted.matches(origin, scratch));
        match (allowed, preflight) {
            (true, true) => CorsRequest::Preflight,
            (true, false) => CorsRequest::Allowed,
            (false, true) if self.keeps_unmatched => CorsRequest::Refused,
            (false, _) => CorsRequest::Other,
        }
    }

    /// Appends what every answer to a request of an allowed origin says.
    pub fn write_allowed(&self, request: &RequestHead, fields: &mut HeaderList) {
        let origin = origin(request).unwrap_or_default();
        fields.append_known(HeaderId::AccessControlAllowOrigin, origin);
        self.write_credentials(fields);
        self.write_exposed(fields);
    }

    /// Appends what the answer to a preflight says; `allowed` is whether the origin is.
    pub fn write_preflight(&self, request: &RequestHead, allowed: bool, fields: &mut HeaderList) {
        if allowed {
            let origin = origin(request).unwrap_or_default();
            fields.append_known(HeaderId::AccessControlAllowOrigin, origin);
        }
        self.write_credentials(fields);
        for (name, value) in [
            (&b"access-control-allow-methods"[..], &self.methods),
            (b"access-control-allow-headers", &self.headers),
        ] {
            if !value.is_empty() {
                fields.append(name, value.as_bytes());
            }
        }
        if let Some(seconds) = self.max_age {
            fields.append(
                b"access-control-max-age",
                itoa::Buffer::new().format(seconds).as_bytes(),
            );
        }
        if allowed {
            self.write_exposed(fields);
        }
    }

    fn write_credentials(&self, fields: &mut HeaderList) {
        if self.credentials {
            fields.append_known(HeaderId::AccessControlAllowCredentials, b"true");
        }
    }

    fn write_exposed(&self, fields: &mut HeaderList) {
        if !self.exposed.is_empty() {
            fields.append_known(HeaderId::AccessControlExposeHeaders, self.exposed.as_bytes());
        }
    }
}

/// The one origin of a request.
fn origin(request: &RequestHead) -> Option<&[u8]> {
    let mut origins = request.headers.get_all(HeaderId::Origin);
    match (origins.next(), origins.next()) {
        (Some(only), None) if !only.is_empty() => Some(only),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Regex;
    use super::*;

    fn request(method: Method, fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        head.clear();
        head.method = method;
        for (name, value) in fields {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn policy() -> Cors {
        Cors {
            methods: "GET,POST".into(),
            headers: "x-a,x-b".into(),
            exposed: "x-e".into(),
            max_age: Some(86_400),
            credentials: true,
            ..Cors::new(vec![
                TextMatch::Exact("http://a".into()),
                TextMatch::Prefix("http://p.".into()),
                TextMatch::Regex(Regex::new("https?://r[0-9]").unwrap()),
            ])
        }
    }

    fn lines(fields: &HeaderList) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        fields
            .iter()
            .map(|(_, name, value)| format!("{}: {}", text(name), text(value)))
            .collect()
    }

    const ASKS: (&str, &str) = ("access-control-request-method", "PUT");

    #[test]
    fn requests_are_told_apart() {
        use CorsRequest::{Allowed, Other, Preflight, Refused};
        let (options, get) = (Method::OPTIONS, Method::GET);
        let a = ("Origin", "http://a");
        let b = ("origin", "http://b");
        for (method, fields, forwarding, keeping) in [
            (&get, &[][..], Other, Other),
            (&get, &[a], Allowed, Allowed),
            (&get, &[a, ASKS], Allowed, Allowed),
            (&get, &[b], Other, Other),
            (&get, &[("origin", "")], Other, Other),
            (&get, &[("origin", "HTTP://A")], Other, Other),
            (&get, &[("origin", "http://a.b")], Other, Other),
            (&get, &[("origin", "http://p.b")], Allowed, Allowed),
            (&get, &[("origin", "https://r1")], Allowed, Allowed),
            (&get, &[("origin", "https://r12")], Other, Other),
            (&get, &[("origin", "null")], Other, Other),
            (&get, &[a, b], Other, Other),
            (&options, &[a, ASKS], Preflight, Preflight),
            (&options, &[a], Allowed, Allowed),
            (
                &options,
                &[a, ("access-control-request-method", "")],
                Allowed,
                Allowed,
            ),
            (&options, &[ASKS], Other, Other),
            (&options, &[("origin", ""), ASKS], Other, Other),
            (&options, &[b, ASKS], Other, Refused),
            (&options, &[b], Other, Other),
        ] {
            let scratch = &mut Scratch::default();
            let request = request(method.clone(), fields);
            assert_eq!(policy().judge(&request, scratch), forwarding, "{fields:?}");
            let keeps = Cors {
                keeps_unmatched: true,
                ..policy()
            };
            assert_eq!(keeps.judge(&request, scratch), keeping, "{fields:?}");
        }
    }

    #[test]
    fn a_star_takes_every_origin() {
        let scratch = &mut Scratch::default();
        let strange = request(Method::GET, &[("origin", "null")]);
        for (origin, taken) in [
            (TextMatch::Exact("*".into()), true),
            (TextMatch::Prefix("*".into()), true),
            (TextMatch::Regex(Regex::new(".*").unwrap()), true),
            (TextMatch::Exact("null".into()), true),
            (TextMatch::Exact("http://*".into()), false),
        ] {
            let judged = Cors::new(vec![origin.clone()]).judge(&strange, scratch);
            let wanted = if taken {
                CorsRequest::Allowed
            } else {
                CorsRequest::Other
            };
            assert_eq!(judged, wanted, "{origin:?}");
        }
        assert_eq!(Cors::new(vec![]).judge(&strange, scratch), CorsRequest::Other);
    }

    #[test]
    fn preflights_are_told_everything_and_other_requests_what_concerns_them() {
        let from = request(Method::OPTIONS, &[("origin", "http://a"), ASKS]);
        let mut fields = HeaderList::default();
        policy().write_preflight(&from, true, &mut fields);
        assert_eq!(
            lines(&fields),
            [
                "access-control-allow-origin: http://a",
                "access-control-allow-credentials: true",
                "access-control-allow-methods: GET,POST",
                "access-control-allow-headers: x-a,x-b",
                "access-control-max-age: 86400",
                "access-control-expose-headers: x-e",
            ]
        );
        fields.clear();
        policy().write_preflight(&from, false, &mut fields);
        assert_eq!(
            lines(&fields),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-methods: GET,POST",
                "access-control-allow-headers: x-a,x-b",
                "access-control-max-age: 86400",
            ]
        );
        fields.clear();
        policy().write_allowed(&from, &mut fields);
        assert_eq!(
            lines(&fields),
            [
                "access-control-allow-origin: http://a",
                "access-control-allow-credentials: true",
                "access-control-expose-headers: x-e",
            ]
        );
    }

    #[test]
    fn what_a_policy_leaves_out_is_not_said() {
        let bare = Cors::new(vec![TextMatch::Exact("http://a".into())]);
        let from = request(Method::OPTIONS, &[("origin", "http://a"), ASKS]);
        let mut fields = HeaderList::default();
        bare.write_preflight(&from, true, &mut fields);
        assert_eq!(lines(&fields), ["access-control-allow-origin: http://a"]);
    }
}
