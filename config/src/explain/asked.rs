//! The question: a request as a person writes it.

use http::Method;
use isthmus_core::header::{FieldName, is_value_byte};
use isthmus_core::route::split_port;
use std::net::{IpAddr, Ipv4Addr};

/// What the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP in plaintext.
    Http,
    /// HTTP over TLS.
    Https,
    /// Bytes.
    Tcp,
    /// Bytes over TLS.
    Tls,
}

impl Scheme {
    /// As URLs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    /// The port when none is written.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http | Self::Tcp => 80,
            Self::Https | Self::Tls => 443,
        }
    }
}

/// A request to be explained.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The method.
    pub method: Method,
    /// The URL as it was written.
    pub url: String,
    /// What the client speaks.
    pub scheme: Scheme,
    /// The authority: of the Host field if one was given, else of the URL.
    pub authority: String,
    /// Path and query.
    pub path: String,
    /// The Gateway's port, when one is known.
    pub port: Option<u16>,
    /// `namespace/name` of the Gateway that it comes to.
    pub gateway: Option<String>,
    /// Its fields without Host.
    pub headers: Vec<(String, String)>,
    /// The name that the client asks TLS for, when it is not the URL's host. Empty: it asks for none.
    pub sni: Option<String>,
    /// The client's address.
    pub source: IpAddr,
    /// The SPIFFE URI of the client's certificate.
    pub identity: Option<String>,
}

/// Why a question is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Not a method.
    #[error("`{0}` is not a method")]
    Method(String),
    /// Not a URL.
    #[error("`{0}` is not a URL such as http://shop.example/path: {1}")]
    Url(String, &'static str),
    /// Not a field.
    #[error("`{0}` is not a header field such as `name: value`")]
    Header(String),
    /// Not a Gateway's name.
    #[error("`{0}` is not the name of a Gateway such as default/door")]
    Gateway(String),
}

impl Asked {
    /// Reads a method and a URL: `http`, `https`, `tcp` or `tls`, `http` when none is written; the port is the
    /// Gateway's.
    pub fn new(method: &str, url: &str) -> Result<Self, AskError> {
        let bad = |why| AskError::Url(url.to_owned(), why);
        let parsed =
            Method::from_bytes(method.as_bytes()).map_err(|_| AskError::Method(method.to_owned()))?;
        let (scheme, rest) = match url.split_once("://") {
            None => (Scheme::Http, url),
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                "http" => (Scheme::Http, rest),
                "https" => (Scheme::Https, rest),
                "tcp" => (Scheme::Tcp, rest),
                "tls" => (Scheme::Tls, rest),
                _ => return Err(bad("its scheme is not http, https, tcp or tls")),
            },
        };
        // A client keeps the fragment to itself (RFC 9110, 4.2.5).
        let rest = rest.split('#').next().unwrap_or("");
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let is_target = |byte: u8| byte > b' ' && byte != 0x7f;
        if !target.bytes().all(is_target) {
            return Err(bad("its path has a blank or a control character"));
        }
        if authority.contains('@') || !authority.bytes().all(|byte| byte.is_ascii() && is_target(byte)) {
            return Err(bad("its authority is not a host and a port"));
        }
        let (host, port) = match authority.strip_prefix(':') {
            // For bytes the port alone says where they go.
            Some(port) => ("", port.parse().ok()),
            None => split_port(authority),
        };
        if host.is_empty() && matches!(scheme, Scheme::Http | Scheme::Https) {
            return Err(bad("it has no host"));
        }
        if port.is_none() && authority.len() > host.len() {
            return Err(bad("its port is not a number"));
        }
        let path = match target.as_bytes().first() {
            None => "/".to_owned(),
            Some(b'?') => format!("/{target}"),
            Some(_) => target.to_owned(),
        };
        Ok(Self {
            method: parsed,
            url: url.to_owned(),
            scheme,
            authority: authority.to_owned(),
            path,
            port,
            gateway: None,
            headers: Vec::new(),
            sni: None,
            source: IpAddr::V4(Ipv4Addr::LOCALHOST),
            identity: None,
        })
    }

    /// Adds a field, `name: value`. Host replaces the URL's authority, and leaves the name that TLS is asked for.
    pub fn add_header(&mut self, line: &str) -> Result<(), AskError> {
        let bad = || AskError::Header(line.to_owned());
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        let value = value.trim_ascii();
        let is_valid = FieldName::parse(name).is_some() && value.bytes().all(is_value_byte);
        if !is_valid {
            return Err(bad());
        }
        if name.eq_ignore_ascii_case("host") {
            if self.sni.is_none() {
                self.sni = Some(split_port(&self.authority).0.to_owned());
            }
            value.clone_into(&mut self.authority);
        } else {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
        Ok(())
    }

    /// Names the Gateway, `namespace/name`, or `name` in the namespace `default`.
    pub fn set_gateway(&mut self, name: &str) -> Result<(), AskError> {
        let id = match name.split_once('/') {
            Some((namespace, rest)) if !namespace.is_empty() && !rest.is_empty() && !rest.contains('/') => {
                name.to_owned()
            }
            None if !name.is_empty() => format!("{}/{name}", crate::resource::DEFAULT_NAMESPACE),
            _ => return Err(AskError::Gateway(name.to_owned())),
        };
        self.gateway = Some(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_clients_read_them() {
        for (url, scheme, authority, path, port) in [
            ("a.com", Scheme::Http, "a.com", "/", None),
            (
                "HTTPS://A.com:8443?x=1#y",
                Scheme::Https,
                "A.com:8443",
                "/?x=1",
                Some(8443),
            ),
            ("http://[::1]:81/p/q", Scheme::Http, "[::1]:81", "/p/q", Some(81)),
            ("tcp://:9000", Scheme::Tcp, ":9000", "/", Some(9000)),
        ] {
            let found = Asked::new("GET", url).unwrap();
            assert_eq!(
                (found.scheme, &*found.authority, &*found.path, found.port),
                (scheme, authority, path, port),
                "{url}"
            );
        }
        for bad in [
            "http://",
            "ftp://a",
            "http://a b/",
            "http://u@a/",
            "http://a/ b",
            "http://a:x/",
        ] {
            assert!(matches!(Asked::new("GET", bad), Err(AskError::Url(..))), "{bad}");
        }
        assert!(matches!(Asked::new("G T", "a"), Err(AskError::Method(_))));
    }

    #[test]
    fn a_host_field_replaces_the_authority_and_not_the_name_for_tls() {
        let mut asked = Asked::new("GET", "https://a.com/").unwrap();
        asked.add_header("Host: b.com:1").unwrap();
        asked.add_header("x:1").unwrap();
        assert_eq!(
            (&*asked.authority, asked.sni.as_deref()),
            ("b.com:1", Some("a.com"))
        );
        assert_eq!(asked.headers, [("x".to_owned(), "1".to_owned())]);
        for bad in ["x", ": y", "x y: z", "x: \u{1}"] {
            assert!(asked.add_header(bad).is_err(), "{bad}");
        }
        asked.set_gateway("door").unwrap();
        assert_eq!(asked.gateway.as_deref(), Some("default/door"));
        assert!(asked.set_gateway("a/b/c").is_err());
    }
}
