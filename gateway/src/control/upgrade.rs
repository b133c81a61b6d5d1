//! A newer process takes the place of an older one, and no connection is lost on the way.
//!
//! The older one starts the newer with its own arguments and passes it every listening socket ([`handover`]): the same
//! sockets, not others at the same addresses, because what waits in the queue of one that is closed is lost. From then
//! on both can accept. The newer one loads its configuration, serves, and says so; only then the older one stops
//! accepting and drains. Whatever goes wrong before that ends the newer process and leaves the older one as it was.
//!
//! What came by `/v1/resources` is passed, too, and sockets of a supervisor that nobody uses yet. What is not: counters, tickets of TLS, what is known of endpoints (ejections, latencies, warm connections).
//! Limits hold in each process by itself as long as there are two.

use super::discovery::Handed;
use super::source::Watch;
use super::{Control, Event, Life};
use crate::io::clock;
use crate::io::handover::{Channel, FILES_MAX, Message};
use crate::io::inherit;
use isthmus_core::drain::Plan;
use isthmus_core::listener::ListenerKey;
use serde::{Deserialize, Serialize};
use serde_json::json;
use socket2::SockRef;
use std::io::{self, Read, Seek};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Says to a process that it takes the place of the one that has started it.
const ENV: &str = "ISTHMUS_TAKES_PLACE_OF";
/// How long the newer process waits for what is passed, and for leave to go on.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the older one looks whether the newer one is still there.
const LOOK: Duration = Duration::from_millis(100);
/// How long a newer process that said why it failed may take to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a socket is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Role {
    /// One of the sockets of a listener.
    Listener { port: u16, bind: Option<IpAddr> },
    /// `admin`, `status` or `metrics`.
    Server(String),
    /// One that a supervisor has opened under this name, and no listener wants yet.
    Spare(String),
}

/// What the two say to each other.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// To the newer: sockets, in the order of the message's files.
    Sockets(Vec<Role>),
    /// To the newer: a file with what came by the admin API.
    State,
    /// To the newer: that was all.
    Begin,
    /// To the older: traffic is accepted; these servers go on where they were.
    Ready { took: Vec<String> },
    /// To the older: it cannot be.
    Failed(String),
    /// To the newer: the place is its own.
    Go,
    /// To the newer: end.
    Stop,
}

fn say(channel: &Channel, word: &Word, files: &[OwnedFd]) -> io::Result<()> {
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    channel.send(&serde_json::to_vec(word)?, &files)
}

/// What this process was given when it was started: by an older one, or by a supervisor that opens sockets itself.
#[derive(Debug, Default)]
pub struct Inherited {
    listeners: Vec<Passed>,
    servers: Vec<(String, OwnedFd)>,
    /// What the older process knows and no file says.
    state: Option<State>,
    parent: Option<Arc<Parent>>,
}

/// A listening socket.
#[derive(Debug)]
struct Passed {
    /// Of which listener it is, when that is known.
    key: Option<ListenerKey>,
    /// What the supervisor calls it.
    name: String,
    address: SocketAddr,
    socket: OwnedFd,
}

/// The older process.
#[derive(Debug)]
pub struct Parent(Channel);

impl Parent {
    /// Says why this process ends; nobody hears it once it has taken over.
    pub fn fail(&self, why: &str) {
        let _gone = say(&self.0, &Word::Failed(why.to_owned()), &[]);
    }

    fn is_ready(&self, took: Vec<String>) -> io::Result<()> {
        say(&self.0, &Word::Ready { took }, &[])
    }

    /// Waits until the older process stands back; answers whether this one is to serve. It is, too, when the older one
    /// is not there any more.
    fn leave(&self) -> bool {
        let _without_bound = self.0.set_patience(PATIENCE);
        let word = self
            .0
            .receive()
            .ok()
            .and_then(|message| serde_json::from_slice(&message.text).ok());
        !matches!(word, Some(Word::Stop))
    }
}

impl Inherited {
    /// Takes what there is.
    pub fn find() -> io::Result<Self> {
        if std::env::var_os(ENV).is_some() {
            return Self::receive(Channel::from_stdin()?);
        }
        let mut found = Self::default();
        for (name, socket) in inherit::take() {
            if super::SERVERS.contains(&name.as_str()) {
                found.servers.push((name, socket));
                continue;
            }
            let address = SockRef::from(&socket).local_addr();
            let Some(address) = address.ok().and_then(|address| address.as_socket()) else {
                tracing::warn!(name, "a passed socket is not of TCP: it is not used");
                continue;
            };
            SockRef::from(&socket).set_nonblocking(true)?;
            found.listeners.push(Passed {
                key: None,
                name,
                address,
                socket,
            });
        }
        Ok(found)
    }

    fn receive(channel: Channel) -> io::Result<Self> {
        let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
        channel.set_patience(PATIENCE)?;
        let mut found = Self::default();
        loop {
            let Message { text, files } = channel.receive()?;
            match serde_json::from_slice(&text)? {
                Word::Sockets(roles) if roles.len() == files.len() => {
                    for (role, socket) in roles.into_iter().zip(files) {
                        found.take(role, socket)?;
                    }
                }
                Word::State => {
                    let file = files.into_iter().next().ok_or_else(|| bad("no state came"))?;
                    let mut file = std::fs::File::from(file);
                    file.rewind()?;
                    let mut text = Vec::new();
                    file.read_to_end(&mut text)?;
                    found.state = Some(serde_json::from_slice(&text)?);
                }
                Word::Begin => break,
                _ => return Err(bad("the older process speaks otherwise")),
            }
        }
        found.parent = Some(Arc::new(Parent(channel)));
        Ok(found)
    }

    fn take(&mut self, role: Role, socket: OwnedFd) -> io::Result<()> {
        match role {
            Role::Server(what) => self.servers.push((what, socket)),
            Role::Spare(name) => {
                let address = SockRef::from(&socket).local_addr()?.as_socket();
                self.listeners.extend(address.map(|address| Passed {
                    key: None,
                    name,
                    address,
                    socket,
                }));
            }
            Role::Listener { port, bind } => {
                let address = SockRef::from(&socket).local_addr()?.as_socket();
                self.listeners.push(Passed {
                    key: Some(ListenerKey { port, bind }),
                    name: String::new(),
                    address: address.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0))),
                    socket,
                });
            }
        }
        Ok(())
    }

    /// Who to tell.
    pub fn parent(&self) -> Option<Arc<Parent>> {
        self.parent.clone()
    }

    /// The socket of a server of the process.
    pub(super) fn server(&mut self, what: &str) -> Option<OwnedFd> {
        let at = self.servers.iter().position(|(name, _)| name == what)?;
        Some(self.servers.swap_remove(at).1)
    }

    /// The sockets of a listener that is to be at `wanted` (port 0: wherever it was).
    pub(super) fn listener(&mut self, key: &ListenerKey, wanted: SocketAddr) -> Vec<(SocketAddr, OwnedFd)> {
        let is_it = |passed: &mut Passed| {
            let there = passed.address;
            let has_port = wanted.port() == 0 || there.port() == wanted.port();
            // A machine without IPv6 has the other wildcard.
            let both_any = there.ip().is_unspecified() && wanted.ip().is_unspecified();
            let has_place = has_port && (there.ip() == wanted.ip() || both_any);
            match &passed.key {
                Some(of) => of == key && has_place,
                None => passed.name == key.port.to_string() || (wanted.port() != 0 && has_place),
            }
        };
        let found = self.listeners.extract_if(.., is_it);
        found.map(|passed| (passed.address, passed.socket)).collect()
    }

    /// Sockets of a supervisor that nobody has claimed.
    pub(super) fn spare(&self) -> impl Iterator<Item = (&str, &OwnedFd)> {
        let spare = self.listeners.iter().filter(|passed| passed.key.is_none());
        spare.map(|passed| (passed.name.as_str(), &passed.socket))
    }

    /// What came to the older process by the admin API.
    pub fn take_written(&mut self) -> Option<String> {
        self.state
            .as_mut()
            .map(|state| std::mem::take(&mut state.written))
    }

    /// What the older process has found out about endpoints.
    pub(super) fn take_found(&mut self) -> Handed {
        self.state.take().map(|state| state.found).unwrap_or_default()
    }

    /// Closes what the older process had and this one does not; a supervisor's sockets may be wanted later.
    pub(super) fn close_unclaimed(&mut self) {
        self.listeners.retain(|passed| passed.key.is_none());
    }
}

/// What an upgrade is asked for with.
#[derive(Debug)]
pub(super) struct Order {
    /// Another binary than the one that runs.
    pub(super) binary: Option<PathBuf>,
    /// How long the newer process may take until it is ready.
    pub(super) patience: Duration,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            binary: None,
            patience: Duration::from_secs(60),
        }
    }
}

/// Who asked; what it is told is JSON, or why nothing has changed.
pub(super) type Asker = oneshot::Sender<Result<String, String>>;

/// An upgrade that is under way.
pub(super) struct Upgrading {
    asker: Option<Asker>,
    cancelled: Arc<AtomicBool>,
    /// Files have changed meanwhile.
    pub(super) missed_load: bool,
}

/// The newer process, ready.
pub(super) struct Successor {
    child: Child,
    channel: Channel,
    took: Vec<String>,
}

struct Offer {
    sockets: Vec<(Role, OwnedFd)>,
    state: State,
}

/// What goes on in the newer process. One that is older or newer still may leave out what it does not know.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    /// Documents that came by the admin API.
    written: String,
    found: Handed,
}

/// The program that an upgrade starts when none is named: what this process was started as, so that a link which leads
/// elsewhere by then is followed anew.
pub(super) fn own_binary() -> io::Result<PathBuf> {
    let name = std::env::args_os().next().map(PathBuf::from);
    match name.filter(|name| name.components().count() > 1) {
        Some(name) => std::path::absolute(name),
        None => std::env::current_exe(),
    }
}

fn hand_over(
    binary: &Path,
    offer: Offer,
    patience: Duration,
    cancelled: &AtomicBool,
) -> Result<Successor, String> {
    let (channel, theirs) = Channel::pair().map_err(|error| format!("no pair of sockets: {error}"))?;
    let mut child = Command::new(binary)
        .args(std::env::args_os().skip(1))
        .env(ENV, std::process::id().to_string())
        // What was meant for this process alone.
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_FDNAMES")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::from(theirs))
        .spawn()
        .map_err(|error| format!("{} cannot be started: {error}", binary.display()))?;
    // One that does not take what it is given is no successor.
    let passed = channel
        .set_patience(PATIENCE)
        .and_then(|()| pass(&channel, &offer));
    drop(offer);
    let agreed = match passed {
        // It is gone already, and its end says more.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("the sockets cannot be passed: {error}"))
        }
        _ => await_ready(&channel, &mut child, patience, cancelled),
    };
    match agreed {
        Ok(took) => Ok(Successor { child, channel, took }),
        Err(why) => {
            end(&mut child);
            Err(why)
        }
    }
}

fn pass(channel: &Channel, offer: &Offer) -> io::Result<()> {
    for some in offer.sockets.chunks(FILES_MAX) {
        let roles = some.iter().map(|(role, _)| role.clone()).collect();
        let files: io::Result<Vec<OwnedFd>> = some.iter().map(|(_, socket)| socket.try_clone()).collect();
        say(channel, &Word::Sockets(roles), &files?)?;
    }
    let file = rustix::fs::memfd_create("isthmus-state", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    serde_json::to_writer(std::io::BufWriter::new(&mut file), &offer.state)?;
    say(channel, &Word::State, &[file.into()])?;
    say(channel, &Word::Begin, &[])
}

fn await_ready(
    channel: &Channel,
    child: &mut Child,
    patience: Duration,
    cancelled: &AtomicBool,
) -> Result<Vec<String>, String> {
    let until = clock::now() + patience;
    let _looks_more_often = channel.set_patience(LOOK);
    loop {
        let heard = channel.receive();
        if let Ok(message) = &heard
            && let Ok(word) = serde_json::from_slice(&message.text)
        {
            match word {
                Word::Ready { took } => return Ok(took),
                Word::Failed(why) => {
                    let _ended = wait(child, clock::now() + FAREWELL);
                    return Err(format!("the new process says: {why}"));
                }
                _ => {}
            }
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("the new process ended before it was ready: {status}"));
        }
        if cancelled.load(Ordering::Acquire) {
            return Err("this process is told to end".to_owned());
        }
        if clock::now() >= until {
            return Err(format!(
                "the new process was not ready within {}",
                humantime::format_duration(patience)
            ));
        }
        let is_over = heard.is_ok_and(|message| message.text.is_empty());
        if is_over && wait(child, clock::now() + FAREWELL).is_none() {
            return Err("the new process does not answer".to_owned());
        }
    }
}

/// Waits for a child's end.
fn wait(child: &mut Child, until: Instant) -> Option<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(None) if clock::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Ok(status) => return status,
            Err(_) => return None,
        }
    }
}

fn end(child: &mut Child) {
    let _gone_already = child.kill();
    let _reaped = child.wait();
}

impl Control {
    /// Starts a newer process; who asks is answered when it serves, or when it is clear that it will not.
    pub(super) fn begin_upgrade(&mut self, order: Order, asker: Option<Asker>) {
        let offer = self.may_upgrade(&order).and_then(|()| {
            let sockets = self.offered_sockets();
            sockets.map_err(|error| format!("the sockets cannot be passed: {error}"))
        });
        let binary = order.binary.map_or_else(own_binary, Ok);
        let (sockets, binary) = match (offer, binary) {
            (Ok(sockets), Ok(binary)) => (sockets, binary),
            (Err(why), _) => return refuse(asker, why),
            (_, Err(error)) => return refuse(asker, format!("this program is not to be found: {error}")),
        };
        let written = self.watch.as_ref().map(Watch::written);
        let offer = Offer {
            sockets,
            state: State {
                written: written.unwrap_or_default(),
                found: self.discovery.handed(clock::now()),
            },
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        self.upgrading = Some(Upgrading {
            asker,
            cancelled: Arc::clone(&cancelled),
            missed_load: false,
        });
        tracing::info!(binary = %binary.display(), sockets = offer.sockets.len(), "a new process is started");
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            let handing =
                tokio::task::spawn_blocking(move || hand_over(&binary, offer, order.patience, &cancelled));
            let ended = handing.await.unwrap_or_else(|error| Err(error.to_string()));
            let _ended = events.send(Event::HandedOver(ended.map(Box::new))).await;
        });
    }

    fn may_upgrade(&self, order: &Order) -> Result<(), String> {
        if self.upgrading.is_some() {
            return Err("another upgrade is under way".to_owned());
        }
        if self.life != Life::Serving || self.plan.is_some() {
            return Err("this process is not serving, so there is nothing to hand over".to_owned());
        }
        if self.watch.is_none() {
            return Err("the demo has its resources and upstreams in itself: start it anew".to_owned());
        }
        if std::process::id() == 1 {
            let text = "this is process 1 of its container, which would end with it: replace the container";
            return Err(text.to_owned());
        }
        if order.binary.is_some() && self.servers.admin().tcp().is_some() {
            return Err(format!(
                "a binary is named over a unix socket only (--admin unix:PATH), since others than its owner can speak \
                 to {}: put the new one in the place of the old one instead",
                self.servers.admin().address()
            ));
        }
        Ok(())
    }

    fn offered_sockets(&self) -> io::Result<Vec<(Role, OwnedFd)>> {
        let mut sockets = Vec::new();
        for (key, socket) in self.listeners.sockets() {
            let role = Role::Listener {
                port: key.port,
                bind: key.bind,
            };
            sockets.push((role, socket.try_clone()?));
        }
        for (name, socket) in self.listeners.spare() {
            sockets.push((Role::Spare(name.to_owned()), socket.try_clone()?));
        }
        for server in self.servers.all() {
            let role = Role::Server(server.what().to_owned());
            sockets.push((role, server.as_fd().try_clone_to_owned()?));
        }
        Ok(sockets)
    }

    /// The newer process serves, or has failed.
    pub(super) fn handed_over(&mut self, ended: Result<Box<Successor>, String>) {
        let Some(upgrading) = self.upgrading.take() else {
            return;
        };
        let began = ended.and_then(|successor| self.stand_back(*successor));
        match began {
            Ok(process) => {
                tracing::info!(process, timeout = ?self.options.drain_timeout, "the new process serves: this one drains");
                let told = json!({"process": process, "replaced": std::process::id()});
                if let Some(asker) = upgrading.asker {
                    let _asker_gone = asker.send(Ok(told.to_string()));
                }
            }
            Err(why) => {
                refuse(upgrading.asker, why);
                if upgrading.missed_load
                    && let Some(watch) = &self.watch
                {
                    watch.reload(None);
                }
            }
        }
    }

    /// Leaves the place to a process that serves.
    fn stand_back(&mut self, mut successor: Successor) -> Result<u32, String> {
        if self.life != Life::Serving {
            let _gone = say(&successor.channel, &Word::Stop, &[]);
            end(&mut successor.child);
            return Err("this process is told to end".to_owned());
        }
        let process = successor.child.id();
        if let Some(watch) = &self.watch {
            watch.stand_back();
        }
        self.systemd.main_process(process);
        if let Err(error) = say(&successor.channel, &Word::Go, &[]) {
            self.systemd.main_process(std::process::id());
            if let Some(watch) = &self.watch {
                watch.come_back();
            }
            end(&mut successor.child);
            return Err(format!("the new process has gone: {error}"));
        }
        self.release_files();
        self.servers.stand_back();
        self.is_replaced = true;
        self.left_admin = successor.took.iter().any(|what| what == "admin");
        self.life = Life::Draining;
        self.plan = Some(Plan::replaced(clock::now(), self.options.drain_timeout));
        self.tick();
        Ok(process)
    }

    /// Looks after files no more: another process does, or none.
    pub(super) fn release_files(&self) {
        if let Some(watch) = &self.watch {
            watch.release();
        }
    }

    /// Ends a newer process that is not ready yet: this one is to end, and so would both.
    pub(super) fn cancel_upgrade(&mut self) {
        if let Some(upgrading) = &self.upgrading {
            upgrading.cancelled.store(true, Ordering::Release);
        }
    }

    /// Tells an older process that this one serves; answers whether there is one, which then has the next word.
    pub(super) fn take_over(&mut self) -> bool {
        let Some(parent) = self.parent.take() else {
            return false;
        };
        let took = self.servers.taken().map(str::to_owned).collect();
        if let Err(error) = parent.is_ready(took) {
            tracing::warn!(%error, "the older process has gone");
        }
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            let leave = tokio::task::spawn_blocking(move || parent.leave()).await;
            let _ended = events.send(Event::TakenOver(leave.unwrap_or(true))).await;
        });
        true
    }
}

fn refuse(asker: Option<Asker>, why: String) {
    tracing::error!(why, "there is no upgrade: this process goes on");
    if let Some(asker) = asker {
        let _asker_gone = asker.send(Err(why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn key(port: u16) -> ListenerKey {
        ListenerKey { port, bind: None }
    }

    #[test]
    fn sockets_find_their_listeners_again() {
        let (channel, theirs) = Channel::pair().unwrap();
        let bound = |address| TcpListener::bind(address).unwrap();
        let (first, second) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
        let spare = bound("127.0.0.9:0");
        let at = first.local_addr().unwrap();
        let role = |port| Role::Listener { port, bind: None };
        let sockets = vec![
            (Role::Spare("8443".to_owned()), OwnedFd::from(spare)),
            (role(80), OwnedFd::from(first.try_clone().unwrap())),
            (role(80), first.try_clone().unwrap().into()),
            (role(81), second.into()),
            (Role::Server("admin".to_owned()), first.into()),
        ];
        let written = "a: é\n".repeat(100_000);
        let state = State {
            written,
            found: serde_json::from_str(
                r#"{"instances": [{"service": "a.example", "name": "one", "instance": {"address": "10.0.0.1",
                    "ports": {}, "labels": {"app": "a"}, "locality": "", "weight": 1}, "ttl": {"secs": 30, "nanos": 0},
                    "left": {"secs": 9, "nanos": 0}}], "names": [["b.example", [["10.0.0.2"], []]]]}"#,
            )
            .unwrap(),
        };
        let offer = Offer { sockets, state };
        pass(&channel, &offer).unwrap();
        let mut found = Inherited::receive(Channel::from_end(theirs)).unwrap();
        assert_eq!(found.take_written().as_ref(), Some(&offer.state.written));
        assert_eq!(found.take_found(), offer.state.found);
        assert!(found.server("status").is_none());
        assert!(found.server("admin").is_some() && found.server("admin").is_none());
        // Another address is another socket, and so is another port.
        let (any, here) = (SocketAddr::from(([127, 0, 0, 1], 0)), at);
        assert!(
            found
                .listener(&key(80), "127.0.0.2:0".parse().unwrap())
                .is_empty()
        );
        let next = SocketAddr::new(at.ip(), at.port() ^ 1);
        assert!(found.listener(&key(80), next).is_empty());
        assert!(found.listener(&key(82), any).is_empty());
        let both = found.listener(&key(80), here);
        assert_eq!(
            both.iter().map(|(address, _)| *address).collect::<Vec<_>>(),
            [at, at]
        );
        assert_eq!(found.listener(&key(81), any).len(), 1);
        found.close_unclaimed();
        let spare: Vec<&str> = found.spare().map(|(name, _)| name).collect();
        assert_eq!(spare, ["8443"]);
        assert_eq!(found.listener(&key(8443), any).len(), 1);
        assert!(found.listeners.is_empty());
        // The older one ends without a word: the newer one serves.
        let parent = found.parent().unwrap();
        drop(channel);
        assert!(parent.leave());
    }
}
