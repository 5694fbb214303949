//! Diffs that are applied to layers which have content, are mounted, or are known to nobody.

use std::io::Cursor;
use std::os::unix::fs::MetadataExt as _;

use graphroot::{Digest, LayerOptions};

use crate::support::{Layout, tar, tree_of, writable};

each_driver! {
    async fn files_that_stay_are_not_copied(store) {
        let layer = store.put(None, "layer", &[("d/", ""), ("d/kept", "1"), ("changed", "1")]).await;
        let tree = tree_of(&store, layer.id());
        let old = [tree.join("d/kept"), tree.join("changed")].map(|path| path.metadata().unwrap().ino());
        let diff = tar(&[("changed", "22"), ("d/new", "333")]);
        assert_eq!(store.apply_diff(layer.id(), Cursor::new(diff.clone())).await.unwrap(), 5);
        let tree = tree_of(&store, layer.id());
        let kept = tree.join("d/kept").metadata().unwrap();
        assert_eq!((kept.ino(), kept.nlink()), (old[0], 1));
        let changed = tree.join("changed").metadata().unwrap();
        assert!(changed.ino() != old[1] && changed.nlink() == 1);
        assert_eq!(std::fs::read_to_string(tree.join("d/new")).unwrap(), "333");
        let layer = store.layer(layer.id()).await.unwrap();
        assert_eq!(layer.uncompressed_digest(), Some(Digest::sha256(&diff)));
        assert!(layer.flags().is_empty(), "{layer:?}");
        // An archive that breaks off changes nothing.
        let mut cut = tar(&[("changed", "4"), ("more", "5")]);
        cut.truncate(1200);
        store.apply_diff(layer.id(), Cursor::new(cut)).await.unwrap_err();
        assert_eq!(std::fs::read_to_string(tree.join("changed")).unwrap(), "22");
        assert_eq!(store.layer(layer.id()).await.unwrap().uncompressed_digest(), Some(Digest::sha256(&diff)));
    }

    async fn mounts_keep_their_files(store) {
        let base = store.put(None, "base", &[("kept", "1"), ("old", "1")]).await;
        let child = store.create_layer(Some(base.id()), LayerOptions::default().writeable(true)).await.unwrap();
        let mounted = writable(store.mount(child.id(), Default::default()).await.unwrap());
        std::fs::write(mounted.join("own"), "2").unwrap();
        let own = mounted.join("own").metadata().unwrap().ino();
        // To the mounted layer, and to the one below it.
        store.apply_diff(child.id(), Cursor::new(tar(&[("new", "3")]))).await.unwrap();
        store.apply_diff(base.id(), Cursor::new(tar(&[("lower", "4")]))).await.unwrap();
        for (name, content) in [("kept", "1"), ("old", "1"), ("own", "2")] {
            assert_eq!(std::fs::read_to_string(mounted.join(name)).unwrap(), content);
        }
        assert_eq!(mounted.join("own").metadata().unwrap().ino(), own);
        assert_eq!(store.unmount(child.id()).await.unwrap(), 0);
        let mounted = store.mount(child.id(), Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(mounted.join("new")).unwrap(), "3");
        let diff = Digest::sha256(tar(&[("new", "3")]));
        assert_eq!(store.layer(child.id()).await.unwrap().uncompressed_digest(), Some(diff));
        assert_eq!(store.unmount(child.id()).await.unwrap(), 0);
    }

    async fn a_record_says_nothing_of_content_that_nobody_knows(store) {
        let layer = store.put(None, "layer", &[("file", "1")]).await;
        let records = match store.layout() {
            Layout::Split => store.path().join("images").join(format!("{}-layers", store.graph_driver_name())),
            _ => store.records("layers"),
        };
        let records = records.join("layers.json");
        let text = std::fs::read(&records).unwrap();
        let mut rows: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
        // As of a process that was killed while it changed files in place.
        rows[0]["flags"] = serde_json::json!({"graphroot-pending": "diff {}"});
        store.free();
        std::fs::write(&records, serde_json::to_vec(&rows).unwrap()).unwrap();
        let next = store.reopen().await;
        let found = next.layer(layer.id()).await.unwrap();
        assert_eq!((found.uncompressed_digest(), found.compressed_digest()), (None, None));
        assert_eq!(found.names(), ["layer"]);
        let tar_split = format!("{}.tar-split.gz", layer.id());
        assert!(!store.records("layers").join(tar_split).exists());
        let text = std::fs::read_to_string(&records).unwrap();
        assert!(!text.contains("graphroot-pending"), "{text}");
        let mounted = next.mount(layer.id(), Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(mounted.join("file")).unwrap(), "1");
        next.unmount(layer.id()).await.unwrap();
    }
}
