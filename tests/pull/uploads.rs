//! Pushes to registries that fail, are overloaded, or want credentials.

use std::time::Duration;

use graphroot::oci::{
    BlobState, Credentials, Event, Progress, PullOptions, Puller, PushOptions, Pushed, RegistryOptions, push,
};
use graphroot::{Compression, ErrorKind, Store};

use crate::fake_registry::{FakeRegistry, Fault, Login, layer};
use crate::support::needs;
use crate::support::root::TestRoot;

fn registry_options() -> RegistryOptions {
    RegistryOptions::default().backoff(Duration::from_millis(1))
}

/// A store with an image of one uncompressed layer; returns the image's ID and the layer's digest.
async fn pulled(root: &TestRoot) -> (Store, String, graphroot::Digest) {
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 2)]);
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let pulled = puller.pull(&image.reference.parse().unwrap()).await.unwrap();
    let id = pulled.image.id().to_owned();
    (store, id, image.layers[0].clone())
}

async fn push_to(
    store: &Store,
    id: &str,
    fake: &FakeRegistry,
    options: RegistryOptions,
) -> graphroot::Result<Pushed> {
    let to = format!("docker://{}/team/app:v1", fake.address()).parse()?;
    let options = PushOptions::default()
        .compression(Compression::None)
        .registry(options);
    push(store, id, &to, options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_repeated_and_can_be_pulled() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, id, blob) = pulled(&root).await;
    let fake = FakeRegistry::start();
    fake.fail_upload(
        &blob,
        &[
            Fault::Status(503, "0"),
            Fault::Drop(1 << 20),
            Fault::Status(429, "0"),
        ],
    );
    let pushed = push_to(&store, &id, &fake, registry_options()).await.unwrap();
    assert_eq!((pushed.sent, pushed.unchanged), (1, true));
    assert_eq!(fake.uploads(&blob), 4);
    let again = push_to(&store, &id, &fake, registry_options()).await.unwrap();
    assert_eq!((again.sent, again.reused), (0, 1));

    let other = TestRoot::in_memory();
    let puller = Puller::new(&other.open().await, PullOptions::default());
    let back = puller
        .pull(
            &format!("docker://{}/team/app:v1", fake.address())
                .parse()
                .unwrap(),
        )
        .await
        .unwrap();
    assert_eq!((back.image.id(), back.digest), (&*id, pushed.manifest));

    let fake = FakeRegistry::start();
    fake.fail_upload(&blob, &vec![Fault::Status(503, "0"); 100]);
    let error = push_to(&store, &id, &fake, registry_options().retries(2))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.chain().contains("503"), "{error:?}");
    assert_eq!(fake.uploads(&blob), 3);
    fake.fail_upload(&blob, &[Fault::Status(403, "0")]);
    push_to(&store, &id, &fake, registry_options()).await.unwrap_err();
    assert_eq!(fake.uploads(&blob), 4, "what is forbidden is not repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_of_an_upload_reaches_the_last_byte() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, id, blob) = pulled(&root).await;
    let fake = FakeRegistry::start();
    let (progress, mut events) = Progress::channel();
    let to = format!("docker://{}/team/app:v1", fake.address())
        .parse()
        .unwrap();
    let options = PushOptions::default()
        .compression(Compression::None)
        .progress(progress);
    push(&store, &id, &to, options).await.unwrap();
    let (mut total, mut sent) = (0, 0);
    while let Some(event) = events.next().await {
        match event {
            Event::Blob { digest, state } if digest == blob => match state {
                BlobState::Started { total: size, .. } => total = size,
                BlobState::Transferred { bytes } => sent = bytes,
                _ => {}
            },
            _ => {}
        }
    }
    assert!(total > 0);
    assert_eq!(sent, total);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_by_value_are_used_for_both_directions() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, id, _) = pulled(&root).await;
    let password = |password: &str| Credentials::password("user", password);
    for (login, credentials, works) in [
        (Login::Basic, password("secret"), true),
        (Login::Bearer, password("secret"), true),
        (Login::Bearer, Credentials::IdentityToken("refresh".into()), true),
        (Login::Bearer, Credentials::BearerToken("sesame".into()), true),
        (Login::Basic, password("wrong"), false),
        (Login::Bearer, password("wrong"), false),
        (Login::Bearer, Credentials::IdentityToken("wrong".into()), false),
        (Login::Bearer, Credentials::BearerToken("wrong".into()), false),
        (Login::Basic, Credentials::IdentityToken("refresh".into()), false),
        (Login::Basic, Credentials::Anonymous, false),
    ] {
        let fake = FakeRegistry::start();
        fake.lock(login);
        let what = format!("{login:?} {credentials:?}");
        let scope = format!("{}/team", fake.address());
        // A file is not even read.
        let options = registry_options()
            .auth_file("/nonexistent/auth.json")
            .credentials_for(scope, credentials);
        let pushed = push_to(&store, &id, &fake, options.clone()).await;
        let error = match (pushed, works) {
            (Ok(_), true) => {
                let other = TestRoot::in_memory();
                let puller = Puller::new(&other.open().await, PullOptions::default().registry(options));
                let from = format!("docker://{}/team/app:v1", fake.address())
                    .parse()
                    .unwrap();
                puller.pull(&from).await.unwrap();
                continue;
            }
            (Err(error), false) => error,
            (result, _) => panic!("{what}: {result:?}"),
        };
        assert_eq!(error.kind(), ErrorKind::Registry, "{what}: {error:?}");
        for secret in ["secret", "refresh", "sesame", "wrong"] {
            assert!(!error.chain().contains(secret), "{what}: {error:?}");
        }
    }
}
