//! SETTINGS (RFC 9113, 6.5): what is refused, what is acknowledged, and what the values do to answers.

use super::{BIG_BYTES, BIG_PATH, Case, Expect, check};
use crate::h2::client::{FRAME_BYTES, PREFACE};
use crate::h2::frame::{Code, Frame, flag, setting};

const PROTOCOL: Expect = Expect::ConnectionError(&[Code::PROTOCOL_ERROR]);
const FRAME_SIZE: Expect = Expect::ConnectionError(&[Code::FRAME_SIZE_ERROR]);
const FLOW_CONTROL: Expect = Expect::ConnectionError(&[Code::FLOW_CONTROL_ERROR]);

pub(super) fn cases() -> Vec<Case> {
    let mut cases = refused();
    cases.extend(taken());
    cases.extend(effects());
    cases
}

fn refused() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::sends(
        "6.5",
        "an acknowledgement with a payload",
        FRAME_SIZE,
        |c| {
            c.send(&Frame::new(4, flag::ACK, 0, [0, 1, 0, 0, 0, 1]));
        },
    ));
    cases.push(Case::sends("6.5", "SETTINGS on a stream", PROTOCOL, |c| {
        let mut frame = Frame::settings(&[(setting::ENABLE_PUSH, 0)]);
        frame.stream = 1;
        c.send(&frame);
    }));
    cases.push(Case::sends(
        "6.5",
        "an acknowledgement on a stream",
        PROTOCOL,
        |c| {
            let mut frame = Frame::settings_ack();
            frame.stream = 1;
            c.send(&frame);
        },
    ));
    for (name, setting, value, expect) in [
        ("SETTINGS_ENABLE_PUSH of 2", setting::ENABLE_PUSH, 2, PROTOCOL),
        (
            "SETTINGS_ENABLE_PUSH of 2^32-1",
            setting::ENABLE_PUSH,
            u32::MAX,
            PROTOCOL,
        ),
        (
            "SETTINGS_INITIAL_WINDOW_SIZE of 2^31",
            setting::INITIAL_WINDOW_SIZE,
            1 << 31,
            FLOW_CONTROL,
        ),
        (
            "SETTINGS_INITIAL_WINDOW_SIZE of 2^32-1",
            setting::INITIAL_WINDOW_SIZE,
            u32::MAX,
            FLOW_CONTROL,
        ),
        (
            "SETTINGS_MAX_FRAME_SIZE of 0",
            setting::MAX_FRAME_SIZE,
            0,
            PROTOCOL,
        ),
        (
            "SETTINGS_MAX_FRAME_SIZE of 16,383",
            setting::MAX_FRAME_SIZE,
            16_383,
            PROTOCOL,
        ),
        (
            "SETTINGS_MAX_FRAME_SIZE of 2^24",
            setting::MAX_FRAME_SIZE,
            1 << 24,
            PROTOCOL,
        ),
        (
            "SETTINGS_MAX_FRAME_SIZE of 2^32-1",
            setting::MAX_FRAME_SIZE,
            u32::MAX,
            PROTOCOL,
        ),
    ] {
        // Written past the account of the client: no connection is left that it could be about.
        let frame = Frame::settings(&[(setting, value)]).encode();
        cases.push(Case::sends("6.5.2", name, expect, move |c| c.bytes(&frame)));
    }
    let name = "a value that is wrong, and a right one behind it";
    let values = [(setting::MAX_FRAME_SIZE, 1), (setting::MAX_FRAME_SIZE, 16_384)];
    let frame = Frame::settings(&values).encode();
    cases.push(Case::sends("6.5.3", name, PROTOCOL, move |c| c.bytes(&frame)));
    let name = "SETTINGS_INITIAL_WINDOW_SIZE of 2^31 in the preface";
    let frame = Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 31)]).encode();
    let case = Case::sends("6.5.2", name, FLOW_CONTROL, move |c| {
        c.bytes(PREFACE);
        c.bytes(&frame);
    });
    cases.push(case.without_preface());
    cases
}

fn taken() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, values) in [
        ("empty SETTINGS", &[][..]),
        ("an unknown setting", &[(setting::UNKNOWN, 7)]),
        (
            "the settings 0 and 65,535, which are unknown",
            &[(0, 1), (0xffff, u32::MAX)],
        ),
        ("SETTINGS_ENABLE_PUSH of 0", &[(setting::ENABLE_PUSH, 0)]),
        ("SETTINGS_ENABLE_PUSH of 1", &[(setting::ENABLE_PUSH, 1)]),
        (
            "SETTINGS_MAX_CONCURRENT_STREAMS of 0",
            &[(setting::MAX_CONCURRENT_STREAMS, 0)],
        ),
        (
            "SETTINGS_MAX_CONCURRENT_STREAMS of 2^32-1",
            &[(setting::MAX_CONCURRENT_STREAMS, u32::MAX)],
        ),
        (
            "SETTINGS_INITIAL_WINDOW_SIZE of 2^31-1",
            &[(setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1)],
        ),
        (
            "SETTINGS_MAX_FRAME_SIZE of 16,384",
            &[(setting::MAX_FRAME_SIZE, 16_384)],
        ),
        (
            "SETTINGS_MAX_FRAME_SIZE of 2^24-1",
            &[(setting::MAX_FRAME_SIZE, (1 << 24) - 1)],
        ),
        (
            "SETTINGS_MAX_HEADER_LIST_SIZE of 2^32-1",
            &[(setting::MAX_HEADER_LIST_SIZE, u32::MAX)],
        ),
        (
            "SETTINGS_HEADER_TABLE_SIZE of 0",
            &[(setting::HEADER_TABLE_SIZE, 0)],
        ),
        (
            "SETTINGS_HEADER_TABLE_SIZE of 2^32-1",
            &[(setting::HEADER_TABLE_SIZE, u32::MAX)],
        ),
    ] {
        cases.push(Case::plays("6.5.2", name, Expect::Answer(200), move |c| {
            c.send(&Frame::settings(values));
            c.until("the acknowledgement", |c| c.settings_acks == 2)?;
            c.get("/");
            Ok(())
        }));
    }
    cases.push(Case::plays(
        "6.5.3",
        "each of ten SETTINGS is acknowledged",
        Expect::Alive,
        |c| {
            for number in 0..10 {
                c.send(&Frame::settings(&[(setting::MAX_CONCURRENT_STREAMS, number)]));
            }
            c.round_trip()?;
            check(c.settings_acks == 11, || {
                format!("{} acknowledgements", c.settings_acks)
            })
        },
    ));
    cases.push(Case::plays(
        "6.5.3",
        "many settings in one frame have one acknowledgement",
        Expect::Alive,
        |c| {
            let values: Vec<_> = (0..30).map(|number| (setting::UNKNOWN, number)).collect();
            c.send(&Frame::settings(&values));
            c.round_trip()?;
            check(c.settings_acks == 2, || {
                format!("{} acknowledgements", c.settings_acks)
            })
        },
    ));
    cases.push(Case::plays(
        "6.5",
        "an acknowledgement is not acknowledged",
        Expect::Alive,
        |c| {
            c.acknowledges = false;
            c.round_trip()?;
            let acks = c.settings_acks;
            check(acks == 1, || format!("{acks} acknowledgements of one SETTINGS"))
        },
    ));
    cases
}

fn effects() -> Vec<Case> {
    let mut cases = Vec::new();
    let name = "the last of several values is the one that holds";
    cases.push(Case::plays("6.5.3", name, Expect::Alive, |c| {
        let size = setting::INITIAL_WINDOW_SIZE;
        c.refills = false;
        c.send(&Frame::settings(&[(size, 100_000), (size, 0), (size, 5)]));
        let stream = c.get("/");
        c.stops_at(stream, 5)
    }));
    let name = "SETTINGS_HEADER_TABLE_SIZE of 0 holds for every answer";
    cases.push(Case::plays("6.5.2", name, Expect::Alive, |c| {
        for path in ["/1", "/2"] {
            let stream = c.get(path);
            c.answered(stream, 200)?;
        }
        c.send(&Frame::settings(&[(setting::HEADER_TABLE_SIZE, 0)]));
        c.until("the acknowledgement", |c| c.settings_acks == 2)?;
        for path in ["/3", "/4", "/5"] {
            let stream = c.get(path);
            c.answered(stream, 200)?;
        }
        Ok(())
    }));
    cases.push(Case::plays(
        "4.2",
        "no frame is larger than 16,384 octets by itself",
        Expect::Alive,
        |c| {
            c.send(&Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 20)]));
            c.send(&Frame::window_update(0, 1 << 20));
            let stream = c.get(BIG_PATH);
            let answer = c.answered(stream, 200)?;
            let largest = answer.data_frames.iter().max().copied().unwrap_or_default();
            check(largest <= FRAME_BYTES && answer.body.len() == BIG_BYTES, || {
                format!("{} octets, at most {largest} at once", answer.body.len())
            })
        },
    ));
    cases
}
