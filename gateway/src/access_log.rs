//! The access log: one line for each exchange, formatted on the shard, written by a thread of its own.
//!
//! A shard gathers lines in a batch and hands the batch over when it is large or a moment old, so that a request costs
//! the formatting and nothing else. When the writer cannot keep up, whole batches are dropped and counted: a slow disk
//! must not stop requests.

use crate::io::clock;
use http::Method;
use isthmus_core::endpoint::{UNIX, is_socket};
use isthmus_core::header::HeaderId;
use isthmus_core::message::RequestHead;
use isthmus_core::reply::Flags;
use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

/// Bytes after which a batch is handed over at once.
const BATCH_BYTES: usize = 32 * 1024;
/// Batches that may wait for the writer.
const QUEUE_BATCHES: usize = 256;
/// How often whoever waits for the writer's end looks for it.
const LOOK: Duration = Duration::from_millis(2);

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Istio's default text.
    #[default]
    Text,
    /// One JSON object a line, with the keys of Istio's JSON encoding.
    Json,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Nowhere; nothing is formatted.
    Off,
    /// Standard output.
    Stdout,
    /// A file, appended to; reopened on request (log rotation).
    File(PathBuf),
}

enum Message {
    Batch(Vec<u8>),
    Stop,
}

/// What control keeps of the log.
pub struct Writer {
    sender: Option<SyncSender<Message>>,
    thread: Option<std::thread::JoinHandle<()>>,
    shared: Arc<Shared>,
    format: Format,
}

#[derive(Default)]
struct Shared {
    dropped: AtomicU64,
    errors: AtomicU64,
    reopen: AtomicBool,
}

impl Writer {
    /// Opens the target and starts the writing thread.
    pub fn start(target: &Target, format: Format) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let path = match target {
            Target::Off => {
                return Ok(Self {
                    sender: None,
                    thread: None,
                    shared,
                    format,
                });
            }
            Target::Stdout => None,
            Target::File(path) => Some(path.clone()),
        };
        let open = move || -> std::io::Result<Box<dyn Write + Send>> {
            match &path {
                None => Ok(Box::new(std::io::stdout())),
                Some(path) => Ok(Box::new(open_file(path)?)),
            }
        };
        let output = open()?;
        let (sender, receiver) = sync_channel(QUEUE_BATCHES);
        let counters = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_batches(&receiver, output, &open, &counters))?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
            shared,
            format,
        })
    }

    /// A shard's end.
    pub fn shard_log(&self) -> AccessLogSender {
        AccessLogSender {
            sender: self.sender.clone(),
            shared: Arc::clone(&self.shared),
            format: self.format,
        }
    }

    /// Opens the file anew before the next batch.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Relaxed);
    }

    /// Lines' batches that were dropped, and writes that failed.
    pub fn losses(&self) -> (u64, u64) {
        (
            self.shared.dropped.load(Ordering::Relaxed),
            self.shared.errors.load(Ordering::Relaxed),
        )
    }

    /// Writes out everything that shards have handed over, and ends the thread. Answers whether that was done in time: a
    /// pipe that nobody reads, or a disk that stands still, takes nothing and must not hold the process up.
    pub fn stop(&mut self, patience: Duration) -> bool {
        let until = clock::now() + patience;
        let in_time = |is_done: &mut dyn FnMut() -> bool| {
            while !is_done() {
                if clock::now() >= until {
                    return false;
                }
                std::thread::sleep(LOOK);
            }
            true
        };
        if let Some(sender) = self.sender.take() {
            let mut is_told = || !matches!(sender.try_send(Message::Stop), Err(TrySendError::Full(_)));
            if !in_time(&mut is_told) {
                return false;
            }
        }
        let Some(thread) = self.thread.take() else {
            return true;
        };
        let has_ended = in_time(&mut || thread.is_finished());
        if has_ended {
            let _panicked = thread.join();
        }
        has_ended
    }
}

fn open_file(path: &PathBuf) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn write_batches(
    receiver: &Receiver<Message>,
    mut output: Box<dyn Write + Send>,
    open: &dyn Fn() -> std::io::Result<Box<dyn Write + Send>>,
    shared: &Shared,
) {
    loop {
        let message = receiver.recv_timeout(Duration::from_secs(1));
        if shared.reopen.swap(false, Ordering::Relaxed) {
            match open() {
                Ok(file) => output = file,
                Err(_) => {
                    shared.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        match message {
            Ok(Message::Batch(lines)) => {
                if output.write_all(&lines).and_then(|()| output.flush()).is_err() {
                    shared.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What a shard is given to make its [`AccessLog`] from.
#[derive(Clone)]
pub struct AccessLogSender {
    sender: Option<SyncSender<Message>>,
    shared: Arc<Shared>,
    format: Format,
}

/// One shard's batch of lines.
pub struct AccessLog {
    to: AccessLogSender,
    batch: RefCell<Vec<u8>>,
    second: Cell<u64>,
    stamp: RefCell<String>,
}

/// What a line says.
pub struct Record<'a> {
    /// When the request's head began to arrive.
    pub start: SystemTime,
    /// The request; as it was changed for the upstream, if it got so far.
    pub request: &'a RequestHead,
    /// The path that the client sent, when a rewrite replaced it.
    pub original_path: Option<&'a str>,
    /// The status that the client got; None when it got none.
    pub status: Option<u16>,
    /// Response flags.
    pub flags: Flags,
    /// Response code details.
    pub detail: &'a str,
    /// Bytes of the request's body.
    pub bytes_received: u64,
    /// Bytes of the answer's body.
    pub bytes_sent: u64,
    /// How long the exchange took.
    pub duration: Duration,
    /// From the request's end to the upstream's head.
    pub upstream_time: Option<Duration>,
    /// The endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// The path of its unix socket, when it is on one.
    pub upstream_socket: Option<&'a str>,
    /// The gateway's address towards the upstream.
    pub upstream_local: Option<SocketAddr>,
    /// The cluster.
    pub cluster: &'a str,
    /// The gateway's address towards the client.
    pub local: Option<SocketAddr>,
    /// The client's socket.
    pub peer: SocketAddr,
    /// The name that the client asked TLS for.
    pub server_name: Option<&'a str>,
    /// The route's name.
    pub route: &'a str,
    /// `namespace/name` of the VirtualService whose rule took it, or of the ServiceEntry or Service, where a registered
    /// host needs no more; empty for what was refused, and where nobody asks ([`AccessLog::says_who_allowed`]).
    pub allowed_by: &'a str,
}

/// An endpoint as the log names it.
enum Host<'a> {
    Address(SocketAddr),
    Socket(&'a str),
}

impl std::fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Socket(path) => write!(f, "{UNIX}{}", Quoted(path.as_bytes())),
        }
    }
}

impl Record<'_> {
    fn upstream(&self) -> Option<Host<'_>> {
        match self.upstream_socket {
            Some(path) => Some(Host::Socket(path)),
            // One that has left its cluster since has no name any more.
            None => self
                .upstream_host
                .filter(|address| !is_socket(address))
                .map(Host::Address),
        }
    }
}

impl AccessLog {
    /// A shard's log.
    pub fn new(to: AccessLogSender) -> Self {
        Self {
            to,
            batch: RefCell::default(),
            second: Cell::new(u64::MAX),
            stamp: RefCell::default(),
        }
    }

    /// Whether lines go anywhere.
    pub fn is_on(&self) -> bool {
        self.to.sender.is_some()
    }

    /// Whether lines say which resource has let a request pass.
    pub fn says_who_allowed(&self) -> bool {
        self.is_on() && matches!(self.to.format, Format::Json)
    }

    /// Adds a line.
    pub fn write(&self, record: &Record<'_>) {
        if !self.is_on() {
            return;
        }
        let mut batch = self.batch.borrow_mut();
        let stamp = self.stamp(record.start);
        // Writing to a Vec cannot fail.
        let _infallible = match self.to.format {
            Format::Text => write_text(&mut batch, &stamp, record),
            Format::Json => write_json(&mut batch, &stamp, record),
        };
        let large = batch.len() >= BATCH_BYTES;
        drop(batch);
        if large {
            self.flush();
        }
    }

    /// Hands the batch over.
    pub fn flush(&self) {
        let Some(sender) = &self.to.sender else { return };
        let mut batch = self.batch.borrow_mut();
        if batch.is_empty() {
            return;
        }
        let capacity = batch.len().min(2 * BATCH_BYTES);
        let lines = std::mem::replace(&mut *batch, Vec::with_capacity(capacity));
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            sender.try_send(Message::Batch(lines))
        {
            self.to.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `2026-11-23T01:02:03.456Z`; the part before the milliseconds is made once a second.
    fn stamp(&self, time: SystemTime) -> String {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.second.replace(since.as_secs()) != since.as_secs() {
            let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
            let text = humantime::format_rfc3339_seconds(whole).to_string();
            *self.stamp.borrow_mut() = text.trim_end_matches('Z').to_owned();
        }
        format!("{}.{:03}Z", self.stamp.borrow(), since.subsec_millis())
    }
}

/// Bytes of a field, with what would break a quoted text or a terminal escaped.
struct Quoted<'a>(&'a [u8]);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::fmt::Write;
        let plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
        let mut rest = self.0;
        while let Some((&byte, tail)) = rest.split_first() {
            let run = rest.iter().take_while(|&&byte| plain(byte)).count();
            if run > 0 {
                let (text, tail) = rest.split_at(run);
                f.write_str(std::str::from_utf8(text).unwrap_or(""))?;
                rest = tail;
                continue;
            }
            match byte {
                b'"' | b'\\' => {
                    f.write_char('\\')?;
                    f.write_char(byte as char)?;
                }
                _ => write!(f, "\\x{byte:02x}")?,
            }
            rest = tail;
        }
        Ok(())
    }
}

struct OrDash<T>(Option<T>);

impl<T: std::fmt::Display> std::fmt::Display for OrDash<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

fn field(request: &RequestHead, id: HeaderId) -> Quoted<'_> {
    Quoted(
        request
            .headers
            .get(id)
            .filter(|value| !value.is_empty())
            .unwrap_or(b"-"),
    )
}

fn text_or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Istio's default: proxy/config `accessLogFormat`.
fn write_text(out: &mut Vec<u8>, stamp: &str, record: &Record<'_>) -> std::io::Result<()> {
    let request = record.request;
    let path = path(record);
    writeln!(
        out,
        "[{stamp}] \"{} {} {}\" {} {} {} - \"-\" {} {} {} {} \"{}\" \"{}\" \"{}\" \"{}\" \"{}\" {} {} {} {} {} {}",
        request.method,
        Quoted(path.as_bytes()),
        version(request),
        record.status.unwrap_or(0),
        record.flags,
        text_or_dash(record.detail),
        record.bytes_received,
        record.bytes_sent,
        record.duration.as_millis(),
        OrDash(record.upstream_time.map(|time| time.as_millis())),
        field(request, HeaderId::XForwardedFor),
        field(request, HeaderId::UserAgent),
        field(request, HeaderId::XRequestId),
        Quoted(text_or_dash(&request.authority).as_bytes()),
        OrDash(record.upstream()),
        text_or_dash(record.cluster),
        OrDash(record.upstream_local),
        OrDash(record.local),
        record.peer,
        record.server_name.unwrap_or("-"),
        text_or_dash(record.route),
    )
}

/// The path that was asked for; of a request for a tunnel, which has none, the target (RFC 9110, 9.3.6).
fn path<'a>(record: &'a Record<'_>) -> &'a str {
    let request = record.request;
    match record.original_path.unwrap_or(&request.path) {
        "" | "-" if request.method == Method::CONNECT => text_or_dash(&request.authority),
        path => path,
    }
}

/// The version as it is written; a connection of bytes has none.
fn version(request: &RequestHead) -> &'static str {
    if request.method.as_str() == "-" {
        "-"
    } else {
        request.version.as_str()
    }
}

fn write_json(out: &mut Vec<u8>, stamp: &str, record: &Record<'_>) -> std::io::Result<()> {
    let request = record.request;
    let value = |id| {
        request
            .headers
            .get(id)
            .map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let line = serde_json::json!({
        "start_time": stamp,
        "method": request.method.as_str(),
        "path": path(record),
        "protocol": Some(version(request)).filter(|version| *version != "-"),
        "response_code": record.status.unwrap_or(0),
        "response_flags": record.flags.to_string(),
        "response_code_details": record.detail,
        "connection_termination_details": null,
        "upstream_transport_failure_reason": null,
        "bytes_received": record.bytes_received,
        "bytes_sent": record.bytes_sent,
        "duration": record.duration.as_millis() as u64,
        "upstream_service_time": record.upstream_time.map(|time| time.as_millis() as u64),
        "x_forwarded_for": value(HeaderId::XForwardedFor),
        "user_agent": value(HeaderId::UserAgent),
        "request_id": value(HeaderId::XRequestId),
        "authority": request.authority,
        "upstream_host": record.upstream().map(|host| host.to_string()),
        "upstream_cluster": Some(record.cluster).filter(|name| !name.is_empty()),
        "upstream_local_address": record.upstream_local.map(|address| address.to_string()),
        "downstream_local_address": record.local.map(|address| address.to_string()),
        "downstream_remote_address": record.peer.to_string(),
        "requested_server_name": record.server_name,
        "route_name": Some(record.route).filter(|name| !name.is_empty()),
        "allowed_by": Some(record.allowed_by).filter(|name| !name.is_empty()),
    });
    serde_json::to_writer(&mut *out, &line)?;
    out.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(request: &RequestHead) -> Record<'_> {
        Record {
            start: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            request,
            original_path: None,
            status: Some(503),
            flags: Flags::UF,
            detail: "upstream_reset_before_response_started{connection_failure}",
            bytes_received: 1,
            bytes_sent: 2,
            duration: Duration::from_millis(3),
            upstream_time: None,
            upstream_host: Some(([127, 0, 0, 1], 9080).into()),
            upstream_socket: None,
            upstream_local: None,
            cluster: "outbound|80||a",
            local: None,
            peer: ([10, 0, 0, 1], 5).into(),
            server_name: None,
            route: "",
            allowed_by: "default/shop",
        }
    }

    fn request() -> RequestHead {
        let mut request = RequestHead::default();
        request.set_path("/a?b");
        request.set_authority("h");
        request.headers.append(b"User-Agent", b"evil\" \\ \xff");
        request
    }

    fn lines(format: Format) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = Writer::start(&Target::File(path.clone()), format).unwrap();
        let log = AccessLog::new(writer.shard_log());
        let request = request();
        log.write(&record(&request));
        log.flush();
        assert!(writer.stop(Duration::from_secs(30)));
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_text_line_is_istios_default() {
        assert_eq!(
            lines(Format::Text),
            "[2023-11-14T22:13:20.123Z] \"GET /a?b HTTP/1.1\" 503 UF \
             upstream_reset_before_response_started{connection_failure} - \"-\" 1 2 3 - \"-\" \
             \"evil\\\" \\\\ \\xff\" \"-\" \"h\" \"127.0.0.1:9080\" outbound|80||a - - 10.0.0.1:5 - -\n"
        );
    }

    #[test]
    fn a_tunnel_is_logged_with_its_target() {
        let mut request = request();
        request.method = Method::CONNECT;
        request.set_path("");
        request.set_authority("a.example:443");
        assert_eq!(path(&record(&request)), "a.example:443");
        request.set_path("/chat");
        assert_eq!(path(&record(&request)), "/chat");
    }

    #[test]
    fn a_json_line_is_one_object() {
        let line: serde_json::Value = serde_json::from_str(&lines(Format::Json)).unwrap();
        assert_eq!(line["response_flags"], "UF");
        assert_eq!(line["upstream_host"], "127.0.0.1:9080");
        assert_eq!(line["allowed_by"], "default/shop");
        assert_eq!(line["start_time"], "2023-11-14T22:13:20.123Z");
    }
}
