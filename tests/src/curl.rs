//! curl as a client of TLS: what it verifies is verified by somebody else's code.

use crate::cert::Leaf;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// curl's exit code for a peer that it does not trust.
pub const UNTRUSTED: i32 = 60;

/// How curl is to be run: whatever host a URL names, it connects to one address.
#[derive(Debug, Clone)]
pub struct Curl {
    args: Vec<String>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The exit code.
    pub code: i32,
    /// What it printed.
    pub out: Vec<u8>,
    /// What it said about itself.
    pub errors: String,
}

impl Ended {
    /// What it printed, as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).expect("text")
    }
}

impl Curl {
    /// One that connects to this address.
    pub fn new(address: SocketAddr) -> Self {
        let to = format!("::{}:{}", address.ip(), address.port());
        let args = [
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--noproxy",
            "*",
            "--connect-to",
            &to,
        ];
        Self {
            args: args.map(str::to_owned).to_vec(),
        }
    }

    /// Trusts this authority and no other.
    #[must_use]
    pub fn trusting(self, authority: &Path) -> Self {
        let path = authority.to_str().expect("a path of text");
        self.args(&["--cacert", path])
    }

    /// Shows this certificate.
    #[must_use]
    pub fn with(self, leaf: &Leaf) -> Self {
        let path = |path: &Path| path.to_str().expect("a path of text").to_owned();
        self.args(&["--cert", &path(&leaf.certificate), "--key", &path(&leaf.key)])
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Runs it on this URL, whatever comes of it.
    pub fn run(&self, url: &str) -> Ended {
        let mut command = Command::new("curl");
        let output = command
            .args(&self.args)
            .arg(url)
            .output()
            .expect("curl runs (Debian package curl)");
        Ended {
            code: output.status.code().unwrap_or(-1),
            out: output.stdout,
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs it on this URL and answers what it printed; panics when it fails.
    pub fn get(&self, url: &str) -> String {
        let ended = self.run(url);
        assert_eq!(ended.code, 0, "curl {:?} {url}: {}", self.args, ended.errors);
        String::from_utf8(ended.out).expect("text")
    }

    /// The status of this URL's answer.
    pub fn status(&self, url: &str) -> u16 {
        let said = self
            .clone()
            .args(&["--output", "/dev/null", "--write-out", "%{http_code}"])
            .get(url);
        said.parse().expect("a status")
    }
}
