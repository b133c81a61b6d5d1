//! Frames of a server for the client's side of a connection, which has asked for some things.
//!
//! What must hold: nothing panics; however the bytes are cut, the same comes of them; every stream comes to an end, or
//! waits for more; and none is left when all are given up.

use crate::h2_server::{Nobody, start};
use crate::input::Input;
use http::Method;
use isthmus_core::h2::head::{read_interim, read_response};
use isthmus_core::h2::{Connection, Failure, Key, Options, Role};
use isthmus_core::limits::Settings;
use isthmus_core::message::ResponseHead;

/// An empty SETTINGS frame, which every server begins with.
const BEGINNING: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

fn connection(input: &mut Input<'_>) -> (Connection<Nobody>, Vec<Key>) {
    let limits = Settings::default().message_limits();
    let options = Options {
        role: Role::Client,
        stream_window: 128 * 1024,
        connection_window: 1 << 20,
        streams: 1 + input.below(4) as u32,
        header_bytes: limits.header_bytes,
        header_count: limits.header_count,
        limits: None,
    };
    let mut connection = Connection::new(options, start());
    let mut keys = Vec::new();
    for _ in 0..1 + input.below(6) {
        let (is_last, is_head) = (input.once_in(2), input.once_in(3));
        // GET https://h/
        let ask = [0x82, 0x87, 0x84, 0x01, 0x01, b'h'];
        keys.extend(connection.open(is_last, is_head, |block| block.extend(ask)));
    }
    (connection, keys)
}

/// Hears a server.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let step = 1 + 8 * input.below(256);
    let mut again = Input::new(input.take(32));
    let steers = again.rest();
    let bytes = [BEGINNING, input.rest()].concat();
    let (mut whole, keys) = connection(&mut Input::new(steers));
    let (mut pieces, _) = connection(&mut Input::new(steers));
    whole.receive(&bytes, start());
    bytes
        .chunks(step)
        .for_each(|piece| pieces.receive(piece, start()));
    assert!(whole.output() == pieces.output());
    assert_eq!(whole.misbehaviour(), pieces.misbehaviour());
    for key in &keys {
        assert_eq!(whole.failure(*key), pieces.failure(*key));
        assert_eq!(whole.is_received(*key), pieces.is_received(*key));
        hear(&mut whole, *key);
    }
    whole.closed();
    for key in keys {
        if !whole.is_received(key) {
            assert!(whole.failure(key).is_some());
        }
        whole.release(key);
        assert_eq!(whole.failure(key), Some(Failure::Over));
    }
    assert!(!whole.has_streams());
}

/// Reads all that has come on a stream.
fn hear(connection: &mut Connection<Nobody>, key: Key) {
    let mut head = ResponseHead::default();
    while let Some(mut fields) = connection.take_head(key) {
        let status = fields.status().unwrap();
        if status < 200 {
            let _refused = read_interim(&mut fields, &mut head);
        } else {
            let has_body = !connection.is_received(key);
            let _refused = read_response(&mut fields, &Method::GET, false, has_body, &mut head);
        }
        connection.recycle(fields);
    }
    let mut data = Vec::new();
    if connection.take_data(key, &mut data) {
        connection.passed_on(key, data.len());
    }
    let _some = connection.take_trailers(key);
}
