//! A browser in front of the gateway: a page with what belongs to it over HTTP/2, and a WebSocket.

use isthmus_tests::cert::Authority;
use isthmus_tests::chromium::Chromium;
use isthmus_tests::deadline::{SOON, eventually_some};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::python::{Server, WEBSOCKET};
use isthmus_tests::resources::{
    Endpoint, gateway_with, https_server, route_to, service, tls_files, virtual_service,
};
use isthmus_tests::upstream::{Answer, Upstream};

const HOST: &str = "shop.example";
const WEBSOCKET_HOST: &str = "ws.internal";
const PAGE_HOST: &str = "page.internal";
/// Parts of the page: more than a browser has connections of HTTP/1.1.
const PARTS: usize = 30;

/// Loads its parts, speaks with the WebSocket's server, and then tells what has become of it.
const PAGE: &str = r#"<!doctype html>
<title>a page</title>
<link rel="stylesheet" href="/style.css">
<ul id="parts"></ul>
<p id="said"></p>
<p id="protocols"></p>
<script>
async function run() {
  const texts = await Promise.all([...Array(PARTS).keys()].map(at =>
    fetch(`/part/${at}`).then(answer => answer.text())));
  for (const text of texts) {
    document.getElementById("parts").append(Object.assign(document.createElement("li"), {textContent: text}));
  }
  const socket = new WebSocket(`wss://${location.host}/socket`);
  await new Promise((opened, failed) => { socket.onopen = opened; socket.onerror = failed; });
  const said = new Promise(heard => { socket.onmessage = event => heard(event.data); });
  socket.send("hello through the gateway");
  document.getElementById("said").textContent = await said;
  const closed = new Promise(heard => { socket.onclose = event => heard(event.code); });
  socket.close(1000);
  document.getElementById("said").dataset.closed = await closed;
  const loaded = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  document.getElementById("protocols").textContent = [...new Set(loaded.map(entry => entry.nextHopProtocol))].join(" ");
}
run().catch(error => { document.title = `broken: ${error}`; }).finally(() =>
  fetch("/told", {method: "POST", body: document.documentElement.outerHTML}));
</script>
"#;

#[test]
fn a_page_and_a_websocket_pass_over_http2() {
    let page = Upstream::start(|request| match request.target.as_str() {
        "/" => Answer::ok(PAGE.replace("PARTS", &PARTS.to_string())).field("content-type", "text/html"),
        "/style.css" => Answer::ok("p { color: green }").field("content-type", "text/css"),
        "/told" => Answer::status(204),
        part if part.starts_with("/part/") => Answer::ok(format!("this is {part}")),
        _ => Answer::status(404),
    });
    let sockets = Server::start(WEBSOCKET, &["serve"]);
    let leaf = Authority::new().server(&[HOST]);
    let rules = format!(
        "- match: [{{uri: {{prefix: /socket}}}}]\n  {}\n- {}\n",
        route_to(WEBSOCKET_HOST),
        route_to(PAGE_HOST)
    );
    let resources = [
        gateway_with(&https_server("https", "\"*\"", &tls_files("SIMPLE", &leaf))),
        service(PAGE_HOST, 80, &[Endpoint::new("v1", page.address())]),
        service(WEBSOCKET_HOST, 80, &[Endpoint::new("v1", sockets.address())]),
        virtual_service(&rules),
    ];
    let gateway = Gateway::builder()
        .resources("page", &resources.concat())
        .port(443)
        .start();
    let mut browser = Chromium::open(HOST, gateway.listener(443), "/", &leaf);
    let told = eventually_some(6 * SOON, "the page tells what has become of it", || {
        assert!(browser.is_running(), "the browser ended");
        let requests = page.requests();
        requests.into_iter().find(|request| request.target == "/told")
    });
    let document = String::from_utf8(told.body).expect("text");
    for at in 0..PARTS {
        let part = format!("<li>this is /part/{at}</li>");
        assert!(document.contains(&part), "{part}: {document}");
    }
    for expected in [
        "<title>a page</title>",
        r#"<p id="said" data-closed="1000">hello through the gateway</p>"#,
        r#"<p id="protocols">h2</p>"#,
    ] {
        assert!(document.contains(expected), "{expected}: {document}");
    }
    for path in ["/", "/style.css", "/part/0", "/part/29"] {
        let line = gateway.access_line(path);
        assert!(
            line.line.contains(&format!("GET {path} HTTP/2\" 200")),
            "{line:?}"
        );
    }
    let line = gateway.access_line("/socket");
    assert!(line.line.contains("GET /socket HTTP/2\" 101"), "{line:?}");
    // One connection carried all of it but what the browser opens on suspicion.
    let connections: std::collections::BTreeSet<_> = gateway
        .access_log()
        .iter()
        .filter_map(|line| peer(&line.line))
        .collect();
    assert!(connections.len() <= 2, "{connections:?}");
    drop(browser);
    gateway.stop();
}

/// The client's address, the last one of a line.
fn peer(line: &str) -> Option<String> {
    let mut words = line
        .split_whitespace()
        .filter(|word| word.starts_with("127.0.0.1:"));
    words.next_back().map(str::to_owned)
}
