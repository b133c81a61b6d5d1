//! What connections cost, in numbers that an operator can plan with.

use isthmus_tests::client::{Client, connect_from};
use isthmus_tests::deadline::eventually;
use isthmus_tests::gateway::{Gateway, raise_open_files};
use isthmus_tests::load::{Load, turn};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::resources::one_route;
use isthmus_tests::upstream::Upstream;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const IDLE: usize = 9_000;
/// Of the process's own memory; the heap's size classes are a tenth of it.
const IDLE_BYTES_EACH: u64 = 3_600;
const STALLED: usize = 200;
/// What a stalled exchange may hold beside what the kernel holds, whatever its body's size.
const STALLED_KIB_EACH: u64 = 128;

/// Loopback has many addresses; spread over some of them, no number of connections runs out of ports.
fn source(number: usize) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 2 + u8::try_from(number % 8).expect("a small number")).into()
}

/// The memory of the process once it has stopped changing.
fn settled_rss_kib(gateway: &Gateway) -> u64 {
    let (mut last, mut same) = (0, 0);
    eventually(Duration::from_secs(30), "memory that no longer changes", || {
        let now = gateway.facts().rss_kib;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same >= 40
    });
    last
}

#[test]
fn nine_thousand_idle_connections_cost_little_memory() {
    let turn = turn();
    let files = raise_open_files();
    assert!(
        files > IDLE as u64 + 500,
        "this test needs a hard limit of {IDLE} open files and some; it is {files}"
    );
    let upstream = Upstream::echo_for_load("v1");
    let gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), ""))
        .without_access_log()
        .start();
    assert_eq!(
        Load::get(gateway.address(), "h", "/")
            .connections(32)
            .run(2_000)
            .status(200),
        2_000
    );
    let before = gateway.resting();
    let rss_before = settled_rss_kib(&gateway);

    let idle: Vec<_> = (0..IDLE)
        .map(|number| {
            let mut client =
                Client::over(connect_from(source(number), gateway.address(), None).expect("a connection"));
            assert_eq!(client.get("h", "/").status, 200);
            client.into_stream()
        })
        .collect();
    let active = gateway.metric("isthmus_downstream_connections_active");
    assert_eq!(active, Some(IDLE as f64));
    let grown = settled_rss_kib(&gateway).saturating_sub(rss_before);
    println!("{IDLE} idle connections cost {grown} KiB");
    assert!(
        grown * 1024 <= IDLE as u64 * IDLE_BYTES_EACH,
        "{IDLE} idle connections cost {grown} KiB"
    );

    for stream in idle.iter().step_by(100) {
        let mut client = Client::over(stream.try_clone().expect("a handle"));
        assert_eq!(
            client.get("h", "/").status,
            200,
            "an idle connection still serves"
        );
    }
    drop(idle);
    gateway.assert_returns_to(&before);
    drop(turn);
    gateway.stop();
}

/// How much memory `STALLED` clients cost that ask for a body of this size and do not read it.
fn cost_of_stalled_readers(megabytes: usize) -> u64 {
    let nginx = Nginx::start(&[("/body", &vec![b'x'; megabytes << 20])]);
    let gateway = Gateway::builder()
        .resources("route", &one_route(nginx.address(), ""))
        .without_access_log()
        .start();
    assert_eq!(
        Load::get(gateway.address(), "h", "/body")
            .connections(4)
            .run(20)
            .status(200),
        20
    );
    let before = gateway.resting();
    let rss_before = settled_rss_kib(&gateway);
    let stalled: Vec<_> = (0..STALLED)
        .map(|number| {
            let stream = connect_from(source(number), gateway.address(), Some(4096)).expect("a connection");
            let mut client = Client::over(stream);
            assert_eq!(client.send_get("h", "/body").head().expect("a head").1, 200);
            client
        })
        .collect();
    let grown = settled_rss_kib(&gateway).saturating_sub(rss_before);
    let active = gateway.metric("isthmus_requests_active");
    assert_eq!(active, Some(STALLED as f64), "every reader is stalled");
    stalled.into_iter().for_each(Client::abort);
    gateway.assert_returns_to(&before);
    gateway.stop();
    println!("{STALLED} stalled readers of {megabytes} MB cost {grown} KiB");
    grown
}

#[test]
fn stalled_readers_do_not_cost_what_their_bodies_weigh() {
    let turn = turn();
    // Both are more than the kernel's buffers take, so that both stall; a body of 1 MB would not.
    let (half, whole) = (cost_of_stalled_readers(10), cost_of_stalled_readers(20));
    drop(turn);
    let allowed = STALLED as u64 * STALLED_KIB_EACH;
    let said = format!("10 MB bodies cost {half} KiB, 20 MB bodies {whole} KiB");
    assert!(half <= allowed && whole <= allowed, "{said}");
    assert!(whole <= half + allowed / 8, "{said}");
}
