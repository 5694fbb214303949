//! Memory does not grow much with the number of files of a layer that is pulled in parts.

use graphroot::oci::{ImageRef, PullOptions, Puller};
use graphroot::test_util::TarBuilder;

use crate::chunked::{image, push_chunked};
use crate::registry::Registry;
use crate::support::needs;
use crate::support::root::TestRoot;
use crate::support::worker::{Worker, own_memory, reset_peak_memory, tell};

const FILES: usize = 100_000;
/// Files that are large, and the bytes of one.
const LARGE_FILES: usize = 100;
const LARGE_FILE: usize = 1 << 20;
/// Above idle, in KiB.
const LIMIT: u64 = 40 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_100_000_files_takes_less_than_40_mebibytes() {
    needs!("docker-registry");
    let root = TestRoot::in_memory();
    let registry = Registry::start(&root.scratch("registry"), &root.path().join("data"));
    let mut tar = TarBuilder::new();
    for number in 0..FILES {
        let name = format!(
            "usr/share/directory-{}/file-with-a-usual-name-{number}",
            number / 200
        );
        tar = tar.file(name, format!("content {number}"));
    }
    let above = memory(&root, &registry, tar, FILES).await;
    assert!(above < LIMIT, "{above} KiB above idle");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_comes_faster_than_it_is_unpacked_waits() {
    needs!("docker-registry");
    let root = TestRoot::in_memory();
    let registry = Registry::start(&root.scratch("registry"), &root.path().join("data"));
    let mut tar = TarBuilder::new();
    let mut state = 1u64;
    for number in 0..LARGE_FILES {
        // What does not compress.
        let content: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(LARGE_FILE / 8)
        .flatten()
        .collect();
        tar = tar.file(format!("file-{number}"), content);
    }
    let above = memory(&root, &registry, tar, LARGE_FILES).await;
    let all = (LARGE_FILES * LARGE_FILE / 1024) as u64;
    assert!(above < LIMIT && LIMIT < all / 2, "{above} KiB above idle");
}

/// Has a process pull a layer in parts; how much memory it takes for that, in KiB.
async fn memory(root: &TestRoot, registry: &Registry, tar: TarBuilder, files: usize) -> u64 {
    let (store, id) = image(root, &tar.build()).await;
    let name = registry.image("many");
    push_chunked(&store, &id, &format!("docker://{name}")).await;

    let other = TestRoot::in_memory();
    let lines = Worker::start("memory", &other, &[&format!("docker://{name}")]).finish();
    let figure = |name: &str| -> u64 {
        let line = lines.iter().find_map(|line| line.strip_prefix(name));
        let figure = line.unwrap_or_else(|| panic!("no {name} in {lines:?}"));
        figure.trim().parse().unwrap()
    };
    let (idle, peak) = (figure("idle"), figure("peak"));
    let above = peak.saturating_sub(idle);
    eprintln!("{files} files in parts: {idle} KiB idle, {above} KiB more at the peak");
    assert_eq!(figure("in-parts"), 1);
    above
}

/// Pulls an image in parts; tells the resident memory before and the peak while doing so, in KiB.
pub(crate) async fn pull(options: graphroot::StoreOptions, image: &str) {
    graphroot::compat::return_memory_early();
    let options = options.pull_option("enable_partial_images", "true");
    let store = graphroot::Store::open(options).await.unwrap();
    let image: ImageRef = image.parse().unwrap();
    reset_peak_memory();
    tell(&format!("idle {}", own_memory("VmRSS")));
    let pulled = Puller::new(&store, PullOptions::default())
        .pull(&image)
        .await
        .unwrap();
    tell(&format!("peak {}", own_memory("VmHWM")));
    let image = store.image(pulled.image.id()).await.unwrap();
    let layer = store.layer(image.top_layer().unwrap()).await.unwrap();
    tell(&format!("in-parts {}", u64::from(layer.toc_digest().is_some())));
}
