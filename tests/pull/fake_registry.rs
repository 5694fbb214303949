//! A registry in this process whose answers a test can spoil.

use std::collections::{HashMap, VecDeque};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use graphroot::Digest;
use serde_json::{Value, json};

use crate::fake_ranges::{self, Answer, Spoil};
use crate::support::oci::layout_blob;
use crate::support::tar::Tar;

/// What to do about one request for a blob.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Close the connection after so many bytes.
    Drop(usize),
    /// Send nothing more after so many bytes, for ever.
    Stall(usize),
    /// Turn one bit around.
    Flip,
    /// Claim another length.
    Length(usize),
    /// Answer with this status and this `Retry-After`.
    Status(u16, &'static str),
    /// Know nothing of ranges.
    NoRange,
    /// Answer requests for more ranges than this with this status.
    AtMost(usize, u16),
    /// Answer a request for ranges in a wrong way.
    Parts(Spoil),
    /// As [`Fault::Parts`], but only requests for several ranges.
    Several(Spoil),
}

/// How the registry wants to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    Basic,
    Bearer,
}

/// A request and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// Where the asked-for range begins.
    pub(crate) start: usize,
    /// The ranges that were asked for.
    pub(crate) ranges: Vec<Range<usize>>,
    /// Whether it came with credentials.
    pub(crate) authorized: bool,
    /// Bytes of the body that were sent.
    pub(crate) sent: usize,
}

#[derive(Debug, Default)]
struct State {
    content: HashMap<String, Vec<u8>>,
    faults: HashMap<String, VecDeque<Fault>>,
    /// What is the matter with requests for a blob after those.
    standing: HashMap<String, Fault>,
    requests: Vec<Request>,
    /// Requests for a token.
    tokens: usize,
    /// Connections that are open.
    open: usize,
    /// Where requests for blobs are sent.
    elsewhere: Option<String>,
    /// Faults of uploads by digest, and how many uploads were begun or finished.
    upload_faults: HashMap<String, VecDeque<Fault>>,
    uploads: HashMap<String, usize>,
    login: Option<Login>,
}

/// The registry. Its threads end with the test's process.
#[derive(Clone, Debug)]
pub(crate) struct FakeRegistry {
    state: Arc<(Mutex<State>, Condvar)>,
    address: String,
}

/// An image that a fake registry has.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) reference: String,
    /// Digests of the layers' blobs.
    pub(crate) layers: Vec<Digest>,
}

impl FakeRegistry {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fake = Self {
            state: Arc::default(),
            address: listener.local_addr().unwrap().to_string(),
        };
        let server = fake.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, stream) = (server.clone(), stream.unwrap());
                std::thread::spawn(move || {
                    server.state().open += 1;
                    // A client that goes away is no failure.
                    server.answer(stream).ok();
                    server.state().open -= 1;
                });
            }
        });
        fake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap()
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Adds an image of these layers (uncompressed tar files).
    pub(crate) fn add(&self, name: &str, layers: &[Vec<u8>]) -> Image {
        self.add_blobs(name, layers, layers, "tar")
    }

    /// Adds an image of these uncompressed layers, of which it gives `blobs`; `format` ends their media type.
    pub(crate) fn add_blobs(&self, name: &str, layers: &[Vec<u8>], blobs: &[Vec<u8>], format: &str) -> Image {
        let diff_ids: Vec<Digest> = layers.iter().map(Digest::sha256).collect();
        let digests: Vec<Digest> = blobs.iter().map(Digest::sha256).collect();
        let media_type = format!("application/vnd.oci.image.layer.v1.{format}");
        let config = serde_json::to_vec(&json!({
            "architecture": "amd64", "os": "linux", "created": "2024-05-06T07:08:09Z", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))
        .unwrap();
        let listed: Vec<_> = blobs
            .iter()
            .zip(&digests)
            .map(|(blob, digest)| json!({"mediaType": media_type, "digest": digest, "size": blob.len()}))
            .collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::sha256(&config),
                "size": config.len(),
            },
            "layers": listed,
        }))
        .unwrap();
        let mut state = self.state();
        for blob in blobs.iter().chain([&config]) {
            let path = format!("/v2/{name}/blobs/{}", Digest::sha256(blob));
            state.content.insert(path, blob.clone());
        }
        state.content.insert(format!("/v2/{name}/manifests/v1"), manifest);
        Image {
            reference: format!("docker://{}/{name}:v1", self.address),
            layers: digests,
        }
    }

    /// Adds the only image of an OCI layout.
    pub(crate) fn add_layout(&self, name: &str, dir: &Path) -> Image {
        let index = std::fs::read(dir.join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let manifest = layout_blob(dir, index["manifests"][0]["digest"].as_str().unwrap());
        let document: Value = serde_json::from_slice(&manifest).unwrap();
        let digest = |blob: &Value| -> Digest { blob["digest"].as_str().unwrap().parse().unwrap() };
        let layers: Vec<Digest> = document["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(digest)
            .collect();
        let mut state = self.state();
        for blob in layers.iter().chain([&digest(&document["config"])]) {
            let content = layout_blob(dir, blob.as_str());
            state.content.insert(format!("/v2/{name}/blobs/{blob}"), content);
        }
        state.content.insert(format!("/v2/{name}/manifests/v1"), manifest);
        Image {
            reference: format!("docker://{}/{name}:v1", self.address),
            layers,
        }
    }

    /// Lets requests for a blob fail in these ways, in turn; the last way is for all that follow if `for_ever`.
    pub(crate) fn fail(&self, blob: &Digest, faults: &[Fault]) {
        self.state()
            .faults
            .insert(blob.to_string(), faults.iter().cloned().collect());
    }

    /// Lets all requests for a blob fail in this way, unless [`FakeRegistry::fail`] says otherwise.
    pub(crate) fn fail_always(&self, blob: &Digest, fault: Fault) {
        self.state().standing.insert(blob.to_string(), fault);
    }

    /// Sends requests for blobs on to another registry from now on.
    pub(crate) fn redirect(&self, to: &Self) {
        self.state().elsewhere = Some(to.address.clone());
    }

    /// Requests for a token so far.
    pub(crate) fn tokens(&self) -> usize {
        self.state().tokens
    }

    /// Connections that are open.
    pub(crate) fn open_connections(&self) -> usize {
        self.state().open
    }

    /// Lets uploads of a blob fail in these ways, in turn.
    pub(crate) fn fail_upload(&self, blob: &Digest, faults: &[Fault]) {
        self.state()
            .upload_faults
            .insert(blob.to_string(), faults.iter().cloned().collect());
    }

    /// Uploads of a blob so far, those that failed included.
    pub(crate) fn uploads(&self, blob: &Digest) -> usize {
        self.state().uploads.get(blob.as_str()).copied().unwrap_or(0)
    }

    /// Asks for credentials (the password `secret` of `user`, or the identity token `refresh`) from now on.
    pub(crate) fn lock(&self, login: Login) {
        self.state().login = Some(login);
    }

    /// Requests for a blob so far.
    pub(crate) fn requests(&self, blob: &Digest) -> Vec<Request> {
        let state = self.state();
        let requests = state.requests.iter();
        requests
            .filter(|request| request.path.ends_with(blob.as_str()))
            .cloned()
            .collect()
    }

    /// Waits until so many bytes of a blob have been sent since ever.
    pub(crate) fn wait_for_bytes(&self, blob: &Digest, bytes: usize) {
        let sent = |state: &State| -> usize {
            let requests = state.requests.iter();
            requests
                .filter(|request| request.path.ends_with(blob.as_str()))
                .map(|request| request.sent)
                .sum()
        };
        let timeout = std::time::Duration::from_secs(60);
        let wait = self
            .state
            .1
            .wait_timeout_while(self.state(), timeout, |state| sent(state) < bytes);
        assert!(
            !wait.unwrap().1.timed_out(),
            "the client does not read {bytes} bytes"
        );
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let (method, path) = {
            let mut words = head.split(' ');
            (words.next().unwrap(), words.next().unwrap().to_owned())
        };
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let authorization = header("authorization").unwrap_or_default();
        // `user:secret`
        let basic = "Basic dXNlcjpzZWNyZXQ=";
        let length: usize = header("content-length").map_or(0, |text| text.parse().unwrap());
        if path.starts_with("/token") {
            let mut form = vec![0; length];
            stream.read_exact(&mut form)?;
            self.state().tokens += 1;
            let refreshes = String::from_utf8(form)
                .unwrap()
                .contains("refresh_token=refresh&");
            let body = if authorization == basic || refreshes {
                r#"{"token":"sesame"}"#
            } else {
                "{}"
            };
            return respond(&mut stream, 200, "", body.as_bytes());
        }
        let challenge = match self.state().login {
            Some(Login::Basic) if authorization != basic => Some("Basic realm=\"here\"".to_owned()),
            Some(Login::Bearer) if authorization != "Bearer sesame" => Some(format!(
                "Bearer realm=\"http://{}/token\",service=\"here\"",
                self.address
            )),
            _ => None,
        };
        if let Some(challenge) = challenge {
            return respond(
                &mut stream,
                401,
                &format!("WWW-Authenticate: {challenge}\r\n"),
                b"",
            );
        }
        if method != "GET" {
            return self.write(&mut stream, method, &path, length);
        }
        let elsewhere = self.state().elsewhere.clone();
        if let Some(to) = elsewhere
            && path.contains("/blobs/")
        {
            let location = format!("Location: http://{to}{path}\r\n");
            self.note(&path, Vec::new(), !authorization.is_empty());
            return respond(&mut stream, 307, &location, b"");
        }
        let (content, fault) = {
            let mut state = self.state();
            let Some(content) = state.content.get(&path).cloned() else {
                drop(state);
                let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such thing"}]}"#;
                return respond(&mut stream, 404, "", body);
            };
            let digest = path.rsplit('/').next().unwrap();
            let fault = state.faults.get_mut(digest).and_then(VecDeque::pop_front);
            let fault = fault.or_else(|| state.standing.get(digest).cloned());
            (content, fault)
        };
        let ranges = fake_ranges::asked(header("range").as_deref(), content.len());
        let index = self.note(&path, ranges.clone(), !authorization.is_empty());
        match fault {
            Some(Fault::Status(status, after)) => {
                respond(&mut stream, status, &format!("Retry-After: {after}\r\n"), b"")
            }
            Some(Fault::AtMost(most, status)) if ranges.len() > most => {
                let size = format!("Content-Range: bytes */{}\r\n", content.len());
                respond(&mut stream, status, &size, b"")
            }
            fault => self.send(stream, content, &ranges, fault, index),
        }
    }

    /// Notes a request for a blob or manifest and returns its number.
    fn note(&self, path: &str, ranges: Vec<Range<usize>>, authorized: bool) -> usize {
        let mut state = self.state();
        state.requests.push(Request {
            path: path.to_owned(),
            start: ranges.first().map_or(0, |range| range.start),
            ranges,
            authorized,
            sent: 0,
        });
        state.requests.len() - 1
    }

    /// Answers a question for a blob, or takes a blob or manifest.
    fn write(&self, stream: &mut TcpStream, method: &str, path: &str, length: usize) -> std::io::Result<()> {
        let repository = |at: &str| path.split(at).next().unwrap().to_owned();
        match method {
            "HEAD" if self.state().content.contains_key(path) => respond(stream, 200, "", b""),
            "HEAD" => respond(stream, 404, "", b""),
            "POST" => {
                let location = format!("Location: {}/upload?state=1\r\n", repository("/blobs/"));
                respond(stream, 202, &location, b"")
            }
            _ => {
                let (key, fault) = match path.split_once("&digest=") {
                    Some((_, digest)) => {
                        let digest = digest.replace("%3A", ":");
                        let mut state = self.state();
                        *state.uploads.entry(digest.clone()).or_default() += 1;
                        let faults = state.upload_faults.get_mut(&digest);
                        let fault = faults.and_then(VecDeque::pop_front);
                        (format!("{}/blobs/{digest}", repository("/upload?")), fault)
                    }
                    None => (path.to_owned(), None),
                };
                let wanted = match fault {
                    Some(Fault::Drop(bytes)) => bytes,
                    _ => length,
                };
                let mut body = vec![0; wanted];
                stream.read_exact(&mut body)?;
                match fault {
                    None => {
                        if let Some((name, _)) = key.split_once("/manifests/") {
                            let by_digest = format!("{name}/manifests/{}", Digest::sha256(&body));
                            self.state().content.insert(by_digest, body.clone());
                        }
                        self.state().content.insert(key, body);
                        respond(stream, 201, "", b"")
                    }
                    Some(Fault::Status(status, after)) => {
                        respond(stream, status, &format!("Retry-After: {after}\r\n"), b"")
                    }
                    // The connection is closed.
                    Some(_) => Ok(()),
                }
            }
        }
    }

    fn send(
        &self,
        mut stream: TcpStream,
        mut content: Vec<u8>,
        ranges: &[Range<usize>],
        fault: Option<Fault>,
        index: usize,
    ) -> std::io::Result<()> {
        let total = content.len();
        if let Some(Fault::Flip) = fault {
            content[total / 2] ^= 1;
        }
        let answer = match fault {
            _ if ranges.is_empty() => None,
            Some(Fault::NoRange) => None,
            Some(Fault::Parts(spoil)) => Some(fake_ranges::answer(&content, ranges, Some(spoil))),
            Some(Fault::Several(spoil)) if ranges.len() > 1 => {
                Some(fake_ranges::answer(&content, ranges, Some(spoil)))
            }
            _ => Some(fake_ranges::answer(&content, ranges, None)),
        };
        let answer = answer.unwrap_or(Answer {
            status: 200,
            headers: String::new(),
            body: content,
        });
        let mut body = &answer.body[..];
        let mut length = body.len();
        if let Some(Fault::Length(claimed)) = fault {
            length = claimed;
        }
        let head = format!(
            "HTTP/1.1 {} Status\r\n{}Content-Length: {length}\r\nConnection: close\r\n\r\n",
            answer.status, answer.headers
        );
        stream.write_all(head.as_bytes())?;
        if let Some(Fault::Drop(bytes) | Fault::Stall(bytes)) = fault {
            body = &body[..bytes.min(body.len())];
        }
        for chunk in body.chunks(64 * 1024) {
            // Noted first: the client may be done before this thread goes on.
            self.state().requests[index].sent += chunk.len();
            stream.write_all(chunk)?;
            self.state.1.notify_all();
        }
        if let Some(Fault::Stall(_)) = fault {
            // Until the client has had enough.
            stream.read_to_end(&mut Vec::new())?;
        }
        stream.shutdown(Shutdown::Write)?;
        // What the client still sends must not reset the connection under what it has not read yet.
        stream.read_to_end(&mut Vec::new())?;
        Ok(())
    }
}

fn respond(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status} Status\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A layer with one file of so many MiB that do not repeat.
pub(crate) fn layer(name: &str, mebibytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ name.len() as u64;
    let mut content = Vec::with_capacity(mebibytes << 20);
    while content.len() < mebibytes << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend(state.to_le_bytes());
    }
    Tar::new().file(name, content).build()
}
