//! Keys of servers that are missing, broken or replaced while clients come.

use isthmus_tests::cert::{Authority, Leaf, Wanted, credential};
use isthmus_tests::curl::Curl;
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::load::EndsOnDrop;
use isthmus_tests::openssl::{self, alert};
use isthmus_tests::resources::{all_to, gateway_with, https_server, tls_files};
use isthmus_tests::upstream::Upstream;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use tempfile::TempDir;

/// A gateway with these servers on port 443 before an upstream that echoes.
fn door(servers: &str, upstream: &Upstream) -> Builder {
    Gateway::builder()
        .resources("g", &(gateway_with(servers) + &all_to(upstream.address())))
        .port(443)
}

fn client(gateway: &Gateway, name: &str) -> openssl::Client {
    openssl::Client::new(gateway.listener(443), name)
}

fn curl(gateway: &Gateway, authority: &Authority) -> Curl {
    Curl::new(gateway.listener(443)).trusting(authority.certificate())
}

#[test]
fn a_missing_secret_stops_only_its_own_hosts() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let leaf = authority.server(&["good.example", "bad.example"]);
    let folder = TempDir::new().unwrap();
    let servers = https_server("good", "good.example", &tls_files("SIMPLE", &leaf))
        + &https_server("bad", "bad.example", "mode: SIMPLE, credentialName: absent")
        + "{port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"]}\n";
    let gateway = door(&servers, &upstream)
        .port(80)
        .arg("--credentials")
        .arg(folder.path())
        .start();
    let curl = curl(&gateway, &authority);
    assert_eq!(curl.status("https://good.example/"), 200);
    assert_eq!(
        gateway.get("bad.example", "/").status,
        200,
        "without TLS nothing is missing"
    );
    let talk = client(&gateway, "bad.example").refused();
    assert_eq!(talk.alert(), Some(alert::INTERNAL_ERROR), "{}", talk.text);
    gateway.assert_causes("no_keys", 1);
    assert_eq!(gateway.metric("isthmus_key_errors"), Some(1.0));
    let status = gateway.reload();
    assert!(
        status["failed_keys"][0]
            .as_str()
            .is_some_and(|said| said.contains("no credential default/absent")),
        "{status}"
    );
    assert!(
        gateway.log().contains("no credential default/absent"),
        "{}",
        gateway.log()
    );
    let certificates = gateway.get_admin("/certs");
    assert!(
        certificates.text().contains("no credential default/absent"),
        "{}",
        certificates.text()
    );

    // It is enough that it comes.
    credential(
        folder.path(),
        "absent",
        &[("tls.crt", &leaf.certificate_pem()), ("tls.key", &leaf.key_pem())],
    );
    eventually(SOON, "a certificate of bad.example", || {
        curl.run("https://bad.example/").code == 0
    });
    assert_eq!(curl.status("https://good.example/"), 200);
    assert!(!gateway.get_admin("/certs").text().contains("absent:"));
    eventually(SOON, "no errors", || {
        gateway.metric("isthmus_key_errors") == Some(0.0)
    });
    eventually(SOON, "nothing is wrong", || {
        gateway.get_admin("/ready").text() == "ready\n"
    });
    gateway.stop();
}

/// Puts a file into the place of another at once.
fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(&fresh, path).unwrap();
}

#[test]
fn a_bad_replacement_keeps_the_certificate_before_it() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let leaf = authority.server(&["a.example"]);
    let (before, old_key) = (leaf.certificate_pem(), leaf.key_pem());
    let old = authority.server(&["a.example"]);
    replace(&old.certificate, &before);
    replace(&old.key, &old_key);
    let gateway = door(
        &https_server("a", "a.example", &tls_files("SIMPLE", &leaf)),
        &upstream,
    )
    .start();
    let served_old = || client(&gateway, "a.example").get("a.example", "/").showed(&old);
    assert!(served_old());
    let next = authority.server(&["a.example"]);
    for (broken, said) in [
        ("no certificate at all\n".to_owned(), "not PEM"),
        (next.certificate_pem(), "not the key of the first certificate"),
        (before.replace("MII", "AAA"), "not X.509"),
    ] {
        replace(&leaf.certificate, &broken);
        eventually(SOON, said, || gateway.log().contains(said));
        assert!(served_old(), "{said}");
        assert!(gateway.get_admin("/certs").text().contains(said));
        assert_eq!(gateway.metric("isthmus_key_errors"), Some(1.0));
        let ready = gateway.get_admin("/ready");
        assert!(
            ready.text().starts_with("ready\ndegraded: ") && ready.text().contains(said),
            "{}",
            ready.text()
        );
    }
    fs::remove_file(&leaf.certificate).unwrap();
    eventually(SOON, "the file is missed", || {
        gateway.log().contains("no such file")
    });
    assert!(served_old());
    replace(&leaf.key, &next.key_pem());
    replace(&leaf.certificate, &next.certificate_pem());
    eventually(SOON, "the new certificate", || {
        client(&gateway, "a.example").get("a.example", "/").showed(&next)
    });
    eventually(SOON, "no errors", || {
        gateway.metric("isthmus_key_errors") == Some(0.0)
    });
    gateway.stop();
}

/// Points `..data` of a credential's folder at a new folder with these keys, as Kubernetes does with a mounted Secret.
fn switch_data(folder: &Path, generation: usize, leaf: &Leaf) {
    let data = format!("..{generation}");
    credential(
        folder,
        &data,
        &[("tls.crt", &leaf.certificate_pem()), ("tls.key", &leaf.key_pem())],
    );
    let link = folder.join("..data_tmp");
    symlink(&data, &link).unwrap();
    fs::rename(&link, folder.join("..data")).unwrap();
}

#[test]
fn rotations_lose_no_handshake_and_are_live_when_the_log_says_so() {
    /// Of both hosts: 200 rotations.
    const ROUNDS: usize = 100;
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let by_file = authority.server(&["file.example"]);
    let folder = TempDir::new().unwrap();
    let mounted = folder.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    switch_data(&mounted, 0, &authority.server(&["mounted.example"]));
    for name in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(name), mounted.join(name)).unwrap();
    }
    let servers = https_server("file", "file.example", &tls_files("SIMPLE", &by_file))
        + &https_server(
            "mounted",
            "mounted.example",
            "mode: SIMPLE, credentialName: mounted",
        );
    let gateway = door(&servers, &upstream)
        .arg("--credentials")
        .arg(folder.path())
        .shards(2)
        .without_access_log()
        .start();

    let (done, handshakes) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _ends = EndsOnDrop(&done);
        for host in ["file.example", "mounted.example"] {
            let (client, done, handshakes) = (client(&gateway, host), &done, &handshakes);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let talk = client.get(host, "/");
                    assert_eq!(talk.status(), Some(200), "{host}: {}", talk.text);
                    handshakes.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for generation in 1..=ROUNDS {
            let next = ["file.example", "mounted.example"].map(|name| authority.server(&[name]));
            // Two files cannot be replaced at once: in between they do not fit, and what was there stays.
            replace(&by_file.key, &next[0].key_pem());
            replace(&by_file.certificate, &next[0].certificate_pem());
            switch_data(&mounted, generation, &next[1]);
            for leaf in &next {
                let serial = leaf.serial();
                let is_live = |line: &str| line.contains("a certificate is live") && line.contains(&serial);
                eventually(SOON, "the new certificate in the log", || {
                    gateway.log().lines().any(is_live)
                });
            }
            for (leaf, host) in next.iter().zip(["file.example", "mounted.example"]) {
                for _ in 0..4 {
                    assert!(
                        client(&gateway, host).get(host, "/").showed(leaf),
                        "{generation} {host}"
                    );
                }
            }
        }
    });
    assert!(handshakes.load(Ordering::SeqCst) > 100, "{handshakes:?}");
    assert_eq!(gateway.metric("isthmus_task_panics_total"), Some(0.0));
    gateway.stop();
}

#[test]
fn a_revocation_is_in_force_as_soon_as_its_list_is_replaced() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let folder = TempDir::new().unwrap();
    let list = folder.path().join("ca.crl");
    fs::copy(authority.revoke(&[1]), &list).unwrap();
    let leaf = authority.server(&["a.example"]);
    let tls = format!(
        "{}, caCertificates: {}, caCrl: {}",
        tls_files("MUTUAL", &leaf),
        authority.certificate().display(),
        list.display()
    );
    let gateway = door(&https_server("a", "a.example", &tls), &upstream)
        .shards(2)
        .start();
    let holder = authority.issue(&Wanted::client(&["c.example"]).serial(66));
    let other = authority.issue(&Wanted::client(&["c.example"]).serial(67));
    let status = |leaf: &Leaf| {
        client(&gateway, "a.example")
            .with(leaf)
            .get("a.example", "/")
            .status()
    };
    assert_eq!((status(&holder), status(&other)), (Some(200), Some(200)));
    let fresh = fs::read_to_string(authority.revoke(&[1, 66])).unwrap();
    replace(&list, &fresh);
    eventually(SOON, "the revocation", || status(&holder).is_none());
    for _ in 0..6 {
        let talk = client(&gateway, "a.example").with(&holder).refused();
        assert_eq!(talk.alert(), Some(alert::CERTIFICATE_REVOKED), "{}", talk.text);
        assert_eq!(status(&other), Some(200));
    }
    gateway.stop();
}

#[test]
fn connections_stay_when_the_certificate_is_replaced() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let leaf = authority.server(&["a.example", "b.example"]);
    let servers = https_server("a", "a.example", &tls_files("SIMPLE", &leaf))
        + &https_server("b", "b.example", &tls_files("SIMPLE", &leaf));
    let gateway = door(&servers, &upstream).start();
    let mut stays = client(&gateway, "a.example").stay();
    // The answer is longer than the request, and what is read of it is as long.
    let mut ask = |host: &str, times: u64| {
        let _begun = stays.exchange(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes());
        eventually(SOON, "the request", || upstream.served() == times);
    };
    ask("a.example", 1);
    let next = authority.server(&["a.example", "b.example"]);
    replace(&leaf.key, &next.key_pem());
    replace(&leaf.certificate, &next.certificate_pem());
    eventually(SOON, "the new certificate", || {
        client(&gateway, "a.example").get("a.example", "/").showed(&next)
    });
    let served = upstream.served();
    ask("b.example", served + 1);
    ask("a.example", served + 2);
    assert_eq!(gateway.metric("isthmus_causes_total").unwrap_or_default(), 0.0);
    gateway.stop();
}
