//! A real nginx as an upstream.

use crate::cert::Leaf;
use crate::deadline::{SOON, within};
use crate::port::HeldPort;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// An nginx that serves files of a folder of its own; killed when dropped.
///
/// It runs as a single process, so that killing it kills all of it, and its port stays held when it is dead.
#[derive(Debug)]
pub struct Nginx {
    port: HeldPort,
    folder: TempDir,
    child: Option<Child>,
}

impl Nginx {
    /// Starts one that serves `files` (path and content) and answers any method on `/echo`.
    pub fn start(files: &[(&str, &[u8])]) -> Self {
        Self::launch(files, "", "")
    }

    /// Starts one that speaks TLS with this certificate, and asks clients for one of `clients`, if that is given.
    ///
    /// Beside what [`Self::start`] serves, `/tls` says what it knows of the connection, and `PUT /put/NAME` keeps a
    /// file that [`Self::put_file`] finds.
    pub fn secured(leaf: &Leaf, clients: Option<&Path>, files: &[(&str, &[u8])]) -> Self {
        let mut lines = format!(
            "ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {}; ssl_certificate_key {};",
            leaf.certificate.display(),
            leaf.key.display()
        );
        if let Some(path) = clients {
            // What came is told, not refused, so that a test sees it.
            let path = path.display();
            lines += &format!(" ssl_client_certificate {path}; ssl_verify_client optional;");
        }
        Self::launch(files, "ssl", &lines)
    }

    /// Starts one that speaks HTTP/2: by prior knowledge, or over TLS with this certificate.
    pub fn http2(leaf: Option<&Leaf>, files: &[(&str, &[u8])]) -> Self {
        Self::http2_with(leaf, "", files)
    }

    /// The same, with more lines of its configuration.
    pub fn http2_with(leaf: Option<&Leaf>, lines: &str, files: &[(&str, &[u8])]) -> Self {
        match leaf {
            None => Self::launch(files, "http2", lines),
            Some(leaf) => {
                let (certificate, key) = (leaf.certificate.display(), leaf.key.display());
                let lines = format!("ssl_certificate {certificate}; ssl_certificate_key {key}; {lines}");
                Self::launch(files, "ssl http2", &lines)
            }
        }
    }

    /// Starts one that speaks TLS for each of these names with a certificate of its own. Whatever is asked for, it says
    /// what it sees: the number of the connection, the name that TLS was asked for on it, and the host of the request.
    pub fn of_names(names: &[(String, Leaf)]) -> Self {
        let mut servers = String::new();
        for (name, leaf) in names {
            let (certificate, key) = (leaf.certificate.display(), leaf.key.display());
            servers += &format!(
                "server {{ listen ADDRESS ssl; server_name {name}; ssl_certificate {certificate}; ssl_certificate_key \
                 {key}; location / {{ return 200 \"$connection $ssl_server_name $host\"; }} }}\n"
            );
        }
        let (_, first) = names.first().expect("a name");
        let lines = format!(
            "ssl_certificate {}; ssl_certificate_key {};",
            first.certificate.display(),
            first.key.display()
        );
        Self::launch_with(&[], "ssl", &lines, &servers)
    }

    /// Starts one that listens on unix sockets too ([`Self::socket`]): `plain`, `h2` (HTTP/2 by prior knowledge) and
    /// `tls` with this certificate. Whatever is asked for, it says on which it was asked, and in which version.
    pub fn on_sockets(leaf: &Leaf) -> Self {
        let (certificate, key) = (leaf.certificate.display(), leaf.key.display());
        let servers = format!(
            "server {{ listen unix:FOLDER/plain.sock; location / {{ return 200 \"plain $server_protocol\"; }} }}
             server {{ listen unix:FOLDER/h2.sock http2; location / {{ return 200 \"h2 $server_protocol\"; }} }}
             server {{ listen unix:FOLDER/tls.sock ssl; ssl_certificate {certificate}; ssl_certificate_key {key}; \
             location / {{ return 200 \"tls $ssl_server_name\"; }} }}\n"
        );
        Self::launch_with(&[], "", "", &servers)
    }

    /// The path of one of its unix sockets.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.sock"))
    }

    fn launch(files: &[(&str, &[u8])], listen: &str, lines: &str) -> Self {
        Self::launch_with(files, listen, lines, "")
    }

    fn launch_with(files: &[(&str, &[u8])], listen: &str, lines: &str, servers: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let port = HeldPort::take();
        let root = folder.path().join("www");
        for (path, content) in files {
            let file = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(file.parent().unwrap_or(Path::new("/"))).expect("a folder");
            fs::write(file, content).expect("a file");
        }
        fs::write(
            folder.path().join("nginx.conf"),
            configuration(folder.path(), port.address(), listen, (lines, servers)),
        )
        .expect("a file");
        let mut nginx = Self {
            port,
            folder,
            child: None,
        };
        nginx.restart();
        nginx
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The process id of the running nginx.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("nginx runs").id()
    }

    /// Ends it as `kill -9` does; its port then refuses.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill();
            let _status = child.wait();
        }
    }

    /// Starts it again on the same port.
    pub fn restart(&mut self) {
        self.kill();
        let prefix = self.folder.path();
        let child = Command::new("nginx")
            .arg("-p")
            .arg(prefix)
            .args(["-c", "nginx.conf", "-e"])
            .arg(prefix.join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx runs (Debian package nginx)");
        self.child = Some(child);
        let address = self.address();
        let up = within(SOON, || TcpStream::connect(address).ok());
        assert!(up.is_some(), "nginx does not listen: {}", self.error_log());
    }

    /// Its error log.
    pub fn error_log(&self) -> String {
        fs::read_to_string(self.path("error.log")).unwrap_or_default()
    }

    /// Its access log.
    pub fn access_log(&self) -> String {
        fs::read_to_string(self.path("access.log")).unwrap_or_default()
    }

    /// Where `PUT /put/NAME` keeps its body.
    pub fn put_file(&self, name: &str) -> PathBuf {
        self.path("www").join("put").join(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.kill();
    }
}

fn configuration(folder: &Path, address: SocketAddr, listen: &str, (lines, servers): (&str, &str)) -> String {
    let at = folder.display();
    let servers = servers.replace("ADDRESS", &address.to_string());
    let servers = servers.replace("FOLDER", &at.to_string());
    format!(
        r#"daemon off;
master_process off;
worker_processes 1;
pid {at}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
    keepalive_timeout 1h;
    access_log {at}/access.log;
    client_body_temp_path {at}/body;
    proxy_temp_path {at}/proxy;
    fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi;
    scgi_temp_path {at}/scgi;
    client_max_body_size 64m;
    keepalive_requests 1000000;
    default_type application/octet-stream;
    server_names_hash_max_size 8192;
    server {{
        listen {address} {listen} reuseport backlog=4096;
        {lines}
        root {at}/www;
        location / {{ }}
        location /put/ {{ dav_methods PUT; create_full_put_path on; }}
        location = /tls {{
            return 200 "sni=$ssl_server_name protocol=$ssl_protocol client=$ssl_client_verify $ssl_client_s_dn connection=$connection\n";
        }}
        location = /echo {{ return 200 "$request_method $content_length $http_content_type\n"; }}
    }}
    {servers}
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Client, get};
    use crate::deadline::eventually;
    use std::io::ErrorKind;

    #[test]
    fn nginx_serves_dies_and_comes_back_on_its_port() {
        let mut nginx = Nginx::start(&[("/a/b.txt", b"content")]);
        assert_eq!(get(nginx.address(), "h", "/a/b.txt").text(), "content");
        let mut client = Client::connect(nginx.address());
        client.send("POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\ncontent-type: a/b\r\n\r\nab");
        assert_eq!(client.response().text(), "POST 2 a/b\n");
        // nginx writes the line after the answer.
        eventually(SOON, "the request in nginx's log", || {
            nginx.access_log().contains("POST /echo")
        });
        nginx.kill();
        assert_eq!(
            Client::try_connect(nginx.address()).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        nginx.restart();
        assert_eq!(get(nginx.address(), "h", "/a/b.txt").status, 200);
    }
}
