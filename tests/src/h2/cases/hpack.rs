//! Header compression (RFC 7541): blocks that do not decompress, and a table that both sides must have alike.

use super::{Case, Expect, REFUSED_PATH, check};
use crate::h2::client::{Connection, Step};
use crate::h2::frame::{Code, Frame, flag};
use crate::h2::hpack::{Block, Indexing, TABLE_BYTES, huffman, huffman_padded, plain};
use crate::h2::transport::AUTHORITY;

const COMPRESSION: Expect = Expect::ConnectionError(&[Code::COMPRESSION_ERROR]);

/// The first index behind the static table.
const NEWEST: u64 = 62;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = broken();
    cases.extend(broken_strings());
    cases.extend(table_sizes());
    cases.extend(tables());
    cases.extend(legal());
    cases
}

/// Sends a GET with something behind its control data, on a new stream.
fn get_with(c: &mut Connection, more: impl Fn(Block) -> Block) -> u32 {
    let stream = c.next_stream();
    let block = more(c.head("GET", "/"));
    c.send(&Frame::headers(flag::WHOLE, stream, block));
    stream
}

/// A GET whose block is broken behind its control data.
fn broken_by(section: &'static str, name: &'static str, more: fn(Block) -> Block) -> Case {
    Case::sends(section, name, COMPRESSION, move |c| {
        get_with(c, more);
    })
}

fn broken() -> Vec<Case> {
    vec![
        broken_by("7541 6.1", "the index 0", |block| block.indexed(0)),
        broken_by("7541 2.3.3", "an index behind an empty table", |block| {
            block.indexed(NEWEST)
        }),
        broken_by("7541 2.3.3", "an index far behind the tables", |block| {
            block.indexed(100_000)
        }),
        broken_by(
            "7541 2.3.3",
            "a name by an index behind an empty table",
            |block| block.literal_named_by(Indexing::Without, NEWEST, "a"),
        ),
        broken_by(
            "7541 2.3.3",
            "a name to be indexed by an index behind an empty table",
            |block| block.literal_named_by(Indexing::Incremental, NEWEST, "a"),
        ),
        broken_by("7541 5.1", "an index of more than 64 bits", |block| {
            block.raw([
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
            ])
        }),
        broken_by(
            "7541 5.1",
            "an index of 2^32 + 2, which is 2 in 32 bits",
            |block| block.indexed((1 << 32) + 2),
        ),
        broken_by("7541 5.1", "a length of a string beyond 64 bits", |block| {
            block.raw([
                0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ])
        }),
        broken_by("7541 5.1", "an integer that has no end", |block| {
            block.raw([0xff, 0x80, 0x80])
        }),
        broken_by("7541 5.1", "an integer whose first octet is the last", |block| {
            block.raw([0xff])
        }),
        broken_by("7541 5.2", "a literal without a name", |block| block.raw([0x40])),
        broken_by("7541 5.2", "a name that is cut off", |block| {
            block.raw([0, 10, b'a', b'b'])
        }),
        broken_by("7541 5.2", "a literal without a value", |block| {
            block.raw([0, 1, b'a'])
        }),
        broken_by("7541 5.2", "a value that is cut off", |block| {
            block.raw([0, 1, b'a', 10, b'b'])
        }),
        broken_by("7541 5.2", "a value in Huffman codes that is cut off", |block| {
            block.raw([0, 1, b'a', 0x8a, 0xff])
        }),
    ]
}

fn broken_strings() -> Vec<Case> {
    fn value(block: Block, value: &[u8]) -> Block {
        block.literal_of(Indexing::Without, &plain(b"x-test"), value)
    }
    vec![
        broken_by("7541 5.2", "padding of more than 7 bits", |block| {
            value(block, &huffman_padded(&[b'a'.into(), b'b'.into()], true, 1))
        }),
        broken_by("7541 5.2", "padding of zeros", |block| {
            value(block, &huffman_padded(&[b'a'.into()], false, 0))
        }),
        broken_by("7541 5.2", "padding alone, of a whole octet", |block| {
            value(block, &[0x81, 0xff])
        }),
        broken_by("7541 5.2", "the symbol EOS", |block| {
            value(block, &huffman_padded(&[256], true, 0))
        }),
        broken_by("7541 5.2", "the symbol EOS behind others", |block| {
            value(
                block,
                &huffman_padded(&[b'a'.into(), b'b'.into(), 256, b'c'.into()], true, 0),
            )
        }),
        broken_by("7541 5.2", "a name with padding of zeros", |block| {
            let name = huffman_padded(&[b'x'.into(), b'y'.into()], false, 0);
            block.literal_of(Indexing::Without, &name, &plain(b"1"))
        }),
    ]
}

fn table_sizes() -> Vec<Case> {
    /// A block that begins with changes of the table's size.
    fn resized(c: &mut Connection, sizes: &[u64]) -> u32 {
        let stream = c.next_stream();
        let start = sizes.iter().fold(Block::new(), |block, size| block.resize(*size));
        let block = start.raw(c.head("GET", "/").bytes());
        c.send(&Frame::headers(flag::WHOLE, stream, block));
        stream
    }
    let mut cases = vec![
        broken_by(
            "7541 4.2",
            "a change of the table's size at the end of a block",
            |block| block.resize(0),
        ),
        broken_by(
            "7541 4.2",
            "a change of the table's size between fields",
            |block| block.resize(100).field("x-test", "1"),
        ),
    ];
    cases.push(Case::sends(
        "7541 6.3",
        "a table one octet larger than allowed",
        COMPRESSION,
        |c| {
            let limit = u64::from(c.peer.header_table_size);
            resized(c, &[limit + 1]);
        },
    ));
    cases.push(Case::sends(
        "7541 6.3",
        "a table much larger than allowed",
        COMPRESSION,
        |c| {
            resized(c, &[1 << 30]);
        },
    ));
    for (name, sizes) in [
        ("a table of nothing", &[0][..]),
        ("a table of half the size", &[2048]),
        ("a table of the size that it has", &[4096]),
        ("a table of nothing, and of the old size at once", &[0, 4096]),
    ] {
        cases.push(Case::sends("7541 4.2", name, Expect::Answer(200), move |c| {
            resized(c, sizes);
        }));
    }
    cases.push(Case::plays(
        "7541 4.3",
        "an index behind a table that was emptied",
        COMPRESSION,
        |c| {
            let stream = get_with(c, |block| block.literal(Indexing::Incremental, "x-test", "1"));
            c.answered(stream, 200)?;
            let stream = resized(c, &[0, 4096]);
            c.answered(stream, 200)?;
            get_with(c, |block| block.indexed(NEWEST));
            Ok(())
        },
    ));
    cases.push(Case::plays(
        "7541 4.3",
        "a table of nothing holds nothing",
        COMPRESSION,
        |c| {
            resized(c, &[0]);
            get_with(c, |block| block.literal(Indexing::Incremental, "x-test", "1"));
            get_with(c, |block| block.indexed(NEWEST));
            Ok(())
        },
    ));
    cases.push(Case::plays(
        "7541 4.3",
        "a table of nothing, then of the old size, holds again",
        Expect::Alive,
        |c| {
            let first = resized(c, &[0]);
            c.answered(first, 200)?;
            let second = resized(c, &[4096]);
            c.answered(second, 200)?;
            get_with(c, |block| block.literal(Indexing::Incremental, "x-test", "again"));
            let last = get_with(c, |block| block.indexed(NEWEST));
            has_field(c, last, "x-test: again")
        },
    ));
    cases
}

/// The upstream had this field.
fn has_field(c: &mut Connection, stream: u32, line: &str) -> Step {
    let text = c.answered(stream, 200)?.text();
    check(text.lines().any(|found| found == line), || {
        format!("no {line:?} in {text:?}")
    })
}

fn tables() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::plays(
        "7541 6.2.1",
        "a field of the request before, by its index",
        Expect::Alive,
        |c| {
            let first = get_with(c, |block| {
                block.literal(Indexing::Incremental, "x-test", "remembered")
            });
            c.answered(first, 200)?;
            let second = get_with(c, |block| block.indexed(NEWEST));
            has_field(c, second, "x-test: remembered")
        },
    ));
    cases.push(Case::plays(
        "7541 6.2.1",
        "a name of the request before, by its index",
        Expect::Alive,
        |c| {
            get_with(c, |block| {
                block.literal(Indexing::Incremental, "x-test", "remembered")
            });
            let second = get_with(c, |block| {
                block.literal_named_by(Indexing::Without, NEWEST, "another")
            });
            has_field(c, second, "x-test: another")
        },
    ));
    cases.push(Case::plays(
        "7541 2.3.2",
        "the newest entry has the lowest index",
        Expect::Alive,
        |c| {
            get_with(c, |block| {
                let block = block.literal(Indexing::Incremental, "x-old", "1");
                block.literal(Indexing::Incremental, "x-new", "2")
            });
            let newest = get_with(c, |block| block.indexed(NEWEST));
            has_field(c, newest, "x-new: 2")?;
            let older = get_with(c, |block| block.indexed(NEWEST + 1));
            has_field(c, older, "x-old: 1")
        },
    ));
    for (section, name, indexing) in [
        (
            "7541 6.2.2",
            "a literal without indexing is not remembered",
            Indexing::Without,
        ),
        (
            "7541 6.2.3",
            "a literal that is never indexed is not remembered",
            Indexing::Never,
        ),
    ] {
        cases.push(Case::plays(section, name, COMPRESSION, move |c| {
            let first = get_with(c, |block| block.literal(indexing, "x-test", "1"));
            c.answered(first, 200)?;
            get_with(c, |block| block.indexed(NEWEST));
            Ok(())
        }));
    }
    cases.push(Case::plays(
        "7541 4.4",
        "old entries are evicted",
        COMPRESSION,
        |c| {
            fill(c, 1_000, 5);
            // Four entries of 1,000 octets and what they count beside fit, a fifth does not.
            get_with(c, |block| block.indexed(NEWEST + 4));
            Ok(())
        },
    ));
    cases.push(Case::plays(
        "7541 4.4",
        "entries that fit are kept",
        Expect::Alive,
        |c| {
            fill(c, 900, 5);
            let stream = get_with(c, |block| block.indexed(NEWEST + 3));
            let value = "1".repeat(900);
            has_field(c, stream, &format!("x-fill: {value}"))
        },
    ));
    cases.push(Case::plays(
        "7541 4.1",
        "an entry counts 32 octets beside its own",
        COMPRESSION,
        |c| {
            // Empty of content, two of these are one octet too much.
            let value = TABLE_BYTES / 2 - 32 - "x-fill".len();
            fill_with(c, &"a".repeat(value + 1));
            fill_with(c, &"b".repeat(value));
            get_with(c, |block| block.indexed(NEWEST + 1));
            Ok(())
        },
    ));
    cases.push(Case::plays(
        "7541 4.1",
        "a table may be full to its last octet",
        Expect::Alive,
        |c| {
            let value = "a".repeat(TABLE_BYTES / 2 - 32 - "x-fill".len());
            fill_with(c, &value);
            fill_with(c, &value);
            let stream = get_with(c, |block| block.indexed(NEWEST + 1));
            has_field(c, stream, &format!("x-fill: {value}"))
        },
    ));
    cases.push(Case::plays(
        "7541 4.4",
        "an entry larger than the table empties it",
        COMPRESSION,
        |c| {
            get_with(c, |block| block.literal(Indexing::Incremental, "x-test", "1"));
            let stream = get_with(c, |block| {
                block.literal(Indexing::Incremental, "x-large", "l".repeat(TABLE_BYTES))
            });
            c.answered(stream, 200)?;
            get_with(c, |block| block.indexed(NEWEST));
            Ok(())
        },
    ));
    cases.push(Case::plays(
        "7541 4.4",
        "a name by an entry that its own field evicts",
        Expect::Alive,
        |c| {
            fill(c, 1_900, 2);
            let value = "z".repeat(3_000);
            let stream = get_with(c, |block| {
                block.literal_named_by(Indexing::Incremental, NEWEST + 1, &value)
            });
            has_field(c, stream, &format!("x-fill: {value}"))
        },
    ));
    cases.extend(tables_of_refused());
    cases
}

/// A header block counts for the table whatever becomes of its request (RFC 9113, 4.3).
fn tables_of_refused() -> Vec<Case> {
    let mut cases = Vec::new();
    let malformed = Case::plays(
        "4.3",
        "a field of a request that is malformed, by its index",
        Expect::Alive,
        |c| {
            let block = c.head("GET", REFUSED_PATH).field("X-UPPER", "1");
            let block = block.literal(Indexing::Incremental, "x-test", "remembered");
            c.send(&Frame::headers(flag::WHOLE, 1, block));
            c.until("the end of the stream", |c| c.is_over(1) || c.goaway.is_some())?;
            if let Some((_, code)) = c.goaway {
                // RFC 9113, 5.4.2: it may end the connection with the stream; then there is no table.
                check(code == Code::PROTOCOL_ERROR, || format!("GOAWAY with {code:?}"))?;
                return c.until_closed();
            }
            let stream = get_with(c, |block| block.indexed(NEWEST));
            has_field(c, stream, "x-test: remembered")
        },
    );
    cases.push(malformed.may_close());
    cases.push(Case::plays(
        "4.3",
        "a field of a request that was given up, by its index",
        Expect::Alive,
        |c| {
            let stream = get_with(c, |block| {
                block.literal(Indexing::Incremental, "x-test", "remembered")
            });
            c.send(&Frame::rst_stream(stream, Code::CANCEL));
            let stream = get_with(c, |block| block.indexed(NEWEST));
            has_field(c, stream, "x-test: remembered")
        },
    ));
    cases.push(Case::plays(
        "4.3",
        "a field of trailers, by its index",
        Expect::Alive,
        |c| {
            let stream = c.post("/");
            let trailers = Block::new().literal(Indexing::Incremental, "x-test", "remembered");
            c.send(&Frame::headers(flag::WHOLE, stream, trailers));
            let stream = get_with(c, |block| block.indexed(NEWEST));
            has_field(c, stream, "x-test: remembered")
        },
    ));
    cases
}

/// Requests with entries of this size of value, whose digits count them from 0.
fn fill(c: &mut Connection, octets: usize, entries: usize) {
    for number in 0..entries {
        fill_with(c, &number.to_string().repeat(octets));
    }
}

fn fill_with(c: &mut Connection, value: &str) {
    get_with(c, |block| block.literal(Indexing::Incremental, "x-fill", value));
}

fn legal() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::plays(
        "7541 6.2.3",
        "a literal that is never indexed",
        Expect::Alive,
        |c| {
            let stream = get_with(c, |block| block.literal(Indexing::Never, "x-test", "secret"));
            has_field(c, stream, "x-test: secret")
        },
    ));
    cases.push(Case::plays(
        "7541 5.2",
        "a request in Huffman codes",
        Expect::Alive,
        |c| {
            let stream = c.next_stream();
            let fields = [
                (":method", "GET"),
                (":scheme", c.scheme()),
                (":path", "/huffman"),
                (":authority", AUTHORITY),
                ("x-test", "{every} <code> |of| ~some~ length\\"),
            ];
            let block = fields.iter().fold(Block::new(), |block, (name, value)| {
                block.literal_of(
                    Indexing::Incremental,
                    &huffman(name.as_bytes()),
                    &huffman(value.as_bytes()),
                )
            });
            c.send(&Frame::headers(flag::WHOLE, stream, block));
            has_field(c, stream, "x-test: {every} <code> |of| ~some~ length\\")
        },
    ));
    cases.push(Case::plays(
        "7541 5.2",
        "an empty string in Huffman codes",
        Expect::Alive,
        |c| {
            let stream = get_with(c, |block| {
                block.literal_of(Indexing::Without, &plain(b"x-test"), &[0x80])
            });
            c.answered(stream, 200).map(drop)
        },
    ));
    cases.push(Case::plays(
        "7541 6.1",
        "a request of entries of the static table",
        Expect::Alive,
        |c| {
            let scheme = if c.scheme() == "https" { 7 } else { 6 };
            let start = Block::new().indexed(2).indexed(scheme).indexed(5);
            let block = start
                .literal_named_by(Indexing::Incremental, 1, AUTHORITY)
                .indexed(16);
            c.send(&Frame::headers(flag::WHOLE, 1, block));
            let text = c.answered(1, 200)?.text();
            check(text.starts_with("GET /index.html\n"), || format!("{text:?}"))?;
            check(text.contains("\naccept-encoding: gzip, deflate\n"), || {
                format!("{text:?}")
            })
        },
    ));
    cases.push(Case::plays(
        "7541 2.3.3",
        "the last entry of the static table",
        Expect::Alive,
        |c| {
            let stream = get_with(c, |block| block.literal_named_by(Indexing::Without, 61, "basic"));
            has_field(c, stream, "www-authenticate: basic")
        },
    ));
    cases.push(Case::plays(
        "7541 2.3.2",
        "the same field twice in the table",
        Expect::Alive,
        |c| {
            get_with(c, |block| {
                let block = block.literal(Indexing::Incremental, "x-test", "1");
                block.literal(Indexing::Incremental, "x-test", "1")
            });
            let stream = get_with(c, |block| block.indexed(NEWEST + 1));
            has_field(c, stream, "x-test: 1")
        },
    ));
    cases
}
