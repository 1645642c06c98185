//! An HTTP/1.1 client of one kept-alive connection: blocking, without copies of what is sent, and answers are only counted.
//!
//! Knows what a server of this kind sends: a status line, `Content-Length`, a body. Anything else is an error.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// How long an answer may take before the measurement is given up.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of an answer's head.
const HEAD_MAX: usize = 64 << 10;

/// A whole request as it goes over the wire. Clones share their bytes.
#[derive(Debug, Clone)]
pub struct Request(Arc<[u8]>);

impl Request {
    /// A `POST`; `headers` are lines, each with its `\r\n`.
    pub fn post(path: &str, headers: &str, body: &[u8]) -> Request {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n");
        Request([head.as_bytes(), body].concat().into())
    }

    pub fn get(path: &str) -> Request {
        Request(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes().into())
    }
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body_bytes: usize,
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// # Errors
    /// Where nobody listens there.
    pub fn connect(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Client { stream, buffer: vec![0; HEAD_MAX] })
    }

    /// Sends a request and waits for the last byte of its answer.
    ///
    /// # Errors
    /// Where the connection ends, nothing comes for two minutes, or the answer cannot be read.
    pub fn send(&mut self, request: &Request) -> io::Result<Answer> {
        self.stream.write_all(&request.0)?;
        let (head, have) = self.read_head()?;
        let mut left = head.body_bytes.checked_sub(have).ok_or_else(|| bad("more bytes than its Content-Length"))?;
        while left > 0 {
            let most = left.min(self.buffer.len());
            let got = self.stream.read(self.buffer.get_mut(..most).unwrap_or_default())?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= got;
        }
        Ok(head)
    }

    /// The head, and how many bytes of the body came with it.
    fn read_head(&mut self) -> io::Result<(Answer, usize)> {
        let mut filled = 0;
        loop {
            let free = self.buffer.get_mut(filled..).filter(|free| !free.is_empty());
            let got = self.stream.read(free.ok_or_else(|| bad("a head without an end"))?)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += got;
            let seen = self.buffer.get(..filled).unwrap_or_default();
            if let Some(end) = end_of_head(seen) {
                return Ok((parse(seen.get(..end).unwrap_or_default())?, filled - end));
            }
        }
    }

    /// Sends a request and gives the body of its answer as well.
    ///
    /// # Errors
    /// As [`Client::send`]; where the body has more than `limit` bytes.
    pub fn fetch(&mut self, request: &Request, limit: usize) -> io::Result<(Answer, Vec<u8>)> {
        let sent = self.stream.write_all(&request.0);
        // Who refuses a large body answers before its end, and closes.
        let (head, have) = match (self.read_head(), sent) {
            (Ok(read), _) => read,
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(error),
        };
        let left = head.body_bytes.checked_sub(have).ok_or_else(|| bad("more bytes than its Content-Length"))?;
        if head.body_bytes > limit {
            return Err(bad("a larger body than expected"));
        }
        let end = end_of_head(&self.buffer).unwrap_or(0);
        let mut body = self.buffer.get(end..end + have).unwrap_or_default().to_vec();
        body.resize(have + left, 0);
        self.stream.read_exact(body.get_mut(have..).unwrap_or_default())?;
        Ok((head, body))
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn parse(head: &[u8]) -> io::Result<Answer> {
    let head = std::str::from_utf8(head).map_err(|_| bad("a head that is not text"))?;
    let status = head.get(9..12).and_then(|digits| digits.parse().ok()).filter(|_| head.starts_with("HTTP/1.1 "));
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    Ok(Answer {
        status: status.ok_or_else(|| bad("no HTTP/1.1 status"))?,
        body_bytes: length.ok_or_else(|| bad("no Content-Length"))?,
    })
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the answer has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_status_and_length() {
        let check = |head: &str, expected: Result<(u16, usize), &str>| match (parse(head.as_bytes()), expected) {
            (Ok(got), Ok((status, body_bytes))) => assert_eq!(got, Answer { status, body_bytes }),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (got, expected) => panic!("{head:?}: {got:?}, expected {expected:?}"),
        };
        check("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", Ok((200, 12)));
        check("HTTP/1.1 503 Busy\r\ncontent-length:0\r\n\r\n", Ok((503, 0)));
        check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Err("no Content-Length"));
        check("SSH-2.0\r\n\r\n", Err("no HTTP/1.1 status"));
    }

    #[test]
    fn an_answer_is_read_to_its_end_however_it_is_cut() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let tasks = crate::tasks::Tasks::new();
        tasks
            .thread("peer", move || {
                let mut request = [0; 4096];
                for pieces in [
                    vec!["HTTP/1.1 200 OK\r\nConte", "nt-Length: 3\r\n\r\na", "bc"],
                    vec!["HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"],
                ] {
                    assert!(peer.read(&mut request).unwrap() > 0);
                    for piece in pieces {
                        peer.write_all(piece.as_bytes()).unwrap();
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            })
            .unwrap();
        let (answer, body) = client.fetch(&Request::post("/x", "", b"body"), 10).unwrap();
        assert_eq!((answer.status, body.as_slice()), (200, b"abc".as_slice()));
        assert_eq!(client.send(&Request::get("/y")).unwrap(), Answer { status: 404, body_bytes: 0 });
        assert!(client.send(&Request::get("/z")).is_err());
    }
}
