//! A newer process takes the place of the running one, under traffic; and what a supervisor hears and hands over.

use isthmus_tests::client::{Client, get};
use isthmus_tests::deadline::{SOON, eventually, eventually_some};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::load::{self, Load};
use isthmus_tests::python::{Server, WEBSOCKET};
use isthmus_tests::resources::{self, Endpoint, one_route, route_to, service, virtual_service};
use isthmus_tests::upstream::{Answer, SERVED_BY, Upstream};
use rustix::process::Signal;
use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// Upgrades of an ordinary run; `ISTHMUS_UPGRADES` gives another number.
const UPGRADES: usize = 5;
/// What a download brings.
const DOWNLOAD: usize = 300_000;

/// How long an old process may take to end on a machine whose kernel is busy with other things.
const ENDS: Duration = Duration::from_secs(60);
/// Going away, as a server of WebSockets says it, and a client's answer, masked by zeros (RFC 6455, 5.5.1).
const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];
const SO_IT_IS: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];
/// The wish for a WebSocket.
const WEBSOCKET_WISH: &str = "GET /drain HTTP/1.1\r\nhost: a.example\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn before(address: SocketAddr) -> Builder {
    Gateway::builder().resources("route", &one_route(address, ""))
}

#[test]
fn no_request_is_lost_while_processes_follow_each_other() {
    let _turn = load::turn();
    let upgrades = std::env::var("ISTHMUS_UPGRADES").map_or(UPGRADES, |text| text.parse().unwrap());
    let upstream = Upstream::start(|request| match request.target.as_str() {
        "/download" => Answer::ok(vec![b'x'; DOWNLOAD]).field(SERVED_BY, "u"),
        _ => Answer::ok("short").field(SERVED_BY, "u"),
    });
    let websockets = Server::start(WEBSOCKET, &["serve"]);
    let documents = resources::gateway(80)
        + &service("up.example", 80, &[Endpoint::new("v1", upstream.address())])
        + &service("ws.example", 80, &[Endpoint::new("v1", websockets.address())])
        + &virtual_service(&format!(
            "- match: [{{uri: {{exact: /drain}}}}]\n  {}\n- {}",
            route_to("ws.example"),
            route_to("up.example")
        ));
    let mut gateway = Gateway::builder()
        .resources("all", &documents)
        .shards(2)
        .arg("--drain-timeout")
        .arg(if upgrades > UPGRADES { "3s" } else { "8s" })
        .start();
    let address = gateway.address();
    let (admin, status, metrics) = (gateway.admin(), gateway.status(), gateway.metrics());
    let keep_alive = Load::get(address, "a.example", "/").connections(16);
    let fresh = Load::raw(
        address,
        "GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n",
    )
    .connections(4);
    let downloads = Load::get(address, "a.example", "/download").connections(4);
    let health = Load::get(status, "localhost", "/healthz/ready").connections(1);
    let (report, (of_fresh, (of_downloads, (of_health, ())))) = keep_alive.run_during(|sent| {
        fresh.run_during(|_| {
            downloads.run_during(|_| {
                health.run_during(|_| {
                    for round in 0..upgrades {
                        // One that streams is told to go, and what waits on it is not lost.
                        let mut h2 = Connection::open(Target::cleartext(address)).unwrap();
                        h2.handshake(&[]).unwrap();
                        let stream = h2.get("/");
                        h2.answered(stream, 200).unwrap();
                        let mut websocket = gateway.client();
                        websocket.send(WEBSOCKET_WISH);
                        assert_eq!(websocket.head().unwrap().1, 101);
                        let old = gateway.pid();
                        let mut replaced = gateway.upgrade();
                        assert_ne!(gateway.pid(), old);
                        h2.until("GOAWAY", |connection| connection.goaway.is_some())
                            .unwrap();
                        h2.until_closed().unwrap();
                        drop(h2);
                        assert_eq!(websocket.exactly(4), GOING_AWAY);
                        websocket.send(SO_IT_IS);
                        websocket.assert_closed();
                        drop(websocket);
                        let ended = replaced.wait(ENDS);
                        assert!(
                            ended.is_some_and(|status| status.success()),
                            "{round}: the old process: {ended:?}\n{}",
                            gateway.log()
                        );
                        let before = sent.load(std::sync::atomic::Ordering::SeqCst);
                        eventually(SOON, "the new process serves", || {
                            sent.load(std::sync::atomic::Ordering::SeqCst) > before + 50
                        });
                    }
                })
            })
        })
    });
    for line in gateway.access_log() {
        if line.status != 200 {
            println!("{}", line.line);
        }
    }
    let all = [
        ("kept", &report),
        ("fresh", &of_fresh),
        ("downloads", &of_downloads),
        ("health", &of_health),
    ];
    for (what, report) in all {
        println!("{upgrades} upgrades: {what}: {report}");
    }
    for (what, report) in all {
        assert!(report.errors.is_empty(), "{what}: {report}");
        assert_eq!(report.status(200), report.total(), "{what}: {report}");
        assert!(report.total() > 10 * upgrades as u64, "{what}: {report}");
    }
    // Nobody was cut.
    let ends = gateway.log().matches("ended drained=true cut=0").count();
    assert_eq!(ends, upgrades, "{}", gateway.log());
    assert_eq!(gateway.listener_now(80), Some(address));
    let ready = gateway.ready_file();
    assert_eq!(ready["process"], gateway.pid(), "{ready}");
    for (what, was) in [("admin", admin), ("status", status), ("metrics", metrics)] {
        assert_eq!(ready[what], was.to_string(), "{ready}");
    }
    gateway.stop();
}

#[test]
fn a_process_with_other_shards_takes_all_connections() {
    let upstream = Upstream::echo("u");
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("admin.sock");
    let wrapper = |shards: usize| {
        let path = folder.path().join(format!("with-{shards}"));
        let binary = isthmus_tests::gateway::binary();
        // The last one counts.
        let script = format!(
            "#!/bin/sh\nexec {} $(echo \"$@\" | sed 's/--shards [0-9]*/--shards {shards}/')\n",
            binary.display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    let mut gateway = before(upstream.address())
        .shards(3)
        .admin(&format!("unix:{}", socket.display()))
        .start();
    let address = gateway.address();
    for shards in [1, 4] {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let binary = wrapper(shards);
        let (done, said) = gateway.command("upgrade", &["--binary", &binary, "-o", "json"]);
        assert!(done, "{said}\n{}", gateway.log());
        let told: serde_json::Value = serde_json::from_str(&said).unwrap();
        let mut old = gateway.adopt(told["process"].as_i64().unwrap().try_into().unwrap());
        assert!(old.wait(ENDS).is_some_and(|status| status.success()));
        for _ in 0..60 {
            assert_eq!(get(address, "a.example", "/").status, 200);
        }
    }
    assert!(socket.exists(), "the socket is the newer process's");
    gateway.stop();
    assert!(!socket.exists());
}

#[test]
fn an_upgrade_that_fails_leaves_everything_as_it_was() {
    let upstream = Upstream::echo("u");
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("hangs"), "#!/bin/sh\nexec sleep 600\n").unwrap();
    fs::set_permissions(at("hangs"), Permissions::from_mode(0o755)).unwrap();
    fs::write(at("nothing"), "no program").unwrap();
    let gateway = before(upstream.address())
        .admin(&format!("unix:{}", at("admin.sock")))
        .start();
    let mut kept = gateway.client();
    assert_eq!(kept.get("a.example", "/").status, 200);
    let mut fails = |args: &[&str], why: &str| {
        let (done, said) = gateway.command("upgrade", args);
        assert!(!done && said.contains(why), "{said}");
        assert_eq!(kept.get("a.example", "/").status, 200);
        assert_eq!(gateway.get("a.example", "/").status, 200);
    };
    fails(&["--binary", &at("missing")], "cannot be started");
    fails(&["--binary", &at("nothing")], "cannot be started");
    fails(
        &["--binary", "/bin/false"],
        "ended before it was ready: exit status: 1",
    );
    fails(
        &["--binary", &at("hangs"), "--timeout", "300ms"],
        "was not ready within 300ms",
    );
    // What runs says no word about a configuration that it never loaded.
    gateway.replace_resources("route", &one_route(upstream.address(), "timeout: never"));
    fails(
        &[],
        "the new process says: the configuration has 1 error(s), the first: ",
    );
    fails(&[], "route.yaml:");
    gateway.replace_resources("route", &one_route(upstream.address(), ""));
    assert!(gateway.command("reload", &[]).0);
    let (ready, said) = gateway.command("healthcheck", &[]);
    assert!(ready && said == "ready\n", "{said}");
    assert!(gateway.log().contains("there is no upgrade"), "{}", gateway.log());
    gateway.stop();
}

#[test]
fn a_binary_is_not_named_over_a_port_that_everybody_reaches() {
    let upstream = Upstream::echo("u");
    let gateway = before(upstream.address()).start();
    let (done, said) = gateway.command("upgrade", &["--binary", "/bin/false"]);
    assert!(!done && said.contains("over a unix socket only"), "{said}");
    let (done, said) = gateway.command("drain", &[]);
    assert!(done && said == "draining\n", "{said}");
    eventually(SOON, "the port is closed", || {
        Client::try_connect(gateway.address()).is_err()
    });
    let (ready, said) = gateway.command("healthcheck", &[]);
    assert!(!ready && said.contains("not ready"), "{said}");
    let (done, said) = gateway.command("upgrade", &[]);
    assert!(!done && said.contains("not serving"), "{said}");
    gateway.stop();
}

/// What a service manager hears.
struct Manager {
    socket: UnixDatagram,
    path: String,
    _folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self {
            socket,
            path: path.display().to_string(),
            _folder: folder,
        }
    }

    /// The next message that is no sign of life.
    fn hears(&self) -> String {
        loop {
            let mut text = [0; 256];
            let length = self.socket.recv(&mut text).expect("a message");
            let text = String::from_utf8_lossy(&text[..length]).into_owned();
            if text != "WATCHDOG=1" {
                return text;
            }
        }
    }

    fn hears_signs_of_life(&self) {
        let mut text = [0; 256];
        let length = self.socket.recv(&mut text).expect("a message");
        assert_eq!(&text[..length], b"WATCHDOG=1");
    }
}

#[test]
fn a_service_manager_hears_of_loads_successors_and_ends() {
    let upstream = Upstream::echo("u");
    let manager = Manager::new();
    let mut gateway = before(upstream.address())
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", "400000")
        .start();
    assert!(manager.hears().starts_with("READY=1\n"));
    manager.hears_signs_of_life();
    gateway.signal(Signal::HUP);
    let reloading = manager.hears();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert!(manager.hears().starts_with("READY=1\n"));
    let mut old = gateway.upgrade();
    // The newer one is the service before it says that it serves, so that it is believed.
    assert_eq!(manager.hears(), format!("MAINPID={}", gateway.pid()));
    assert!(manager.hears().starts_with("READY=1\n"));
    assert!(old.wait(ENDS).is_some_and(|status| status.success()));
    manager.hears_signs_of_life();
    gateway.signal(Signal::TERM);
    assert_eq!(manager.hears(), "STOPPING=1");
    assert!(gateway.wait(SOON).success());
}

#[test]
fn usr2_is_an_upgrade_too() {
    let upstream = Upstream::echo("u");
    let mut gateway = before(upstream.address()).start();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let first = gateway.pid();
    gateway.signal(Signal::USR2);
    let next = eventually_some(SOON, "another process", || {
        let process = gateway.ready_file()["process"].as_i64()?;
        (process != i64::from(first)).then_some(process)
    });
    let mut old = gateway.adopt(next.try_into().unwrap());
    assert!(old.wait(ENDS).is_some_and(|status| status.success()));
    assert_eq!(gateway.get("a.example", "/").status, 200);
    gateway.stop();
}

#[test]
fn sockets_of_a_supervisor_are_taken() {
    // Opens sockets as systemd does, and becomes the gateway.
    const SUPERVISOR: &str = "
import os, socket, sys
wanted = int(sys.argv[1])
held = []
for port in (wanted, 0, 0):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(('127.0.0.1', port))
    one.listen(16)
    held.append(os.dup(one.fileno()))
high = [os.dup(fd) for fd in held]
import fcntl
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in held]
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='3', LISTEN_FDNAMES='80:metrics:81')
os.execv(sys.argv[2], sys.argv[2:])
";
    let upstream = Upstream::echo("u");
    // A port that was free a moment ago, which nobody else is given: it is named, not drawn.
    let port = {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        held.local_addr().unwrap().port()
    };
    let mut gateway = before(upstream.address())
        .shards(2)
        .through(&["python3", "-c", SUPERVISOR, &port.to_string()])
        .start();
    assert_eq!(gateway.address().port(), port);
    for _ in 0..20 {
        assert_eq!(gateway.get("a.example", "/").status, 200);
    }
    assert!(gateway.metric("isthmus_config_version").is_some());
    // They are handed on like any other, and so is the one that nobody has wanted yet.
    let mut old = gateway.upgrade();
    assert!(old.wait(ENDS).is_some_and(|status| status.success()));
    assert_eq!(gateway.get("a.example", "/").status, 200);
    assert_eq!(gateway.listener_now(80).map(|address| address.port()), Some(port));
    let server = |port: u16| {
        format!("{{port: {{number: {port}, name: http-{port}, protocol: HTTP}}, hosts: [\"*\"]}}\n")
    };
    let both = resources::gateway_with(&(server(80) + &server(81))) + &resources::all_to(upstream.address());
    gateway.replace_resources("route", &both);
    gateway.reload();
    let second = eventually_some(SOON, "the other port", || gateway.listener_now(81));
    assert_ne!(second.port(), 81, "the supervisor's, wherever it is");
    assert_eq!(get(second, "a.example", "/").status, 200);
    gateway.stop();
}

#[test]
fn a_process_that_is_told_to_end_takes_its_successor_with_it() {
    let upstream = Upstream::echo("u");
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let started = at("started");
    fs::write(
        at("hangs"),
        format!("#!/bin/sh\necho $$ > {started}\nexec sleep 600\n"),
    )
    .unwrap();
    fs::set_permissions(at("hangs"), Permissions::from_mode(0o755)).unwrap();
    let mut gateway = before(upstream.address())
        .admin(&format!("unix:{}", at("admin.sock")))
        .start();
    thread::scope(|scope| {
        let asking = scope.spawn(|| gateway.command("upgrade", &["--binary", &at("hangs")]));
        let child = eventually_some(SOON, "a newer process", || {
            fs::read_to_string(&started).ok()?.trim().parse::<u32>().ok()
        });
        gateway.signal(Signal::TERM);
        let (done, _said) = asking.join().unwrap();
        assert!(!done);
        eventually(SOON, "the newer process is gone", || {
            !fs::exists(format!("/proc/{child}")).unwrap()
        });
    });
    assert!(gateway.wait(SOON).success());
}
