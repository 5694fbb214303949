//! Registries that break off, send wrong bytes, are overloaded, or want credentials.

use std::time::{Duration, Instant};

use graphroot::oci::{BlobState, Event, ImageState, Progress, PullOptions, Pulled, Puller, RegistryOptions};
use graphroot::{ErrorKind, Store};

use crate::fake_registry::{FakeRegistry, Fault, Image, Login, layer};
use crate::support::locks::wait_until;
use crate::support::needs;
use crate::support::root::TestRoot;
use crate::support::worker::Worker;

const MIB: usize = 1 << 20;

fn registry_options() -> RegistryOptions {
    RegistryOptions::default().backoff(Duration::from_millis(1))
}

fn options() -> PullOptions {
    PullOptions::default().registry(registry_options())
}

async fn pull_with(store: &Store, image: &Image, options: PullOptions) -> graphroot::Result<Pulled> {
    Puller::new(store, options)
        .pull(&image.reference.parse().unwrap())
        .await
}

/// Nothing of a failed pull is left.
async fn assert_empty(root: &TestRoot, store: &Store) {
    assert!(store.layers().await.unwrap().is_empty());
    assert!(store.images().await.unwrap().is_empty());
    assert!(
        root.layer_directories().is_empty(),
        "{:?}",
        root.layer_directories()
    );
    // What was being unpacked beside it is removed in the background.
    wait_until("temporary files are removed", || {
        root.temporary_files().is_empty()
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_is_resumed_at_the_first_missing_byte() {
    needs!();
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 4)]);
    let blob = &image.layers[0];
    let total = layer("file", 4).len();
    let drops = [
        Fault::Drop(MIB),
        Fault::Status(503, "0"),
        Fault::Drop(2 * MIB),
        Fault::Drop(0),
    ];
    fake.fail(blob, &drops);
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let (progress, mut events) = Progress::channel();
    let pulled = pull_with(&store, &image, options().progress(progress))
        .await
        .unwrap();
    let requests = fake.requests(blob);
    let starts: Vec<usize> = requests.iter().map(|request| request.start).collect();
    assert_eq!(starts, [0, MIB, MIB, 3 * MIB, 3 * MIB]);
    let sent: usize = requests.iter().map(|request| request.sent).sum();
    assert_eq!(sent, total, "no byte twice");

    let (mut states, mut done) = (Vec::new(), None);
    while let Some(event) = events.next().await {
        match event {
            Event::Blob { digest, state } => {
                assert_eq!(digest, *blob);
                states.push(state);
            }
            Event::Image {
                state: ImageState::Done { id },
                ..
            } => done = Some(id),
            _ => {}
        }
    }
    assert_eq!(done.as_deref(), Some(pulled.image.id()));
    let total = total as u64;
    assert_eq!(states.first(), Some(&BlobState::Started { total, kept: 0 }));
    assert!(states.contains(&BlobState::Transferred { bytes: total }));
    let layer = pulled.image.top_layer().unwrap().to_owned();
    assert_eq!(
        states[states.len() - 2..],
        [BlobState::Unpacked, BlobState::Committed { layer }]
    );
    let retries = states
        .iter()
        .filter(|state| matches!(state, BlobState::Retrying { .. }))
        .count();
    assert_eq!(retries, 3, "{states:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_sends_all_again_and_it_is_read_over() {
    needs!();
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 2)]);
    fake.fail(&image.layers[0], &[Fault::Drop(MIB), Fault::NoRange]);
    let root = TestRoot::in_memory();
    let store = root.open().await;
    pull_with(&store, &image, options()).await.unwrap();
    assert_eq!(fake.requests(&image.layers[0]).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_and_lengths_leave_nothing_and_are_named() {
    needs!();
    let total = layer("file", 2).len();
    for keep in [false, true] {
        for fault in [Fault::Flip, Fault::Length(total - 1), Fault::Length(total + 1)] {
            let fake = FakeRegistry::start();
            // The layer above arrives whole, and must not stay without the one below.
            let image = fake.add("some/image", &[layer("file", 2), layer("above", 1)]);
            fake.fail(&image.layers[0], std::slice::from_ref(&fault));
            let root = TestRoot::in_memory();
            let store = root.open().await;
            let error = pull_with(&store, &image, options().keep_partial(keep))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{fault:?}: {error:?}");
            let text = error.chain();
            assert!(text.contains(image.layers[0].as_str()), "{text}");
            match fault {
                Fault::Flip => assert_eq!(
                    text.matches("sha256:").count(),
                    3,
                    "both digests and the layer: {text}"
                ),
                _ => assert!(text.contains(&total.to_string()), "{text}"),
            }
            assert_empty(&root, &store).await;
            // The next attempt is a clean one.
            pull_with(&store, &image, options().keep_partial(keep))
                .await
                .unwrap();
            let last = fake.requests(&image.layers[0]).pop().unwrap();
            assert_eq!((last.start, last.sent), (0, total), "{fault:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_respected() {
    needs!();
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 1)]);
    fake.fail(
        &image.layers[0],
        &[Fault::Status(429, "1"), Fault::Status(503, "0")],
    );
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let begun = Instant::now();
    pull_with(&store, &image, options()).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "it said when");
    assert_eq!(fake.requests(&image.layers[0]).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_end_and_refusals_are_reported() {
    needs!();
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 1)]);
    let blob = &image.layers[0];
    let root = TestRoot::in_memory();
    let store = root.open().await;

    fake.fail(blob, &vec![Fault::Status(503, "0"); 100]);
    let impatient = options().registry(registry_options().retries(2));
    let error = pull_with(&store, &image, impatient.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.chain().contains("503"), "{error:?}");
    assert_eq!(fake.requests(blob).len(), 3);

    fake.fail(blob, &vec![Fault::Drop(0); 100]);
    let error = pull_with(&store, &image, impatient.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert_eq!(fake.requests(blob).len(), 6);

    fake.fail(blob, &[Fault::Stall(MIB / 2), Fault::Stall(MIB / 8)]);
    let hasty = options().registry(registry_options().stall(Duration::from_millis(200)));
    pull_with(&store, &image, hasty).await.unwrap();

    let missing = Image {
        reference: format!("docker://{}/no/such:v1", fake.address()),
        ..image
    };
    let error = pull_with(&store, &missing, options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.chain().contains("no such thing"), "{error:?}");

    let nobody = Image {
        reference: "docker://127.0.0.1:1/some/image".into(),
        ..missing
    };
    let error = pull_with(&store, &nobody, impatient).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.chain().contains("refused"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_a_file() {
    needs!();
    for login in [Login::Basic, Login::Bearer] {
        let fake = FakeRegistry::start();
        let image = fake.add("some/image", &[layer("file", 1)]);
        fake.lock(login);
        let root = TestRoot::in_memory();
        let store = root.open().await;
        let file = root.path().join("auth.json");
        let with_file = options().registry(registry_options().auth_file(&file));
        let error = pull_with(&store, &image, with_file.clone()).await.unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::Io,
            "a file that was named has to be there"
        );
        for (auth, works) in [("dXNlcjp3cm9uZw==", false), ("dXNlcjpzZWNyZXQ=", true)] {
            let text = format!(r#"{{"auths":{{"{}/some":{{"auth":"{auth}"}}}}}}"#, fake.address());
            std::fs::write(&file, text).unwrap();
            let result = pull_with(&store, &image, with_file.clone()).await;
            match works {
                true => drop(result.unwrap()),
                false => assert_eq!(result.unwrap_err().kind(), ErrorKind::Registry),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_helpers_are_asked() {
    needs!();
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 1)]);
    fake.lock(Login::Basic);
    let root = TestRoot::in_memory();
    let dir = root.scratch("bin");
    let script = |name: &str, text: &str| {
        let path = dir.join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let address = fake.address();
    script(
        "good",
        &format!(
            r#"read -r server; [ "$1 $server" = "get {address}" ] && echo '{{"ServerURL":"","Username":"user","Secret":"secret"}}'"#
        ),
    );
    script(
        "none",
        "cat >/dev/null; echo credentials not found in native keychain; exit 1",
    );
    script("bad", "echo s3cret; exit 1");
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    for (config, works) in [
        (r#"{"credsStore":"good"}"#.to_owned(), true),
        (
            format!(r#"{{"credHelpers":{{"{address}":"good"}},"credsStore":"bad"}}"#),
            true,
        ),
        (
            format!(
                r#"{{"credHelpers":{{"{address}":"none"}},"auths":{{"{address}":{{"auth":"dXNlcjpzZWNyZXQ="}}}}}}"#
            ),
            true,
        ),
        (r#"{"credsStore":"none"}"#.to_owned(), false),
        (r#"{"credsStore":"bad"}"#.to_owned(), false),
        (r#"{"credsStore":"missing"}"#.to_owned(), false),
    ] {
        let root = TestRoot::in_memory();
        let file = dir.join("config.json");
        std::fs::write(&file, &config).unwrap();
        let mut command = Worker::command("pull", &root, &[&image.reference]);
        command.env("PATH", &path).env("REGISTRY_AUTH_FILE", &file);
        command.stderr(std::process::Stdio::null());
        let mut worker = Worker::spawn(command);
        worker.expect_line("ready");
        worker.go_on();
        assert_eq!(worker.wait().success(), works, "{config}");
    }
}
