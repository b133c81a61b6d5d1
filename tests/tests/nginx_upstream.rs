//! A real client and a real upstream: curl through the gateway to nginx.

use isthmus_tests::gateway::Gateway;
use isthmus_tests::nginx::Nginx;
use std::fs;
use std::process::Command;
use tempfile::TempDir;

struct Site {
    gateway: Gateway,
    _nginx: Nginx,
    folder: TempDir,
    body: Vec<u8>,
}

fn site() -> Site {
    let body: Vec<u8> = (0..1 << 20)
        .map(|at: u32| (at.wrapping_mul(2_246_822_519) >> 23) as u8)
        .collect();
    let nginx = Nginx::start(&[("/body", &body), ("/small.txt", b"hello\n")]);
    let gateway = Gateway::in_front_of(nginx.address());
    Site {
        gateway,
        _nginx: nginx,
        folder: TempDir::new().expect("a temporary folder"),
        body,
    }
}

impl Site {
    /// Runs curl on a path; answers what it prints, without error messages.
    fn curl(&self, args: &[&str], path: &str) -> String {
        let output = Command::new("curl")
            .current_dir(self.folder.path())
            .args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*"])
            .args(args)
            .arg(format!("http://{}{path}", self.gateway.address()))
            .output()
            .expect("curl runs (Debian package curl)");
        assert!(
            output.status.success(),
            "curl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    }
}

#[test]
fn curl_gets_a_file() {
    let site = site();
    assert_eq!(
        site.curl(&["--write-out", "%{http_code} %{size_download}"], "/small.txt"),
        "hello\n200 6"
    );
    assert_eq!(
        site.curl(&["--output", "none", "--write-out", "%{http_code}"], "/missing"),
        "404"
    );
    site.gateway.stop();
}

#[test]
fn a_mebibyte_arrives_intact() {
    let site = site();
    assert_eq!(
        site.curl(&["--output", "got", "--write-out", "%{http_code}"], "/body"),
        "200"
    );
    assert!(fs::read(site.folder.path().join("got")).expect("the download") == site.body);
    site.gateway.stop();
}

#[test]
fn a_post_arrives_with_its_length_and_type() {
    let site = site();
    fs::write(site.folder.path().join("up"), &site.body).expect("a file");
    let sent = site.curl(
        &["--data-binary", "@up", "--header", "content-type: a/b"],
        "/echo",
    );
    assert_eq!(
        sent,
        format!("POST {} a/b\n", site.body.len()),
        "with Expect: 100-continue, as curl does it"
    );
    let chunked = site.curl(
        &["--data-binary", "@up", "--header", "transfer-encoding: chunked"],
        "/echo",
    );
    assert!(chunked.starts_with("POST "), "{chunked}");
    site.gateway.stop();
}

#[test]
fn head_has_the_length_and_no_body() {
    let site = site();
    let head = site.curl(&["--head"], "/body").to_lowercase();
    assert!(
        head.starts_with("http/1.1 200 ") && head.contains("content-length: 1048576\r\n"),
        "{head}"
    );
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    site.gateway.stop();
}

#[test]
fn a_range_is_served() {
    let site = site();
    let code = site.curl(
        &[
            "--range",
            "1000-1999",
            "--output",
            "part",
            "--write-out",
            "%{http_code}",
        ],
        "/body",
    );
    assert_eq!(code, "206");
    assert!(fs::read(site.folder.path().join("part")).expect("the download") == site.body[1000..2000]);
    site.gateway.stop();
}

#[test]
fn several_requests_of_one_curl_use_one_connection() {
    let site = site();
    let url = format!("http://{}/small.txt", site.gateway.address());
    let said = site.curl(&["--write-out", "%{num_connects} ", &url, &url], "/small.txt");
    assert_eq!(said, "hello\n1 hello\n0 hello\n0 ");
    site.gateway.stop();
}
