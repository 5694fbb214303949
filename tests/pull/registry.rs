//! A real registry (`docker-registry`) on a free port of this machine.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::locks::wait_until;

/// A running registry; ends when dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    child: Child,
    address: String,
    access_log: PathBuf,
}

impl Registry {
    /// Starts a registry that has its files in `dir` and what it serves in `data`.
    pub(crate) fn start(dir: &Path, data: &Path) -> Self {
        Self::start_with(dir, data, "")
    }

    /// As [`Registry::start`], with TLS: a directory has `server.pem`, `server.key`, and the authority `ca.pem` of the
    /// clients' certificates, which are required.
    pub(crate) fn start_with_tls(dir: &Path, data: &Path, certificates: &Path) -> Self {
        let tls = format!(
            ", tls: {{certificate: {0}/server.pem, key: {0}/server.key, clientcas: [{0}/ca.pem]}}",
            certificates.display()
        );
        Self::start_with(dir, data, &tls)
    }

    fn start_with(dir: &Path, data: &Path, http: &str) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:0{http}}}\n",
            data.display()
        );
        std::fs::write(&config, text).unwrap();
        let access_log = dir.join("access.log");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&access_log).unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut messages = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let address = loop {
            let mut line = String::new();
            assert!(messages.read_line(&mut line).unwrap() > 0, "no registry: {seen}");
            if let Some((_, rest)) = line.split_once("listening on ") {
                let end = rest.find([',', '"', ' ']).unwrap();
                break rest[..end].to_owned();
            }
            seen.push_str(&line);
        };
        // The rest is not read, but the registry must be able to write.
        std::thread::spawn(move || std::io::copy(&mut messages, &mut std::io::sink()));
        Self {
            child,
            address,
            access_log,
        }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Name of an image of the library.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/team/{name}:v1", self.address)
    }

    /// Requests so far, as `METHOD PATH` and status.
    pub(crate) fn requests(&self) -> Vec<(String, String)> {
        let log = std::fs::read_to_string(&self.access_log).unwrap();
        let line = |line: &str| {
            let mut quoted = line.split('"');
            let request = quoted.nth(1)?.rsplit_once(' ')?.0.to_owned();
            let status = quoted.next()?.split_whitespace().next()?.to_owned();
            Some((request, status))
        };
        log.lines().filter_map(line).collect()
    }

    /// How often each blob was sent, the first `from` requests not counted.
    pub(crate) fn blobs_sent(&self, from: usize) -> BTreeMap<String, usize> {
        let mut sent = BTreeMap::new();
        for (request, status) in self.requests().into_iter().skip(from) {
            if let Some((_, digest)) = request
                .strip_prefix("GET ")
                .and_then(|path| path.split_once("/blobs/"))
                && status.starts_with('2')
            {
                *sent.entry(digest.to_owned()).or_default() += 1;
            }
        }
        sent
    }

    /// Waits until all requests of the past are in the log; a request is logged after it was answered.
    pub(crate) fn settle(&self, mark: &str) {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET /v2/{mark}/tags/list HTTP/1.0\r\n\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        wait_until("the log is written", || {
            self.requests().iter().any(|(request, _)| request.contains(mark))
        });
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
