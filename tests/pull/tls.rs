//! TLS by value: roots, client certificates, unverified connections; nothing chosen for the whole process.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use graphroot::ErrorKind;
use graphroot::oci::{
    ClientIdentity, PullOptions, Puller, PushOptions, RegistriesConf, RegistryOptions, TlsOptions, Transport,
    push,
};

use crate::fake_registry::{FakeRegistry, layer};
use crate::registry::Registry;
use crate::support::needs;
use crate::support::peers::Run as _;
use crate::support::root::TestRoot;

/// Makes a certificate authority, and certificates of a server on this machine and of a client.
pub(crate) fn make_certificates(dir: &Path) {
    let openssl = |words: &str| {
        let mut command = Command::new("openssl");
        command.current_dir(dir).args(words.split(' '));
        command.run();
    };
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30";
    std::fs::write(dir.join("server.ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    std::fs::write(dir.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    openssl(&format!(
        "req -x509 {curve} -subj /CN=authority -keyout ca.key -out ca.pem"
    ));
    for name in ["server", "client"] {
        openssl(&format!(
            "req {} -subj /CN={name} -keyout {name}.key -out {name}.csr",
            curve.replace(" -days 30", "")
        ));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile {name}.ext -out {name}.pem"
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_and_client_certificates_are_given_by_value() {
    needs!("openssl", "docker-registry");
    let root = TestRoot::in_memory();
    let certificates = root.scratch("certificates");
    make_certificates(&certificates);
    let read = |name: &str| std::fs::read(certificates.join(name)).unwrap();
    let registry = Registry::start_with_tls(
        &root.scratch("registry"),
        &root.path().join("data"),
        &certificates,
    );

    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 1)]);
    let store = root.open().await;
    let pulled = Puller::new(&store, PullOptions::default())
        .pull(&image.reference.parse().unwrap())
        .await
        .unwrap();
    let id = pulled.image.id().to_owned();

    let identity = || Some(ClientIdentity::from_pem(read("client.pem"), read("client.key")));
    let trusting = || TlsOptions::default().root_certificate(read("ca.pem"));
    let unverified = || TlsOptions::default().transport(Transport::TlsUnverified);
    let name = format!("docker://{}/team/app:v1", registry.address());
    let pushed = async |tls: TlsOptions| {
        let options = RegistryOptions::default()
            .retries(0)
            .tls_for(registry.address(), tls);
        let options = PushOptions::default().registry(options);
        push(&store, &id, &name.parse().unwrap(), options).await
    };
    for (tls, why) in [
        (
            TlsOptions::default().identity(identity()),
            "the root is not known",
        ),
        (trusting(), "no client certificate"),
        (unverified(), "no client certificate"),
        (
            TlsOptions::default().transport(Transport::Plain),
            "the registry speaks TLS",
        ),
    ] {
        let error = pushed(tls).await.expect_err(why);
        assert_eq!(error.kind(), ErrorKind::Registry, "{why}: {error:?}");
    }
    let bad = pushed(trusting().identity(Some(ClientIdentity::from_pem("x", "y")))).await;
    assert_eq!(bad.unwrap_err().kind(), ErrorKind::InvalidInput);
    pushed(trusting().identity(identity())).await.unwrap();
    pushed(unverified().identity(identity())).await.unwrap();

    let other = TestRoot::in_memory();
    // For all registries instead of this one: a registry on this machine is then still plain.
    let options = RegistryOptions::default()
        .retries(0)
        .tls_for(registry.address(), trusting().identity(identity()));
    let puller = Puller::new(&other.open().await, PullOptions::default().registry(options));
    let back = puller.pull(&name.parse().unwrap()).await.unwrap();
    assert_eq!(back.image.id(), id);

    // A registry on this machine speaks TLS where there are certificates for it, or where the configuration says so.
    let identity_only = TlsOptions::default().identity(identity());
    let default = RegistryOptions::default().retries(0).tls(identity_only);
    let pulled = async |options: &RegistryOptions| {
        let store = other.open().await;
        let options = PullOptions::default().registry(options.clone());
        Puller::new(&store, options).pull(&name.parse().unwrap()).await
    };
    assert_eq!(pulled(&default).await.unwrap_err().kind(), ErrorKind::Registry);
    let own = root.scratch("certs.d").join(registry.address());
    std::fs::create_dir(&own).unwrap();
    let with_own = default.clone().certificate_directories([root.scratch("certs.d")]);
    let certificate = |name: &str| std::fs::copy(certificates.join(name), own.join("root.crt")).unwrap();
    certificate("client.pem");
    assert_eq!(pulled(&with_own).await.unwrap_err().kind(), ErrorKind::Registry);
    certificate("ca.pem");
    pulled(&with_own).await.unwrap();
    let conf = format!(
        "[[registry]]\nlocation = '{}'\ninsecure = false\n",
        registry.address()
    );
    let secure = default.registries_conf(RegistriesConf::parse(&conf).unwrap());
    assert_eq!(pulled(&secure).await.unwrap_err().kind(), ErrorKind::Registry);

    assert!(
        rustls::crypto::CryptoProvider::get_default().is_none(),
        "the program that links the library chooses"
    );
}

/// Passes connections on to a registry; those that begin with TLS it keeps open and says nothing.
fn silent_about_tls(registry: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let (stream, mut first) = (stream.unwrap(), [0]);
            if stream.peek(&mut first).unwrap_or(0) == 1 && first != [0x16] {
                let other = TcpStream::connect(&registry).unwrap();
                for (mut from, mut to) in [
                    (stream.try_clone().unwrap(), other.try_clone().unwrap()),
                    (other, stream),
                ] {
                    std::thread::spawn(move || {
                        std::io::copy(&mut from, &mut to).ok();
                        to.shutdown(std::net::Shutdown::Write).ok();
                    });
                }
            } else {
                kept.push(stream);
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_registry_that_neither_answers_nor_closes_is_soon_asked_without_tls() {
    needs!();
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 1)]);
    let (registry, rest) = image
        .reference
        .strip_prefix("docker://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let address = silent_about_tls(registry.to_owned());
    let conf = format!("[[registry]]\nlocation = '{address}'\ninsecure = true\n");
    let stall = Duration::from_secs(12);
    let options = RegistryOptions::default()
        .retries(0)
        .stall(stall)
        .registries_conf(RegistriesConf::parse(&conf).unwrap());
    let root = TestRoot::in_memory();
    let puller = Puller::new(&root.open().await, PullOptions::default().registry(options));
    let begun = Instant::now();
    puller
        .pull(&format!("docker://{address}/{rest}").parse().unwrap())
        .await
        .unwrap();
    assert!(begun.elapsed() < stall, "{:?}", begun.elapsed());
}
