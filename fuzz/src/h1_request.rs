//! A client's bytes: request after request of one connection, with their bodies and trailers.

use crate::input::Input;
use isthmus_core::h1::{BodyDecoder, BodyStep, HeadError, HeadParser, Parsed};
use isthmus_core::header::{HeaderList, is_token_byte, is_value_byte};
use isthmus_core::limits::{MessageLimits, PathNormalization};
use isthmus_core::message::{BodyLength, RequestHead};

/// Reads everything as one connection's requests.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let limits = input.limits();
    let normalization = input.pick(&[
        PathNormalization::Base,
        PathNormalization::None,
        PathNormalization::MergeSlashes,
        PathNormalization::DecodeAndMergeSlashes,
    ]);
    let mut rest = input.rest();
    let mut head = RequestHead::default();
    // Every turn uses at least one byte, or ends.
    while !rest.is_empty() {
        let mut parser = HeadParser::default();
        let used = match parser.parse_request(rest, &limits, &mut head) {
            Ok(Parsed::Complete(used)) => used,
            Ok(Parsed::Partial) => return,
            Err(error) => return refused(error),
        };
        assert!(used > 0 && used <= rest.len(), "{used} of {}", rest.len());
        check(&head);
        let plain = isthmus_core::path::normalize(&mut head, normalization).is_ok();
        if plain {
            // What is normal stays as it is.
            let once = head.path.clone();
            assert!(isthmus_core::path::normalize(&mut head, normalization).is_ok());
            assert_eq!(head.path, once);
        }
        rest = &rest[used..];
        if head.body != BodyLength::None {
            match body(rest, head.body, &limits) {
                Some(used) => rest = &rest[used..],
                None => return,
            }
        }
    }
}

/// What is refused is answered with an error that has a name.
pub(crate) fn refused(error: HeadError) {
    assert!(error.status().is_client_error() || error.status().is_server_error());
    assert!(!error.label().is_empty() && error.detail().starts_with("http1."));
}

/// What every accepted head keeps to.
fn check(head: &RequestHead) {
    assert!(head.path_len <= head.path.len() && head.path.is_char_boundary(head.path_len));
    assert!(!head.path.is_empty());
    assert!(
        !head
            .host
            .contains(|c: char| c.is_ascii_uppercase() || c.is_ascii_whitespace())
    );
    for (_, name, value) in head.headers.iter() {
        assert!(!name.is_empty() && name.iter().all(|byte| is_token_byte(*byte)));
        assert!(value.iter().all(|byte| is_value_byte(*byte)));
        assert_eq!(value, value.trim_ascii(), "no space is left around a value");
    }
}

/// Reads a body; answers how many bytes it took, or None when it does not end, or ends wrong.
pub(crate) fn body(bytes: &[u8], length: BodyLength, limits: &MessageLimits) -> Option<usize> {
    let mut decoder = BodyDecoder::new(length, limits);
    let mut at = 0;
    loop {
        match decoder
            .step(&bytes[at..])
            .map_err(|error| assert!(!error.label().is_empty()))
            .ok()?
        {
            BodyStep::Data(there) => {
                assert!(there > 0 && at + there <= bytes.len());
                decoder.take(there);
                at += there;
            }
            BodyStep::Skip(used) => {
                assert!(used > 0 && at + used <= bytes.len());
                at += used;
            }
            BodyStep::NeedInput => return None,
            BodyStep::End => {
                let mut trailers = HeaderList::default();
                decoder.trailers(&mut trailers);
                assert!(decoder.is_done());
                return Some(at);
            }
        }
    }
}
