//! Every future of the public interface can be spawned, and be dropped at any await.

use graphroot::{
    DiffOptions, Digest, ErrorKind, LayerOptions, Result, StagedLayer, StagingOptions, Store, StoreOptions,
};
use tokio::io::AsyncReadExt as _;

use crate::staged_layers::{Chunked, chunked};
use crate::support::{TestStore, assert_nothing_temporary, tar, tree_of};

fn is_send<T: Send>(_future: T) {}

/// That it compiles is the test; it is not called.
const _: fn(&Store, &Digest) = every_future_is_send;

fn every_future_is_send(store: &Store, digest: &Digest) {
    let data = || std::io::Cursor::new(Vec::new());
    is_send(Store::open(StoreOptions::default()));
    is_send(store.status());
    is_send(store.version());
    is_send(store.create_layer(None, Default::default()));
    is_send(store.put_layer(None, Default::default(), data()));
    is_send(store.put_layers(None, Vec::new()));
    is_send(store.apply_diff("", data()));
    is_send(store.create_image(None, Default::default()));
    is_send(store.create_container(None, Default::default()));
    is_send(store.metadata(""));
    is_send(store.set_metadata("", ""));
    is_send(store.exists(""));
    is_send(store.lookup(""));
    is_send(store.delete(""));
    is_send(store.delete_layer(""));
    is_send(store.delete_image(""));
    is_send(store.layers_deleted_with_image(""));
    is_send(store.delete_container(""));
    is_send(store.wipe());
    is_send(store.garbage_collect());
    is_send(store.mount("", Default::default()));
    is_send(store.unmount(""));
    is_send(store.unmount_all(""));
    is_send(store.mounted(""));
    is_send(store.mount_guard("", Default::default()));
    is_send(store.mount_image_guard("", Default::default()));
    is_send(store.mount_image("", Default::default()));
    is_send(store.unmount_image(""));
    is_send(store.unmount_image_all(""));
    is_send(store.shutdown());
    is_send(store.shutdown_force());
    is_send(store.changes(None, ""));
    is_send(store.diff_size(None, ""));
    is_send(store.diff(None, "", Default::default()));
    is_send(store.layer(""));
    is_send(store.layers());
    is_send(store.layer_by_id(""));
    is_send(store.layer_by_name(""));
    is_send(store.layers_by_compressed_digest(digest));
    is_send(store.layers_by_uncompressed_digest(digest));
    is_send(store.layers_by_toc_digest(digest));
    is_send(store.image(""));
    is_send(store.images());
    is_send(store.image_by_id(""));
    is_send(store.image_by_name(""));
    is_send(store.images_by_top_layer(""));
    is_send(store.images_by_digest(digest));
    is_send(store.container(""));
    is_send(store.containers());
    is_send(store.container_by_id(""));
    is_send(store.container_by_name(""));
    is_send(store.container_by_layer(""));
    is_send(store.names(""));
    is_send(store.set_names("", [""]));
    is_send(store.add_names("", [""]));
    is_send(store.remove_names("", [""]));
    is_send(store.list_layer_big_data(""));
    is_send(store.layer_big_data("", ""));
    is_send(store.set_layer_big_data("", "", data()));
    is_send(store.list_image_big_data(""));
    is_send(store.image_big_data("", ""));
    is_send(store.image_big_data_size("", ""));
    is_send(store.image_big_data_digest("", ""));
    is_send(store.set_image_big_data("", "", "", None));
    is_send(store.list_container_big_data(""));
    is_send(store.container_big_data("", ""));
    is_send(store.container_big_data_size("", ""));
    is_send(store.container_big_data_digest("", ""));
    is_send(store.set_container_big_data("", "", ""));
    is_send(store.image_directory(""));
    is_send(store.image_run_directory(""));
    is_send(store.container_directory(""));
    is_send(store.container_run_directory(""));
    is_send(store.copy_to(store, graphroot::CopyOptions::new()));
}

/// Polls a future this often, then drops it.
pub async fn poll_some<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut left = polls;
    std::future::poll_fn(move |cx| {
        if left == 0 {
            return std::task::Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

async fn prepare(store: &TestStore, image: &Chunked) -> Result<StagedLayer> {
    let differ = image
        .differ(store, image.source())
        .await?
        .expect(image.diff_id.clone());
    store
        .prepare_staged_layer(StagingOptions::default(), differ)
        .await
}

each_driver! {
    async fn a_preparation_that_is_dropped_leaves_nothing(store) {
        if !store.graph_driver().capabilities().differ {
            return;
        }
        let image = chunked(&store, &tar(&[("d/", ""), ("d/file", &"x".repeat(300_000)), ("last", "1")])).await;
        let before = store.own_layers().await.len();
        let mut finished = false;
        for polls in 0..400 {
            let staged = poll_some(prepare(&store, &image), polls).await;
            finished = staged.is_some();
            if let Some(staged) = staged {
                // What nobody wants any more is removed all the same.
                drop(poll_some(store.cleanup_staged_layer(staged.unwrap()), 1).await);
                break;
            }
        }
        assert!(finished);
        assert_eq!(store.own_layers().await.len(), before);
        assert_nothing_temporary(&store).await;
    }

    async fn content_whose_use_is_dropped_is_a_whole_layer_or_none(store) {
        if !store.graph_driver().capabilities().differ {
            return;
        }
        let (old_tar, new_tar) = (tar(&[("file", "1"), ("other", "1")]), tar(&[("file", "new"), ("last", "1")]));
        let (old, new) = (chunked(&store, &old_tar).await, chunked(&store, &new_tar).await);
        for is_there in [false, true] {
            let mut finished = false;
            for polls in 0..400 {
                if is_there {
                    let staged = prepare(&store, &old).await.unwrap();
                    store.apply_staged_layer(None, LayerOptions::default().id("layer"), staged).await.unwrap();
                }
                let staged = prepare(&store, &new).await.unwrap();
                let applying = store.apply_staged_layer(None, LayerOptions::default().id("layer"), staged);
                finished = poll_some(applying, polls).await.is_some();
                // What had begun to commit ends in the background; taking the lock waits for it.
                let other = store.create_layer(None, LayerOptions::default()).await.unwrap();
                store.delete_layer(other.id()).await.unwrap();
                if !store.exists("layer").await.unwrap() {
                    assert!(!is_there && !finished);
                    assert!(!store.records("layers").join("layer").exists());
                    continue;
                }
                let layer = store.layer("layer").await.unwrap();
                let is_new = layer.uncompressed_digest().as_ref() == Some(&new.diff_id);
                assert!(is_new || is_there && !finished);
                let mut stream = store.diff(None, "layer", DiffOptions::uncompressed()).await.unwrap();
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.unwrap();
                assert!(bytes == if is_new { &new_tar[..] } else { &old_tar });
                let waiting = std::fs::read_dir(store.records("layers").join("layer")).unwrap();
                let mut waiting = waiting.map(|entry| entry.unwrap().file_name());
                assert!(waiting.all(|name| !name.to_str().unwrap().starts_with('.')));
                store.delete_layer("layer").await.unwrap();
                if finished {
                    break;
                }
            }
            assert!(finished);
        }
        assert_nothing_temporary(&store).await;
    }

    async fn a_put_that_is_dropped_leaves_all_of_a_layer_or_nothing(store) {
        let blob = tar(&[("d/", ""), ("d/file", &"x".repeat(300_000)), ("last", "1")]);
        let mut finished = false;
        for polls in 0.. {
            let options = LayerOptions::default().name(format!("layer-{polls}"));
            let put = store.put_layer(None, options, std::io::Cursor::new(blob.clone()));
            let done = poll_some(put, polls).await;
            // What had begun to commit ends in the background; taking the lock waits for it.
            store.create_layer(None, LayerOptions::default()).await.unwrap();
            for layer in store.own_layers().await {
                let name = layer.names().first().cloned().unwrap_or_default();
                assert!(name.is_empty() || layer.uncompressed_digest() == Some(Digest::sha256(&blob)), "{name} is not whole");
            }
            if let Some(put) = done {
                assert_eq!(store.layer(put.unwrap().layer.id()).await.unwrap().uncompressed_size(), Some(blob.len() as u64));
                finished = true;
            }
            if finished || polls > 400 {
                break;
            }
        }
        assert!(finished, "400 polls are enough for a small layer");
        assert!(store.exists("nobody").await.is_ok_and(|exists| !exists));
        assert_eq!(store.layer("nobody").await.unwrap_err().kind(), ErrorKind::LayerUnknown);
        store.wipe().await.unwrap();
    }

    async fn a_diff_that_is_dropped_leaves_the_old_layer_or_the_new_one(store) {
        let old = store.put(None, "layer", &[("file", "1"), ("other", "1")]).await;
        let diff = tar(&[("file", &"2".repeat(300_000)), ("last", "1")]);
        let mut finished = false;
        for polls in 0..400 {
            let layer = store.put(None, &format!("layer-{polls}"), &[("file", "1"), ("other", "1")]).await;
            let done = poll_some(store.apply_diff(layer.id(), std::io::Cursor::new(diff.clone())), polls).await;
            // As above.
            store.create_layer(None, LayerOptions::default()).await.unwrap();
            let tree = tree_of(&store, layer.id());
            let now = store.layer(layer.id()).await.unwrap().uncompressed_digest();
            let whole = now == Some(Digest::sha256(&diff));
            assert!(whole || now == old.uncompressed_digest());
            assert_eq!(std::fs::read_to_string(tree.join("file")).unwrap().len(), if whole { 300_000 } else { 1 });
            assert_eq!((tree.join("last").exists(), tree.join("other").exists()), (whole, true));
            store.delete_layer(layer.id()).await.unwrap();
            if done.is_some() {
                assert!(whole);
                finished = true;
                break;
            }
        }
        assert!(finished);
    }
}
