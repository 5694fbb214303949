use graphroot::{ContainerOptions, Digest, ErrorKind, ImageOptions};

use crate::support::{Layout, TestStore, kind, read_all};

each_driver! {
    async fn layer_items_are_streams(store) {
        let layer = store.put(None, "base", &[("f", "1")]).await;
        let big: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        store.set_layer_big_data("base", "Some Key/with:odd=chars", std::io::Cursor::new(big.clone())).await.unwrap();
        store.set_layer_big_data("base", "second", std::io::Cursor::new(b"2".to_vec())).await.unwrap();
        let reader = store.layer_big_data(layer.id(), "Some Key/with:odd=chars").await.unwrap();
        assert_eq!(read_all(reader).await, big);
        assert_eq!(store.list_layer_big_data("base").await.unwrap(), ["Some Key/with:odd=chars", "second"]);
        store.set_layer_big_data("base", "second", std::io::Cursor::new(b"new".to_vec())).await.unwrap();
        assert_eq!(read_all(store.layer_big_data("base", "second").await.unwrap()).await, b"new");
        assert_eq!(kind(store.layer_big_data("base", "nothing").await), ErrorKind::NotFound);
        assert_eq!(kind(store.layer_big_data("nobody", "second").await), ErrorKind::LayerUnknown);
        let set = store.set_layer_big_data("base", "", std::io::Cursor::new(Vec::new())).await;
        assert_eq!(kind(set), ErrorKind::InvalidBigDataName);
    }

    async fn image_items_have_sizes_and_digests(store) {
        store.create_image(None, ImageOptions::default().id("i")).await.unwrap();
        store.set_image_big_data("i", "config", "abc", None).await.unwrap();
        assert_eq!(store.image_big_data("i", "config").await.unwrap(), b"abc"[..]);
        assert_eq!(store.image_big_data_size("i", "config").await.unwrap(), 3);
        assert_eq!(store.image_big_data_digest("i", "config").await.unwrap(), Digest::sha256("abc"));
        let fixed = |_: &[u8]| Ok(Digest::sha256("by hand"));
        store.set_image_big_data("i", "manifest-x", "{}", Some(fixed)).await.unwrap();
        assert_eq!(store.images_by_digest(&Digest::sha256("by hand")).await.unwrap().len(), 1);
        assert_eq!(store.image("i").await.unwrap().digest(), Some(Digest::sha256("by hand")));
        assert_eq!(store.list_image_big_data("i").await.unwrap(), ["config", "manifest-x"]);
        assert_eq!(kind(store.image_big_data("i", "nothing").await), ErrorKind::NotFound);
        assert_eq!(kind(store.image_big_data("nobody", "config").await), ErrorKind::ImageUnknown);
        assert_eq!(kind(store.image_big_data_size("i", "nothing").await), ErrorKind::SizeUnknown);
        assert_eq!(kind(store.image_big_data_digest("i", "nothing").await), ErrorKind::DigestUnknown);
        let failing: graphroot::ManifestDigest = |_| "nonsense".parse();
        let set = store.set_image_big_data("i", "manifest", "x", Some(failing)).await;
        assert_eq!(kind(set), ErrorKind::DigestUnknown);
    }

    async fn container_items_have_sizes_and_digests(store) {
        store.create_container(None, ContainerOptions::default().id("c")).await.unwrap();
        store.set_container_big_data("c", "spec", "abc").await.unwrap();
        assert_eq!(store.container_big_data("c", "spec").await.unwrap(), b"abc"[..]);
        assert_eq!(store.container_big_data_size("c", "spec").await.unwrap(), 3);
        assert_eq!(store.container_big_data_digest("c", "spec").await.unwrap(), Digest::sha256("abc"));
        assert_eq!(store.list_container_big_data("c").await.unwrap(), ["spec"]);
        assert_eq!(kind(store.container_big_data("c", "nothing").await), ErrorKind::NotFound);
        assert_eq!(kind(store.container_big_data_size("c", "nothing").await), ErrorKind::SizeUnknown);
        assert_eq!(kind(store.container_big_data_digest("nobody", "spec").await), ErrorKind::DigestUnknown);
        assert_eq!(kind(store.set_container_big_data("nobody", "spec", "x").await), ErrorKind::ContainerUnknown);
    }
}

/// Whether somebody holds the lock on this file.
fn is_locked(path: &std::path::Path) -> bool {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
}

/// The item is large, so that it is being read for a while.
#[tokio::test]
async fn a_size_that_is_found_out_late_loses_no_item_that_is_set_meanwhile() {
    const SIZE: u64 = 128 << 20;
    let store = TestStore::open("vfs", Layout::Plain).await.unwrap();
    let options = ContainerOptions::default().id("c").big_data("spec", "old");
    store.create_container(None, options).await.unwrap();
    let dir = store.records("containers");
    let records = dir.join("containers.json");
    let mut rows: serde_json::Value = serde_json::from_slice(&std::fs::read(&records).unwrap()).unwrap();
    for field in ["big-data-sizes", "big-data-digests"] {
        assert!(rows[0].as_object_mut().unwrap().remove(field).is_some());
    }
    std::fs::write(&records, rows.to_string()).unwrap();
    std::fs::write(dir.join("containers.lock"), "changed").unwrap();
    let item = dir.join("c/spec");
    std::fs::File::create(&item).unwrap().set_len(SIZE).unwrap();

    let measuring = tokio::spawn({
        let store = store.store.clone();
        async move { store.container_big_data_size("c", "spec").await }
    });
    let is_read = || {
        let mut files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        files.any(|file| std::fs::read_link(file.path()).is_ok_and(|path| path == item))
    };
    while !measuring.is_finished() && !is_read() {
        tokio::task::yield_now().await;
    }
    let setting = tokio::spawn({
        let store = store.store.clone();
        async move { store.set_container_big_data("c", "spec", "newer").await }
    });
    if !is_locked(&dir.join("containers.lock")) {
        while !setting.is_finished() {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(measuring.await.unwrap().unwrap(), SIZE);
    setting.await.unwrap().unwrap();
    assert_eq!(store.container_big_data("c", "spec").await.unwrap(), b"newer"[..]);
    assert_eq!(store.container_big_data_size("c", "spec").await.unwrap(), 5);
    let digest = store.container_big_data_digest("c", "spec").await.unwrap();
    assert_eq!(digest, Digest::sha256("newer"));
    assert_eq!(std::fs::read(dir.join("c/spec")).unwrap(), b"newer");
}
