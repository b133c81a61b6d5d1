//! Frames of a client for the server's side of a connection, with the options that clients meet, and somebody who answers
//! its requests.
//!
//! What must hold: nothing panics; however the bytes are cut, the same comes of them; the answer is in proportion to what
//! came, and what is kept is bounded; a connection that ends says why; and no stream is left when all are given up.

use crate::input::Input;
use isthmus_core::h2::{Connection, Holder, Key, Options, Role};
use isthmus_core::limits::Settings;
use isthmus_core::message::RequestHead;
use std::sync::OnceLock;
use std::time::Instant;

/// What a client's connection begins with (RFC 9113, 3.4), and an empty SETTINGS frame.
const BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Streams that are under way at most; the others are given up.
const STREAMS_MAX: usize = 20;
/// Bytes that may be written beyond those that answer what was read.
const WRITTEN_BASE: usize = 64 * 1024;
/// Bytes that may be written for each that was read: a request of few may have a whole answer.
const WRITTEN_PER_READ: usize = 64;
/// A frame and a header block that came in pieces, the table, and room for strings.
const KEPT_MAX: usize = 512 * 1024;

/// Nobody waits.
#[derive(Default)]
pub(crate) struct Nobody;

impl Holder for Nobody {
    fn tell(&mut self) {}
}

/// One moment of the past for the whole process, so that an input always runs alike.
pub(crate) fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

fn connection() -> Connection<Nobody> {
    let settings = Settings::default();
    let limits = settings.message_limits();
    let options = Options {
        role: Role::Server,
        stream_window: 256 * 1024,
        connection_window: 1024 * 1024,
        streams: settings.http2_concurrent_streams,
        header_bytes: limits.header_bytes,
        header_count: limits.header_count,
        limits: Some(settings.http2_limits()),
    };
    Connection::new(options, start())
}

/// Serves a client.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let step = 1 + 8 * input.below(256);
    let is_slow = input.once_in(3);
    let bytes = [BEGINNING, input.rest()].concat();
    is_alike(&bytes, step);
    serve(&bytes, step, is_slow);
}

/// However the bytes are cut, the same comes of them.
fn is_alike(bytes: &[u8], step: usize) {
    let (mut whole, mut pieces) = (connection(), connection());
    whole.receive(bytes, start());
    bytes
        .chunks(step)
        .for_each(|piece| pieces.receive(piece, start()));
    assert!(whole.output() == pieces.output());
    assert_eq!(whole.misbehaviour(), pieces.misbehaviour());
    if let Some(found) = whole.misbehaviour() {
        assert!(!found.label().is_empty() && found.detail().starts_with("http2."));
        assert!(whole.output().ends_with(&found.code().to_be_bytes()) && whole.is_over());
    }
    let keys = |connection: &mut Connection<Nobody>| -> Vec<Key> {
        std::iter::from_fn(|| connection.accept()).collect()
    };
    assert_eq!(keys(&mut whole), keys(&mut pieces));
}

fn serve(bytes: &[u8], step: usize, is_slow: bool) {
    let mut connection = connection();
    let mut streams: Vec<Stream> = Vec::new();
    let mut written = 0;
    for (turn, piece) in bytes.chunks(step).enumerate() {
        connection.receive(piece, start());
        assert!(connection.kept_bytes() <= KEPT_MAX, "{}", connection.kept_bytes());
        while let Some(key) = connection.accept() {
            streams.push(Stream::new(key));
            if streams.len() > STREAMS_MAX {
                connection.release(streams.remove(0).key);
            }
        }
        if !is_slow || turn % 3 == 0 {
            streams.retain_mut(|stream| !stream.go_on(&mut connection));
            written += connection.output().len();
            let sent = connection.output().len();
            connection.sent(sent);
        }
    }
    written += connection.output().len();
    let most = WRITTEN_BASE + WRITTEN_PER_READ * bytes.len();
    assert!(written <= most, "{written} bytes for {}", bytes.len());
    for stream in streams {
        connection.release(stream.key);
    }
    while let Some(key) = connection.accept() {
        connection.release(key);
    }
    assert!(!connection.has_streams());
}

/// A request that is being answered.
struct Stream {
    key: Key,
    head: RequestHead,
}

impl Stream {
    fn new(key: Key) -> Self {
        Self {
            key,
            head: RequestHead::default(),
        }
    }

    /// Reads what there is, and answers at the end; whether all is done.
    fn go_on(&mut self, connection: &mut Connection<Nobody>) -> bool {
        let key = self.key;
        if let Some(mut fields) = connection.take_head(key) {
            let limits = Settings::default().message_limits();
            let has_body = !connection.is_received(key);
            let _refused =
                isthmus_core::h2::head::read_request(&mut fields, has_body, &limits, &mut self.head);
            connection.recycle(fields);
        }
        let mut data = Vec::new();
        if connection.take_data(key, &mut data) {
            assert!(!data.is_empty());
            connection.passed_on(key, data.len());
        }
        if !connection.is_received(key) && connection.failure(key).is_none() {
            return false;
        }
        let trailers = connection.take_trailers(key);
        // The status 200.
        if connection.send_head(key, false, |block| block.push(0x88)) {
            let _gone = connection.send_data(key, &[b'x'; 100], trailers.is_none());
            connection.send_head(key, true, |_| {});
        }
        connection.release(key);
        true
    }
}
