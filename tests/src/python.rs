//! Peers that are scripts in Python, with the libraries that others use.

use crate::deadline::SOON;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;

/// A client and a server of gRPC.
pub const GRPC: &str = include_str!("../peers/grpc_peer.py");
/// A client and a server of WebSocket.
pub const WEBSOCKET: &str = include_str!("../peers/websocket_peer.py");

/// Runs a script to its end; answers what it printed, and panics when it fails.
pub fn run(script: &str, args: &[&str]) -> String {
    let output = command(script, args).output().expect("python3 runs");
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{args:?}: {}\n{said}{errors}",
        output.status
    );
    said
}

fn command(script: &str, args: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(["-u", "-c", script]).args(args).stdin(Stdio::null());
    command
}

/// A script that serves: its first line is the port that it listens on. It is killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    output: Option<BufReader<ChildStdout>>,
}

impl Server {
    /// Starts one and waits for its port.
    pub fn start(script: &str, args: &[&str]) -> Self {
        let mut child = command(script, args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (tell, told) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _count = output.read_line(&mut line);
            let _gone = tell.send((line, output));
        });
        let Ok((line, output)) = told.recv_timeout(SOON) else {
            let _gone = child.kill();
            panic!("{args:?} does not say its port")
        };
        let port: u16 = line
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("no port: {line:?}"));
        Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            output: Some(output),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it, and answers what it has printed.
    pub fn end(mut self) -> String {
        let _gone = self.child.kill();
        let mut said = String::new();
        if let Some(mut output) = self.output.take() {
            output.read_to_string(&mut said).expect("text");
        }
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
