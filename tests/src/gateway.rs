//! The gateway under test: the real binary as a child process, on ports that the kernel chooses.

use crate::client::{Client, Response, get};
use crate::deadline::{SOON, eventually, within};
use crate::resources;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit, kill_process, set_child_subreaper, setrlimit,
    waitpid,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The system call that makes a ring; the number is the same on every architecture.
pub const IO_URING_SETUP: i64 = 425;

const STOPS_WITHIN: Duration = Duration::from_secs(30);

/// The binary to test: `ISTHMUS_BIN`, else `isthmus` in the target folder that this test was built into.
pub fn binary() -> PathBuf {
    let given = std::env::var_os("ISTHMUS_BIN").map(PathBuf::from);
    let path = given.unwrap_or_else(|| {
        let test = std::env::current_exe().expect("the path of this test");
        // target/PROFILE/deps/TEST, or target/PROFILE/PROGRAM
        let folder = test.parent().expect("a folder");
        let folder = if folder.ends_with("deps") {
            folder.parent().expect("a folder")
        } else {
            folder
        };
        folder.join("isthmus")
    });
    assert!(
        path.is_file(),
        "there is no gateway at {}: build it with `cargo build -p isthmus` (same profile and target folder), or set \
         ISTHMUS_BIN to a binary; `cargo xtask test` does both",
        path.display()
    );
    path
}

/// How a gateway is to be started.
#[derive(Debug)]
pub struct Builder {
    folder: TempDir,
    ports: Vec<String>,
    shards: usize,
    access_log: bool,
    defaults: &'static str,
    admin: String,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    wrapper: Vec<OsString>,
    forbidden: Vec<i64>,
}

impl Builder {
    fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        fs::create_dir(folder.path().join("resources")).expect("a folder");
        Self {
            folder,
            ports: Vec::new(),
            shards: 1,
            access_log: true,
            defaults: "current",
            admin: "127.0.0.1:0".to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
            forbidden: Vec::new(),
        }
    }

    /// Adds a file of documents.
    #[must_use]
    pub fn resources(self, name: &str, yaml: &str) -> Self {
        fs::write(
            self.folder.path().join("resources").join(format!("{name}.yaml")),
            yaml,
        )
        .expect("a file");
        self
    }

    /// The settings file.
    #[must_use]
    pub fn settings(self, yaml: &str) -> Self {
        let path = self.folder.path().join("settings.yaml");
        fs::write(&path, yaml).expect("a file");
        self.arg("--settings").arg(path)
    }

    /// Maps a Gateway's port to a free one; without any, port 80 is mapped.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.port_as(port, 0)
    }

    /// Maps a Gateway's port to this one.
    #[must_use]
    pub fn port_as(mut self, port: u16, real: u16) -> Self {
        self.ports.push(format!("{port}={real}"));
        self
    }

    /// How many shards; one if not said.
    #[must_use]
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// Writes no access log: for tests that send much.
    #[must_use]
    pub fn without_access_log(mut self) -> Self {
        self.access_log = false;
        self
    }

    /// The defaults that the seed text of Istio wrote down, instead of today's.
    #[must_use]
    pub fn seed_defaults(mut self) -> Self {
        self.defaults = "seed";
        self
    }

    /// Where its admin API is, in the place of a free port: `unix:PATH`, say.
    #[must_use]
    pub fn admin(mut self, address: &str) -> Self {
        address.clone_into(&mut self.admin);
        self
    }

    /// Adds an argument of the command line.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts it through another program, such as `prlimit --memlock=65536:65536`, which must become the gateway
    /// by exec.
    #[must_use]
    pub fn through(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(OsString::from).collect();
        self
    }

    /// Makes a system call answer EPERM, as a container's seccomp profile does.
    #[must_use]
    pub fn forbid(mut self, system_call: i64) -> Self {
        self.forbidden.push(system_call);
        self
    }

    /// Starts it and waits until it accepts traffic; panics with its output when it does not.
    pub fn start(self) -> Gateway {
        let mut gateway = self.launch();
        let ready = gateway.folder.path().join("ready.json");
        let read = || {
            fs::read(&ready)
                .ok()
                .and_then(|text| serde_json::from_slice::<Value>(&text).ok())
        };
        let end = Instant::now() + SOON;
        while gateway.ready.is_null() {
            if let Some(found) = within(Duration::from_millis(50), read) {
                gateway.ready = found;
            } else if let Some(status) = gateway.try_wait() {
                panic!(
                    "the gateway ended with {status} before it was ready:\n{}",
                    gateway.log()
                );
            } else {
                assert!(
                    Instant::now() < end,
                    "the gateway is not ready after {SOON:?}:\n{}",
                    gateway.log()
                );
            }
        }
        gateway
    }

    /// Starts it when it is expected to give up at once; panics when it still runs after a while.
    pub fn run_to_exit(self) -> Exit {
        let mut gateway = self.launch();
        let status = gateway.wait(SOON);
        Exit {
            code: status.code(),
            log: gateway.log(),
            folder: gateway.folder_path(),
        }
    }

    fn launch(self) -> Gateway {
        let at = |name: &str| self.folder.path().join(name);
        let mut words = self.wrapper.clone();
        words.push(binary().into());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg("run")
            .arg("-f")
            .arg(at("resources"));
        let ports = if self.ports.is_empty() {
            "80=0".to_owned()
        } else {
            self.ports.join(",")
        };
        command.args(["--port-map", &ports, "--bind-address", "127.0.0.1"]);
        command.args([
            "--admin",
            &self.admin,
            "--status",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
        ]);
        // Tests take no load balancer out of service first.
        command.args(["--drain-delay", "0s"]);
        command.args(["--defaults", self.defaults, "--shards", &self.shards.to_string()]);
        command
            .arg("--ready-file")
            .arg(at("ready.json"))
            .arg("--access-log");
        command.arg(if self.access_log {
            at("access.log").into_os_string()
        } else {
            "off".into()
        });
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        let output = File::create(at("gateway.log")).expect("a file");
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a handle"))
            .stderr(output);
        let child = spawn(&mut command, &self.forbidden);
        Gateway {
            process: Process {
                kind: Kind::Child(child),
                status: None,
            },
            folder: self.folder,
            ready: Value::Null,
        }
    }
}

/// Starts a child; with forbidden system calls from a thread of its own, because the filter stays on the thread.
fn spawn(command: &mut Command, forbidden: &[i64]) -> Child {
    let spawned = if forbidden.is_empty() {
        command.spawn()
    } else {
        thread::scope(|scope| {
            let filtered = scope.spawn(|| {
                forbid(forbidden);
                command.spawn()
            });
            filtered.join().expect("the filter is applied")
        })
    };
    spawned.unwrap_or_else(|error| panic!("cannot start {}: {error}", command.get_program().display()))
}

/// EPERM: what container runtimes answer for a system call that their profile forbids.
fn forbid(system_calls: &[i64]) {
    const EPERM: u32 = 1;
    let rules = system_calls
        .iter()
        .map(|call| (*call, Vec::new()))
        .collect::<BTreeMap<_, _>>();
    let arch = std::env::consts::ARCH
        .try_into()
        .expect("an architecture that seccomp knows");
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(EPERM), arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    seccompiler::apply_filter(&program).expect("the filter is applied");
}

/// How a gateway ended that was not meant to run.
#[derive(Debug)]
pub struct Exit {
    /// The exit code; None for a signal.
    pub code: Option<i32>,
    /// What it wrote.
    pub log: String,
    /// The folder that its documents were in, as diagnostics name it.
    pub folder: PathBuf,
}

/// A process of a gateway; killed when dropped.
#[derive(Debug)]
pub struct Process {
    kind: Kind,
    status: Option<ExitStatus>,
}

#[derive(Debug)]
enum Kind {
    Child(Child),
    /// A child of a child, which becomes this process's own when its parent ends.
    Adopted(Pid),
}

impl Process {
    /// Its id.
    pub fn id(&self) -> u32 {
        match &self.kind {
            Kind::Child(child) => child.id(),
            Kind::Adopted(pid) => pid.as_raw_nonzero().get().unsigned_abs(),
        }
    }

    /// Its exit status, if it has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = match &mut self.kind {
                Kind::Child(child) => child.try_wait().expect("a child of this process"),
                // As long as its parent runs it is not this process's to wait for.
                Kind::Adopted(pid) => waitpid(Some(*pid), WaitOptions::NOHANG)
                    .ok()
                    .flatten()
                    .map(|(_, status)| ExitStatus::from_raw(status.as_raw())),
            };
        }
        self.status
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        within(deadline, || self.try_wait())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), signal).expect("the process runs");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            self.signal(Signal::KILL);
            let _status = self.wait(SOON);
        }
    }
}

/// A running gateway; killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    process: Process,
    folder: TempDir,
    ready: Value,
}

/// What the kernel knows of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Open file descriptors.
    pub fds: usize,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Threads.
    pub threads: u64,
}

/// What must be the same after any disturbance as before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Holdings {
    /// Open file descriptors.
    pub fds: usize,
    /// The gauges of [`Gateway::HELD`].
    pub gauges: Vec<(&'static str, f64)>,
}

impl Holdings {
    /// Whether nothing of this is more: what was at rest in a pool before may be gone, too.
    fn is_at_most(&self, before: &Self) -> bool {
        let pairs = self.gauges.iter().zip(&before.gauges);
        self.fds <= before.fds && pairs.into_iter().all(|((_, now), (_, then))| now <= then)
    }
}

impl Gateway {
    /// Gauges of things that are held for a connection or a request and must be given back.
    pub const HELD: [&'static str; 4] = [
        "isthmus_upstream_connections_active",
        "isthmus_downstream_connections_active",
        "isthmus_permits_held",
        "isthmus_tasks",
    ];

    /// A gateway to be configured.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// A gateway with one route for everything to the endpoint at this address.
    pub fn in_front_of(address: SocketAddr) -> Self {
        Self::builder()
            .resources("route", &resources::one_route(address, ""))
            .start()
    }

    /// Where the listener of a Gateway's port is.
    pub fn listener(&self, port: u16) -> SocketAddr {
        let listeners = self.ready["listeners"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let found = listeners.iter().find(|listener| listener["port"] == port);
        parse_address(
            found.map_or(&Value::Null, |listener| &listener["address"]),
            &self.ready,
        )
    }

    /// Where port 80 is.
    pub fn address(&self) -> SocketAddr {
        self.listener(80)
    }

    /// Where the admin server is.
    pub fn admin(&self) -> SocketAddr {
        parse_address(&self.ready["admin"], &self.ready)
    }

    /// Where the status server is.
    pub fn status(&self) -> SocketAddr {
        parse_address(&self.ready["status"], &self.ready)
    }

    /// Where the metrics server is.
    pub fn metrics(&self) -> SocketAddr {
        parse_address(&self.ready["metrics"], &self.ready)
    }

    /// A client of port 80.
    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// GET on port 80, on a connection of its own.
    pub fn get(&self, host: &str, path: &str) -> Response {
        get(self.address(), host, path)
    }

    /// GET on the admin server.
    pub fn get_admin(&self, path: &str) -> Response {
        get(self.admin(), &self.admin().to_string(), path)
    }

    /// Where the listener of a Gateway's port is now, when it has one.
    pub fn listener_now(&self, port: u16) -> Option<SocketAddr> {
        let text = fs::read(self.folder.path().join("ready.json")).ok()?;
        let ready: Value = serde_json::from_slice(&text).ok()?;
        let listeners = ready["listeners"].as_array()?;
        let found = listeners.iter().find(|listener| listener["port"] == port)?;
        found["address"].as_str()?.parse().ok()
    }

    /// Puts a file of documents into the place of another of this name, at once.
    pub fn replace_resources(&self, name: &str, yaml: &str) {
        let path = self.folder.path().join("resources").join(format!("{name}.yaml"));
        let fresh = path.with_extension("fresh");
        fs::write(&fresh, yaml).expect("a file");
        fs::rename(&fresh, &path).expect("a file");
    }

    /// Has it load its files again; answers what it says once every shard serves what came of them.
    pub fn reload(&self) -> Value {
        let admin = self.admin();
        let mut client = Client::connect(admin);
        client.send(format!(
            "POST /reload HTTP/1.1\r\nhost: {admin}\r\ncontent-length: 0\r\n\r\n"
        ));
        let answer = client.response();
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_str(answer.text()).expect("JSON")
    }

    /// What `isthmus check` says about its files.
    pub fn check(&self) -> String {
        let said = Command::new(binary())
            .arg("check")
            .arg("-f")
            .arg(self.folder.path().join("resources"))
            .output()
            .expect("the gateway's binary runs");
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The folder with its files.
    pub fn folder_path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Everything that it wrote to its output.
    pub fn log(&self) -> String {
        read(&self.folder.path().join("gateway.log"))
    }

    /// The lines of the access log; the last one may be on its way, and is left out then.
    pub fn access_log(&self) -> Vec<AccessLine> {
        let log = read(&self.folder.path().join("access.log"));
        let whole = log
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'));
        whole.map(AccessLine::parse).collect()
    }

    /// Waits for the access log's line of the request with this path.
    pub fn access_line(&self, path: &str) -> AccessLine {
        let found = within(SOON, || {
            self.access_log().into_iter().find(|line| line.path == path)
        });
        found.unwrap_or_else(|| panic!("no line of {path} in the access log: {:?}", self.access_log()))
    }

    /// What the kernel knows of it now.
    pub fn facts(&self) -> Facts {
        let folder = PathBuf::from(format!("/proc/{}", self.pid()));
        let status = fs::read_to_string(folder.join("status")).expect("the process runs");
        let number = |key: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .expect("a line of its status");
            line.trim_start_matches(':')
                .split_whitespace()
                .next()
                .and_then(|word| word.parse().ok())
                .expect("a number")
        };
        let fds = fs::read_dir(folder.join("fd")).expect("the process runs").count();
        Facts {
            fds,
            rss_kib: number("VmRSS"),
            threads: number("Threads"),
        }
    }

    /// The sum of a metric over its series; None when it is not exported.
    pub fn metric(&self, name: &str) -> Option<f64> {
        sum_of(self.metrics_page().text(), name, "")
    }

    /// The sum of a metric over the series that have all of these labels, as written in the text format.
    pub fn metric_with(&self, name: &str, label: &str) -> Option<f64> {
        sum_of(self.metrics_page().text(), name, label)
    }

    /// Waits until a cause has been counted so often; panics when it is counted more often.
    pub fn assert_causes(&self, cause: &str, times: u32) {
        let label = format!("cause=\"{cause}\"");
        let mut found = None;
        let counted = within(SOON, || {
            found = self.metric_with("isthmus_causes_total", &label);
            (found? >= f64::from(times)).then_some(())
        });
        assert!(
            counted.is_some() && found == Some(f64::from(times)),
            "{cause}: {found:?} times instead of {times}"
        );
    }

    fn metrics_page(&self) -> Response {
        let page = get(self.metrics(), &self.metrics().to_string(), "/stats/prometheus");
        assert_eq!(page.status, 200, "{page:?}");
        page
    }

    /// What it holds now.
    pub fn holdings(&self) -> Holdings {
        let page = self.metrics_page();
        let gauge = |name| {
            (
                name,
                sum_of(page.text(), name, "").unwrap_or_else(|| panic!("{name} is not exported")),
            )
        };
        Holdings {
            fds: self.facts().fds,
            gauges: Self::HELD.map(gauge).to_vec(),
        }
    }

    /// Waits until what it holds is the same in two looks one after the other: the state of rest.
    pub fn resting(&self) -> Holdings {
        let mut last = self.holdings();
        eventually(SOON, "a state of rest", || {
            let now = self.holdings();
            let same = now == last;
            last = now;
            same
        });
        last
    }

    /// Asserts that it comes back to holding no more than this.
    pub fn assert_returns_to(&self, before: &Holdings) {
        let mut now = self.holdings();
        let returned = within(SOON, || {
            now = self.holdings();
            now.is_at_most(before).then_some(())
        });
        assert!(
            returned.is_some(),
            "not given back: before {before:?}, now {now:?}"
        );
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// `isthmus COMMAND --admin ... ARGS`: whether it succeeded, and what it said.
    pub fn command(&self, command: &str, args: &[&str]) -> (bool, String) {
        let admin = self.ready["admin"].as_str().expect("an address");
        let said = Command::new(binary())
            .args([command, "--admin", admin])
            .args(args)
            .output()
            .expect("the gateway's binary runs");
        let text = [said.stdout, said.stderr].concat();
        (said.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Has a newer process take its place; answers the older one, which drains.
    pub fn upgrade(&mut self) -> Process {
        set_child_subreaper(Some(rustix::process::getpid()))
            .expect("orphans become children of this process");
        let (done, said) = self.command("upgrade", &["-o", "json"]);
        assert!(done, "{said}\n{}", self.log());
        let told: Value = serde_json::from_str(&said).expect("JSON");
        let pid = told["process"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        self.adopt(pid.expect("the id of a process"))
    }

    /// Takes this process for the gateway's; answers the one before it.
    pub fn adopt(&mut self, pid: i32) -> Process {
        let newer = Process {
            kind: Kind::Adopted(Pid::from_raw(pid).expect("the id of a process")),
            status: None,
        };
        std::mem::replace(&mut self.process, newer)
    }

    /// What the ready file says now.
    pub fn ready_file(&self) -> Value {
        let text = fs::read(self.folder.path().join("ready.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let ended = within(deadline, || self.try_wait());
        ended.unwrap_or_else(|| panic!("the gateway still runs after {deadline:?}:\n{}", self.log()))
    }

    /// Its exit status, if it has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.process.try_wait()
    }

    /// Asks it to end (SIGTERM) and asserts that it exits with 0 and never panicked.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait(STOPS_WITHIN);
        let log = self.log();
        assert!(status.success(), "the gateway ended with {status}:\n{log}");
        assert!(!log.contains("panicked"), "the gateway panicked:\n{log}");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- what the gateway wrote:\n{}", self.log());
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn parse_address(value: &Value, ready: &Value) -> SocketAddr {
    let parsed = value.as_str().and_then(|text| text.parse().ok());
    parsed.unwrap_or_else(|| panic!("the ready file does not say this address: {ready}"))
}

fn sum_of(page: &str, name: &str, label: &str) -> Option<f64> {
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let labels = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.0,
            None if rest.starts_with(' ') => "",
            None => return None,
        };
        if !labels.contains(label) {
            return None;
        }
        line.rsplit_once(' ')?.1.parse::<f64>().ok()
    });
    values.reduce(|a, b| a + b)
}

/// One line of the access log in Istio's default text format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLine {
    /// The method.
    pub method: String,
    /// The path as the client sent it.
    pub path: String,
    /// The status; 0 when none was sent.
    pub status: u16,
    /// The response flags.
    pub flags: Vec<String>,
    /// The whole line.
    pub line: String,
}

impl AccessLine {
    /// Whether it has this flag.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|known| known == flag)
    }

    fn parse(line: &str) -> Self {
        // [TIME] "METHOD PATH PROTOCOL" STATUS FLAGS ...
        let bad = || -> ! { panic!("not a line of an access log: {line:?}") };
        let mut quoted = line.splitn(3, '"');
        let (Some(_), Some(request), Some(rest)) = (quoted.next(), quoted.next(), quoted.next()) else {
            bad()
        };
        let (mut request, mut rest) = (request.split(' '), rest.split_whitespace());
        let (Some(method), Some(path)) = (request.next(), request.next()) else {
            bad()
        };
        let (Some(status), Some(flags)) = (rest.next(), rest.next()) else {
            bad()
        };
        let Ok(status) = status.parse() else { bad() };
        let flags = flags
            .split(',')
            .filter(|flag| *flag != "-")
            .map(str::to_owned)
            .collect();
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            status,
            flags,
            line: line.to_owned(),
        }
    }
}

/// Raises this process' limit of open files as far as it may, and answers it.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .expect("the soft limit");
    limit.maximum.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_access_log_are_read() {
        let line = AccessLine::parse(
            "[2026-11-22T10:00:00.000Z] \"GET /a?b HTTP/1.1\" 503 UF,URX upstream_reset - \"-\" 0 91 3 - \"-\" \"curl\"",
        );
        assert_eq!(
            (line.method.as_str(), line.path.as_str(), line.status),
            ("GET", "/a?b", 503)
        );
        assert!(line.has("UF") && line.has("URX") && !line.has("U"));
        assert!(
            AccessLine::parse("[t] \"GET / HTTP/1.1\" 200 - via_upstream")
                .flags
                .is_empty()
        );
    }

    #[test]
    fn metrics_are_summed_over_their_series() {
        let page = "# HELP a x\na{x=\"1\",y=\"}\"} 2\na{x=\"2\"} 3\nab 7\na_b 9\nc 1.5\n";
        assert_eq!(sum_of(page, "a", ""), Some(5.0));
        assert_eq!(sum_of(page, "a", "x=\"2\""), Some(3.0));
        assert_eq!(sum_of(page, "c", ""), Some(1.5));
        assert_eq!(sum_of(page, "d", ""), None);
    }

    #[test]
    fn a_forbidden_system_call_is_refused_to_the_child_only() {
        const UNAME: i64 = if cfg!(target_arch = "x86_64") { 63 } else { 160 };
        let run = |forbidden: &[i64]| {
            spawn(
                Command::new("uname").stderr(Stdio::null()).stdout(Stdio::null()),
                forbidden,
            )
            .wait()
            .unwrap()
        };
        assert!(!run(&[UNAME]).success());
        assert!(run(&[]).success());
    }

    #[test]
    fn open_files_are_raised_to_the_hard_limit() {
        assert_eq!(Some(raise_open_files()), getrlimit(Resource::Nofile).current);
    }
}
