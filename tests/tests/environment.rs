//! Starting where the environment is not as it should be, and ending as asked.

use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::fault::{Fault, FaultPeer};
use isthmus_tests::gateway::{Builder, Gateway, IO_URING_SETUP, binary};
use isthmus_tests::resources::one_route;
use isthmus_tests::upstream::{Answer, Upstream};
use rustix::process::Signal;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::time::Duration;
use tempfile::TempDir;

/// Much less than `--drain-timeout`, which ends the process without a second signal.
const AT_ONCE: Duration = Duration::from_secs(12);

/// An endpoint that is never asked.
fn anything() -> Builder {
    let nobody: SocketAddr = "127.0.0.1:9".parse().expect("an address");
    Gateway::builder().resources("route", &one_route(nobody, ""))
}

#[test]
fn forbidden_io_uring_exits_3_and_says_what_to_do() {
    let exit = anything().forbid(IO_URING_SETUP).run_to_exit();
    assert_eq!(exit.code, Some(3), "{}", exit.log);
    let said = exit.log.to_lowercase();
    assert!(
        said.contains("io_uring") && said.contains("seccomp") && !said.contains("panicked"),
        "{said}"
    );
}

#[test]
fn too_little_locked_memory_exits_3_and_says_what_to_do() {
    let exit = anything()
        .through(&["prlimit", "--memlock=65536:65536"])
        .run_to_exit();
    assert_eq!(exit.code, Some(3), "{}", exit.log);
    let said = exit.log.to_lowercase();
    assert!(said.contains("memlock") && !said.contains("panicked"), "{said}");
}

#[test]
fn a_port_that_is_taken_exits_3_and_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("its address").port();
    let exit = anything().port_as(80, port).run_to_exit();
    assert_eq!(exit.code, Some(3), "{}", exit.log);
    assert!(
        exit.log.contains(&port.to_string()) && !exit.log.contains("panicked"),
        "{}",
        exit.log
    );
}

#[test]
fn paths_that_lead_nowhere_exit_1_with_their_option() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("a path of text");
    for (option, path) in [
        ("--state-dir", path),
        ("--settings", "/nowhere/settings.yaml"),
        ("--mesh-config", "/nowhere/mesh.yaml"),
    ] {
        let exit = anything().arg(option).arg(path).run_to_exit();
        let told = format!("isthmus: {option}: {path}");
        assert!(exit.code == Some(1) && exit.log.contains(&told), "{}", exit.log);
    }
    for command in ["check", "run"] {
        let said = Command::new(binary())
            .args([command, "-f", "/nowhere"])
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&said.stderr);
        let told = "isthmus: --file: /nowhere: No such file or directory";
        assert!(said.status.code() == Some(1) && text.contains(told), "{text}");
    }
}

#[test]
fn what_is_no_resource_is_told_by_its_file() {
    let folder = TempDir::new().expect("a folder");
    let check = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("a file");
        let said = Command::new(binary()).arg("check").arg("-f").arg(&path).output();
        let said = said.expect("it runs");
        let text = String::from_utf8(said.stdout).expect("text");
        (said.status.code(), text)
    };
    let (code, text) = check("empty.yaml", b"");
    assert!(
        code == Some(0) && text.contains("empty.yaml holds none"),
        "{text}"
    );
    let (code, text) = check("latin.yaml", b"a: 1\n---\nb: \"\xe9\"\n");
    assert!(
        code == Some(1) && text.contains("latin.yaml:3:5: error[syntax]"),
        "{text}"
    );
    assert!(text.contains("not UTF-8"), "{text}");
    let other = b"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: x}\n";
    let (_, text) = check("other.yaml", other);
    assert!(
        text.contains("1 of gateway.networking.k8s.io/v1 Gateway"),
        "{text}"
    );
    let steers = b"apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: \"a\\e[2Jb\"}\n";
    let (code, text) = check("steers.yaml", steers);
    assert!(code == Some(1) && !text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn documents_with_errors_exit_1_with_every_place() {
    let text = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g}
spec:
  servers:
  - port: {number: eighty, name: http, protocol: HTTP}
    hosts: [\"*\"]
";
    let exit = anything()
        .resources("bad", text)
        .resources("worse", "kind: [\n")
        .run_to_exit();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    assert!(exit.log.contains("bad.yaml:6:20"), "{}", exit.log);
    assert!(
        exit.log.contains("worse.yaml:"),
        "every problem at once: {}",
        exit.log
    );
}

#[test]
fn a_usage_error_exits_2() {
    let exit = anything().arg("--no-such-flag").run_to_exit();
    assert_eq!(exit.code, Some(2), "{}", exit.log);
}

#[test]
fn sigterm_lets_a_request_end_and_exits_0() {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let upstream = Upstream::with_heads(
        |_| isthmus_tests::upstream::OnHead::ReadBody,
        move |_| {
            released
                .lock()
                .expect("one request")
                .recv_timeout(SOON)
                .expect("the test releases the answer");
            Answer::ok("in time")
        },
    );
    let mut gateway = Gateway::in_front_of(upstream.address());
    let mut client = gateway.client();
    client.send_get("h", "/slow");
    eventually(SOON, "the request is at the upstream", || upstream.served() == 1);
    let mut idle = gateway.client();
    assert_eq!(watches(&gateway), 1);
    gateway.signal(Signal::TERM);
    idle.assert_closed();
    // The kernel may be slow to end a watch, and must not be waited for at the end.
    eventually(SOON, "files are watched no more", || watches(&gateway) == 0);
    let (done, said) = gateway.command("reload", &[]);
    assert!(
        !done && said.contains("not loaded: this process is on its way out"),
        "{said}"
    );
    assert!(
        gateway.try_wait().is_none(),
        "it waits for the request:\n{}",
        gateway.log()
    );
    release.send(()).expect("the upstream waits");
    let last = client.response();
    assert_eq!(
        (last.text(), last.field("connection")),
        ("in time", Some("close"))
    );
    client.assert_closed();
    drop(client);
    let status = gateway.wait(SOON);
    assert_eq!(status.code(), Some(0), "{}", gateway.log());
}

/// How many instances of inotify it has.
fn watches(gateway: &Gateway) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("the process runs");
    let leads_to = |file: std::io::Result<fs::DirEntry>| fs::read_link(file.ok()?.path()).ok();
    let of_inotify = |path: &PathBuf| path.to_string_lossy().contains("inotify");
    files.filter_map(leads_to).filter(of_inotify).count()
}

/// One whose drain would last far longer than a test waits.
fn patient(address: SocketAddr) -> Gateway {
    Gateway::builder()
        .resources("route", &one_route(address, ""))
        .arg("--drain-timeout")
        .arg("1h")
        .start()
}

#[test]
fn sigint_ends_at_once() {
    let peer = FaultPeer::start(Fault::NeverAnswers);
    let mut gateway = patient(peer.address());
    let mut client = gateway.client();
    client.send_get("h", "/never");
    eventually(SOON, "the request is at the upstream", || peer.open() == 1);
    gateway.signal(Signal::INT);
    let status = gateway.wait(AT_ONCE);
    assert!(status.success(), "{status}");
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let peer = FaultPeer::start(Fault::NeverAnswers);
    let mut gateway = patient(peer.address());
    let mut client = gateway.client();
    client.send_get("h", "/never");
    let mut idle = gateway.client();
    eventually(SOON, "the request is at the upstream", || peer.open() == 1);
    gateway.signal(Signal::TERM);
    idle.assert_closed();
    gateway.signal(Signal::TERM);
    assert!(gateway.wait(AT_ONCE).success());
    // What was under way is not forgotten.
    let line = gateway.access_line("/never");
    assert!(line.line.contains("drain_timeout"), "{line:?}");
}

/// Becomes the gateway, with a pipe in the place of its access log that is open and that nobody reads.
const NOBODY_READS: &str = "
import os, sys
path = sys.argv[sys.argv.index('--access-log') + 1]
os.mkfifo(path)
os.set_inheritable(os.open(path, os.O_RDWR), True)
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn an_access_log_that_nobody_reads_keeps_no_process() {
    let upstream = Upstream::start(|_| Answer::ok("x"));
    let mut gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), ""))
        .through(&["python3", "-c", NOBODY_READS])
        .start();
    // More than a pipe takes.
    let path = "/".to_owned() + &"p".repeat(2000);
    let mut client = gateway.client();
    for _ in 0..200 {
        assert_eq!(client.get("h", &path).status, 200);
    }
    drop(client);
    gateway.signal(Signal::TERM);
    let status = gateway.wait(SOON);
    assert!(status.success(), "{status}\n{}", gateway.log());
    assert!(
        gateway.log().contains("its last lines are lost"),
        "{}",
        gateway.log()
    );
}

#[test]
fn the_congestion_control_of_the_settings_is_used_and_one_that_is_none_is_told() {
    let upstream = Upstream::start(|_| Answer::ok("x"));
    // reno is in every kernel, and nowhere the default.
    let gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), ""))
        .settings("congestionControl: reno\n")
        .start();
    let mut client = gateway.client();
    assert_eq!(client.get("h", "/").status, 200);
    let socket = std::process::Command::new("ss")
        .args(["-tinH", "sport", "="])
        .arg(format!(":{}", gateway.address().port()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&socket.stdout);
    assert!(text.split_whitespace().any(|word| word == "reno"), "{text}");
    gateway.stop();
    let exit = Gateway::builder()
        .resources("route", &one_route(upstream.address(), ""))
        .settings("congestionControl: nonsense\n")
        .run_to_exit();
    assert_eq!(exit.code, Some(3));
    assert!(
        exit.log.contains("congestionControl: nonsense cannot be used"),
        "{}",
        exit.log
    );
}
