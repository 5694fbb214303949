//! A registry in this process that behaves as a test says: a simple one underneath, and a script that may answer in its
//! place. Every request is noted.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use graphroot::Digest;
use serde_json::{Value, json};

/// A request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) query: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Host and port of the registry.
    pub(crate) address: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    pub(crate) fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection breaks.
    cut: Option<usize>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut: None,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// With one `WWW-Authenticate` more.
    pub(crate) fn challenge(self, value: impl Into<String>) -> Self {
        self.header("WWW-Authenticate", value)
    }

    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }
}

type Script = dyn Fn(&Asked) -> Option<Reply> + Send + Sync;

#[derive(Default)]
struct State {
    blobs: BTreeMap<String, Vec<u8>>,
    /// By path, with media types.
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    uploads: BTreeMap<String, Vec<u8>>,
    /// Uploads so far.
    begun: usize,
    log: Vec<Asked>,
}

/// The registry. Its threads end with the test's process.
#[derive(Clone)]
pub(crate) struct OddRegistry {
    state: Arc<Mutex<State>>,
    script: Arc<Script>,
    address: String,
}

/// An image for a registry.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Value,
    pub(crate) layers: Vec<Vec<u8>>,
}

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A descriptor of these bytes.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len()})
}

impl Parts {
    /// An image of these uncompressed layers, with this config, whose `rootfs` is added unless it has one.
    pub(crate) fn new(manifest_type: &str, mut config: Value, layers: &[Vec<u8>]) -> Self {
        let (config_type, layer_type) = match manifest_type {
            DOCKER_MANIFEST => (
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar",
            ),
            _ => (
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar",
            ),
        };
        if config.get("rootfs").is_none() {
            let diff_ids: Vec<_> = layers.iter().map(Digest::sha256).collect();
            config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        }
        let config = config.to_string().into_bytes();
        let blobs: Vec<Value> = layers.iter().map(|layer| descriptor(layer_type, layer)).collect();
        Self {
            manifest: json!({
                "schemaVersion": 2,
                "mediaType": manifest_type,
                "config": descriptor(config_type, &config),
                "layers": blobs,
            }),
            config,
            layers: layers.to_vec(),
        }
    }
}

/// A config that nothing is wrong with.
pub(crate) fn good_config() -> Value {
    json!({"architecture": "amd64", "os": "linux", "created": "2024-05-06T07:08:09Z", "config": {"Cmd": ["/x"]}})
}

impl OddRegistry {
    pub(crate) fn start(script: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self {
            state: Arc::default(),
            script: Arc::new(script),
            address: listener.local_addr().unwrap().to_string(),
        };
        let server = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, stream) = (server.clone(), stream.unwrap());
                // A client that goes away is no failure.
                std::thread::spawn(move || server.answer(stream).ok());
            }
        });
        registry
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The reference of a tag.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("docker://{}/{name}:v1", self.address)
    }

    pub(crate) fn add_blob(&self, name: &str, bytes: &[u8]) {
        let path = format!("/v2/{name}/blobs/{}", Digest::sha256(bytes));
        self.state().blobs.insert(path, bytes.to_vec());
    }

    /// Adds a manifest under its digest and the tag `v1`.
    pub(crate) fn add_manifest(&self, name: &str, manifest: &Value, content_type: &str) -> Digest {
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::sha256(&bytes);
        for reference in ["v1", digest.as_str()] {
            let path = format!("/v2/{name}/manifests/{reference}");
            let entry = (content_type.to_owned(), bytes.clone());
            self.state().manifests.insert(path, entry);
        }
        digest
    }

    /// Adds an image under the tag `v1`. The manifest goes by the media type that it has.
    pub(crate) fn add(&self, name: &str, parts: &Parts) -> Digest {
        for blob in parts.layers.iter().chain([&parts.config]) {
            self.add_blob(name, blob);
        }
        let media_type = parts.manifest["mediaType"].as_str().unwrap_or(OCI_MANIFEST);
        self.add_manifest(name, &parts.manifest, media_type)
    }

    /// The requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state().log.clone()
    }

    /// The requests so far as `METHOD PATH`, and forgets them.
    pub(crate) fn take_log(&self) -> Vec<String> {
        let log = std::mem::take(&mut self.state().log);
        log.iter()
            .map(|asked| format!("{} {}", asked.method, asked.path))
            .collect()
    }

    /// The bytes of a manifest.
    pub(crate) fn manifest(&self, name: &str, reference: &str) -> Option<Vec<u8>> {
        let path = format!("/v2/{name}/manifests/{reference}");
        self.state().manifests.get(&path).map(|(_, bytes)| bytes.clone())
    }

    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut input = BufReader::new(stream);
        // A client that tries TLS first.
        if input.fill_buf()?.first() == Some(&0x16) {
            return input.into_inner().shutdown(Shutdown::Both);
        }
        let asked = read(&mut input, &self.address)?;
        self.state().log.push(asked.clone());
        let reply = match (self.script)(&asked) {
            Some(reply) => reply,
            None => self.usual(&asked),
        };
        let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", reply.body.len());
        let mut stream = input.into_inner();
        stream.write_all(head.as_bytes())?;
        if asked.method != "HEAD" {
            stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])?;
        }
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new())?;
        Ok(())
    }

    /// What a simple registry answers.
    pub(crate) fn usual(&self, asked: &Asked) -> Reply {
        let mut state = self.state();
        let missing = || {
            let body = json!({"errors": [{"code": "NAME_UNKNOWN", "message": "no such thing"}]});
            Reply::new(404, body.to_string())
        };
        let path = asked.path.as_str();
        match asked.method.as_str() {
            _ if path == "/v2/" => Reply::new(200, "{}"),
            "GET" | "HEAD" if path.contains("/manifests/") => match state.manifests.get(path) {
                Some((media_type, bytes)) => {
                    Reply::new(200, bytes.clone()).header("Content-Type", media_type)
                }
                None => missing(),
            },
            "GET" | "HEAD" => match state.blobs.get(path) {
                Some(bytes) => range(asked.header("range"), bytes),
                None => missing(),
            },
            "POST" => {
                state.begun += 1;
                let upload = format!("{path}{}", state.begun);
                state.uploads.insert(upload.clone(), Vec::new());
                Reply::new(202, "").header("Location", upload)
            }
            "PATCH" => {
                let upload = state.uploads.entry(path.to_owned()).or_default();
                upload.extend(&asked.body);
                let end = upload.len().saturating_sub(1);
                Reply::new(202, "")
                    .header("Location", path)
                    .header("Range", format!("0-{end}"))
            }
            "PUT" if path.contains("/manifests/") => {
                let entry = (asked.header("content-type").to_owned(), asked.body.clone());
                let (name, _) = path.rsplit_once('/').unwrap();
                let by_digest = format!("{name}/{}", Digest::sha256(&asked.body));
                state.manifests.insert(by_digest, entry.clone());
                state.manifests.insert(path.to_owned(), entry);
                Reply::new(201, "")
            }
            "PUT" => {
                let mut blob = state.uploads.remove(path).unwrap_or_default();
                blob.extend(&asked.body);
                let digest = Digest::sha256(&blob).to_string();
                if !asked.query.replace("%3A", ":").contains(&digest) {
                    return Reply::new(400, r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#);
                }
                let (name, _) = path.split_once("uploads/").unwrap();
                state.blobs.insert(format!("{name}{digest}"), blob);
                Reply::new(201, "")
            }
            _ => Reply::new(405, ""),
        }
    }
}

/// A blob from the first byte that is asked for.
fn range(header: &str, bytes: &[u8]) -> Reply {
    let start = header
        .strip_prefix("bytes=")
        .and_then(|range| range.strip_suffix('-'));
    match start.and_then(|start| start.parse::<usize>().ok()) {
        Some(start) if start < bytes.len() => {
            let span = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, &bytes[start..]).header("Content-Range", span)
        }
        _ => Reply::new(200, bytes),
    }
}

/// Reads a request with its body, which may come in chunks.
fn read(input: &mut BufReader<TcpStream>, address: &str) -> std::io::Result<Asked> {
    let line = |input: &mut BufReader<TcpStream>| {
        let mut line = String::new();
        input.read_line(&mut line)?;
        Ok::<_, std::io::Error>(line.trim_end().to_owned())
    };
    let first = line(input)?;
    let mut words = first.split(' ');
    let mut asked = Asked {
        method: words.next().unwrap_or_default().to_owned(),
        address: address.to_owned(),
        ..Asked::default()
    };
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (asked.path, asked.query) = (path.to_owned(), query.to_owned());
    loop {
        let header = line(input)?;
        let Some((name, value)) = header.split_once(':') else {
            break;
        };
        asked.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    if asked.header("expect").eq_ignore_ascii_case("100-continue") {
        input.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut take = |length: usize| {
        let mut part = vec![0; length];
        input.read_exact(&mut part)?;
        Ok::<_, std::io::Error>(part)
    };
    if asked.header("transfer-encoding").is_empty() {
        asked.body = take(asked.header("content-length").parse().unwrap_or(0))?;
        return Ok(asked);
    }
    loop {
        let mut size = Vec::new();
        while !size.ends_with(b"\r\n") {
            size.extend(take(1)?);
        }
        let size = String::from_utf8_lossy(&size);
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        asked.body.extend(take(size)?);
        take(2)?;
        if size == 0 {
            return Ok(asked);
        }
    }
}
