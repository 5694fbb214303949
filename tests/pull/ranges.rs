//! Parts of blobs: from registries that serve ranges, serve them wrongly, or not at all, from layouts and archives.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use graphroot::chunked::{BlobSource, FileBlob};
use graphroot::oci::{
    BlobState, Credentials, Event, Events, Progress, PullOptions, Puller, PushOptions, RegistryOptions, push,
};
use graphroot::{Compression, Descriptor, Digest, Error, ErrorKind, Result};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use crate::fake_ranges::Spoil;
use crate::fake_registry::{FakeRegistry, Fault, Login, Request, layer};
use crate::registry::Registry;
use crate::support::locks::wait_until;
use crate::support::needs;
use crate::support::oci::layout_blob_path;
use crate::support::root::TestRoot;

/// A range as a request has it.
type Span = Range<usize>;

fn registry_options() -> RegistryOptions {
    RegistryOptions::default().backoff(Duration::from_millis(1))
}

/// A registry with one blob, and what reads parts of it.
struct Setup {
    _root: TestRoot,
    fake: FakeRegistry,
    reference: String,
    puller: Puller,
    events: Events,
    content: Vec<u8>,
    digest: Digest,
}

impl Setup {
    async fn new(options: RegistryOptions) -> Self {
        Self::with(FakeRegistry::start(), options).await
    }

    async fn with(fake: FakeRegistry, options: RegistryOptions) -> Self {
        let root = TestRoot::in_memory();
        let store = root.open().await;
        let content = layer("file", 2);
        let image = fake.add("some/image", std::slice::from_ref(&content));
        let (progress, events) = Progress::channel();
        let options = PullOptions::default().registry(options).progress(progress);
        Self {
            _root: root,
            puller: Puller::new(&store, options),
            fake,
            reference: image.reference,
            events,
            digest: image.layers[0].clone(),
            content,
        }
    }

    async fn source(&self) -> Arc<dyn BlobSource> {
        let blob = descriptor(&self.digest, self.content.len());
        let image = self.reference.parse().unwrap();
        self.puller.blob_source(&image, &blob).await.unwrap()
    }

    /// Reads ranges and compares them.
    async fn check(&self, ranges: &[Range<u64>]) {
        let bytes = read(&*self.source().await, ranges).await.unwrap();
        assert!(bytes == cut(&self.content, ranges));
    }

    async fn error(&self, ranges: &[Range<u64>]) -> Error {
        read(&*self.source().await, ranges).await.unwrap_err()
    }

    /// Requests for the blob since the last call.
    fn requests(&self, seen: &mut usize) -> Vec<Request> {
        let all = self.fake.requests(&self.digest);
        let new = all[*seen..].to_vec();
        *seen = all.len();
        new
    }
}

pub(crate) fn descriptor(digest: &Digest, size: usize) -> Descriptor {
    serde_json::from_value(json!({"mediaType": "x", "digest": digest, "size": size})).unwrap()
}

pub(crate) async fn read(source: &dyn BlobSource, ranges: &[Range<u64>]) -> Result<Vec<u8>> {
    let mut reader = source.read(ranges.to_vec()).await?;
    let mut bytes = Vec::new();
    let result: io::Result<_> = reader.read_to_end(&mut bytes).await;
    result.map_err(|error| Error::try_from_io(error).unwrap())?;
    Ok(bytes)
}

fn span(range: &Range<u64>) -> Span {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

fn cut(content: &[u8], ranges: &[Range<u64>]) -> Vec<u8> {
    ranges
        .iter()
        .flat_map(|range| &content[span(range)])
        .copied()
        .collect()
}

/// Ranges of 50 to 549 bytes with gaps that no request closes.
fn scattered(count: u64) -> Vec<Range<u64>> {
    (0..count)
        .map(|index| index * 4000 + 7..index * 4000 + 57 + index * 97 % 500)
        .collect()
}

/// Ranges so far apart that not even requests for one range close the gaps.
fn far_apart(count: u64) -> Vec<Range<u64>> {
    (0..count)
        .map(|index| index * 100_000..index * 100_000 + 1000)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ranges_take_few_requests_and_are_counted() {
    needs!();
    let mut setup = Setup::new(registry_options()).await;
    let source = setup.source().await;
    assert!(read(&*source, &[]).await.unwrap().is_empty());
    assert_eq!(setup.fake.requests(&setup.digest), [], "nothing to ask for");
    let ranges = scattered(500);
    assert!(read(&*source, &ranges).await.unwrap() == cut(&setup.content, &ranges));
    let requests = setup.fake.requests(&setup.digest);
    assert_eq!(requests.len(), 3);
    // Each range is asked for once, and little beside them.
    let asked: Vec<&Span> = requests.iter().flat_map(|request| &request.ranges).collect();
    for range in ranges.iter().map(span) {
        let having = asked
            .iter()
            .filter(|asked| asked.start <= range.start && asked.end >= range.end);
        assert_eq!(having.count(), 1, "{range:?}");
    }
    let wanted = cut(&setup.content, &ranges).len();
    let sum: usize = asked.iter().map(|range| range.len()).sum();
    assert!(sum <= wanted + wanted / 20, "{sum} of {wanted}");

    let size = setup.content.len() as u64;
    let near = [0..1, 100..200, 300..400, size - 1..size];
    assert!(read(&*source, &near).await.unwrap() == cut(&setup.content, &near));
    let last = setup.fake.requests(&setup.digest).pop().unwrap();
    assert_eq!(last.ranges.len(), 2, "small gaps are read over");
    for bad in [[5..5, 7..8], [5..9, 8..10], [5..9, size..size + 1]] {
        let error = read(&*source, &bad).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
    }

    let total = wanted + cut(&setup.content, &near).len();
    drop((source, setup.puller));
    let mut counted = 0;
    while let Some(event) = setup.events.next().await {
        if let Event::Blob {
            state: BlobState::Transferred { bytes },
            ..
        } = event
        {
            assert!(bytes >= counted);
            counted = bytes;
        }
    }
    assert_eq!(counted, total as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_answers_to_several_ranges_give_the_right_bytes_in_other_ways() {
    needs!();
    let spoils = [
        Spoil::Boundary,
        Spoil::Shifted(1),
        Spoil::Shifted(-1),
        Spoil::Shifted(1 << 20),
        Spoil::Reversed,
        Spoil::First(1),
        Spoil::First(3),
        Spoil::Twice,
        Spoil::TwiceAtTheEnd,
        Spoil::EndlessHeader,
        Spoil::NoRange,
        Spoil::Longer,
        Spoil::Joined,
        Spoil::Clipped(20),
        Spoil::Page,
    ];
    for spoil in spoils {
        for always in [false, true] {
            let setup = Setup::new(registry_options()).await;
            match always {
                true => setup.fake.fail_always(&setup.digest, Fault::Several(spoil)),
                false => setup.fake.fail(&setup.digest, &[Fault::Several(spoil)]),
            }
            let ranges = scattered(30);
            let bytes = read(&*setup.source().await, &ranges).await;
            let bytes = bytes.unwrap_or_else(|error| panic!("{spoil:?}: {error:?}"));
            assert!(bytes == cut(&setup.content, &ranges), "{spoil:?}");
            let count = setup.fake.requests(&setup.digest).len();
            assert!(count < 40, "{spoil:?}: {count} requests");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_are_refused_are_asked_for_in_smaller_requests() {
    needs!();
    for status in [400, 403, 413, 416, 431, 500, 501] {
        for most in [1, 5, 30] {
            let setup = Setup::new(registry_options()).await;
            let mut seen = 0;
            setup.fake.fail_always(&setup.digest, Fault::AtMost(most, status));
            let ranges = far_apart(20);
            setup.check(&ranges).await;
            let requests = setup.requests(&mut seen);
            let expected = if most < 20 { 1 + 20 } else { 1 };
            assert_eq!(requests.len(), expected, "{status} {most}");
            setup.check(&ranges).await;
            let again = setup.requests(&mut seen);
            let lasting = status < 500 || most > 20;
            assert_eq!(
                again.len(),
                if lasting { expected.min(20) } else { expected },
                "{status} {most}: it is known what the registry takes"
            );
        }
    }
    let setup = Setup::new(registry_options()).await;
    setup.fake.fail_always(&setup.digest, Fault::AtMost(20, 400));
    setup.check(&scattered(200)).await;
    let counts: Vec<usize> = setup
        .fake
        .requests(&setup.digest)
        .iter()
        .map(|request| request.ranges.len())
        .collect();
    assert_eq!(counts[..2], [200, 20]);
    assert_eq!(counts.len(), 11, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_is_asked_twice_and_never_again() {
    needs!();
    for fault in [
        Fault::NoRange,
        Fault::AtMost(0, 416),
        Fault::AtMost(0, 400),
        Fault::Parts(Spoil::Page),
    ] {
        let setup = Setup::new(registry_options()).await;
        let mut seen = 0;
        setup.fake.fail_always(&setup.digest, fault.clone());
        let error = setup.error(&far_apart(3)).await;
        assert_eq!(error.kind(), ErrorKind::NotSupported, "{fault:?}: {error:?}");
        let counts: Vec<usize> = setup
            .requests(&mut seen)
            .iter()
            .map(|request| request.ranges.len())
            .collect();
        assert_eq!(counts, [3, 1], "{fault:?}");
        assert_eq!(setup.error(&far_apart(1)).await.kind(), ErrorKind::NotSupported);
        assert_eq!(setup.requests(&mut seen), [], "{fault:?}");
    }
    // The whole blob is as good if most of it is wanted.
    let setup = Setup::new(registry_options()).await;
    setup.fake.fail_always(&setup.digest, Fault::NoRange);
    let size = setup.content.len() as u64;
    let most = [10..size / 2, size / 2 + 100_000..size - 10];
    setup.check(&most).await;
    assert_eq!(setup.fake.requests(&setup.digest).len(), 1);
    // Even if it breaks off.
    setup.fake.fail(&setup.digest, &[Fault::Drop(1 << 20)]);
    setup.fake.fail(&setup.digest, &[Fault::NoRange]);
    setup.check(&most).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_another_size_is_refused() {
    needs!();
    let all = [Spoil::Total(1 << 40), Spoil::Total(2_000_001)].map(Fault::Parts);
    for fault in all.into_iter().chain([Fault::NoRange, Fault::AtMost(0, 416)]) {
        let setup = Setup::new(registry_options()).await;
        setup.fake.fail_always(&setup.digest, fault.clone());
        let blob = descriptor(&setup.digest, setup.content.len() - 1);
        let image = setup.reference.parse().unwrap();
        let source = setup.puller.blob_source(&image, &blob).await.unwrap();
        for ranges in [far_apart(1), far_apart(5)] {
            let error = read(&*source, &ranges).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{fault:?}: {error:?}");
        }
    }
    // Between two requests, too.
    let setup = Setup::new(registry_options()).await;
    setup.fake.fail(
        &setup.digest,
        &[Fault::Drop(1000), Fault::Parts(Spoil::Total(5_000_000))],
    );
    let error = setup.error(&far_apart(5)).await;
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_goes_on_at_the_first_missing_byte() {
    needs!();
    let setup = Setup::new(registry_options().retries(3)).await;
    let ranges = far_apart(10);
    let faults = [
        Fault::Drop(2500),
        Fault::Status(503, "0"),
        Fault::Drop(0),
        Fault::Status(429, "0"),
        Fault::Drop(1500),
        Fault::Drop(5),
    ];
    setup.fake.fail(&setup.digest, &faults);
    setup.check(&ranges).await;
    let requests = setup.fake.requests(&setup.digest);
    let first = |index: usize| requests[index].ranges[0].clone();
    // Two parts with headers, and the third one to the byte that had come.
    let begun = first(1);
    assert!(begun.start > 200_000 && begun.end == 201_000, "{begun:?}");
    assert_eq!(
        [first(2), first(3), first(4)],
        [begun.clone(), begun.clone(), begun]
    );
    let later = first(5);
    assert!(later.start > 300_000 && later.end == 301_000, "{later:?}");
    assert_eq!(first(6), later);
    assert_eq!(requests.len(), 7);

    let setup = Setup::new(registry_options().retries(2)).await;
    setup.fake.fail_always(&setup.digest, Fault::Drop(0));
    let error = setup.error(&ranges).await;
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert_eq!(setup.fake.requests(&setup.digest).len(), 3);
    let setup = Setup::new(registry_options().retries(2)).await;
    setup.fake.fail_always(&setup.digest, Fault::Status(503, "0"));
    assert!(setup.error(&ranges).await.chain().contains("503"));
    assert_eq!(setup.fake.requests(&setup.digest).len(), 3);
    let setup = Setup::new(registry_options()).await;
    setup.fake.fail_always(&setup.digest, Fault::Status(404, "0"));
    assert_eq!(setup.error(&ranges).await.kind(), ErrorKind::NotFound);
    assert_eq!(setup.fake.requests(&setup.digest).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_registry_is_not_waited_for() {
    needs!();
    let setup = Setup::new(registry_options().stall(Duration::from_millis(200))).await;
    setup
        .fake
        .fail(&setup.digest, &[Fault::Stall(1500), Fault::Stall(0)]);
    setup.check(&far_apart(5)).await;
    assert_eq!(setup.fake.requests(&setup.digest).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_reader_ends_the_requests() {
    needs!();
    let setup = Setup::new(registry_options()).await;
    setup.fake.fail_always(&setup.digest, Fault::Stall(1200));
    let source = setup.source().await;
    let mut reader = source.read(far_apart(5)).await.unwrap();
    reader.read_exact(&mut [0; 900]).await.unwrap();
    assert!(setup.fake.open_connections() > 0);
    drop(reader);
    wait_until("the connections are closed", || {
        setup.fake.open_connections() == 0
    });
    // The future is dropped before the answer.
    let setup = Setup::new(registry_options()).await;
    setup
        .fake
        .fail_always(&setup.digest, Fault::Parts(Spoil::First(1)));
    let source = setup.source().await;
    let waited = tokio::time::timeout(Duration::ZERO, source.read(far_apart(5))).await;
    drop(waited);
    wait_until("the connections are closed", || {
        setup.fake.open_connections() == 0
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_elsewhere_is_read_there_without_credentials() {
    needs!();
    let fake = FakeRegistry::start();
    let login = Credentials::password("user", "secret");
    let options = registry_options().credentials_for(fake.address(), login);
    let setup = Setup::with(fake, options).await;
    let elsewhere = FakeRegistry::start();
    elsewhere.add("some/image", std::slice::from_ref(&setup.content));
    setup.fake.lock(Login::Basic);
    setup.fake.redirect(&elsewhere);
    let ranges = scattered(450);
    let source = setup.source().await;
    assert!(read(&*source, &ranges).await.unwrap() == cut(&setup.content, &ranges));
    let (here, there) = (
        setup.fake.requests(&setup.digest),
        elsewhere.requests(&setup.digest),
    );
    assert!(here.iter().all(|request| request.authorized));
    assert!(there.iter().all(|request| !request.authorized));
    assert_eq!(there.len(), 3);
    assert!(here.len() < 3, "the way is known: {here:?}");
    // A link that has expired is renewed.
    elsewhere.fail(&setup.digest, &[Fault::Status(403, "0")]);
    assert!(read(&*source, &ranges).await.unwrap() == cut(&setup.content, &ranges));
    let renewed = setup.fake.requests(&setup.digest);
    assert!(renewed.len() > here.len());
    // Who is elsewhere gets no credentials by asking for them.
    elsewhere.lock(Login::Bearer);
    let error = read(&*source, &ranges).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry, "{error:?}");
    assert_eq!(elsewhere.tokens(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_elsewhere_that_has_single_ranges_only() {
    needs!();
    for spoil in [Fault::Several(Spoil::First(1)), Fault::AtMost(1, 400)] {
        let setup = Setup::new(registry_options()).await;
        let elsewhere = FakeRegistry::start();
        elsewhere.add("some/image", std::slice::from_ref(&setup.content));
        elsewhere.fail_always(&setup.digest, spoil);
        setup.fake.redirect(&elsewhere);
        setup.check(&far_apart(20)).await;
        assert!(elsewhere.requests(&setup.digest).len() <= 21);
        assert!(setup.fake.requests(&setup.digest).len() <= 21);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_of_docker_serves_many_ranges_at_once() {
    needs!("docker-registry");
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let registry = Registry::start(&root.scratch("registry"), &root.path().join("data"));
    let content = layer("file", 4);
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", std::slice::from_ref(&content));
    let puller = Puller::new(&store, PullOptions::default());
    let pulled = puller.pull(&image.reference.parse().unwrap()).await.unwrap();
    let id = pulled.image.id();
    let plain = || PushOptions::default().compression(Compression::None);
    let to = format!("docker://{}", registry.image("file")).parse().unwrap();
    push(&store, id, &to, plain()).await.unwrap();
    let blob = descriptor(&image.layers[0], content.len());
    let source = puller.blob_source(&to, &blob).await.unwrap();
    let size = content.len() as u64;
    for ranges in [
        scattered(1000),
        far_apart(40),
        std::iter::once(0..size).collect(),
        vec![0..1, size - 1..size],
    ] {
        assert!(read(&*source, &ranges).await.unwrap() == cut(&content, &ranges));
    }
    registry.settle("ranges");
    let sent = registry.requests();
    let requests = sent
        .iter()
        .filter(|(request, _)| request.ends_with(image.layers[0].as_str()));
    let statuses: Vec<&str> = requests
        .filter(|(request, _)| request.starts_with("GET"))
        .map(|(_, status)| &**status)
        .collect();
    // 1000 ranges take 5 requests or, for the length of their header, one more.
    assert!((8..=9).contains(&statuses.len()), "{statuses:?}");
    assert!(statuses.iter().all(|status| *status == "206"), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_and_archives_are_read_in_place() {
    needs!();
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let fake = FakeRegistry::start();
    let content = layer("file", 2);
    let image = fake.add("some/image", std::slice::from_ref(&content));
    let puller = Puller::new(&store, PullOptions::default());
    let pulled = puller.pull(&image.reference.parse().unwrap()).await.unwrap();
    let dir = root.scratch("images");
    let blob = descriptor(&image.layers[0], content.len());
    for kind in ["oci", "oci-archive", "docker-archive"] {
        let place = dir.join(kind);
        let to = format!("{kind}:{}:localhost/some:v1", place.display())
            .parse()
            .unwrap();
        let plain = PushOptions::default().compression(Compression::None);
        push(&store, pulled.image.id(), &to, plain).await.unwrap();
        let (progress, mut events) = Progress::channel();
        let puller = Puller::new(&store, PullOptions::default().progress(progress));
        let source = puller.blob_source(&to, &blob).await.unwrap();
        let ranges = scattered(500);
        assert!(
            read(&*source, &ranges).await.unwrap() == cut(&content, &ranges),
            "{kind}"
        );
        let size = content.len() as u64;
        let error = read(&*source, &[0..1, size..size + 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(read(&*source, &[]).await.unwrap().is_empty());
        drop((source, puller));
        let mut counted = 0;
        while let Some(event) = events.next().await {
            if let Event::Blob {
                state: BlobState::Transferred { bytes },
                ..
            } = event
            {
                counted = bytes;
            }
        }
        assert_eq!(counted, cut(&content, &ranges).len() as u64, "{kind}");
    }
    let file = layout_blob_path(&dir.join("oci"), image.layers[0].as_str());
    let whole = FileBlob::open(file).await.unwrap();
    assert!(read(&whole, &scattered(500)).await.unwrap() == cut(&content, &scattered(500)));
    let missing = descriptor(&Digest::sha256("missing"), 5);
    let layout = format!("oci:{}:localhost/some:v1", dir.join("oci").display());
    let image = layout.parse().unwrap();
    assert!(
        puller
            .blob_source(&image, &missing)
            .await
            .unwrap_err()
            .is_not_found()
    );
}
