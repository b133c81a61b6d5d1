//! Hellos in forms in which no client sends them: in pieces, without an end, broken, or not of TLS at all.

use isthmus_tests::bytes::{connect, hello_of_openssl, relay};
use isthmus_tests::cert::Authority;
use isthmus_tests::client::Client;
use isthmus_tests::curl::Curl;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::openssl::{self, alert};
use isthmus_tests::resources::{all_to, gateway_with, https_server, tls_files};
use isthmus_tests::upstream::Upstream;
use isthmus_tests::wire::WireError;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

/// A server for `a.example` that gives up handshakes after a second, and one thing to ask it.
struct Impatient {
    gateway: Gateway,
    _upstream: Upstream,
}

/// The alert `decode_error` in a record of its own.
const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, alert::DECODE_ERROR];

impl Impatient {
    fn start() -> Self {
        let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
        let leaf = authority.server(&["a.example"]);
        let server = https_server("a", "a.example", &tls_files("SIMPLE", &leaf));
        let gateway = Gateway::builder()
            .resources("g", &(gateway_with(&server) + &all_to(upstream.address())))
            .port(443)
            .settings("tlsHandshakeTimeout: 1s\n")
            .start();
        Self {
            gateway,
            _upstream: upstream,
        }
    }

    fn connect(&self) -> Client {
        Client::connect(self.gateway.listener(443))
    }

    fn assert_serves(&self) {
        let curl = Curl::new(self.gateway.listener(443)).args(&["--insecure"]);
        assert_eq!(curl.status("https://a.example/"), 200);
    }

    fn stop(self) {
        self.assert_serves();
        assert_eq!(self.gateway.metric("isthmus_task_panics_total"), Some(0.0));
        self.gateway.stop();
    }
}

/// The same hello in records of so many bytes.
fn in_records(record: &[u8], size: usize) -> Vec<u8> {
    let parts = record[5..].chunks(size);
    let whole = |part: &[u8]| [&[22, 3, 1, 0, part.len() as u8], part].concat();
    parts.flat_map(whole).collect()
}

#[test]
fn a_hello_may_come_in_single_bytes_and_in_many_records() {
    let impatient = Impatient::start();
    let address = impatient.gateway.listener(443);
    let in_bytes = relay(address, |record, server| {
        for byte in record {
            server.write_all(&[*byte]).expect("the byte is taken");
            // So that they arrive apart. A pace, and not a synchronisation.
            thread::sleep(Duration::from_micros(300));
        }
    });
    let in_sevens = relay(address, |record, server| {
        server
            .write_all(&in_records(record, 7))
            .expect("the records are taken");
    });
    let in_ones = relay(address, |record, server| {
        server
            .write_all(&in_records(record, 1))
            .expect("the records are taken");
    });
    for relay in [in_bytes, in_sevens, in_ones] {
        for version in ["-tls1_2", "-tls1_3"] {
            let client = openssl::Client::new(relay.address(), "a.example").args(&[version]);
            let talk = client.get("a.example", "/");
            assert_eq!(talk.status(), Some(200), "{version}: {}", talk.text);
        }
    }
    impatient.stop();
}

#[test]
fn what_is_no_hello_is_refused_with_an_alert() {
    let impatient = Impatient::start();
    let hello = hello_of_openssl("a.example");
    let server_hello = [&hello[..5], &[2], &hello[6..]].concat();
    let inputs: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
        &[0xff; 100],
        &[0; 100],
        b"\x16\x03\x01\x00\x00",
        &server_hello,
    ];
    for input in inputs {
        let got = impatient.connect().send(input).read_to_end();
        assert_eq!(got, DECODE_ERROR, "{:?}", String::from_utf8_lossy(input));
    }
    // A length that no hello has ends it at once, too, before that many bytes have come.
    let too_large = [&[22, 3, 1, 0, 8, 1, 0xff, 0xff, 0xff][..], &[0; 4]].concat();
    let got = impatient.connect().send(&too_large).read_to_end();
    assert_eq!(got, DECODE_ERROR);
    let times = inputs.len() as u32 + 1;
    impatient.gateway.assert_causes("tls_protocol_error", times);
    impatient.stop();
}

#[test]
fn a_hello_that_does_not_end_is_given_up_while_others_are_served() {
    let impatient = Impatient::start();
    let hello = hello_of_openssl("a.example");
    let began = Instant::now();
    let mut slow = impatient.connect().patience(Duration::from_millis(50));
    let mut silent = impatient.connect();
    let mut stopped = impatient.connect();
    stopped.send(&hello);
    let mut sent = 0;
    // Until the gateway ends it: it says nothing, and takes nothing more.
    loop {
        if slow.try_send(&hello[sent..=sent]).is_err() {
            break;
        }
        sent += 1;
        assert!(
            sent < 200,
            "the gateway still listens after {:?}",
            began.elapsed()
        );
        match slow.read_some() {
            Ok(0) => break,
            Err(WireError::TimedOut) => {}
            Err(WireError::Reset) => break,
            other => panic!("{other:?}: {:?}", slow.pending()),
        }
        if sent == 5 {
            impatient.assert_serves();
        }
    }
    let took = began.elapsed();
    assert!(
        took > Duration::from_millis(900) && took < Duration::from_secs(9),
        "{took:?}"
    );
    assert!(sent > 5);
    silent.assert_closed();
    // The one that stopped behind its hello has been answered, and then left.
    let answered = stopped.read_to_end();
    assert_eq!(answered[..3], [22, 3, 3]);
    impatient.gateway.assert_causes("tls_timeout", 3);
    impatient.stop();
}

#[test]
fn connections_that_close_before_or_inside_a_hello_leave_nothing() {
    let impatient = Impatient::start();
    impatient.assert_serves();
    let before = impatient.gateway.resting();
    let hello = hello_of_openssl("a.example");
    for _ in 0..10 {
        drop(impatient.connect());
        impatient.connect().half_close().assert_closed();
        let mut half = impatient.connect();
        half.send(&hello[..100]).half_close().assert_closed();
        let mut broken = impatient.connect();
        broken.send(&hello[..100]);
        broken.abort();
        let mut left = impatient.connect();
        left.send(&hello).read_some().expect("an answer");
        left.abort();
    }
    impatient.gateway.assert_returns_to(&before);
    // Who closes before the first byte is no failure: health checks do that.
    impatient.gateway.assert_causes("tls_closed", 30);
    impatient.stop();
}

#[test]
fn no_byte_of_a_hello_can_be_changed_to_anybodys_harm() {
    let impatient = Impatient::start();
    impatient.assert_serves();
    let before = impatient.gateway.resting();
    let hello = hello_of_openssl("a.example");
    for at in 0..hello.len() {
        for change in [0x00, 0xff, hello[at] ^ 0x01] {
            let mut changed = hello.clone();
            changed[at] = change;
            let mut stream = connect(impatient.gateway.listener(443));
            stream.write_all(&changed).expect("the hello is taken");
            // An end that comes at once may be a reset; what comes otherwise are handshakes and alerts.
            let _gone = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _end = stream.read_to_end(&mut answer);
            let first = answer.first().copied();
            assert!(
                matches!(first, None | Some(21 | 22)),
                "byte {at} as {change}: {answer:?}"
            );
        }
    }
    impatient.gateway.assert_returns_to(&before);
    impatient.stop();
}
