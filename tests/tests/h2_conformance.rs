//! What RFC 9113 and RFC 7541 demand of a server, tried out by a raw client: first on HAProxy, which shows that the
//! cases ask for what servers do, then on the gateway.

use isthmus_tests::cert::Authority;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::h2::cases::{self, Case, Expect, Failure, REFUSED_PATH};
use isthmus_tests::h2::frame::Code;
use isthmus_tests::h2::{AUTHORITY, Target};
use isthmus_tests::haproxy::Haproxy;
use isthmus_tests::resources::{all_to, gateway_with, https_server, tls_files};
use isthmus_tests::upstream::Upstream;

/// Cases that HAProxy 2.6 is known to fail, each group with what it does there. nghttpx 1.52 passes all of these but the
/// one of the window that SETTINGS lift too high.
const HAPROXY_DEVIATES: &[(&str, &[&str])] = &[
    (
        "loses its place in the frames behind DATA with padding of more than no octets",
        &[
            "DATA with padding of one octet",
            "DATA with padding of 100 octets",
            "DATA with padding of 255 octets",
            "DATA of padding alone",
            "padding of three windows is given back",
            "padding counts for no length",
        ],
    ),
    (
        "applies the states of streams to frames of unknown types, which have no state (5.1)",
        &[
            "an unknown type on an idle stream",
            "an unknown type behind the end of a request",
        ],
    ),
    (
        "takes the reserved bit of an increment for a part of it",
        &["WINDOW_UPDATE with the reserved bit of its increment"],
    ),
    (
        "takes no HEADERS without a fragment of a block",
        &[
            "a header block that begins with an empty frame",
            "no fields at all",
        ],
    ),
    (
        "calls HEADERS behind the end of a request an error of the protocol, and ends the connection",
        &["half-closed (remote): HEADERS"],
    ),
    (
        "lets the window of an open stream overflow by SETTINGS",
        &["SETTINGS_INITIAL_WINDOW_SIZE that lifts the window of a stream above 2^31-1"],
    ),
    (
        "takes an empty name for an error of compression",
        &["an empty name"],
    ),
    (
        "follows RFC 7540, which let values begin and end with whitespace",
        &[
            "a value that begins with a space",
            "a value that ends with a space",
            "a value that begins with a tab",
            "a value that ends with a tab",
        ],
    ),
    (
        "knows :protocol, and takes it with methods other than CONNECT",
        &[":protocol, which nobody has offered"],
    ),
    ("passes GET * on", &[":path of * for GET"]),
    (
        "blames itself for trailers that are malformed: RST_STREAM with INTERNAL_ERROR",
        &[
            "trailers with :method",
            "trailers with :path",
            "trailers with :status",
            "trailers with an unknown pseudo-header field",
            "trailers with :method, without content",
            "trailers with a name in upper case",
            "trailers with LF in a value",
            "trailers with connection",
            "trailers with transfer-encoding",
        ],
    ),
    (
        "compares content-length with DATA only where DATA ends the request",
        &[
            "no content where its length is 4",
            "less content than its length, ended by trailers",
        ],
    ),
    (
        "cuts an index off to 32 bits",
        &["an index of 2^32 + 2, which is 2 in 32 bits"],
    ),
    (
        "reads changes of the table's size, and does not make them",
        &[
            "an index behind a table that was emptied",
            "a table of nothing holds nothing",
        ],
    ),
];

fn assert_none(failures: &[Failure]) {
    let told: Vec<_> = failures.iter().map(Failure::to_string).collect();
    assert!(
        failures.is_empty(),
        "{} cases failed:\n\n{}",
        told.len(),
        told.join("\n\n")
    );
}

/// The names of a list of deviations.
fn deviations(deviates: &[(&str, &[&'static str])]) -> Vec<&'static str> {
    deviates
        .iter()
        .flat_map(|(_, names)| names.iter().copied())
        .collect()
}

/// HAProxy fails no other cases than it is known to. Those are not played: each would be waited for in vain.
fn assert_as_known(target: Target) {
    let known = deviations(HAPROXY_DEVIATES);
    let mut expected = cases::all();
    expected.retain(|case| !known.contains(&case.name.as_str()));
    assert_none(&cases::play(target, &expected, |_, _| {}));
}

#[test]
fn haproxy_passes_the_cases() {
    let leaf = Authority::new().server(&[AUTHORITY]);
    let upstream = Upstream::start(cases::answer);
    let haproxy = Haproxy::start(upstream.address(), &leaf);
    assert_as_known(Target::cleartext(haproxy.cleartext()));
}

#[test]
fn haproxy_passes_the_cases_over_tls() {
    let leaf = Authority::new().server(&[AUTHORITY]);
    let upstream = Upstream::start(cases::answer);
    let haproxy = Haproxy::start(upstream.address(), &leaf);
    assert_as_known(Target::tls(haproxy.secured()));
}

#[test]
fn every_case_has_a_name_of_its_own() {
    let all = cases::all();
    let mut names: Vec<_> = all.iter().map(|case| case.name.as_str()).collect();
    names.sort_unstable();
    let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{twice:?}");
    for name in deviations(HAPROXY_DEVIATES) {
        assert!(names.binary_search(&name).is_ok(), "there is no case {name:?}");
    }
    assert!(all.len() >= 140, "{} cases", all.len());
}

/// RFC 9113, 8.1.1: what is malformed is not passed on.
fn assert_nothing_refused_was_passed_on(upstream: &Upstream) {
    let requests = upstream.requests();
    let passed = requests
        .iter()
        .filter(|request| request.target.contains(REFUSED_PATH));
    let passed: Vec<_> = passed.collect();
    assert!(
        passed.is_empty(),
        "malformed requests reached the upstream: {passed:?}"
    );
}

#[test]
fn every_case_passes_on_a_cleartext_port() {
    let upstream = Upstream::start(cases::answer);
    let gateway = Gateway::in_front_of(upstream.address());
    assert_none(&cases::run(Target::cleartext(gateway.address())));
    // What the client is told is counted under its name.
    let undone = |case: &&Case| matches!(case.expect, Expect::ConnectionError(codes) if codes == [Code::COMPRESSION_ERROR]);
    let undone = cases::all().iter().filter(undone).count();
    gateway.assert_causes("http2_compression", undone as u32);
    assert_nothing_refused_was_passed_on(&upstream);
    gateway.stop();
}

#[test]
fn every_case_passes_over_tls() {
    let leaf = Authority::new().server(&[AUTHORITY]);
    let upstream = Upstream::start(cases::answer);
    let servers = https_server("https", "\"*\"", &tls_files("SIMPLE", &leaf));
    let gateway = Gateway::builder()
        .resources("g", &(gateway_with(&servers) + &all_to(upstream.address())))
        .port(443)
        .start();
    assert_none(&cases::run(Target::tls(gateway.listener(443))));
    assert_nothing_refused_was_passed_on(&upstream);
    gateway.stop();
}
