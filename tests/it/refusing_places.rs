//! Disks that are too small: both sides give the same reason, and leave nothing.

use std::fs;
use std::path::Path;

use graphroot::LayerOptions;

use crate::full_disk::Disk;
use crate::support::each_set;
use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::{Header, Tar};

/// What their program says of a layer that it cannot unpack.
fn refused_by_them(root: &TestRoot, archive: &Path) -> String {
    let output = root
        .go()
        .args(["import-layer", "--file"])
        .arg(archive)
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8([output.stdout, output.stderr].concat())
        .unwrap()
        .to_lowercase()
}

async fn a_disk_without_room_for_a_layer(set: PeerSet) {
    let pipes = (0..2000).map(|number| Header::fifo(format!("pipes/{number}")));
    let pipes = pipes.fold(Tar::new().dir("pipes/"), Tar::entry).build();
    let large = Tar::new().file("large", vec![1; 30 << 20]).build();
    for driver in ["overlay", "vfs"] {
        let disk = Disk::tmpfs();
        let root = TestRoot::in_dir(disk.path(), driver).of(set);
        let store = root.open().await;
        for (tar, entry, call) in [(&large, "large", ""), (&pipes, "pipes/", "mknod")] {
            let put = put_bytes(&store, None, LayerOptions::default(), tar.clone()).await;
            let error = put.unwrap_err();
            let ours = error.chain().to_lowercase();
            assert_eq!(error.io_kind(), Some(std::io::ErrorKind::StorageFull), "{ours}");
            assert!(ours.contains(entry) && ours.contains(call), "{ours}");
            let archives = tempfile::tempdir().unwrap();
            let archive = archives.path().join("layer.tar");
            fs::write(&archive, tar).unwrap();
            let theirs = refused_by_them(&root, &archive);
            for text in [&ours, &theirs] {
                assert!(
                    text.contains("no space left on device"),
                    "{driver}, {entry}: {text}"
                );
            }
            assert!(store.layers().await.unwrap().is_empty());
            assert!(root.layer_directories().is_empty());
        }
    }
}
each_set!(async a_disk_without_room_for_a_layer: "containers-storage");
