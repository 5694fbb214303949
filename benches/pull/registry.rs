//! A registry in memory that tells how many bytes of blobs it has sent.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::Res;

/// A running `docker-registry`. Ends with the benchmark.
pub(crate) struct Registry {
    child: Child,
    pub(crate) address: String,
    log: PathBuf,
    /// Calls of [`Registry::sent`].
    marks: std::cell::Cell<usize>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It has nothing to lose.
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

impl Registry {
    /// One that has its files in `dir`.
    pub(crate) fn start(dir: &Path) -> Res<Self> {
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}/registry}}}}\nhttp: {{addr: 127.0.0.1:0}}\n",
            dir.display()
        );
        std::fs::write(&config, text)?;
        let log = dir.join("access.log");
        // It tells its address at a level that says too much of everything else.
        let address = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .to_string();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env("REGISTRY_HTTP_ADDR", &address)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(std::fs::File::create(&log)?)
            .stderr(Stdio::null())
            .spawn()?;
        let registry = Self {
            child,
            address,
            log,
            marks: 0.into(),
        };
        for _ in 0..500 {
            if TcpStream::connect(&registry.address).is_ok() {
                return Ok(registry);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Err("the registry does not listen".into())
    }

    /// Bytes of blobs that were sent so far.
    pub(crate) fn sent(&self) -> Res<u64> {
        // A request is logged after it was answered, one after the other.
        let mark = self.marks.replace(self.marks.get() + 1);
        let mark = format!("/v2/mark{mark}/tags/list");
        let mut stream = TcpStream::connect(&self.address)?;
        write!(stream, "GET {mark} HTTP/1.0\r\n\r\n")?;
        stream.read_to_end(&mut Vec::new())?;
        loop {
            let (mut sum, mut is_there) = (0, false);
            for line in BufReader::new(std::fs::File::open(&self.log)?).lines() {
                let line = line?;
                let mut quoted = line.split('"');
                let request = quoted.nth(1).unwrap_or_default();
                let mut answer = quoted.next().unwrap_or_default().split_whitespace();
                let (status, length) = (answer.next().unwrap_or_default(), answer.next());
                is_there |= request.contains(&mark);
                if request.starts_with("GET ") && request.contains("/blobs/") && status.starts_with('2') {
                    sum += length.and_then(|length| length.parse().ok()).unwrap_or(0);
                }
            }
            if is_there {
                return Ok(sum);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
