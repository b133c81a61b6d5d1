//! Flow control (RFC 9113, 5.2 and 6.9): windows that the client gives, wrong ones among them, and those that the server
//! gives back.

use super::{BIG_BYTES, BIG_PATH, Case, Expect, check};
use crate::h2::client::{INITIAL_WINDOW, Step};
use crate::h2::frame::{Code, Frame, MAX_31, flag, setting};

const PROTOCOL: Expect = Expect::ConnectionError(&[Code::PROTOCOL_ERROR]);
const FLOW_CONTROL: Expect = Expect::ConnectionError(&[Code::FLOW_CONTROL_ERROR]);

pub(super) fn cases() -> Vec<Case> {
    let mut cases = increments();
    cases.extend(stream_windows());
    cases.extend(changes());
    cases.extend(connection_window());
    cases.extend(uploads());
    cases
}

fn initial_window(size: u32) -> Frame {
    Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, size)])
}

fn increments() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::sends(
        "6.9",
        "WINDOW_UPDATE of 0 on the connection",
        PROTOCOL,
        |c| {
            c.send(&Frame::window_update(0, 0));
        },
    ));
    let of_stream = Expect::StreamError(&[Code::PROTOCOL_ERROR]);
    cases.push(Case::sends(
        "6.9",
        "WINDOW_UPDATE of 0 on a stream",
        of_stream,
        |c| {
            let stream = c.post("/");
            c.send(&Frame::window_update(stream, 0));
        },
    ));
    cases.push(Case::sends(
        "6.9.1",
        "a window of the connection above 2^31-1",
        FLOW_CONTROL,
        |c| {
            c.send(&Frame::window_update(0, MAX_31));
            c.send(&Frame::window_update(0, MAX_31));
        },
    ));
    let of_stream = Expect::StreamError(&[Code::FLOW_CONTROL_ERROR]);
    cases.push(Case::sends(
        "6.9.1",
        "a window of a stream above 2^31-1",
        of_stream,
        |c| {
            let stream = c.post("/");
            c.send(&Frame::window_update(stream, MAX_31));
            c.send(&Frame::window_update(stream, MAX_31));
        },
    ));
    cases.push(Case::plays(
        "6.9.1",
        "windows of exactly 2^31-1",
        Expect::Alive,
        |c| {
            let most = MAX_31 - INITIAL_WINDOW as u32;
            c.refills = false;
            c.send(&Frame::window_update(0, most));
            let stream = c.post("/");
            c.send(&Frame::window_update(stream, most));
            c.send(&Frame::data(flag::END_STREAM, stream, []));
            c.answered(stream, 200).map(drop)
        },
    ));
    let name = "SETTINGS_INITIAL_WINDOW_SIZE that lifts the window of a stream above 2^31-1";
    cases.push(Case::sends("6.9.2", name, FLOW_CONTROL, |c| {
        c.send(&initial_window(100));
        let stream = c.post("/");
        c.send(&Frame::window_update(stream, MAX_31 - 100));
        c.send(&initial_window(101));
    }));
    cases
}

fn stream_windows() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::plays(
        "6.9.1",
        "a window of one octet",
        Expect::Alive,
        |c| {
            c.send(&initial_window(1));
            c.refills = false;
            let stream = c.get("/");
            c.stops_at(stream, 1)?;
            c.send(&Frame::window_update(stream, 1));
            c.stops_at(stream, 2)?;
            c.send(&Frame::window_update(stream, 10_000));
            let answer = c.answered(stream, 200)?;
            check(answer.data_frames.starts_with(&[1, 1]), || {
                format!("{:?}", answer.data_frames)
            })
        },
    ));
    cases.push(Case::plays("6.9.1", "a window of nothing", Expect::Alive, |c| {
        c.send(&initial_window(0));
        let stream = c.get("/");
        c.until("the answer's head", |c| c.answer(stream).status == Some(200))?;
        c.stops_at(stream, 0)?;
        c.send(&Frame::window_update(stream, 10_000));
        c.answered(stream, 200).map(drop)
    }));
    cases.push(Case::plays(
        "6.9.1",
        "a window of nothing, and an answer without content",
        Expect::Alive,
        |c| {
            c.send(&initial_window(0));
            let stream = c.next_stream();
            let block = c.head("HEAD", "/");
            c.send(&Frame::headers(flag::WHOLE, stream, block));
            c.expect_no_content(stream);
            c.answered(stream, 200).map(drop)
        },
    ));
    cases.push(Case::plays(
        "6.9.1",
        "a window of one stream is none of another",
        Expect::Alive,
        |c| {
            c.send(&initial_window(0));
            let (one, two) = (c.get("/one"), c.get("/two"));
            c.send(&Frame::window_update(two, 10_000));
            c.answered(two, 200)?;
            c.stops_at(one, 0)?;
            c.send(&Frame::window_update(one, 10_000));
            c.answered(one, 200).map(drop)
        },
    ));
    cases.push(Case::plays(
        "6.9.1",
        "a long answer within the window of its stream",
        Expect::Alive,
        |c| {
            c.refills = false;
            c.send(&Frame::window_update(0, 1 << 20));
            let stream = c.get(BIG_PATH);
            c.stops_at(stream, INITIAL_WINDOW as usize)?;
            c.send(&Frame::window_update(stream, 1 << 20));
            let octets = c.answered(stream, 200)?.body.len();
            check(octets == BIG_BYTES, || format!("{octets} octets"))
        },
    ));
    cases
}

fn changes() -> Vec<Case> {
    let mut cases = Vec::new();
    let name = "SETTINGS_INITIAL_WINDOW_SIZE lifts the window of an open stream";
    cases.push(Case::plays("6.9.2", name, Expect::Alive, |c| {
        c.refills = false;
        c.send(&initial_window(0));
        let stream = c.get("/");
        c.stops_at(stream, 0)?;
        c.send(&initial_window(3));
        c.stops_at(stream, 3)?;
        c.send(&initial_window(10_000));
        c.answered(stream, 200).map(drop)
    }));
    cases.push(Case::plays(
        "6.9.2",
        "a window that becomes negative",
        Expect::Alive,
        |c| {
            c.refills = false;
            c.send(&initial_window(10));
            let stream = c.get("/");
            c.stops_at(stream, 10)?;
            // The window is 4 - 10.
            c.send(&initial_window(4));
            c.send(&Frame::window_update(stream, 6));
            c.stops_at(stream, 10)?;
            c.send(&Frame::window_update(stream, 2));
            c.stops_at(stream, 12)?;
            c.send(&Frame::window_update(stream, 10_000));
            c.answered(stream, 200).map(drop)
        },
    ));
    cases.push(Case::plays(
        "6.9.2",
        "a negative window that SETTINGS lift again",
        Expect::Alive,
        |c| {
            c.refills = false;
            c.send(&initial_window(10));
            let stream = c.get("/");
            c.stops_at(stream, 10)?;
            c.send(&initial_window(0));
            c.send(&initial_window(10));
            c.stops_at(stream, 10)?;
            c.send(&initial_window(13));
            c.stops_at(stream, 13)?;
            c.send(&Frame::window_update(stream, 10_000));
            c.answered(stream, 200).map(drop)
        },
    ));
    cases
}

fn connection_window() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::plays(
        "6.9.1",
        "a long answer within the window of the connection",
        Expect::Alive,
        |c| {
            c.refills = false;
            c.send(&initial_window(1 << 20));
            let stream = c.get(BIG_PATH);
            c.stops_at(stream, INITIAL_WINDOW as usize)?;
            c.send(&Frame::window_update(0, 1));
            c.stops_at(stream, INITIAL_WINDOW as usize + 1)?;
            c.send(&Frame::window_update(0, 1 << 20));
            let octets = c.answered(stream, 200)?.body.len();
            check(octets == BIG_BYTES, || format!("{octets} octets"))
        },
    ));
    let name = "what a stream that is given up has used is used on the connection";
    cases.push(Case::plays("6.9.1", name, Expect::Alive, |c| {
        c.refills = false;
        let stream = c.get(BIG_PATH);
        c.stops_at(stream, INITIAL_WINDOW as usize)?;
        c.send(&Frame::rst_stream(stream, Code::CANCEL));
        let next = c.get("/");
        c.until("the answer's head", |c| c.answer(next).status == Some(200))?;
        c.stops_at(next, 0)?;
        c.send(&Frame::window_update(0, 10_000));
        c.answered(next, 200).map(drop)
    }));
    cases
}

fn uploads() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::plays(
        "6.9",
        "content of three windows is taken",
        Expect::Alive,
        |c| {
            let content = vec![b'u'; 3 * INITIAL_WINDOW as usize];
            let stream = c.post("/");
            c.upload(stream, &content)?;
            let answer = c.answered(stream, 200)?;
            check(answer.body.ends_with(&content), || {
                format!("{} octets come back", answer.body.len())
            })
        },
    ));
    // Padding uses the windows (RFC 9113, 6.1), so that it has to be given back.
    cases.push(Case::plays(
        "6.9",
        "padding of three windows is given back",
        Expect::Alive,
        |c| {
            let stream = c.post("/");
            for _ in 0..3 * INITIAL_WINDOW / 257 {
                c.until("a window to send in", |c| c.room(stream) >= 257)?;
                c.send(&Frame::data(flag::NONE, stream, b"p".as_slice()).with_padding(255, 255));
            }
            c.send(&Frame::data(flag::END_STREAM, stream, []));
            c.answered(stream, 200).map(drop)
        },
    ));
    // What is in flight when a stream ends has used the window of the connection (RFC 9113, 6.9).
    let name = "content of requests that are given up is given back to the connection";
    cases.push(Case::plays("6.9", name, Expect::Alive, |c| -> Step {
        for _ in 0..12 {
            let stream = c.post("/");
            c.until("a window to send in", |c| c.room(stream) >= 16_384)?;
            c.send(&Frame::data(flag::NONE, stream, vec![b'g'; 16_384]));
            c.send(&Frame::rst_stream(stream, Code::CANCEL));
        }
        c.round_trip()
    }));
    cases
}
