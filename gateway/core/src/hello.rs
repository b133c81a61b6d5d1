//! The beginning of a client's TLS connection, looked at without opening it: which name it asks for, and which
//! protocols it offers (RFC 8446, 4.1.2; RFC 6066, 3; RFC 7301).
//!
//! Bytes come in as the socket gives them; out comes [`Peek::Incomplete`] until the hello is whole, and then what it
//! says. It may be spread over many records. Nothing is kept between two looks: the caller keeps the bytes, because
//! they are needed again by whoever speaks TLS with the client.

/// Largest hello that is looked at, in bytes of the handshake message; its records add 5 bytes each.
pub const HELLO_BYTES_MAX: usize = 32 * 1024;
/// Largest payload of a plaintext record (RFC 8446, 5.1).
const RECORD_BYTES_MAX: usize = 1 << 14;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const ENCRYPTED_HELLO: u16 = 0xfe0d;

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
    /// Its lengths do not add up, or it says a thing twice.
    #[error("the hello is malformed")]
    Malformed,
}

/// Looks at the first bytes of a connection.
pub fn peek(bytes: &[u8]) -> Result<Peek, HelloError> {
    let mut records = Reader(bytes);
    let mut message = Vec::new();
    // The usual hello is whole in one record, and read where it is.
    let mut whole: &[u8] = &[];
    let mut count = 0;
    loop {
        let Some(fragment) = record(&mut records)? else {
            return Ok(Peek::Incomplete);
        };
        count += 1;
        if count == 1 {
            whole = fragment;
        } else {
            if count == 2 {
                message.extend_from_slice(whole);
            }
            message.extend_from_slice(fragment);
            whole = &[];
        }
        let body = if count == 1 { whole } else { &message };
        if let Some(hello) = client_hello(body)? {
            return parse(hello).map(Peek::Hello);
        }
    }
}

/// The payload of the next record; None when it is not all there.
fn record<'a>(reader: &mut Reader<'a>) -> Result<Option<&'a [u8]>, HelloError> {
    // What can be known early is said early, so that nobody waits for the rest of something that is no TLS.
    match reader.0 {
        [] => return Ok(None),
        [kind, ..] if *kind != HANDSHAKE => return Err(HelloError::NotTls),
        [_, major, ..] if *major != 3 => return Err(HelloError::NotTls),
        _ => {}
    }
    let Some([_, _, _, high, low]) = reader.0.first_chunk::<5>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length == 0 || length > RECORD_BYTES_MAX {
        return Err(HelloError::NotTls);
    }
    let Some(payload) = reader.0.get(5..5 + length) else {
        return Ok(None);
    };
    reader.0 = reader.0.get(5 + length..).unwrap_or_default();
    Ok(Some(payload))
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
    let _version = reader.u16()?;
    let _random = reader.take(32)?;
    let session = reader.vector8()?;
    let suites = reader.vector16()?;
    let compressions = reader.vector8()?;
    if session.len() > 32 || suites.is_empty() || !suites.len().is_multiple_of(2) || compressions.is_empty() {
        return None;
    }
    let mut hello = ClientHello::default();
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
            ENCRYPTED_HELLO => hello.has_encrypted_hello = true,
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
