//! A thousand documents, some of which are spoilt: what is wrong with one holds up nothing else, and a restart serves
//! what was good.

use isthmus_tests::cert::{Authority, Leaf};
use isthmus_tests::client::get;
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::load;
use isthmus_tests::resources::secret;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use tempfile::TempDir;

/// Seeds of an ordinary run, one for each kind of corruption; `ISTHMUS_SEEDS` gives another number.
const SEEDS: usize = 4;
/// A service has a ServiceEntry, a DestinationRule and a VirtualService.
const SERVICES: usize = 320;
/// Those of them that have a certificate, each with a Secret; all but one have a Gateway, too, and one has the edge's.
const NAMES: usize = 20;
const FILES: usize = 5;
/// Where the last good set is kept.
const STATE: &str = ".last-good.json";

/// A document: what it defines, and its text.
#[derive(Clone)]
struct Document {
    name: String,
    text: String,
}

/// A small source of chance: splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

fn host(service: usize) -> String {
    format!("s{service}.example.com")
}

fn istio(kind: &str, name: &str, generation: usize, spec: &str) -> Document {
    Document {
        name: format!("{kind} default/{name}"),
        text: format!(
            "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata:\n  name: {name}\n  labels: {{generation: g{generation}}}\nspec:\n{spec}"
        ),
    }
}

fn tls_server(service: usize) -> String {
    format!(
        "  - port: {{number: 443, name: https-{service}, protocol: HTTPS}}\n    hosts: [{}]\n    tls: {{mode: SIMPLE, credentialName: c{service}}}\n",
        host(service)
    )
}

/// The keys of a name: those of even generations, and those of odd ones; and their serial numbers.
struct Leaves([Leaf; 2], [String; 2]);

impl Leaves {
    fn issue(authority: &Authority) -> Vec<Self> {
        let issue = |name| {
            let leaves = [(), ()].map(|()| authority.server(&[&host(name)]));
            let serials = leaves
                .each_ref()
                .map(|leaf| leaf.serial().trim_start_matches('0').to_owned());
            Self(leaves, serials)
        };
        (0..NAMES).map(issue).collect()
    }
}

fn credential(service: usize, leaf: &Leaf) -> Document {
    let values = [("tls.crt", leaf.certificate_pem()), ("tls.key", leaf.key_pem())];
    let values = values.each_ref().map(|(key, value)| (*key, value.as_str()));
    let text = secret(&format!("c{service}"), "kubernetes.io/tls", &values);
    Document {
        name: format!("Secret default/c{service}"),
        text: text.trim_end_matches("---\n").to_owned(),
    }
}

/// All documents, each of which is another one in each generation.
fn documents(generation: usize, leaves: &[Leaves]) -> Vec<Document> {
    let edge = format!(
        "  servers:\n  - port: {{number: 80, name: http, protocol: HTTP}}\n    hosts: [\"*\"]\n{}",
        tls_server(0)
    );
    let mut all = vec![istio("Gateway", "edge", generation, &edge)];
    for at in 0..SERVICES {
        let (name, host) = (format!("s{at}"), host(at));
        if let Some(Leaves(of_name, _)) = leaves.get(at) {
            all.push(credential(at, &of_name[generation % 2]));
        }
        if (1..NAMES).contains(&at) {
            let servers = format!("  servers:\n{}", tls_server(at));
            all.push(istio("Gateway", &name, generation, &servers));
        }
        let entry = format!(
            "  hosts: [{host}]\n  resolution: STATIC\n  ports:\n  - {{number: 80, name: http, protocol: HTTP}}\n  endpoints:\n  - {{address: 127.0.0.1, labels: {{version: v1}}}}\n"
        );
        all.push(istio("ServiceEntry", &name, generation, &entry));
        let rule = format!("  host: {host}\n  subsets:\n  - name: v1\n    labels: {{version: v1}}\n");
        all.push(istio("DestinationRule", &name, generation, &rule));
        let way = format!(
            "  hosts: [{host}]\n  gateways: [edge]\n  http:\n  - match: [{{uri: {{exact: /generation}}}}]\n    directResponse: {{status: 200, body: {{string: g{generation}}}}}\n  - route:\n    - destination: {{host: {host}, subset: v1}}\n"
        );
        all.push(istio("VirtualService", &name, generation, &way));
    }
    assert_eq!(all.len(), 1000);
    all
}

/// What was spoilt: the documents with an error, and those that wait for what these were to bring.
#[derive(Default)]
struct Spoilt {
    touched: BTreeSet<usize>,
    dependants: BTreeSet<usize>,
}

fn at(all: &[Document], name: &str) -> usize {
    let found = all.iter().position(|document| document.name == name);
    found.unwrap_or_else(|| panic!("{name}"))
}

fn replace(document: &mut Document, from: &str, to: &str) {
    assert!(document.text.contains(from), "{}", document.text);
    document.text = document.text.replacen(from, to, 1);
}

/// Spoils documents of one kind of corruption after the other.
fn spoil(all: &mut [Document], seed: usize, leaves: &[Leaves], generation: usize) -> Spoilt {
    let mut random = Random(seed as u64);
    let mut spoilt = Spoilt::default();
    let any = |all: &[Document], random: &mut Random| loop {
        let at = random.below(all.len());
        if !all[at].name.starts_with("Secret") {
            return at;
        }
    };
    match seed % 4 {
        // Syntax.
        0 => {
            let at = any(all, &mut random);
            let (from, to) = [
                ("spec:", "spec: ["),
                ("kind:", "kind: [Pod, "),
                ("metadata:", "metadata:\n\tname: tab\nmetadata:"),
            ][random.below(3)];
            replace(&mut all[at], from, to);
            spoilt.touched.insert(at);
        }
        // Fields.
        1 => {
            let at = any(all, &mut random);
            let (from, to) = [
                ("spec:\n", "sepc:\n"),
                ("spec:\n", "spec:\n  nothingLikeIt: true\n"),
                ("spec:\n", "spec: 7\nmore:\n"),
            ][random.below(3)];
            replace(&mut all[at], from, to);
            spoilt.touched.insert(at);
        }
        // What a reference leads to: a new subset whose document has an error, and a way to that subset.
        2 => {
            let service = random.below(SERVICES);
            let rule = at(all, &format!("DestinationRule default/s{service}"));
            replace(
                &mut all[rule],
                "  - name: v1\n",
                "  - name: v2\n    labls: {}\n  - name: v1\n",
            );
            let way = at(all, &format!("VirtualService default/s{service}"));
            replace(&mut all[way], "subset: v1", "subset: v2");
            spoilt.touched.insert(rule);
            spoilt.dependants.insert(way);
        }
        // Certificates and keys.
        _ => {
            let name = random.below(NAMES);
            let (good, other) = (&leaves[name].0[generation % 2], &leaves[(name + 1) % NAMES].0[0]);
            let (certificate, key) = (good.certificate_pem(), good.key_pem());
            let (certificate, key) = match random.below(4) {
                0 => ("no certificate at all\n".to_owned(), key),
                1 => (certificate, other.key_pem()),
                2 => (certificate.replace("MII", "AAA"), key),
                _ => (certificate, key.replace("PRIVATE", "PUBLIC")),
            };
            let at = at(all, &format!("Secret default/c{name}"));
            let text = secret(
                &format!("c{name}"),
                "kubernetes.io/tls",
                &[("tls.crt", &certificate), ("tls.key", &key)],
            );
            all[at].text = text.trim_end_matches("---\n").to_owned();
            spoilt.touched.insert(at);
        }
    }
    spoilt
}

/// Files as Kubernetes mounts them, which change all at once.
struct Volume {
    folder: TempDir,
    version: usize,
}

impl Volume {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for file in 0..FILES {
            symlink(
                format!("..data/{file}.yaml"),
                folder.path().join(format!("{file}.yaml")),
            )
            .unwrap();
        }
        Self { folder, version: 0 }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&mut self, all: &[Document]) {
        self.version += 1;
        let name = format!("..{}", self.version);
        let folder = self.path().join(&name);
        fs::create_dir(&folder).unwrap();
        for (file, some) in all.chunks(all.len().div_ceil(FILES)).enumerate() {
            let texts: Vec<&str> = some.iter().map(|document| document.text.as_str()).collect();
            fs::write(folder.join(format!("{file}.yaml")), texts.join("---\n")).unwrap();
        }
        symlink(&name, self.path().join("..next")).unwrap();
        fs::rename(self.path().join("..next"), self.path().join("..data")).unwrap();
    }
}

fn before(volume: &Volume) -> Builder {
    Gateway::builder()
        .arg("-f")
        .arg(volume.path())
        .port(80)
        .port(443)
        .without_access_log()
}

fn json(gateway: &Gateway, path: &str) -> Value {
    serde_json::from_str(gateway.get_admin(path).text()).unwrap()
}

/// Asserts that each document is served in the generation that was its last good one.
fn assert_serves(gateway: &Gateway, all: &[Document], good: &[usize], leaves: &[Leaves], seed: usize) {
    let effective = json(gateway, "/v1/resources");
    let texts: BTreeMap<&str, &str> = effective["documents"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|document| Some((document["resources"][0].as_str()?, document["text"].as_str()?)))
        .collect();
    for (document, generation) in all.iter().zip(good) {
        if document.name.starts_with("Secret") {
            continue;
        }
        let text = texts.get(document.name.as_str()).copied().unwrap_or_default();
        let wanted = format!("generation: g{generation}}}");
        assert!(
            text.contains(&wanted),
            "seed {seed}: {}: {wanted}: {text}",
            document.name
        );
    }
    let shown = json(gateway, "/certs");
    let certificates: Vec<(&str, &str)> = shown["certificates"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|shown| Some((shown["names"][0].as_str()?, shown["serial"].as_str()?)))
        .collect();
    assert_eq!(certificates.len(), NAMES, "seed {seed}: {shown}");
    for (name, leaves) in leaves.iter().enumerate() {
        let generation = good[at(all, &format!("Secret default/c{name}"))];
        let (host, serial) = (host(name), &leaves.1[generation % 2]);
        let wanted =
            |(names, shown): &(&str, &str)| names.ends_with(&host) && shown.trim_start_matches('0') == serial;
        assert!(
            certificates.iter().any(wanted),
            "seed {seed}: {host} {serial}: {shown}"
        );
    }
}

/// What is asked for is answered by the version of the route that is served.
fn assert_answers(gateway: &Gateway, all: &[Document], good: &[usize], service: usize) {
    let answer = get(gateway.address(), &host(service), "/generation");
    let generation = good[at(all, &format!("VirtualService default/s{service}"))];
    assert_eq!(
        (answer.status, answer.text()),
        (200, format!("g{generation}").as_str())
    );
}

#[test]
fn of_a_thousand_documents_only_what_is_spoilt_stays_behind() {
    let _turn = load::turn();
    let seeds = std::env::var("ISTHMUS_SEEDS").map_or(SEEDS, |text| text.parse().unwrap());
    let authority = Authority::new();
    let leaves = Leaves::issue(&authority);
    let mut volume = Volume::new();
    let all = documents(0, &leaves);
    volume.write(&all);
    let state = TempDir::new().unwrap();
    let gateway = before(&volume).arg("--state-dir").arg(state.path()).start();
    let mut good = vec![0; all.len()];
    for seed in 0..seeds {
        let generation = seed + 1;
        let mut all = documents(generation, &leaves);
        let spoilt = spoil(&mut all, seed, &leaves, generation);
        let behind: BTreeSet<usize> = spoilt.touched.union(&spoilt.dependants).copied().collect();
        for (at, good) in good.iter_mut().enumerate() {
            if !behind.contains(&at) {
                *good = generation;
            }
        }
        volume.write(&all);
        let status = gateway.reload();
        let held = status["quarantined"].as_array().unwrap();
        let named: BTreeSet<&str> = held
            .iter()
            .flat_map(|held| held["resources"].as_array().unwrap())
            .map(|name| name.as_str().unwrap())
            .collect();
        let wanted: BTreeSet<&str> = behind.iter().map(|at| all[*at].name.as_str()).collect();
        assert_eq!(named, wanted, "seed {seed}: {status}");
        assert!(
            held.iter().all(|held| held["serves_last"] == true),
            "seed {seed}: {status}"
        );
        assert_serves(&gateway, &all, &good, &leaves, seed);
        for service in [seed % SERVICES, (seed * 7 + 13) % SERVICES] {
            assert_answers(&gateway, &all, &good, service);
        }

        // Another start of the same files serves the same.
        let copy = TempDir::new().unwrap();
        fs::copy(state.path().join(STATE), copy.path().join(STATE)).unwrap();
        let again = before(&volume).arg("--state-dir").arg(copy.path()).start();
        assert_serves(&again, &all, &good, &leaves, seed);
        assert_answers(&again, &all, &good, seed % SERVICES);
        again.stop();
        // Without what was kept it is refused, and everything that is wrong is named at its place.
        let refused = before(&volume).run_to_exit();
        assert_eq!(refused.code, Some(1), "seed {seed}: {}", refused.log);
        for held in held {
            let name = held["resources"][0].as_str().unwrap();
            if !spoilt.touched.iter().any(|at| all[*at].name == name) {
                continue;
            }
            let text = |key: &str| held[key].as_str().unwrap().to_owned();
            let place = format!("{}:{}:{}: error", text("file"), held["line"], held["column"]);
            assert!(
                refused.log.contains(&place),
                "seed {seed}: {place}: {}",
                refused.log
            );
        }
    }
    // Mended, nothing is left of it.
    volume.write(&documents(seeds + 1, &leaves));
    let status = gateway.reload();
    assert_eq!(status["quarantined"], serde_json::json!([]), "{status}");
    gateway.stop();
}

#[test]
fn everything_that_is_wrong_is_named_at_once() {
    let authority = Authority::new();
    let leaves = Leaves::issue(&authority);
    let mut all = documents(0, &leaves);
    for seed in 0..SEEDS {
        spoil(&mut all, seed, &leaves, 0);
    }
    let mut volume = Volume::new();
    volume.write(&all);
    let refused = before(&volume).run_to_exit();
    assert_eq!(refused.code, Some(1), "{}", refused.log);
    let errors = refused.log.lines().filter(|line| line.contains(": error["));
    assert!(errors.count() >= SEEDS, "{}", refused.log);
    for what in ["syntax", "labls", "Secret default/c"] {
        assert!(refused.log.contains(what), "{what}: {}", refused.log);
    }
}
