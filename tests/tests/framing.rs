//! HTTP/1.1 framing between a raw client and a recording upstream.

use isthmus_tests::client::{Client, Response};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::resources::one_route;
use isthmus_tests::upstream::{Answer, OnHead, Request, Then, Upstream};
use isthmus_tests::wire::{Length, WireError};

/// The gateway in front of this upstream.
fn in_front_of(upstream: &Upstream) -> Gateway {
    Gateway::in_front_of(upstream.address())
}

fn targets() -> Upstream {
    Upstream::start(|request| Answer::ok(request.target.clone()))
}

#[test]
fn connections_stay_open_on_both_sides() {
    let upstream = targets();
    let gateway = in_front_of(&upstream);
    let mut client = gateway.client();
    for path in ["/1", "/2", "/3", "/4"] {
        assert_eq!(client.get("h", path).text(), path);
    }
    assert_eq!(
        upstream.connections().len(),
        1,
        "one upstream connection is used again"
    );
    client.send("GET /last HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    assert_eq!(client.response().text(), "/last");
    client.assert_closed();
    assert_eq!(
        upstream.requests()[4].field("connection"),
        None,
        "the client's wish concerns the client's connection"
    );
    upstream.assert_no_violation();
    gateway.stop();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = targets();
    let gateway = in_front_of(&upstream);
    let mut client = gateway.client();
    let paths: Vec<_> = (0..20).map(|number| format!("/{number}")).collect();
    let requests: String = paths
        .iter()
        .enumerate()
        .map(|(number, path)| match number % 3 {
            0 => format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n"),
            1 => format!("POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc"),
            _ => format!(
                "POST {path} HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            ),
        })
        .collect();
    client.send(requests);
    for path in &paths {
        assert_eq!(client.response().text(), path);
    }
    assert_eq!(client.get("h", "/after").text(), "/after");
    upstream.assert_no_violation();
    gateway.stop();
}

#[test]
fn request_bodies_arrive_whole_however_they_are_cut() {
    let upstream = Upstream::echo("v1");
    let gateway = in_front_of(&upstream);
    let known = "POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n0123456789";
    let chunked = "POST /b HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n\
                   4;ext=1\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n";
    let mut client = gateway.client();
    for request in [known, chunked] {
        for at in 1..request.len() {
            let response = client.send_split(request, &[at]).response();
            assert_eq!(response.text(), "v1\n0123456789", "cut at {at}");
        }
        let bytes: Vec<usize> = (1..request.len()).collect();
        assert_eq!(
            client.send_split(request, &bytes).response().text(),
            "v1\n0123456789"
        );
    }
    let lengths: Vec<_> = upstream.requests().iter().map(|request| request.length).collect();
    assert!(
        lengths[..known.len()]
            .iter()
            .all(|length| *length == Length::Known(10))
    );
    assert!(
        lengths[known.len()..]
            .iter()
            .all(|length| *length == Length::Chunked)
    );
    upstream.assert_no_violation();
    gateway.stop();
}

#[test]
fn a_mebibyte_goes_there_and_back_unchanged() {
    let upstream = Upstream::start(|request| {
        let answer = Answer::ok(request.body.clone());
        if request.target == "/chunked" {
            answer.chunked(7_777)
        } else {
            answer
        }
    });
    let gateway = in_front_of(&upstream);
    let body: Vec<u8> = (0..1 << 20)
        .map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut client = gateway.client();
    for path in ["/known", "/chunked"] {
        client.send(format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n",
            body.len()
        ));
        assert!(client.send(&body).response().body == body, "{path}: known length");
        client.send(format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
        ));
        for chunk in body.chunks(9_999) {
            client
                .send(format!("{:X}\r\n", chunk.len()))
                .send(chunk)
                .send("\r\n");
        }
        assert!(
            client.send("0\r\n\r\n").response().body == body,
            "{path}: chunked"
        );
    }
    upstream.assert_no_violation();
    gateway.stop();
}

#[test]
fn response_bodies_of_every_framing_reach_the_client() {
    let upstream = Upstream::start(|request| match request.target.as_str() {
        "/known" => Answer::ok("0123456789"),
        "/empty" => Answer::ok(""),
        "/chunked" => Answer::ok("0123456789").chunked(3),
        _ => Answer::raw("HTTP/1.1 200 OK\r\n\r\n0123456789").then(Then::Close),
    });
    let gateway = in_front_of(&upstream);
    let mut client = gateway.client();
    for (path, body, length) in [
        ("/known", "0123456789", Length::Known(10)),
        ("/empty", "", Length::Known(0)),
        ("/chunked", "0123456789", Length::Chunked),
        ("/close", "0123456789", Length::Chunked),
        ("/known", "0123456789", Length::Known(10)),
    ] {
        let response = client.get("h", path);
        assert_eq!((response.text(), response.length), (body, length), "{path}");
    }
    gateway.stop();
}

#[test]
fn trailers_pass_both_ways_as_trailers() {
    let upstream = Upstream::start(|_| Answer::ok("body").chunked(2).trailer("x-sum", "down"));
    let gateway = in_front_of(&upstream);
    let mut client = gateway.client();
    client.send(
        "POST / HTTP/1.1\r\nhost: h\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-Sum: up\r\n\r\n",
    );
    let response = client.response();
    let seen = upstream.only_request();
    assert_eq!(
        (seen.trailers.get("x-sum"), seen.field("x-sum")),
        (Some("up"), None)
    );
    assert_eq!(
        (response.trailers.get("x-sum"), response.field("x-sum")),
        (Some("down"), None)
    );
    assert_eq!(client.get("h", "/").status, 200);
    gateway.stop();
}

#[test]
fn answers_without_a_body_have_none() {
    let upstream = Upstream::start(|request| match request.target.as_str() {
        "/204" => Answer::status(204),
        "/304" => Answer::raw("HTTP/1.1 304 Not Modified\r\netag: \"e\"\r\ncontent-length: 10\r\n\r\n"),
        _ => Answer::ok("0123456789"),
    });
    let gateway = in_front_of(&upstream);
    let mut client = gateway.client();
    let head = client
        .send("HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n")
        .response_to_head();
    assert_eq!((head.status, head.field("content-length")), (200, Some("10")));
    let none = client.get("h", "/204");
    assert_eq!(
        (
            none.status,
            none.field("content-length"),
            none.field("transfer-encoding")
        ),
        (204, None, None)
    );
    let unchanged = client.get("h", "/304");
    assert_eq!((unchanged.status, unchanged.field("etag")), (304, Some("\"e\"")));
    assert_eq!(
        client.get("h", "/x").text(),
        "0123456789",
        "the connection is still in step"
    );
    gateway.stop();
}

fn asks_first(request: &Request) -> OnHead {
    match request.target.as_str() {
        "/refused" => {
            OnHead::AnswerUnread(Answer::status(417).field("connection", "close").then(Then::Close))
        }
        _ => OnHead::Send(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
    }
}

#[test]
fn expect_100_continue_is_settled_end_to_end() {
    let upstream = Upstream::with_heads(asks_first, |request| Answer::ok(request.body.clone()));
    let gateway = in_front_of(&upstream);
    let mut client = gateway.client();
    client.send("POST /wanted HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    assert_eq!(client.head().expect("an interim answer").1, 100);
    let response = client.send("hello").response();
    assert_eq!((response.text(), response.interim.len()), ("hello", 0));
    assert_eq!(upstream.requests()[0].field("expect"), Some("100-continue"));

    client.send("POST /refused HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    assert_eq!(
        client.head().expect("a final answer").1,
        417,
        "the body is not asked for"
    );
    gateway.stop();
}

#[test]
fn interim_answers_pass_and_too_many_do_not() {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    let upstream = Upstream::start(move |request| {
        let count = if request.target == "/many" { 1_000 } else { 2 };
        Answer::raw(hints.repeat(count) + "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    });
    let gateway = in_front_of(&upstream);
    let response = gateway.get("h", "/two");
    assert_eq!((response.status, response.interim.len()), (200, 2));
    assert_eq!(response.interim[0].1.get("link"), Some("</a>"));
    let many = gateway.get("h", "/many");
    assert!(
        many.status == 502 && many.interim.len() <= 16,
        "{} after {}",
        many.status,
        many.interim.len()
    );
    gateway.stop();
}

#[test]
fn absolute_form_is_forwarded_in_origin_form_with_its_own_authority() {
    let upstream = targets();
    let gateway = in_front_of(&upstream);
    let mut client = gateway.client();
    client.send("GET http://absolute.example/a?b HTTP/1.1\r\nhost: other.example\r\n\r\n");
    assert_eq!(client.response().text(), "/a?b");
    client.send("OPTIONS http://absolute.example HTTP/1.1\r\nhost: absolute.example\r\n\r\n");
    assert_eq!(client.response().status, 200);
    assert_eq!(upstream.requests()[0].field("host"), Some("absolute.example"));
    upstream.assert_no_violation();
    gateway.stop();
}

#[test]
fn http_1_0_clients_get_what_they_understand() {
    let upstream = Upstream::start(|request| {
        let answer = Answer::ok("0123456789");
        if request.target == "/chunked" {
            answer.chunked(4)
        } else {
            answer
        }
    });
    let gateway = in_front_of(&upstream);
    let mut client = gateway.client();
    let plain = client.send("GET /known HTTP/1.0\r\nhost: h\r\n\r\n").response();
    assert_eq!((plain.status, plain.text()), (200, "0123456789"));
    client.assert_closed();
    let mut client = gateway.client();
    let open = client
        .send("GET /known HTTP/1.0\r\nhost: h\r\nconnection: keep-alive\r\n\r\n")
        .response();
    assert!(
        open.field("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("keep-alive")),
        "{open:?}"
    );
    let chunked = client
        .send("GET /chunked HTTP/1.0\r\nhost: h\r\nconnection: keep-alive\r\n\r\n")
        .response();
    assert_eq!(
        (chunked.text(), chunked.length),
        ("0123456789", Length::UntilClose)
    );
    upstream.assert_no_violation();
    gateway.stop();
}

#[test]
fn a_client_that_sends_too_much_reads_its_413() {
    let upstream = targets();
    let gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), ""))
        .settings("requestBodyBytes: 1000\n")
        .start();
    let body = vec![b'x'; 300_000];
    let known = format!(
        "POST /known HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let chunked = format!(
        "POST /chunked HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        body.len()
    );
    for head in [known, chunked] {
        let mut client = gateway.client();
        // All of it is sent before the first byte is read: without a lingering close, a reset would eat the answer.
        client.send(&head).send(&body);
        assert_eq!(client.response().status, 413, "{head}");
        client.half_close().assert_closed();
    }
    assert!(gateway.access_line("/known").has("DPE"));
    let mut client = gateway.client();
    client
        .send("POST /fits HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n\r\n")
        .send(&body[..1000]);
    assert_eq!(client.response().status, 200);
    assert_eq!(upstream.served(), 1);
    gateway.stop();
}

#[test]
fn an_ambiguous_or_broken_answer_is_a_502() {
    let bodies = "\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let broken: Vec<(&str, Vec<u8>)> = vec![
        (
            "length and chunks",
            format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked{bodies}").into(),
        ),
        (
            "two lengths",
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello".to_vec(),
        ),
        (
            "a signed length",
            b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello".to_vec(),
        ),
        (
            "a huge length",
            b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nhello".to_vec(),
        ),
        (
            "a coding that is not known",
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked{bodies}").into(),
        ),
        (
            "chunked twice",
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked{bodies}").into(),
        ),
        (
            "a space before the colon",
            b"HTTP/1.1 200 OK\r\ncontent-length : 5\r\n\r\nhello".to_vec(),
        ),
        (
            "a folded field",
            b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 5\r\n\r\nhello".to_vec(),
        ),
        (
            "a NUL",
            b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 5\r\n\r\nhello".to_vec(),
        ),
        (
            "a bare CR",
            b"HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 5\r\n\r\nhello".to_vec(),
        ),
        (
            "no status",
            b"HTTP/1.1 OK\r\ncontent-length: 5\r\n\r\nhello".to_vec(),
        ),
        (
            "a long status",
            b"HTTP/1.1 2000 OK\r\ncontent-length: 5\r\n\r\nhello".to_vec(),
        ),
        ("not HTTP", b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()),
        (
            "too large a head",
            format!(
                "HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 5\r\n\r\nhello",
                "a".repeat(100_000)
            )
            .into(),
        ),
        (
            "too many fields",
            format!(
                "HTTP/1.1 200 OK\r\n{}content-length: 5\r\n\r\nhello",
                "x: a\r\n".repeat(200)
            )
            .into(),
        ),
    ];
    let answers: Vec<Vec<u8>> = broken.iter().map(|(_, bytes)| bytes.clone()).collect();
    let upstream = Upstream::start(move |request| {
        let number: usize = request.target.trim_start_matches('/').parse().expect("a number");
        Answer::raw(answers[number].clone())
    });
    let gateway = in_front_of(&upstream);
    let mut client = gateway.client();
    for (number, (what, _)) in broken.iter().enumerate() {
        let response = client.get("h", &format!("/{number}"));
        assert_eq!(
            (response.status, response.field("set-cookie")),
            (502, None),
            "{what}: {response:?}"
        );
        let line = gateway.access_line(&format!("/{number}"));
        assert!(line.has("UPE"), "{what}: {line:?}");
    }
    assert_eq!(
        upstream.connections().len(),
        broken.len(),
        "no broken connection is used again"
    );
    gateway.stop();
}

#[test]
fn a_broken_chunk_never_looks_like_the_end_of_a_body() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let broken = [
        "xyz\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "fffffffffffffffff\r\nhello",
    ];
    let upstream = Upstream::start(move |request| {
        let number: usize = request.target.trim_start_matches('/').parse().expect("a number");
        Answer::raw(head.to_owned() + broken[number])
    });
    let gateway = in_front_of(&upstream);
    for (number, body) in broken.iter().enumerate() {
        let mut client = gateway.client();
        let answer = client.send_get("h", &format!("/{number}")).try_response(false);
        let told = match &answer {
            Ok(Response { status, .. }) => *status == 502,
            Err(error) => matches!(error, WireError::Truncated(_) | WireError::Reset),
        };
        assert!(told, "{body:?}: {answer:?}");
        let line = gateway.access_line(&format!("/{number}"));
        assert!(line.has("UPE"), "{body:?}: {line:?}");
    }
    gateway.stop();
}

#[test]
fn bytes_after_an_answer_never_reach_a_client() {
    let smuggled = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-smuggled: 1\r\n\r\nevil";
    let upstream = Upstream::start(move |_| {
        Answer::raw(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{smuggled}"
        ))
    });
    let gateway = in_front_of(&upstream);
    let mut client = gateway.client();
    for round in 0..5 {
        let response = client.get("h", "/");
        assert_eq!(
            (response.text(), response.field("x-smuggled")),
            ("ok", None),
            "round {round}"
        );
    }
    assert_eq!(
        upstream.connections().len(),
        5,
        "a connection with bytes left over is not used again"
    );
    gateway.stop();
}

#[test]
fn an_encoded_line_end_in_the_path_does_not_split_a_response() {
    let upstream = targets();
    let redirect = one_route(upstream.address(), "").replace(
        "- route:",
        "- match: [{uri: {prefix: /old}}]\n    redirect: {scheme: https}\n  - route:",
    );
    let gateway = Gateway::builder().resources("route", &redirect).start();
    let response = gateway.get("h", "/old%0d%0aset-cookie:%20a=b");
    assert_eq!((response.status, response.field("set-cookie")), (301, None));
    assert!(
        response
            .field("location")
            .is_some_and(|place| place.to_lowercase().contains("%0d%0a")),
        "{response:?}"
    );
    gateway.stop();
}

#[test]
fn an_answer_that_comes_during_the_upload_reaches_the_client() {
    let upstream = Upstream::with_heads(
        |_| OnHead::Answer(Answer::status(403).body("no")),
        |_| Answer::ok("never"),
    );
    let gateway = in_front_of(&upstream);
    let mut client: Client = gateway.client();
    let body = vec![b'x'; 256 * 1024];
    client
        .send("POST /up HTTP/1.1\r\nhost: h\r\ncontent-length: 524288\r\n\r\n")
        .send(&body);
    let early = client.response();
    assert_eq!(
        (early.status, early.text()),
        (403, "no"),
        "read while half of the body is still to come"
    );
    // The rest may be taken or refused, but a client that sends all before it reads gets its answer, too.
    let mut client = gateway.client();
    client
        .send("POST /all HTTP/1.1\r\nhost: h\r\ncontent-length: 524288\r\n\r\n")
        .send(&body)
        .send(&body);
    assert_eq!(client.response().status, 403);
    gateway.stop();
}

#[test]
fn empty_lines_behind_a_body_begin_no_request() {
    let upstream = Upstream::start(|_| Answer::ok("x"));
    let gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), ""))
        .settings("headerTimeout: 200ms\n")
        .start();
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nab\r\n\r\n");
    assert_eq!(client.response().status, 200);
    // A request that follows is served; without one the connection ends without a word.
    assert_eq!(client.get("h", "/").status, 200);
    client.send("\r\n");
    assert_eq!(client.read_to_end(), b"");
    assert_eq!(gateway.access_log().len(), 2);
    gateway.stop();
}
