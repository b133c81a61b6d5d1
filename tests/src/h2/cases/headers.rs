//! Fields that no request may have (RFC 9113, 8.2), and control data in pseudo-header fields (8.3).

use super::{Case, Expect, REFUSED_PATH, check};
use crate::h2::client::Connection;
use crate::h2::frame::{Frame, flag};
use crate::h2::hpack::Block;
use crate::h2::transport::AUTHORITY;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = fields();
    cases.extend(pseudo_fields());
    cases.extend(values_of_pseudo_fields());
    cases.extend(connect());
    cases.extend(trailers());
    cases.extend(good());
    cases
}

/// A request that must not be passed on, with one more field.
fn refused_with(c: &mut Connection, name: &[u8], value: &[u8]) {
    let block = c.head("GET", REFUSED_PATH).field(name, value);
    c.send(&Frame::headers(flag::WHOLE, 1, block));
}

fn fields() -> Vec<Case> {
    let table: &[(&str, &str, &[u8], &[u8])] = &[
        ("8.2.1", "a name in upper case", b"X-TEST", b"1"),
        ("8.2.1", "a name with one letter in upper case", b"x-tEst", b"1"),
        ("8.2.1", "an empty name", b"", b"1"),
        ("8.2.1", "a name with a space", b"x test", b"1"),
        ("8.2.1", "a name with a space at its end", b"x-test ", b"1"),
        ("8.2.1", "a name with a tab", b"x\ttest", b"1"),
        ("8.2.1", "a name with NUL", b"x\0test", b"1"),
        ("8.2.1", "a name with CR and LF", b"x\r\ntest", b"1"),
        ("8.2.1", "a name with LF", b"x\ntest", b"1"),
        ("8.2.1", "a name with a colon", b"x:test", b"1"),
        ("8.2.1", "a name with a colon at its end", b"x-test:", b"1"),
        ("8.2.1", "a name with DEL", b"x\x7ftest", b"1"),
        ("8.2.1", "a name with an octet above ASCII", b"x\xe4test", b"1"),
        ("8.2.1", "a value with NUL", b"x-test", b"a\0b"),
        ("8.2.1", "a value with CR", b"x-test", b"a\rb"),
        ("8.2.1", "a value with LF", b"x-test", b"a\nb"),
        (
            "8.2.1",
            "a value with another field in it",
            b"x-test",
            b"a\r\nx-smuggled: 1",
        ),
        (
            "8.2.1",
            "a value with another request in it",
            b"x-test",
            b"a\r\n\r\nGET /refused HTTP/1.1\r\n",
        ),
        ("8.2.1", "a value with LF at its end", b"x-test", b"a\n"),
        ("8.2.1", "a value that begins with a space", b"x-test", b" a"),
        ("8.2.1", "a value that ends with a space", b"x-test", b"a "),
        ("8.2.1", "a value that begins with a tab", b"x-test", b"\ta"),
        ("8.2.1", "a value that ends with a tab", b"x-test", b"a\t"),
        ("8.2.2", "connection", b"connection", b"keep-alive"),
        ("8.2.2", "connection: close", b"connection", b"close"),
        (
            "8.2.2",
            "connection that names another field",
            b"connection",
            b"x-test",
        ),
        ("8.2.2", "proxy-connection", b"proxy-connection", b"keep-alive"),
        ("8.2.2", "keep-alive", b"keep-alive", b"timeout=5"),
        ("8.2.2", "transfer-encoding", b"transfer-encoding", b"chunked"),
        (
            "8.2.2",
            "transfer-encoding: identity",
            b"transfer-encoding",
            b"identity",
        ),
        ("8.2.2", "upgrade", b"upgrade", b"websocket"),
        ("8.2.2", "te: gzip", b"te", b"gzip"),
        ("8.2.2", "te: trailers, gzip", b"te", b"trailers, gzip"),
        ("8.2.2", "te: trailers;q=0.5", b"te", b"trailers;q=0.5"),
        ("8.3", "an unknown pseudo-header field", b":test", b"1"),
        ("8.3", ":status in a request", b":status", b"200"),
        ("8.3", "a pseudo-header field without a name", b":", b"1"),
        (
            "8.3",
            ":protocol, which nobody has offered",
            b":protocol",
            b"websocket",
        ),
    ];
    let case = |row: &(&'static str, &str, &'static [u8], &'static [u8])| {
        let (section, what, name, value) = *row;
        Case::sends(section, what, Expect::Malformed, move |c| {
            refused_with(c, name, value)
        })
    };
    table.iter().map(case).collect()
}

/// A request of these fields alone.
fn of_fields(section: &'static str, name: &'static str, fields: &[(&'static str, &'static str)]) -> Case {
    let fields = fields.to_vec();
    Case::sends(section, name, Expect::Malformed, move |c| {
        let block = fields.iter().fold(Block::new(), |block, (name, value)| {
            let value = if *name == ":scheme" && *value == "SCHEME" {
                c.scheme()
            } else {
                value
            };
            block.field(name, value)
        });
        c.send(&Frame::headers(flag::WHOLE, 1, block));
    })
}

fn pseudo_fields() -> Vec<Case> {
    const METHOD: (&str, &str) = (":method", "GET");
    const SCHEME: (&str, &str) = (":scheme", "SCHEME");
    const PATH: (&str, &str) = (":path", REFUSED_PATH);
    const HOST: (&str, &str) = (":authority", AUTHORITY);
    const OTHER: (&str, &str) = ("x-test", "1");
    vec![
        of_fields(
            "8.3",
            ":method behind a field",
            &[SCHEME, PATH, HOST, OTHER, METHOD],
        ),
        of_fields(
            "8.3",
            ":path behind a field",
            &[METHOD, SCHEME, HOST, OTHER, PATH],
        ),
        of_fields(
            "8.3",
            ":authority behind a field",
            &[METHOD, SCHEME, PATH, OTHER, HOST],
        ),
        of_fields(
            "8.3",
            ":scheme behind a field",
            &[METHOD, PATH, HOST, OTHER, SCHEME],
        ),
        of_fields("8.3", ":method twice", &[METHOD, METHOD, SCHEME, PATH, HOST]),
        of_fields("8.3", ":scheme twice", &[METHOD, SCHEME, SCHEME, PATH, HOST]),
        of_fields("8.3", ":path twice", &[METHOD, SCHEME, PATH, PATH, HOST]),
        of_fields(
            "8.3",
            ":path twice, and different",
            &[METHOD, SCHEME, PATH, (":path", "/other"), HOST],
        ),
        of_fields("8.3", ":authority twice", &[METHOD, SCHEME, PATH, HOST, HOST]),
        of_fields("8.3.1", "no :method", &[SCHEME, PATH, HOST]),
        of_fields("8.3.1", "no :scheme", &[METHOD, PATH, HOST]),
        of_fields("8.3.1", "no :path", &[METHOD, SCHEME, HOST]),
        of_fields("8.3.1", "no pseudo-header fields", &[("host", AUTHORITY), OTHER]),
        of_fields("8.3.1", "no fields at all", &[]),
    ]
}

fn values_of_pseudo_fields() -> Vec<Case> {
    let request = |section, name, method, path, authority| {
        let scheme = (":scheme", "SCHEME");
        let fields = [
            (":method", method),
            scheme,
            (":path", path),
            (":authority", authority),
        ];
        of_fields(section, name, &fields)
    };
    vec![
        request("8.3.1", "an empty :path", "GET", "", AUTHORITY),
        request("8.3.1", "an empty :method", "", REFUSED_PATH, AUTHORITY),
        request("8.3.1", ":path without a slash", "GET", "refused", AUTHORITY),
        request("8.3.1", ":path of * for GET", "GET", "*", AUTHORITY),
        request(
            "8.2.1",
            ":path with a space",
            "GET",
            "/refused HTTP/1.1",
            AUTHORITY,
        ),
        request(
            "8.2.1",
            ":path with CR and LF",
            "GET",
            "/refused HTTP/1.1\r\nx-smuggled: 1",
            AUTHORITY,
        ),
        request("8.2.1", ":path with NUL", "GET", "/refused\0", AUTHORITY),
        request(
            "8.2.1",
            ":method with a space",
            "GET /refused",
            REFUSED_PATH,
            AUTHORITY,
        ),
        request(
            "8.2.1",
            ":method with CR and LF",
            "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET",
            REFUSED_PATH,
            AUTHORITY,
        ),
        request("8.2.1", ":method with a colon", "GE:T", REFUSED_PATH, AUTHORITY),
        request(
            "8.2.1",
            ":authority with CR and LF",
            "GET",
            REFUSED_PATH,
            "h2.example\r\nx-smuggled: 1",
        ),
        request(
            "8.2.1",
            ":authority with a space",
            "GET",
            REFUSED_PATH,
            "h2.example x",
        ),
    ]
}

fn connect() -> Vec<Case> {
    const METHOD: (&str, &str) = (":method", "CONNECT");
    const HOST: (&str, &str) = (":authority", "h2.example:443");
    vec![
        of_fields(
            "8.5",
            "CONNECT with :scheme and :path",
            &[METHOD, (":scheme", "SCHEME"), (":path", REFUSED_PATH), HOST],
        ),
        of_fields(
            "8.5",
            "CONNECT with :path",
            &[METHOD, (":path", REFUSED_PATH), HOST],
        ),
        of_fields(
            "8.5",
            "CONNECT with :scheme",
            &[METHOD, (":scheme", "SCHEME"), HOST],
        ),
        of_fields("8.5", "CONNECT without :authority", &[METHOD]),
    ]
}

fn trailers() -> Vec<Case> {
    let mut cases = Vec::new();
    for (section, name, field, value) in [
        ("8.1", "trailers with :method", ":method", "GET"),
        ("8.1", "trailers with :path", ":path", "/"),
        ("8.1", "trailers with :status", ":status", "200"),
        (
            "8.1",
            "trailers with an unknown pseudo-header field",
            ":test",
            "1",
        ),
        ("8.2.1", "trailers with a name in upper case", "X-End", "1"),
        ("8.2.1", "trailers with LF in a value", "x-end", "a\nb"),
        ("8.2.2", "trailers with connection", "connection", "close"),
        (
            "8.2.2",
            "trailers with transfer-encoding",
            "transfer-encoding",
            "chunked",
        ),
    ] {
        cases.push(Case::sends(section, name, Expect::Malformed, move |c| {
            let stream = c.post("/");
            c.send(&Frame::data(flag::NONE, stream, b"abc".as_slice()));
            c.send(&Frame::headers(flag::WHOLE, stream, Block::of(&[(field, value)])));
        }));
    }
    let name = "trailers with :method, without content";
    cases.push(Case::sends("8.1", name, Expect::Malformed, |c| {
        let stream = c.post("/");
        c.send(&Frame::headers(
            flag::WHOLE,
            stream,
            Block::of(&[(":method", "GET")]),
        ));
    }));
    let name = "a second header block that does not end the stream";
    cases.push(Case::sends("8.1", name, Expect::Malformed, |c| {
        let stream = c.post("/");
        c.send(&Frame::headers(
            flag::END_HEADERS,
            stream,
            Block::of(&[("x-end", "1")]),
        ));
    }));
    let name = "a second header block that does not end the stream, behind content";
    cases.push(Case::sends("8.1", name, Expect::Malformed, |c| {
        let stream = c.post("/");
        c.send(&Frame::data(flag::NONE, stream, b"abc".as_slice()));
        c.send(&Frame::headers(
            flag::END_HEADERS,
            stream,
            Block::of(&[("x-end", "1")]),
        ));
    }));
    cases
}

fn good() -> Vec<Case> {
    let mut cases = Vec::new();
    let table: &[(&str, &str, &[u8], &[u8])] = &[
        ("8.2.2", "te: trailers", b"te", b"trailers"),
        ("8.2.1", "an empty value", b"x-test", b""),
        (
            "8.2.1",
            "a value with a tab and spaces inside",
            b"x-test",
            b"a\t b  c",
        ),
        ("8.2.1", "a value above ASCII", b"x-test", b"gr\xc3\xbc\xc3\x9fe"),
        (
            "8.2.1",
            "a name of every character that is left",
            b"x!#$%&'*+-.^_`|~0z",
            b"1",
        ),
    ];
    for (section, what, name, value) in table {
        cases.push(Case::sends(section, *what, Expect::Answer(200), move |c| {
            let block = c.head("GET", "/").field(name, value);
            c.send(&Frame::headers(flag::WHOLE, 1, block));
        }));
    }
    cases.push(Case::plays(
        "8.2.3",
        "cookies of several fields reach HTTP/1.1 as one",
        Expect::Alive,
        |c| {
            let mut block = c.head("GET", "/");
            for (name, value) in [
                ("cookie", "a=b"),
                ("x-test", "1"),
                ("cookie", "c=d; e=f"),
                ("cookie", "g=h"),
            ] {
                block = block.field(name, value);
            }
            c.send(&Frame::headers(flag::WHOLE, 1, block));
            let text = c.answered(1, 200)?.text();
            let cookies: Vec<_> = text.lines().filter(|line| line.starts_with("cookie:")).collect();
            check(cookies == ["cookie: a=b; c=d; e=f; g=h"], || {
                format!("{cookies:?}")
            })
        },
    ));
    cases.push(Case::plays(
        "8.3.1",
        "host in place of :authority",
        Expect::Alive,
        |c| {
            let scheme = c.scheme();
            let block = Block::of(&[(":method", "GET"), (":scheme", scheme), (":path", "/")]);
            c.send(&Frame::headers(flag::WHOLE, 1, block.field("host", AUTHORITY)));
            only_host(&c.answered(1, 200)?.text())
        },
    ));
    cases.push(Case::plays(
        "8.3.1",
        "host beside an :authority that says the same",
        Expect::Alive,
        |c| {
            let block = c.head("GET", "/").field("host", AUTHORITY);
            c.send(&Frame::headers(flag::WHOLE, 1, block));
            only_host(&c.answered(1, 200)?.text())
        },
    ));
    // A server should refuse it; what it passes on must have the name of :authority.
    cases.push(Case::plays(
        "8.3.1",
        "host beside an :authority that says something else",
        Expect::Alive,
        |c| {
            let block = c.head("GET", "/").field("host", "other.example");
            c.send(&Frame::headers(flag::WHOLE, 1, block));
            let answer = c.whole_answer(1)?;
            match answer.status {
                Some(200) => only_host(&answer.text()),
                Some(400..500) => Ok(()),
                status => check(answer.reset.is_some(), || format!("{status:?}")),
            }
        },
    ));
    cases
}

/// The upstream was told this host, and no other.
fn only_host(text: &str) -> Result<(), String> {
    let hosts: Vec<_> = text.lines().filter(|line| line.starts_with("host:")).collect();
    check(hosts == [format!("host: {AUTHORITY}")], || format!("{hosts:?}"))
}
