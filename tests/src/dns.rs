//! A server of DNS that says what a test wants, over UDP and TCP on one port.
//!
//! It reads questions and writes answers byte by byte by RFC 1035: nothing of it is the gateway's resolver.

use crate::deadline::{SOON, eventually};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

/// Type A.
pub const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
/// Type AAAA.
pub const AAAA: u16 = 28;
const RESPONSE: u16 = 0x8000;
const CUT: u16 = 0x0200;
const RECURSION: u16 = 0x0180;
/// SERVFAIL.
pub const SERVFAIL: u16 = 2;
const NXDOMAIN: u16 = 3;
/// REFUSED.
pub const REFUSED: u16 = 5;

/// What is said about a name.
#[derive(Debug, Clone)]
pub enum Reply {
    /// These addresses, of which each question gets those of its family; none of a family is NODATA.
    Addresses(Vec<IpAddr>, u32),
    /// The name stands for another, whose addresses come with it.
    Alias(String, u32, Vec<IpAddr>, u32),
    /// NXDOMAIN, good for so many seconds.
    NoName(u32),
    /// An error code such as [`SERVFAIL`].
    Code(u16),
    /// Nothing.
    Silence,
    /// Over UDP an answer that is cut, over TCP this one.
    Cut(Box<Reply>),
    /// Bytes that are no answer.
    Garbage,
}

impl Reply {
    /// Addresses as text.
    pub fn addresses(list: &[&str], ttl: u32) -> Self {
        let list = list.iter().map(|ip| ip.parse().expect("an address"));
        Self::Addresses(list.collect(), ttl)
    }
}

/// A question that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// In lower case, without the last dot.
    pub name: String,
    /// [`A`], [`AAAA`], ...
    pub kind: u16,
    /// Whether it came over TCP.
    pub is_tcp: bool,
}

#[derive(Debug, Default)]
struct Script {
    replies: HashMap<(String, u16), Reply>,
    asked: Vec<Question>,
}

/// The server.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    stopped: Arc<AtomicBool>,
}

impl Dns {
    /// One that knows no name: NXDOMAIN is what it says.
    pub fn start() -> Self {
        // The same port for both, which may be taken for one of them.
        let (udp, tcp) = (0..100)
            .find_map(|_| {
                let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
                let tcp = TcpListener::bind(udp.local_addr().expect("bound")).ok()?;
                Some((udp, tcp))
            })
            .expect("a port for UDP and TCP");
        let address = udp.local_addr().expect("bound");
        let dns = Self {
            address,
            script: Arc::default(),
            stopped: Arc::default(),
        };
        let (script, stopped) = (Arc::clone(&dns.script), Arc::clone(&dns.stopped));
        thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((length, from)) = udp.recv_from(&mut bytes) {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                if let Some(answer) = answer(&bytes[..length], false, &script) {
                    let _gone = udp.send_to(&answer, from);
                }
            }
        });
        let (script, stopped) = (Arc::clone(&dns.script), Arc::clone(&dns.stopped));
        thread::spawn(move || {
            while let Ok((stream, _)) = tcp.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let script = Arc::clone(&script);
                thread::spawn(move || serve(stream, &script));
            }
        });
        dns
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no panic")
    }

    /// What is said about a name from now on.
    pub fn set(&self, name: &str, reply: &Reply) {
        self.set_one(name, A, reply);
        self.set_one(name, AAAA, reply);
    }

    /// The same for questions of one type.
    pub fn set_one(&self, name: &str, kind: u16, reply: &Reply) {
        self.script()
            .replies
            .insert((name.to_owned(), kind), reply.clone());
    }

    /// The questions so far.
    pub fn asked(&self) -> Vec<Question> {
        self.script().asked.clone()
    }

    /// How often a name was asked for, in questions of type A.
    pub fn times(&self, name: &str) -> usize {
        let script = self.script();
        let of_name = script
            .asked
            .iter()
            .filter(|question| question.name == name && question.kind == A);
        of_name.count()
    }

    /// Waits until a name was asked for as many times more.
    pub fn wait_for(&self, name: &str, more: usize) {
        let before = self.times(name);
        eventually(SOON, "the name is asked for", || {
            self.times(name) >= before + more
        });
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Each thread looks at the flag when something comes.
        if let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) {
            let _gone = socket.send_to(b"end", self.address);
        }
        let _gone = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: TcpStream, script: &Mutex<Script>) {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut question).is_err() {
            return;
        }
        let Some(answer) = answer(&question, true, script) else {
            continue;
        };
        let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
        framed.extend(answer);
        if stream.write_all(&framed).is_err() {
            return;
        }
    }
}

fn answer(question: &[u8], is_tcp: bool, script: &Mutex<Script>) -> Option<Vec<u8>> {
    let (name, kind, end) = read_question(question)?;
    let reply = {
        let mut script = script.lock().expect("no panic");
        script.asked.push(Question {
            name: name.clone(),
            kind,
            is_tcp,
        });
        script.replies.get(&(name.clone(), kind)).cloned()
    };
    let reply = reply.unwrap_or(Reply::NoName(1));
    let written = &question[12..end];
    let reply = match reply {
        Reply::Cut(whole) if is_tcp => *whole,
        Reply::Cut(_) => return Some(message(question, CUT, written, &[], &[])),
        other => other,
    };
    let denial = |ttl| vec![record(&name, SOA, ttl, &start_of_authority(ttl))];
    Some(match reply {
        Reply::Addresses(list, ttl) => match of_family(&name, &list, kind, ttl) {
            none if none.is_empty() => message(question, 0, written, &[], &denial(ttl)),
            records => message(question, 0, written, &records, &[]),
        },
        Reply::Alias(target, alias_ttl, list, ttl) => {
            let mut records = vec![record(&name, CNAME, alias_ttl, &encode(&target))];
            records.extend(of_family(&target, &list, kind, ttl));
            message(question, 0, written, &records, &[])
        }
        Reply::NoName(ttl) => message(question, NXDOMAIN, written, &[], &denial(ttl)),
        Reply::Code(code) => message(question, code, written, &[], &[]),
        Reply::Silence | Reply::Cut(_) => return None,
        Reply::Garbage => b"this is no message of DNS, whoever reads it".to_vec(),
    })
}

/// The name, the type, and where the question ends.
fn read_question(bytes: &[u8]) -> Option<(String, u16, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(
            std::str::from_utf8(bytes.get(at..at + length)?)
                .ok()?
                .to_ascii_lowercase(),
        );
        at += length;
    }
    let kind = u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]);
    Some((labels.join("."), kind, at + 4))
}

fn of_family(name: &str, list: &[IpAddr], kind: u16, ttl: u32) -> Vec<Vec<u8>> {
    let data = |ip: &IpAddr| match (ip, kind) {
        (IpAddr::V4(ip), A) => Some(ip.octets().to_vec()),
        (IpAddr::V6(ip), AAAA) => Some(ip.octets().to_vec()),
        _ => None,
    };
    list.iter()
        .filter_map(data)
        .map(|data| record(name, kind, ttl, &data))
        .collect()
}

fn message(
    question: &[u8],
    flags: u16,
    written: &[u8],
    answers: &[Vec<u8>],
    authority: &[Vec<u8>],
) -> Vec<u8> {
    let mut out = question[..2].to_vec();
    out.extend((RESPONSE | RECURSION | flags).to_be_bytes());
    for count in [1, answers.len(), authority.len(), 0] {
        out.extend((count as u16).to_be_bytes());
    }
    out.extend(written);
    answers
        .iter()
        .chain(authority)
        .for_each(|record| out.extend(record));
    out
}

fn record(name: &str, kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut out = encode(name);
    out.extend(kind.to_be_bytes());
    out.extend(1u16.to_be_bytes());
    out.extend(ttl.to_be_bytes());
    out.extend((data.len() as u16).to_be_bytes());
    out.extend(data);
    out
}

fn encode(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}

fn start_of_authority(minimum: u32) -> Vec<u8> {
    let mut out = encode("ns.example");
    out.extend(encode("admin.example"));
    for number in [1, 3600, 600, 86_400, minimum] {
        out.extend(number.to_be_bytes());
    }
    out
}
