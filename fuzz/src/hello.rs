//! The beginning of a client's TLS connection: as it comes, and wrapped so that the lengths around the content are
//! right.

use crate::input::Input;
use isthmus_core::hello::{ClientHello, HELLO_BYTES_MAX, HelloError, Peek, peek};

const RECORD_BYTES_MAX: usize = 1 << 14;
/// How many splits are tried, spread over the bytes: each costs as much as all the bytes before it.
const SPLITS: usize = 100;

/// Looks at a hello.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let way = input.below(4);
    let size = if input.once_in(2) {
        RECORD_BYTES_MAX
    } else {
        1 + input.below(64)
    };
    match way {
        0 => split(input.rest()),
        1 => split(&records(input.rest(), size)),
        2 => wrapped(&message(input.rest()), size),
        _ => built(&mut input, size),
    }
}

/// However these bytes are split, the answer is the same.
fn split(bytes: &[u8]) {
    let whole = peek(bytes);
    let step = 1 + bytes.len() / SPLITS;
    let mut is_known = false;
    for end in (0..bytes.len()).step_by(step).chain([bytes.len()]) {
        let answer = peek(&bytes[..end]);
        is_known |= answer != Ok(Peek::Incomplete);
        if is_known {
            assert_eq!(answer, whole, "{end} of {}", bytes.len());
        }
    }
    if is_known {
        assert_eq!(peek(&[bytes, b"\x16\x03"].concat()), whole);
    }
    if let Ok(Peek::Hello(hello)) = &whole {
        check(hello);
    }
}

/// What every hello keeps to.
fn check(hello: &ClientHello) {
    if let Some(name) = &hello.server_name {
        assert!((1..=253).contains(&name.len()));
        assert!(!name.starts_with('.') && !name.ends_with('.') && !name.contains(".."));
        assert!(name.bytes().any(|byte| byte.is_ascii_alphabetic()));
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase()
            || byte.is_ascii_digit()
            || matches!(byte, b'-' | b'_' | b'.')));
    }
    assert!(hello.alpn.iter().all(|name| (1..=255).contains(&name.len())));
}

/// The answer for a message does not depend on the records that it comes in.
fn wrapped(message: &[u8], size: usize) {
    let bytes = records(message, size);
    split(&bytes);
    let answer = peek(&bytes);
    assert_eq!(answer, peek(&records(message, RECORD_BYTES_MAX)));
    let is_too_large = message.len() - 4 > HELLO_BYTES_MAX;
    assert_eq!(answer == Err(HelloError::TooLarge), is_too_large);
    assert!(answer != Ok(Peek::Incomplete) && answer != Err(HelloError::NotTls));
}

/// A hello of fields whose lengths add up, and what it must be read as.
fn built(input: &mut Input<'_>, size: usize) {
    let mut names = 0;
    let mut offers = 0;
    let mut hidden = 0;
    let mut is_empty_offer = false;
    let mut expected = ClientHello::default();
    let mut extensions = Vec::new();
    while !input.is_spent() {
        let kind = input.pick(&[0_u16, 16, 0xfe0d, 0x0a0a, 21, 43]);
        let length = input.below(80);
        let text = input.take(length);
        let value = match kind {
            0 => {
                names += 1;
                let letters: Vec<u8> = text.iter().map(|byte| b'A' + byte % 26).collect();
                let fits = (1..=63).contains(&letters.len());
                expected.server_name =
                    fits.then(|| String::from_utf8_lossy(&letters).to_ascii_lowercase().into());
                vector(2, &[&[0][..], &vector(2, &letters)].concat())
            }
            16 => {
                offers += 1;
                is_empty_offer |= text.is_empty();
                expected.alpn = text.chunks(7).map(Box::from).collect();
                let list = text.chunks(7).flat_map(|name| vector(1, name));
                vector(2, &list.collect::<Vec<_>>())
            }
            0xfe0d => {
                hidden += 1;
                expected.has_encrypted_hello = true;
                text.to_vec()
            }
            _ => text.to_vec(),
        };
        extensions.extend_from_slice(&kind.to_be_bytes());
        extensions.extend_from_slice(&vector(2, &value));
    }
    if extensions.len() > usize::from(u16::MAX) {
        return;
    }
    let mut body = vec![3; 34];
    body.extend_from_slice(&[0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend_from_slice(&vector(2, &extensions));
    let message = message(&body);
    wrapped(&message, size);
    let answer = peek(&records(&message, size));
    if body.len() > HELLO_BYTES_MAX {
        assert_eq!(answer, Err(HelloError::TooLarge));
    } else if names > 1 || offers > 1 || hidden > 1 || is_empty_offer {
        assert_eq!(answer, Err(HelloError::Malformed));
    } else {
        assert_eq!(answer, Ok(Peek::Hello(expected)));
    }
}

/// A handshake message of a client's hello.
fn message(body: &[u8]) -> Vec<u8> {
    [&[1][..], &vector(3, body)].concat()
}

/// A message in records of so many bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let chunks = message.chunks(size);
    chunks
        .flat_map(|chunk| [&[22, 3, 1][..], &vector(2, chunk)].concat())
        .collect()
}

/// Content behind its length in as many bytes.
fn vector(bytes: usize, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    [&length[length.len() - bytes..], content].concat()
}
