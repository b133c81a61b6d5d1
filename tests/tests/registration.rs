//! Instances that register themselves with the admin API, renew themselves, and go.

use isthmus_tests::client::Client;
use isthmus_tests::deadline::{SOON, eventually, within};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::load::{EndsOnDrop, Load};
use isthmus_tests::resources::{gateway, route_to, service, virtual_service};
use isthmus_tests::upstream::{SERVED_BY, Upstream};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const HOST: &str = "pool.example";
/// How long an instance is served unless it renews itself.
const TTL: Duration = Duration::from_secs(2);
const RENEWERS: usize = 4;

fn pool() -> String {
    gateway(80) + &service(HOST, 80, &[]) + &virtual_service(&format!("- {}", route_to(HOST)))
}

/// Sends a request to the admin API; answers its status and what it says.
fn call(gateway: &Gateway, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut client = Client::connect(gateway.admin());
    client.send(format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    let answer = client.response();
    (
        answer.status,
        serde_json::from_str(answer.text()).unwrap_or_default(),
    )
}

fn put(gateway: &Gateway, instance: usize, address: SocketAddr, ttl: &str) -> u16 {
    put_on(&mut Client::connect(gateway.admin()), instance, address, ttl)
}

/// The same on a connection that stays.
fn put_on(client: &mut Client, instance: usize, address: SocketAddr, ttl: &str) -> u16 {
    let body = json!({"address": address.ip(), "ports": {"http": address.port()}, "ttl": ttl}).to_string();
    client.send(format!(
        "PUT /v1/endpoints/{HOST}/i{instance} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    client.response().status
}

/// The endpoints that shards have of the service.
fn endpoints(gateway: &Gateway) -> BTreeSet<SocketAddr> {
    let answer = gateway.get_admin("/clusters?format=json");
    let all: Value = serde_json::from_str(answer.text()).unwrap();
    let clusters = all["clusters"].as_array().unwrap().iter();
    let of_pool = clusters.filter(|cluster| cluster["name"] == format!("outbound|80||{HOST}"));
    let endpoints = of_pool.flat_map(|cluster| cluster["endpoints"].as_array().unwrap());
    endpoints
        .map(|endpoint| endpoint["address"].as_str().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn an_instance_is_served_as_long_as_it_says_and_says_so_again() {
    let upstream = Upstream::echo("one");
    let mut gateway = Gateway::builder().resources("all", &pool()).shards(2).start();
    assert_eq!(gateway.get("any.example", "/").status, 503, "nobody is there");
    assert_eq!(put(&gateway, 1, upstream.address(), "1h"), 201);
    eventually(SOON, "it is served", || {
        gateway.get("any.example", "/").status == 200
    });
    let path = format!("/v1/endpoints/{HOST}/i1");
    assert_eq!(call(&gateway, "PUT", &path, "").0, 200, "renewed");
    let (status, shown) = call(&gateway, "GET", &path, "");
    assert_eq!((status, &shown["service"]), (200, &json!(HOST)));
    assert_eq!(shown["clusters"], json!([format!("outbound|80||{HOST}")]));
    let (_, all) = call(&gateway, "GET", "/v1/endpoints", "");
    assert_eq!(all["instances"].as_array().unwrap().len(), 1);
    // Another version of the configuration has it, too.
    gateway.replace_resources("all", &(pool() + &service("more.example", 80, &[])));
    gateway.reload();
    assert_eq!(gateway.get("any.example", "/").field(SERVED_BY), Some("one"));
    // So does a process that takes this one's place.
    let mut replaced = gateway.upgrade();
    assert_eq!(gateway.get("any.example", "/").field(SERVED_BY), Some("one"));
    assert_eq!(call(&gateway, "PUT", &path, "").0, 200, "renewed");
    assert!(replaced.wait(SOON).is_some_and(|status| status.success()));
    assert_eq!(call(&gateway, "DELETE", &path, "").0, 204);
    eventually(SOON, "it is gone", || {
        gateway.get("any.example", "/").status == 503
    });
    assert_eq!(call(&gateway, "DELETE", &path, "").0, 404);
    assert_eq!(
        call(&gateway, "PUT", &path, "").0,
        404,
        "there is nothing to renew"
    );
    gateway.stop();
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    let gateway = Gateway::builder().resources("all", &pool()).start();
    let good = r#"{"address": "127.0.0.1"}"#;
    for (path, body, status, word) in [
        ("/v1/endpoints/other.example/i", good, 404, "other.example"),
        (
            "/v1/endpoints/pool.example/i",
            r#"{"adress": "127.0.0.1"}"#,
            400,
            "adress",
        ),
        (
            "/v1/endpoints/pool.example/i",
            r#"{"address": "127.0.0.1", "ports": {"grpc": 1}}"#,
            400,
            "grpc",
        ),
        (
            "/v1/endpoints/pool.example/i",
            r#"{"address": "127.0.0.1", "ttl": "1ms"}"#,
            400,
            "ttl",
        ),
    ] {
        let (found, said) = call(&gateway, "PUT", path, body);
        assert_eq!(found, status, "{path} {body}: {said}");
        assert!(said["error"].as_str().unwrap().contains(word), "{said}");
    }
    let mut browser = Client::connect(gateway.admin());
    browser.send(format!(
        "PUT /v1/endpoints/{HOST}/i HTTP/1.1\r\nhost: evil.example\r\ncontent-length: {}\r\n\r\n{good}",
        good.len()
    ));
    assert_eq!(browser.response().status, 403);
    gateway.stop();
    let open = Gateway::builder()
        .resources("all", &pool())
        .admin("0.0.0.0:0")
        .start();
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, open.admin().port()));
    let mut client = Client::connect(admin);
    client.send(format!(
        "PUT /v1/endpoints/{HOST}/i HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n\r\n{good}",
        good.len()
    ));
    assert_eq!(client.response().status, 403, "others can reach it");
    open.stop();
}

#[test]
fn instances_that_stop_renewing_themselves_are_gone_and_the_others_are_not() {
    const INSTANCES: usize = 200;
    // Each at an address of its own, all of which are this machine's.
    let [any] = Upstream::echoes_at([("any", "0.0.0.0")]);
    let address = |at: usize| {
        let ip = Ipv4Addr::new(127, 0, 1 + (at / 200) as u8, 1 + (at % 200) as u8);
        SocketAddr::new(IpAddr::V4(ip), any.address().port())
    };
    let gateway = Gateway::builder()
        .resources("all", &pool())
        .shards(2)
        .without_access_log()
        .start();
    let stays: BTreeSet<SocketAddr> = (0..INSTANCES / 2).map(address).collect();
    let (over, half, was_late) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicBool::new(false),
    );
    let load = Load::get(gateway.address(), "any.example", "/").connections(4);
    // Four of them share the work, so that a busy machine is no reason to be late.
    let renew = |first: usize| {
        let mut client = Client::connect(gateway.admin());
        let mut renewed: Vec<Option<Instant>> = vec![None; INSTANCES];
        while !over.load(Ordering::SeqCst) {
            let number = if half.load(Ordering::SeqCst) {
                INSTANCES / 2
            } else {
                INSTANCES
            };
            for at in (first..number).step_by(RENEWERS) {
                let now = Instant::now();
                let status = put_on(&mut client, at, address(at), "2s");
                // One that comes too late for its time is new.
                let is_late = renewed[at].is_some_and(|before| before.elapsed() >= TTL);
                let is_new = renewed[at].is_none() || is_late;
                assert!(status == 200 || (status == 201 && is_new), "{at}: {status}");
                if is_late && half.load(Ordering::SeqCst) {
                    was_late.store(true, Ordering::SeqCst);
                }
                renewed[at] = Some(now);
            }
        }
    };
    thread::scope(|scope| {
        let renew = &renew;
        let renewing: Vec<_> = (0..RENEWERS)
            .map(|first| scope.spawn(move || renew(first)))
            .collect();
        let _over = EndsOnDrop(&over);
        eventually(SOON, "all are there", || endpoints(&gateway).len() == INSTANCES);
        let (report, ()) = load.run_during(|_| {
            half.store(true, Ordering::SeqCst);
            let gone = within(SOON, || (endpoints(&gateway) == stays).then_some(()));
            assert!(gone.is_some(), "half of them are gone: {:?}", endpoints(&gateway));
            // The others stay, well beyond the time of those that went.
            let still = within(2 * TTL, || (endpoints(&gateway) != stays).then_some(()));
            assert!(
                still.is_none() || was_late.load(Ordering::SeqCst),
                "one that renews itself is gone"
            );
        });
        over.store(true, Ordering::SeqCst);
        renewing.into_iter().for_each(|one| one.join().unwrap());
        assert_eq!(report.total(), report.status(200), "{report}");
        assert!(report.total() > 100, "{report}");
    });
    gateway.stop();
}
