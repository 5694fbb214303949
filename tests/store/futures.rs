//! Every future of the public interface can be spawned, and be dropped at any await.

use graphroot::{Digest, ErrorKind, LayerOptions, Store, StoreOptions};

use crate::support::{tar, tree_of};

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

each_driver! {
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
