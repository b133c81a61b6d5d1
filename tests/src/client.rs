//! A raw client: it sends exactly the bytes that a test says, and reads answers strictly.

use crate::deadline::SOON;
use crate::wire::{Fields, Length, Wire, WireError, declared_length};
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use std::io::{self, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

/// Between two parts of a request that shall reach the peer as separate reads. A pace, not a synchronisation: a peer
/// that sees both at once has an easier task, and the test still holds.
const PACE: Duration = Duration::from_millis(3);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: String,
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub fields: Fields,
    /// The body, out of its framing.
    pub body: Vec<u8>,
    /// How the body was delimited.
    pub length: Length,
    /// The trailer fields.
    pub trailers: Fields,
    /// Status and fields of the interim answers that came before.
    pub interim: Vec<(u16, Fields)>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of text")
    }

    /// The value of a field that appears at most once.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)
    }
}

/// One connection to the gateway.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
}

impl Client {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    /// Connects, or says why not.
    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::over(TcpStream::connect_timeout(&address, SOON)?))
    }

    /// Speaks over this connection.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(SOON)).expect("a time-out");
        stream.set_write_timeout(Some(SOON)).expect("a time-out");
        Self {
            wire: Wire::new(stream),
        }
    }

    /// The connection alone, without the buffers of a client; what was received and not read is lost.
    pub fn into_stream(self) -> TcpStream {
        self.wire.into_stream()
    }

    /// Gives up reading after this time instead of the usual one.
    #[must_use]
    pub fn patience(self, time: Duration) -> Self {
        self.wire
            .stream()
            .set_read_timeout(Some(time))
            .expect("a time-out");
        self
    }

    /// The address of this end.
    pub fn local_address(&self) -> SocketAddr {
        self.wire.stream().local_addr().expect("a local address")
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.try_send(bytes)
            .unwrap_or_else(|error| panic!("cannot send: {error}"));
        self
    }

    /// Sends bytes as they are, or says why not.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.stream_mut().write_all(bytes.as_ref())
    }

    /// Sends bytes in parts that end at these positions and at the end, one segment each.
    pub fn send_split(&mut self, bytes: impl AsRef<[u8]>, positions: &[usize]) -> &mut Self {
        let (bytes, mut from) = (bytes.as_ref(), 0);
        for to in positions.iter().copied().chain([bytes.len()]) {
            self.send(&bytes[from..to]);
            from = to;
            thread::sleep(PACE);
        }
        self
    }

    /// Sends a GET on a connection that stays open.
    pub fn send_get(&mut self, host: &str, path: &str) -> &mut Self {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"))
    }

    /// GET and its answer.
    pub fn get(&mut self, host: &str, path: &str) -> Response {
        self.send_get(host, path).response()
    }

    /// The next answer; panics when it is not a whole and valid one.
    pub fn response(&mut self) -> Response {
        self.try_response(false)
            .unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// The next answer, which answers HEAD.
    pub fn response_to_head(&mut self) -> Response {
        self.try_response(true)
            .unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// The next answer (to HEAD if `head`), or why there is none.
    pub fn try_response(&mut self, head: bool) -> Result<Response, WireError> {
        let mut interim = Vec::new();
        loop {
            let (version, status, fields) = self.head()?;
            if (100..200).contains(&status) && status != 101 {
                interim.push((status, fields));
                continue;
            }
            let declared = declared_length(&fields)?;
            let length = match declared {
                _ if head || status < 200 || status == 204 || status == 304 => Length::None,
                Some(length) => length,
                None => Length::UntilClose,
            };
            let (body, trailers) = self.wire.body(length)?;
            return Ok(Response {
                version,
                status,
                fields,
                body,
                length,
                trailers,
                interim,
            });
        }
    }

    /// The next head, interim or final, without its body.
    pub fn head(&mut self) -> Result<(String, u16, Fields), WireError> {
        let line = self.wire.start_line()?;
        let bad = || WireError::Syntax(format!("not a status line: {line:?}"));
        let (version, rest) = line.split_once(' ').ok_or_else(bad)?;
        let (code, _reason) = rest.split_once(' ').ok_or_else(bad)?;
        if !matches!(version, "HTTP/1.1" | "HTTP/1.0") || code.len() != 3 {
            return Err(bad());
        }
        let status = code.parse().map_err(|_| bad())?;
        Ok((version.to_owned(), status, self.wire.fields("head")?))
    }

    /// Reads some bytes of whatever comes; 0 at the end.
    pub fn read_some(&mut self) -> Result<usize, WireError> {
        self.wire.fill()
    }

    /// The next bytes, so many; panics when fewer come.
    pub fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        self.wire
            .body(Length::Known(bytes))
            .unwrap_or_else(|error| panic!("no {bytes} bytes: {error}"))
            .0
    }

    /// Everything until the peer closes; panics on a reset or when it does not close.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        self.wire
            .body(Length::UntilClose)
            .unwrap_or_else(|error| panic!("no orderly end: {error}"))
            .0
    }

    /// Asserts that the peer closes in an orderly way and sends nothing more.
    pub fn assert_closed(&mut self) {
        let rest = self.read_to_end();
        assert!(
            rest.is_empty(),
            "more came before the end: {:?}",
            String::from_utf8_lossy(&rest)
        );
    }

    /// What was received and not read yet.
    pub fn pending(&self) -> &[u8] {
        self.wire.pending()
    }

    /// Ends the sending half; answers can still be read.
    pub fn half_close(&mut self) -> &mut Self {
        self.wire
            .stream()
            .shutdown(Shutdown::Write)
            .expect("a half close");
        self
    }

    /// Ends the connection by a reset.
    pub fn abort(self) {
        set_socket_linger(self.wire.stream(), Some(Duration::ZERO)).expect("SO_LINGER");
    }
}

/// Connects from one of this machine's addresses, with a receive buffer of about so many bytes.
pub fn connect_from(source: IpAddr, to: SocketAddr, receive_buffer: Option<usize>) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if let Some(bytes) = receive_buffer {
        set_socket_recv_buffer_size(&socket, bytes)?;
    }
    bind(&socket, &SocketAddr::new(source, 0))?;
    connect(&socket, &to)?;
    Ok(socket.into())
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, host: &str, path: &str) -> Response {
    Client::connect(address).get(host, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    fn answered_by(script: &'static [u8]) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            while !request.ends_with(b"\r\n\r\n") {
                let got = peer.read(&mut request).unwrap();
                if got == 0 || request[..got].ends_with(b"\r\n\r\n") {
                    break;
                }
            }
            peer.write_all(script).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            let _end = peer.read(&mut request);
        });
        Client::connect(address)
    }

    #[test]
    fn answers_of_all_framings_are_read_in_order() {
        let mut client = answered_by(
            b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 204 No Content\r\n\r\n\
              HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\ncd\r\n0\r\nt: 1\r\n\r\nHTTP/1.1 200 OK\r\n\r\nrest",
        );
        let first = client.get("h", "/");
        assert_eq!((first.status, first.text(), first.interim[0].0), (200, "ab", 103));
        assert_eq!(client.response().length, Length::None);
        let third = client.response();
        assert_eq!((third.text(), third.trailers.get("t")), ("cd", Some("1")));
        let last = client.response();
        assert_eq!((last.text(), last.length), ("rest", Length::UntilClose));
        client.assert_closed();
    }

    #[test]
    fn an_invalid_answer_is_an_error() {
        for script in [
            &b"HTTP/1.1 200\r\n\r\n"[..],
            b"HTTP/2 200 OK\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"garbage\r\n\r\n",
        ] {
            let error = answered_by(script)
                .send_get("h", "/")
                .try_response(false)
                .unwrap_err();
            assert!(matches!(error, WireError::Syntax(_)), "{error:?}");
        }
    }

    #[test]
    fn connections_come_from_the_address_that_is_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let source = "127.0.0.3".parse().unwrap();
        let _stream = connect_from(source, listener.local_addr().unwrap(), Some(4096)).unwrap();
        assert_eq!(listener.accept().unwrap().1.ip(), source);
    }

    #[test]
    fn abort_is_a_reset_for_the_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::connect(listener.local_addr().unwrap());
        let (mut peer, _) = listener.accept().unwrap();
        client.abort();
        assert_eq!(
            peer.read(&mut [0; 1]).unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
    }
}
