//! The beginning of a client's TLS connection, looked at without opening it: which name it asks for, and which
//! protocols it offers (RFC 8446, 4.1.2; RFC 6066, 3; RFC 7301).
//!
//! Bytes come in as the socket gives them; out comes [`Peek::Incomplete`] until the hello is whole, and then what it
//! says. It may be spread over many records. Nothing is kept between two looks: the caller keeps the bytes, because
//! they are needed again by whoever speaks TLS with the client.

use std::borrow::Cow;

/// Largest hello that is looked at, in bytes of the handshake message; its records add 5 bytes each.
pub const HELLO_BYTES_MAX: usize = 32 * 1024;
/// Most records that a hello may be spread over: every look reads them all again.
const RECORDS_MAX: usize = 2048;
/// Largest payload of a plaintext record (RFC 8446, 5.1).
const RECORD_BYTES_MAX: usize = 1 << 14;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;
const ENCRYPTED_HELLO: u16 = 0xfe0d;
const TLS_1_2: u16 = 0x0303;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peek {
    /// The beginning of a hello: more bytes are needed.
    Incomplete,
    /// A whole hello.
    Hello(ClientHello),
}

/// What a hello says, as far as it decides where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// The name that is asked for, in lower case and without a dot at its end. None when there is none, or when it is
    /// no name (an address, say).
    pub server_name: Option<Box<str>>,
    /// Protocols that the client offers, in its order of preference.
    pub alpn: Vec<Box<[u8]>>,
    /// Whether the client hides a second hello in this one (ECH); the outer name counts.
    pub has_encrypted_hello: bool,
    /// Whether the client speaks nothing newer than TLS 1.1.
    pub is_too_old: bool,
}

/// Why bytes are no hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HelloError {
    /// They are not TLS.
    #[error("not TLS")]
    NotTls,
    /// The hello is larger than [`HELLO_BYTES_MAX`].
    #[error("the hello is too large")]
    TooLarge,
    /// Its lengths do not add up, or it says twice what is looked at.
    #[error("the hello is malformed")]
    Malformed,
}

/// Looks at the first bytes of a connection.
///
/// Once the answer is another than [`Peek::Incomplete`], more bytes do not change it. What is no hello is refused with
/// the first byte that shows it; only what is in the hello waits for its end.
pub fn peek(bytes: &[u8]) -> Result<Peek, HelloError> {
    let mut records = Reader(bytes);
    // The usual hello is whole in one record, and read where it is.
    let mut message = Cow::Borrowed(&[][..]);
    for _ in 0..RECORDS_MAX {
        let Some((fragment, is_whole)) = record(&mut records)? else {
            return Ok(Peek::Incomplete);
        };
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
        let hello = client_hello(&message)?;
        if !is_whole {
            return Ok(Peek::Incomplete);
        }
        if let Some(hello) = hello {
            return parse(hello).map(Peek::Hello);
        }
    }
    Err(HelloError::TooLarge)
}

/// The payload of the next record, as far as it is there, and whether that is all of it; None before its header is.
fn record<'a>(reader: &mut Reader<'a>) -> Result<Option<(&'a [u8], bool)>, HelloError> {
    // What can be known early is said early, so that nobody waits for the rest of something that is no TLS.
    match reader.0 {
        [] => return Ok(None),
        [kind, ..] if *kind != HANDSHAKE => return Err(HelloError::NotTls),
        [_, major, ..] if *major != 3 => return Err(HelloError::NotTls),
        [_, _, _, high, ..] if usize::from(*high) << 8 > RECORD_BYTES_MAX => return Err(HelloError::NotTls),
        _ => {}
    }
    let Some(([_, _, _, high, low], rest)) = reader.0.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length == 0 || length > RECORD_BYTES_MAX {
        return Err(HelloError::NotTls);
    }
    let (payload, rest) = rest.split_at_checked(length).unwrap_or((rest, &[]));
    reader.0 = rest;
    Ok(Some((payload, payload.len() == length)))
}

/// The body of the hello at the front; None when it is not all there.
fn client_hello(message: &[u8]) -> Result<Option<&[u8]>, HelloError> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(HelloError::NotTls);
    }
    let mut reader = Reader(message);
    let (Some(_kind), Some(length)) = (reader.u8(), reader.u24()) else {
        return Ok(None);
    };
    if length > HELLO_BYTES_MAX {
        return Err(HelloError::TooLarge);
    }
    Ok(reader.take(length))
}

fn parse(body: &[u8]) -> Result<ClientHello, HelloError> {
    parse_fields(body).ok_or(HelloError::Malformed)
}

fn parse_fields(body: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(body);
    let version = reader.u16()?;
    let _random = reader.take(32)?;
    let session = reader.vector8()?;
    let suites = reader.vector16()?;
    let compressions = reader.vector8()?;
    if session.len() > 32 || suites.is_empty() || !suites.len().is_multiple_of(2) || compressions.is_empty() {
        return None;
    }
    let mut hello = ClientHello {
        is_too_old: version < TLS_1_2,
        ..ClientHello::default()
    };
    if reader.0.is_empty() {
        // Extensions are as old as TLS 1.2; without them there is no name.
        return Some(hello);
    }
    let mut extensions = Reader(reader.vector16()?);
    if !reader.0.is_empty() {
        return None;
    }
    let (mut has_name, mut has_alpn) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let value = extensions.vector16()?;
        match kind {
            SERVER_NAME if std::mem::replace(&mut has_name, true) => return None,
            ALPN if std::mem::replace(&mut has_alpn, true) => return None,
            SERVER_NAME => hello.server_name = server_name(value)?,
            ALPN => hello.alpn = alpn(value)?,
            // Whoever lists its versions has 1.3 among them, or says what it has there.
            SUPPORTED_VERSIONS => hello.is_too_old = false,
            ENCRYPTED_HELLO if std::mem::replace(&mut hello.has_encrypted_hello, true) => return None,
            _ => {}
        }
    }
    Some(hello)
}

/// The host name of a server_name extension; of other kinds of names there are none.
fn server_name(value: &[u8]) -> Option<Option<Box<str>>> {
    let mut reader = Reader(value);
    let mut list = Reader(reader.vector16()?);
    if !reader.0.is_empty() || list.0.is_empty() {
        return None;
    }
    let mut found = None;
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let name = list.vector16()?;
        if kind != 0 {
            continue;
        }
        if found.is_some() {
            return None;
        }
        found = Some(host_name(name));
    }
    Some(found.flatten())
}

/// A name as it is compared; None for what no certificate could have.
fn host_name(name: &[u8]) -> Option<Box<str>> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let has_letters = name.iter().any(u8::is_ascii_alphabetic);
    let fits = (1..=253).contains(&name.len()) && name.iter().all(is_letter) && has_letters;
    let labels = name.split(|byte| *byte == b'.');
    if !fits
        || labels
            .into_iter()
            .any(|label| label.is_empty() || label.len() > 63)
    {
        return None;
    }
    let text = std::str::from_utf8(name).ok()?;
    Some(text.to_ascii_lowercase().into())
}

fn alpn(value: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let mut reader = Reader(value);
    let mut list = Reader(reader.vector16()?);
    if !reader.0.is_empty() || list.0.is_empty() {
        return None;
    }
    let mut found = Vec::new();
    while !list.0.is_empty() {
        let name = list.vector8()?;
        if name.is_empty() {
            return None;
        }
        found.push(name.into());
    }
    Some(found)
}

/// Takes fields from the front of bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?
            .first_chunk()
            .map(|bytes| u16::from_be_bytes(*bytes))
    }

    fn u24(&mut self) -> Option<usize> {
        let [high, middle, low] = *self.take(3)?.first_chunk()?;
        usize::try_from(u32::from_be_bytes([0, high, middle, low])).ok()
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number in as many bytes.
    fn number(value: usize, bytes: usize) -> Vec<u8> {
        value.to_be_bytes()[size_of::<usize>() - bytes..].to_vec()
    }

    /// Content behind its length in as many bytes.
    fn vector(bytes: usize, content: &[u8]) -> Vec<u8> {
        [&number(content.len(), bytes), content].concat()
    }

    fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
        [&number(kind.into(), 2)[..], &vector(2, value)].concat()
    }

    fn names(names: &[(u8, &[u8])]) -> Vec<u8> {
        let list = names.iter();
        let list = list.map(|(kind, name)| [&[*kind][..], &vector(2, name)].concat());
        extension(SERVER_NAME, &vector(2, &list.collect::<Vec<_>>().concat()))
    }

    fn name(text: &str) -> Vec<u8> {
        names(&[(0, text.as_bytes())])
    }

    fn protocols(names: &[&[u8]]) -> Vec<u8> {
        let list = names.iter().map(|name| vector(1, name));
        extension(ALPN, &vector(2, &list.collect::<Vec<_>>().concat()))
    }

    /// The fields of a hello.
    struct Builder {
        session: Vec<u8>,
        suites: Vec<u8>,
        compressions: Vec<u8>,
        /// None for a hello that ends before them.
        extensions: Option<Vec<u8>>,
        behind: Vec<u8>,
    }

    impl Builder {
        fn new(extensions: &[Vec<u8>]) -> Self {
            Self {
                session: vec![7; 32],
                suites: vec![0x1a, 0x1a, 0x13, 0x01],
                compressions: vec![0],
                extensions: Some(extensions.concat()),
                behind: Vec::new(),
            }
        }

        /// The handshake message.
        fn message(&self) -> Vec<u8> {
            let mut body = vec![3, 3];
            body.extend_from_slice(&[9; 32]);
            body.extend_from_slice(&vector(1, &self.session));
            body.extend_from_slice(&vector(2, &self.suites));
            body.extend_from_slice(&vector(1, &self.compressions));
            if let Some(extensions) = &self.extensions {
                body.extend_from_slice(&vector(2, extensions));
            }
            body.extend_from_slice(&self.behind);
            [&[CLIENT_HELLO][..], &vector(3, &body)].concat()
        }

        fn bytes(&self) -> Vec<u8> {
            records(&self.message(), RECORD_BYTES_MAX)
        }
    }

    /// A message in records of so many bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let chunks = message.chunks(size);
        let records = chunks.map(|chunk| [&[HANDSHAKE, 3, 1][..], &vector(2, chunk)].concat());
        records.collect::<Vec<_>>().concat()
    }

    fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
        Builder::new(extensions).bytes()
    }

    #[track_caller]
    fn said(bytes: &[u8]) -> ClientHello {
        match peek(bytes) {
            Ok(Peek::Hello(hello)) => hello,
            other => panic!("{other:?}"),
        }
    }

    fn server_name_of(extensions: &[Vec<u8>]) -> Option<String> {
        said(&hello(extensions)).server_name.map(String::from)
    }

    /// The answer comes with the last of these bytes, and what follows does not change it.
    #[track_caller]
    fn first_said_by(bytes: &[u8], expected: &Result<Peek, HelloError>) {
        for end in 0..bytes.len() {
            assert_eq!(peek(&bytes[..end]), Ok(Peek::Incomplete), "{end} of {bytes:?}");
        }
        assert_eq!(peek(bytes), *expected, "{bytes:?}");
        for more in [&b"GET / HTTP/1.1"[..], &[0; 600], &[22, 3, 1, 0], &[255]] {
            assert_eq!(peek(&[bytes, more].concat()), *expected);
        }
    }

    /// What a browser says, with values that nobody knows (RFC 8701) wherever there may be some.
    fn usual() -> Vec<Vec<u8>> {
        vec![
            extension(0x0a0a, &[]),
            name("WWW.a.Example."),
            extension(10, &vector(2, &[0x6a, 0x6a, 0, 29])),
            protocols(&[b"\x5a\x5a", b"h2", b"http/1.1"]),
            extension(43, &vector(1, &[0xda, 0xda, 3, 4])),
            extension(0xfafa, &[0]),
        ]
    }

    fn usual_answer() -> Result<Peek, HelloError> {
        Ok(Peek::Hello(ClientHello {
            server_name: Some("www.a.example".into()),
            alpn: vec![b"\x5a\x5a"[..].into(), b"h2"[..].into(), b"http/1.1"[..].into()],
            has_encrypted_hello: false,
            is_too_old: false,
        }))
    }

    #[test]
    fn a_hello_is_known_with_its_last_byte() {
        first_said_by(&hello(&usual()), &usual_answer());
    }

    #[test]
    fn a_hello_may_be_spread_over_records() {
        let message = Builder::new(&usual()).message();
        for size in [1, 2, 3, 4, 5, 64, message.len() - 1, message.len()] {
            first_said_by(&records(&message, size), &usual_answer());
        }
        for at in 1..message.len() {
            let (first, second) = message.split_at(at);
            let bytes = [records(first, at), records(second, message.len())].concat();
            assert_eq!(peek(&bytes[..bytes.len() - 1]), Ok(Peek::Incomplete));
            assert_eq!(peek(&bytes), usual_answer(), "{at}");
        }
    }

    #[test]
    fn old_hellos_have_no_extensions() {
        let mut builder = Builder::new(&[]);
        let nothing = Ok(Peek::Hello(ClientHello::default()));
        assert_eq!(peek(&builder.bytes()), nothing);
        builder.extensions = None;
        builder.session.clear();
        first_said_by(&builder.bytes(), &nothing);
    }

    #[test]
    fn what_is_said_twice_is_malformed() {
        let ech = extension(ENCRYPTED_HELLO, &[0]);
        for twice in [name("a.example"), protocols(&[b"h2"]), ech] {
            let extensions = [twice.clone(), extension(23, &[]), twice];
            assert_eq!(peek(&hello(&extensions)), Err(HelloError::Malformed));
        }
        let two = names(&[(0, b"a.example"), (0, b"a.example")]);
        assert_eq!(peek(&hello(&[two])), Err(HelloError::Malformed));
    }

    #[test]
    fn names_are_compared_in_one_form() {
        for (text, expected) in [
            ("a.example", Some("a.example")),
            ("A.EXAMPLE", Some("a.example")),
            ("a.example.", Some("a.example")),
            ("localhost", Some("localhost")),
            ("_dns.a-b.example", Some("_dns.a-b.example")),
            ("1.2.3.4a", Some("1.2.3.4a")),
            ("192.0.2.1", None),
            ("192.0.2.1.", None),
            ("2001:db8::1", None),
            ("[2001:db8::1]", None),
            ("", None),
            (".", None),
            ("..", None),
            (".a", None),
            ("a..b", None),
            ("a..", None),
            ("*.a.example", None),
            ("a.example:443", None),
            ("a b", None),
            ("a\0b", None),
            ("b\u{fc}cher.example", None),
        ] {
            assert_eq!(server_name_of(&[name(text)]).as_deref(), expected, "{text:?}");
        }
        assert_eq!(server_name_of(&[names(&[(0, b"a.\xff")])]), None);
        assert_eq!(server_name_of(&[]), None);
    }

    #[test]
    fn overlong_names_are_none() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", &label[..61]);
        assert_eq!(longest.len(), 253);
        for text in [longest.clone(), format!("{longest}.")] {
            assert_eq!(server_name_of(&[name(&text)]).as_ref(), Some(&longest));
        }
        for text in [
            format!("{longest}a"),
            format!("{label}a.example"),
            "a.".repeat(8000),
        ] {
            assert_eq!(server_name_of(&[name(&text)]), None);
        }
    }

    #[test]
    fn names_of_other_kinds_are_skipped() {
        let other = names(&[(1, b"b.example"), (0, b"a.example"), (255, b"")]);
        assert_eq!(server_name_of(&[other]).as_deref(), Some("a.example"));
        assert_eq!(server_name_of(&[names(&[(1, b"b.example")])]), None);
    }

    #[test]
    fn protocols_keep_their_order() {
        let offered: &[&[u8]] = &[b"z", b"h2", b"a", b"h2", &[0; 255], b"\xff\xfe"];
        let found = said(&hello(&[protocols(offered)])).alpn;
        assert_eq!(found.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>(), offered);
    }

    #[test]
    fn a_hidden_hello_is_noticed() {
        let hidden = extension(ENCRYPTED_HELLO, &[0; 300]);
        let found = said(&hello(&[name("outer.example"), hidden]));
        assert!(found.has_encrypted_hello);
        assert_eq!(found.server_name.as_deref(), Some("outer.example"));
    }

    #[test]
    fn lengths_add_up() {
        let names: &[&[u8]] = &[
            &[],
            &[0],
            &[0, 0],
            &[0, 1, 0],
            &[0, 3, 0, 0],
            &[0, 3, 0, 0, 1],
            &[0, 4, 0, 0, 2, b'a'],
            &[0, 4, 0, 0, 1, b'a', 0],
            &[0, 5, 0, 0, 1, b'a', 0],
        ];
        let protocols: &[&[u8]] = &[
            &[],
            &[0],
            &[0, 0],
            &[0, 1, 0],
            &[0, 2, 2, b'h'],
            &[0, 3, 2, b'h', b'2', 0],
            &[0, 4, 2, b'h', b'2', 0],
        ];
        for (kind, values) in [(SERVER_NAME, names), (ALPN, protocols)] {
            for value in values {
                let bytes = hello(&[extension(kind, value)]);
                assert_eq!(peek(&bytes), Err(HelloError::Malformed), "{kind}: {value:?}");
            }
        }
        let extensions: &[&[u8]] = &[&[0], &[0, 0], &[0, 0, 0], &[0, 23, 0, 1], &[0, 23, 0, 0, 0]];
        for broken in extensions {
            let bytes = hello(&[broken.to_vec()]);
            assert_eq!(peek(&bytes), Err(HelloError::Malformed), "{broken:?}");
        }
        let changes: &[fn(&mut Builder)] = &[
            |builder| builder.session = vec![0; 33],
            |builder| builder.suites.clear(),
            |builder| builder.suites.push(0),
            |builder| builder.compressions.clear(),
            |builder| builder.behind.push(0),
            |builder| {
                builder.extensions = None;
                builder.behind.push(0);
            },
        ];
        for change in changes {
            let mut builder = Builder::new(&usual());
            change(&mut builder);
            first_said_by(&builder.bytes(), &Err(HelloError::Malformed));
        }
    }

    #[test]
    fn a_hello_that_is_cut_short_is_malformed() {
        let message = Builder::new(&usual()).message();
        let body = &message[4..];
        // Where the extensions begin, a hello may end.
        let old = 2 + 32 + 33 + 6 + 2;
        for end in 0..body.len() {
            let cut = [&[CLIENT_HELLO][..], &vector(3, &body[..end])].concat();
            let expected = if end == old {
                Ok(Peek::Hello(ClientHello::default()))
            } else {
                Err(HelloError::Malformed)
            };
            assert_eq!(peek(&records(&cut, RECORD_BYTES_MAX)), expected, "{end}");
        }
    }

    #[test]
    fn what_is_not_tls_is_known_at_once() {
        let firsts: &[&[u8]] = &[
            // An alert, application data, a change of ciphers.
            &[21],
            &[23],
            &[20],
            b"G",
            b"P",
            b"S",
            b"\r",
            // The hello of SSLv2, and that of DTLS.
            &[0x80],
            &[22, 254],
            &[22, 2],
            &[22, 4],
            // Records that are longer than any, or empty.
            &[22, 3, 1, 0x41],
            &[22, 3, 1, 0x40, 1],
            &[22, 3, 1, 0, 0],
            // Another handshake message.
            &[22, 3, 1, 1, 0, 2],
            &[22, 3, 1, 0, 1, 0],
            // A second record that is none.
            &[22, 3, 1, 0, 1, 1, 21],
            &[22, 3, 1, 0, 1, 1, 22, 3, 3, 0, 0],
        ];
        for first in firsts {
            first_said_by(first, &Err(HelloError::NotTls));
        }
        assert_eq!(peek(&[]), Ok(Peek::Incomplete));
    }

    #[test]
    fn too_large_is_known_from_the_length() {
        let length = |length: usize| [&[22, 3, 1, 0x40, 0, CLIENT_HELLO][..], &number(length, 3)].concat();
        assert_eq!(peek(&length(HELLO_BYTES_MAX)), Ok(Peek::Incomplete));
        for too_large in [HELLO_BYTES_MAX + 1, 0xff_ffff] {
            first_said_by(&length(too_large), &Err(HelloError::TooLarge));
        }
        let message = [&[CLIENT_HELLO][..], &number(HELLO_BYTES_MAX + 1, 3)].concat();
        first_said_by(&records(&message, 1), &Err(HelloError::TooLarge));
    }

    #[test]
    fn the_largest_hello_is_read() {
        let empty = Builder::new(&[]).message().len() - 4;
        let room = HELLO_BYTES_MAX - empty - name("a.example").len() - 4;
        let message = Builder::new(&[extension(21, &vec![0; room]), name("a.example")]).message();
        assert_eq!(message.len() - 4, HELLO_BYTES_MAX);
        for size in [HELLO_BYTES_MAX / RECORDS_MAX + 1, 100, RECORD_BYTES_MAX] {
            let bytes = records(&message, size);
            assert_eq!(peek(&bytes[..bytes.len() - 1]), Ok(Peek::Incomplete));
            assert_eq!(said(&bytes).server_name.as_deref(), Some("a.example"));
        }
        assert_eq!(peek(&records(&message, 1)), Err(HelloError::TooLarge));
    }
}
