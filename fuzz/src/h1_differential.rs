//! Two readings of the same bytes: whole and cut into pieces, by this codec and by a plain one.

use crate::input::Input;
use isthmus_core::h1::{BodyDecoder, BodyStep, HeadError, HeadParser, Parsed};
use isthmus_core::header::{HeaderList, is_token_byte, is_value_byte};
use isthmus_core::limits::{MessageLimits, Settings};
use isthmus_core::message::{BodyLength, RequestHead, ResponseHead};

/// Compares what the readings say.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let limits = input.limits();
    let response = input.once_in(3);
    let cuts = input.below(8);
    let mut at: Vec<usize> = (0..cuts).map(|_| input.below(512)).collect();
    at.sort_unstable();
    let text = input.rest();
    let cut: Vec<usize> = at.into_iter().map(|at| at.min(text.len())).collect();
    assert_eq!(
        play(text, &cut, response, &limits),
        play(text, &[], response, &limits),
        "cut at {cut:?}"
    );
    if !response {
        compare_with_plain(text);
    }
}

/// What `httparse` and a reader of bodies without any cleverness make of a request must be what the codec makes of it,
/// where the codec takes it; and where only they take it, the codec must say which of its rules it breaks.
fn compare_with_plain(bytes: &[u8]) {
    let limits = Settings::default().message_limits();
    let mut head = RequestHead::default();
    let ours = HeadParser::default().parse_request(bytes, &limits, &mut head);
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut plain = httparse::Request::new(&mut fields);
    let theirs = plain.parse(skip_empty_lines(bytes));
    let skipped = bytes.len() - skip_empty_lines(bytes).len();
    match (ours, theirs) {
        (Ok(Parsed::Complete(used)), Ok(httparse::Status::Complete(length))) => {
            assert_eq!(used, skipped + length);
            assert_eq!(plain.method, Some(head.method.as_str()));
            let target = plain.path.unwrap_or("");
            assert!(
                target.ends_with(&head.path) || target.contains("://"),
                "{target} and {}",
                head.path
            );
            let host = |name: &str| name.eq_ignore_ascii_case("host");
            let theirs: Vec<(&[u8], &[u8])> = plain
                .headers
                .iter()
                .filter(|field| !host(field.name))
                .map(|field| (field.name.as_bytes(), field.value.trim_ascii()))
                .collect();
            let ours: Vec<(&[u8], &[u8])> = head
                .headers
                .iter()
                .map(|(_, name, value)| (name, value))
                .collect();
            assert_eq!(ours, theirs);
            compare_bodies(&bytes[used..], head.body, &limits);
        }
        (Ok(Parsed::Complete(_)), other) => panic!("only the codec takes it: {other:?}"),
        // A rule of its own, beyond the grammar of the tokenizer.
        (Err(error), Ok(httparse::Status::Complete(_))) => assert!(is_own_rule(error), "{error}"),
        // Who knows first that it is wrong, or whether it is whole, is a matter of how far one has read.
        _ => {}
    }
}

/// Rules that the codec has beyond those of the tokenizer, each with its reason in [`HeadError`].
fn is_own_rule(error: HeadError) -> bool {
    use HeadError::{
        BodyNotAllowed, Connect, ContentLength, Expectation, FieldName, FieldValue, FirstLine,
        HeaderTooLarge, Host, LengthAndEncoding, LineEnd, MaxForwards, RequestLineTooLong, Status, Target,
        TooManyFields, TransferEncoding, UnknownCoding, Upgrade, Version,
    };
    match error {
        // Framing that two readers could understand differently.
        ContentLength | LengthAndEncoding | TransferEncoding | UnknownCoding | BodyNotAllowed | LineEnd => {
            true
        }
        // Meaning.
        Target | Host | Expectation | MaxForwards | Connect | Version | FirstLine | FieldValue
        | FieldName => true,
        // Size.
        RequestLineTooLong | HeaderTooLarge | TooManyFields => true,
        // Of responses only.
        Status | Upgrade => false,
    }
}

/// A client may send empty lines before a request (RFC 9112, 2.2).
fn skip_empty_lines(bytes: &[u8]) -> &[u8] {
    let mut rest = bytes;
    while let Some(after) = rest.strip_prefix(b"\r\n") {
        rest = after;
    }
    rest
}

fn compare_bodies(bytes: &[u8], length: BodyLength, limits: &MessageLimits) {
    let mut decoder = BodyDecoder::new(length, limits);
    let (mut at, mut data) = (0, Vec::new());
    let end = loop {
        match decoder.step(&bytes[at..]) {
            Ok(BodyStep::Data(there)) => {
                data.extend_from_slice(&bytes[at..at + there]);
                decoder.take(there);
                at += there;
            }
            Ok(BodyStep::Skip(used)) => at += used,
            Ok(BodyStep::NeedInput) | Err(_) => return,
            Ok(BodyStep::End) => break at,
        }
    };
    let plain = match length {
        BodyLength::None => Some((Vec::new(), 0)),
        BodyLength::Known(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            bytes.get(..length).map(|body| (body.to_vec(), length))
        }
        BodyLength::Chunked => plain_chunks(bytes),
        BodyLength::UntilClose => return,
    };
    assert_eq!(
        Some((data, end)),
        plain,
        "{length:?} of {}",
        String::from_utf8_lossy(bytes)
    );
}

/// Chunks as RFC 9112, 7.1 writes them, line by line.
fn plain_chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line = |at: usize| {
        let rest = bytes.get(at..)?;
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        Some((&rest[..end], at + end + 2))
    };
    let (mut at, mut data) = (0, Vec::new());
    loop {
        let (head, after) = line(at)?;
        let digits = head.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = std::str::from_utf8(&head[..digits]).ok()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        at = after;
        if size == 0 {
            break;
        }
        data.extend_from_slice(bytes.get(at..at + size)?);
        at += size;
        if bytes.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let (field, after) = line(at)?;
        at = after;
        if field.is_empty() {
            return Some((data, at));
        }
        let colon = field.iter().position(|byte| *byte == b':')?;
        let valid = colon > 0
            && field[..colon].iter().all(|byte| is_token_byte(*byte))
            && field[colon + 1..].iter().all(|byte| is_value_byte(*byte));
        if !valid {
            return None;
        }
    }
}

/// What came of a whole connection's bytes, message after message, until an error or the end.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// Each head, as text.
    pub heads: Vec<String>,
    /// The body of each message, as far as it came.
    pub bodies: Vec<Vec<u8>>,
    /// The trailers of each body that ended.
    pub trailers: Vec<String>,
    /// The error that ended everything; empty when the bytes did.
    pub ended: String,
}

/// Feeds the bytes in pieces that end at `cuts`, and asks the codec after each piece as the shell does.
pub fn play(bytes: &[u8], cuts: &[usize], response: bool, limits: &MessageLimits) -> Seen {
    let mut seen = Seen {
        heads: vec![],
        bodies: vec![],
        trailers: vec![],
        ended: String::new(),
    };
    let mut parser = HeadParser::default();
    let mut body: Option<BodyDecoder> = None;
    let mut buffer: Vec<u8> = Vec::new();
    let mut from = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        buffer.extend_from_slice(&bytes[from..cut.max(from)]);
        from = cut.max(from);
        loop {
            if let Some(decoder) = &mut body {
                match decoder.step(&buffer) {
                    Ok(BodyStep::Data(there)) => {
                        seen.bodies.last_mut().unwrap().extend(buffer.drain(..there));
                        decoder.take(there);
                    }
                    Ok(BodyStep::Skip(used)) => drop(buffer.drain(..used)),
                    Ok(BodyStep::NeedInput) => break,
                    Ok(BodyStep::End) => {
                        let mut trailers = HeaderList::default();
                        decoder.trailers(&mut trailers);
                        seen.trailers.push(trailers.to_string());
                        body = None;
                    }
                    Err(error) => {
                        seen.ended = error.to_string();
                        return seen;
                    }
                }
                continue;
            }
            if buffer.is_empty() {
                break;
            }
            let (mut request, mut answer) = (RequestHead::default(), ResponseHead::default());
            let parsed = if response {
                parser.parse_response(&buffer, limits, &http::Method::GET, &mut answer)
            } else {
                parser.parse_request(&buffer, limits, &mut request)
            };
            match parsed {
                Ok(Parsed::Partial) => break,
                Ok(Parsed::Complete(used)) => {
                    buffer.drain(..used);
                    let length = if response { answer.body } else { request.body };
                    seen.heads.push(if response {
                        format!("{answer:?}")
                    } else {
                        format!("{request:?}")
                    });
                    seen.bodies.push(Vec::new());
                    if length != BodyLength::None {
                        body = Some(BodyDecoder::new(length, limits));
                    }
                }
                Err(error) => {
                    seen.ended = error.to_string();
                    return seen;
                }
            }
        }
    }
    seen
}
