//! Asking over HTTP byte by byte: what a polite client does not send can be sent too.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// A server that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// `200`, `404`...
    pub status: u16,
    /// The lines between the status and the body.
    pub headers: String,
    /// The rest.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {self:?}"))
    }
}

/// Asks for `path` with these headers, and no others.
pub fn get(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // In 1.0 the answer is one piece, and the connection ends with it.
    let mut request = format!("GET {path} HTTP/1.0\r\n").into_bytes();
    for (name, value) in headers {
        write!(request, "{name}: {value}\r\n")?;
    }
    request.extend(b"\r\n");
    stream.write_all(&request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("no end of the head")?;
    let (first, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let status = first.split(' ').nth(1).context("no status")?;
    Ok(Answer {
        status: status.parse()?,
        headers: headers.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

/// Asks for `path` as the command and Prometheus do.
pub fn ask(addr: SocketAddr, path: &str) -> Result<Answer> {
    get(addr, path, &[("Host", &addr.to_string())])
}
