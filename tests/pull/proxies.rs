//! Pulls through proxies, beside Skopeo with the same variables.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use graphroot::oci::{ClientIdentity, Proxies, PullOptions, Puller, RegistryOptions, TlsOptions, Transport};

use crate::fake_registry::layer;
use crate::odd_registry::{OCI_MANIFEST, OddRegistry, Parts, good_config};
use crate::registry::Registry;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::{each_set, needs};
use crate::tls::make_certificates;

/// A proxy that leads everything to one place, and notes what it is asked for.
#[derive(Clone)]
struct Proxy {
    address: String,
    /// `METHOD TARGET` and `Proxy-Authorization`, without paths.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Leads to `http` for requests without TLS, and to `tls` for connections, if there is such a place.
    fn start(http: String, tls: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap().to_string(),
            asked: Arc::default(),
        };
        let server = proxy.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, http, tls) = (server.clone(), http.clone(), tls.clone());
                let stream = stream.unwrap();
                // A client that goes away is no failure.
                std::thread::spawn(move || server.answer(stream, &http, tls.as_deref()).ok());
            }
        });
        proxy
    }

    fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
            .into_iter()
            .collect()
    }

    fn answer(&self, stream: TcpStream, http: &str, tls: Option<&str>) -> std::io::Result<()> {
        let mut input = BufReader::new(stream.try_clone()?);
        if input.fill_buf()?.first() == Some(&5) {
            return self.answer_socks(input, stream, http);
        }
        let (mut lines, mut authorization) = (Vec::new(), String::new());
        loop {
            let mut line = String::new();
            input.read_line(&mut line)?;
            match line.trim_end() {
                "" => break,
                line if line.to_ascii_lowercase().starts_with("proxy-authorization:") => {
                    authorization = line.split_once(':').unwrap().1.to_owned();
                }
                line => lines.push(line.to_owned()),
            }
        }
        let first = lines.remove(0);
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let (place, path) = match target.strip_prefix("http://") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => (target, ""),
        };
        let is_connect = method == "CONNECT";
        let shown = if is_connect { "CONNECT" } else { "http" };
        self.asked
            .lock()
            .unwrap()
            .push(format!("{shown} {place}{authorization}"));
        let mut output = stream;
        if is_connect {
            let Some(tls) = tls else {
                return output.write_all(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n");
            };
            output.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            return splice(input, output, TcpStream::connect(tls)?);
        }
        let mut to = TcpStream::connect(http)?;
        lines.retain(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{}\r\nConnection: close\r\n\r\n",
            lines.join("\r\n")
        );
        to.write_all(head.as_bytes())?;
        std::io::copy(&mut to, &mut output)?;
        output.shutdown(Shutdown::Both)
    }

    /// SOCKS 5 without credentials.
    fn answer_socks(
        &self,
        mut input: BufReader<TcpStream>,
        mut output: TcpStream,
        http: &str,
    ) -> std::io::Result<()> {
        let mut take = |count: usize| -> std::io::Result<Vec<u8>> {
            let mut bytes = vec![0; count];
            input.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let methods = take(2)?[1];
        take(methods.into())?;
        output.write_all(&[5, 0])?;
        let kind = take(4)?[3];
        assert_eq!(kind, 3, "a name");
        let length = take(1)?[0];
        let host = String::from_utf8(take(length.into())?).unwrap();
        let port = take(2)?;
        let port = u16::from_be_bytes([port[0], port[1]]);
        self.asked.lock().unwrap().push(format!("socks {host}:{port}"));
        output.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
        splice(input, output, TcpStream::connect(http)?)
    }
}

/// Lets two sides talk to each other.
fn splice(
    mut from: BufReader<TcpStream>,
    mut to_client: TcpStream,
    server: TcpStream,
) -> std::io::Result<()> {
    let (mut to_server, mut from_server) = (server.try_clone()?, server);
    std::thread::spawn(move || {
        std::io::copy(&mut from, &mut to_server).ok();
        to_server.shutdown(Shutdown::Write).ok();
    });
    std::io::copy(&mut from_server, &mut to_client)?;
    to_client.shutdown(Shutdown::Write)
}

fn registry() -> OddRegistry {
    let registry = OddRegistry::start(|_| None);
    registry.add(
        "team/app",
        &Parts::new(OCI_MANIFEST, good_config(), &[layer("a", 1)]),
    );
    registry
}

fn options(variables: &[(&str, String)]) -> RegistryOptions {
    RegistryOptions::default()
        .retries(0)
        .stall(Duration::from_secs(20))
        .tls_verify(Some(false))
        .proxies(Proxies::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.clone())
        }))
}

async fn the_same_requests_go_through_a_proxy(set: PeerSet) {
    let registry = registry();
    let proxy = Proxy::start(registry.address().to_owned(), None);
    let root = TestRoot::in_memory().of(set);
    let store = root.open().await;
    let at = proxy.address.as_str();
    let (url, secret) = (format!("http://{at}"), format!("http://us%40er:pass@{at}"));
    let socks = format!("socks5://{at}");
    let of = |pairs: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
        pairs
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect()
    };
    let both = |no: &str| of(&[("HTTP_PROXY", &url), ("HTTPS_PROXY", &url), ("NO_PROXY", no)]);
    // Nothing listens at an address of many machines, and that is known at once.
    let (name, ip) = ("registry.invalid:5000", "224.0.0.9:5000");
    let mut cases = vec![
        (of(&[]), name),
        (both(""), name),
        (both(""), ip),
        (both(""), "registry.invalid"),
        (of(&[("HTTP_PROXY", at)]), name),
        (of(&[("HTTPS_PROXY", &url)]), name),
        (of(&[("http_proxy", &url)]), name),
        (of(&[("https_proxy", &url), ("no_proxy", "x")]), name),
        (of(&[("HTTP_PROXY", ""), ("http_proxy", &url)]), name),
        (of(&[("ALL_PROXY", &url)]), name),
        (of(&[("HTTP_PROXY", &secret), ("HTTPS_PROXY", &secret)]), name),
        (of(&[("HTTP_PROXY", &socks)]), name),
        (of(&[("HTTP_PROXY", &url), ("no_proxy", "*")]), name),
        (both(""), registry.address()),
    ];
    for no in [
        "*",
        "registry.invalid",
        "invalid",
        ".registry.invalid",
        "*.registry.invalid",
        "*.invalid",
        "REGISTRY.invalid:5000",
        "registry.invalid:5001",
        "egistry.invalid",
        "a, ,registry.invalid ",
    ] {
        cases.push((both(no), name));
    }
    for no in [
        "*",
        "224.0.0.0/24",
        "224.0.1.0/24",
        "224.0.0.9",
        "224.0.0.9:5000",
        "224.0.0.9:5001",
        "0.0.9",
    ] {
        cases.push((both(no), ip));
    }
    for (variables, host) in cases {
        let image = format!("docker://{host}/team/app:v1");
        let to = format!("dir:{}", root.scratch("to").display());
        let mut skopeo = root
            .skopeo()
            .words("copy --quiet --src-tls-verify=false")
            .with([&image, &to]);
        skopeo.envs(variables.iter().map(|(name, value)| (*name, value)));
        let theirs = skopeo.output().unwrap();
        let said = String::from_utf8_lossy(&theirs.stderr);
        let (theirs, asked) = (theirs.status.success(), proxy.take());
        let puller = Puller::new(&store, PullOptions::default().registry(options(&variables)));
        let ours = puller.pull_as(&image.parse().unwrap(), &[]).await;
        assert_eq!(ours.is_ok(), theirs, "{variables:?} {host}: {ours:?} {said}");
        assert_eq!(proxy.take(), asked, "{variables:?} {host}: {ours:?} {said}");
        if let Err(error) = ours {
            assert!(!error.chain().contains("pass"), "{}", error.chain());
        }
    }
}
each_set!(newer async the_same_requests_go_through_a_proxy: "skopeo");

#[tokio::test(flavor = "multi_thread")]
async fn connections_with_tls_are_led_through() {
    needs!("openssl", "docker-registry");
    let set = PeerSet::Forky;
    if !set.is_ready(&["skopeo"]) {
        return;
    }
    let root = TestRoot::in_memory().of(set);
    let certificates = root.scratch("certificates");
    make_certificates(&certificates);
    let read = |name: &str| std::fs::read(certificates.join(name)).unwrap();
    let server = Registry::start_with_tls(
        &root.scratch("registry"),
        &root.path().join("data"),
        &certificates,
    );
    let proxy = Proxy::start("127.0.0.1:1".into(), Some(server.address().to_owned()));
    let variables = [("HTTPS_PROXY", format!("http://user:pass@{}", proxy.address))];
    let tls = TlsOptions::default()
        .transport(Transport::TlsUnverified)
        .identity(Some(ClientIdentity::from_pem(
            read("client.pem"),
            read("client.key"),
        )));
    let host = "registry.invalid";

    let other = registry();
    let to = format!("docker://{host}/team/app:v1");
    let shown = root.scratch("shown");
    for (name, file) in [("client.cert", "client.pem"), ("client.key", "client.key")] {
        std::fs::write(shown.join(name), read(file)).unwrap();
    }
    let mut skopeo = root
        .skopeo()
        .words("copy --quiet --src-tls-verify=false --dest-tls-verify=false --dest-cert-dir")
        .with([&shown])
        .with([&other.image("team/app"), &to]);
    skopeo.envs(variables.iter().map(|(name, value)| (*name, value)));
    skopeo.run();
    let asked = proxy.take();
    assert_eq!(
        asked,
        BTreeSet::from([format!("CONNECT {host}:443 Basic dXNlcjpwYXNz")])
    );

    let store = root.open().await;
    let registry = options(&variables).tls_for(host, tls);
    let puller = Puller::new(&store, PullOptions::default().registry(registry));
    puller.pull(&to.parse().unwrap()).await.unwrap();
    assert_eq!(proxy.take(), asked);
}
