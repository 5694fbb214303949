//! Pulls of parts of layers from registries that fail, lie, or do not serve ranges: the layer is right or absent.

use std::path::PathBuf;
use std::time::Duration;

use graphroot::oci::{PullOptions, Puller, RegistryOptions};
use graphroot::test_util::TarBuilder;
use graphroot::{Digest, ErrorKind, Store};

use crate::chunked::{image, push_chunked};
use crate::fake_ranges::Spoil;
use crate::fake_registry::{FakeRegistry, Fault, Image};
use crate::in_parts::open;
use crate::support::locks::wait_until;
use crate::support::needs;
use crate::support::root::TestRoot;
use crate::support::store::{exported, layer_ids};
use crate::text::text;

/// A layer of which each version has every other file in common with the others.
fn files(version: u32) -> Vec<u8> {
    let mut tar = TarBuilder::new();
    for index in 0..40 {
        let seed = match index % 2 {
            0 => index,
            _ => index + 1000 * version,
        };
        tar = tar.file(format!("file{index}"), text(1500, seed));
    }
    tar.build()
}

/// Two versions of an image as zstd:chunked.
struct Images {
    _root: TestRoot,
    layouts: [PathBuf; 2],
}

impl Images {
    async fn new() -> Self {
        let root = TestRoot::in_memory();
        let layouts = ["old", "new"].map(|name| root.path().join(name));
        for (version, layout) in (1..).zip(&layouts) {
            let source = TestRoot::in_memory();
            let (store, id) = image(&source, &files(version)).await;
            push_chunked(&store, &id, &format!("oci:{}:v1", layout.display())).await;
        }
        Self { _root: root, layouts }
    }

    /// A registry that has both.
    fn registry(&self) -> (FakeRegistry, [Image; 2]) {
        let fake = FakeRegistry::start();
        let images = [0, 1].map(|index| fake.add_layout(&format!("some/{index}"), &self.layouts[index]));
        (fake, images)
    }
}

async fn pull(store: &Store, image: &Image) -> graphroot::Result<String> {
    let registry = RegistryOptions::default()
        .backoff(Duration::from_millis(1))
        .stall(Duration::from_millis(500))
        .retries(3);
    let puller = Puller::new(store, PullOptions::default().registry(registry));
    let pulled = puller.pull(&image.reference.parse().unwrap()).await?;
    Ok(pulled.image.top_layer().unwrap().to_owned())
}

/// What comes of the update from a registry with this fault: its layer, or this error.
async fn check(images: &Images, faults: &[Fault], always: Option<Fault>, expected: Option<ErrorKind>) {
    let (fake, [old, new]) = images.registry();
    let root = TestRoot::in_memory();
    let store = open(&root).await;
    let below = pull(&store, &old).await.unwrap();
    let blob = &new.layers[0];
    fake.fail(blob, faults);
    if let Some(fault) = &always {
        fake.fail_always(blob, fault.clone());
    }
    let what = format!("{faults:?} {always:?}");
    match (pull(&store, &new).await, expected) {
        (Ok(layer), None) => {
            let (diff, _) = exported(&store, &layer).await;
            assert_eq!(diff, Digest::sha256(files(2)), "{what}");
        }
        (Err(error), Some(kind)) => {
            assert_eq!(error.kind(), kind, "{what}: {}", error.chain());
            assert_eq!(layer_ids(&store).await.len(), 1, "{what}");
            wait_until("temporary files are removed", || {
                root.temporary_files().is_empty()
            });
        }
        (result, _) => panic!("{what}: {:?}", result.map_err(|error| error.chain())),
    }
    let (diff, _) = exported(&store, &below).await;
    assert_eq!(diff, Digest::sha256(files(1)), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_come_right_from_registries_that_serve_ranges_badly() {
    needs!();
    let images = Images::new().await;
    let spoils = [
        Spoil::Boundary,
        Spoil::Shifted(1),
        Spoil::Shifted(-1),
        Spoil::Reversed,
        Spoil::First(1),
        Spoil::Twice,
        Spoil::EndlessHeader,
        Spoil::NoRange,
        Spoil::Longer,
        Spoil::Joined,
        Spoil::Clipped(100),
        Spoil::Page,
    ];
    for spoil in spoils {
        check(&images, &[], Some(Fault::Several(spoil)), None).await;
    }
    // Not even one range is served: the layer is pulled as a whole.
    for fault in [
        Fault::NoRange,
        Fault::Parts(Spoil::Page),
        Fault::Parts(Spoil::Shifted(1)),
        Fault::AtMost(0, 400),
        Fault::AtMost(0, 416),
        Fault::AtMost(1, 403),
        Fault::AtMost(0, 501),
    ] {
        check(&images, &[], Some(fault), None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_layer_survive_a_bad_connection_and_not_another_blob() {
    needs!();
    let images = Images::new().await;
    let broken = [
        Fault::Drop(700),
        Fault::Status(503, "0"),
        Fault::Drop(3000),
        Fault::Stall(2000),
        Fault::Status(429, "0"),
        Fault::Drop(20_000),
    ];
    check(&images, &broken, None, None).await;
    // After the table of contents the registry has no ranges any more.
    for fault in [Fault::NoRange, Fault::AtMost(0, 416), Fault::Parts(Spoil::Page)] {
        let first = Fault::Parts(Spoil::First(1));
        check(&images, &[first], Some(fault), None).await;
    }
    let registry = Some(ErrorKind::Registry);
    check(&images, &[], Some(Fault::Status(503, "0")), registry).await;
    check(&images, &[], Some(Fault::Drop(0)), registry).await;
    check(
        &images,
        &[],
        Some(Fault::Status(404, "0")),
        Some(ErrorKind::NotFound),
    )
    .await;
    let mismatch = Some(ErrorKind::DigestMismatch);
    check(&images, &[], Some(Fault::Parts(Spoil::Total(1 << 40))), mismatch).await;
    // Another blob after the table of contents.
    let first = Fault::Parts(Spoil::First(1));
    check(
        &images,
        &[first],
        Some(Fault::Parts(Spoil::Total(1 << 41))),
        mismatch,
    )
    .await;
}
