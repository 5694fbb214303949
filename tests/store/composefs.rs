//! Layers in parts whose contents are stored by their digests, below an image. The measure is the ordinary pull of the same
//! tar.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use graphroot::{ChangeKind, CheckOptions, DiffOptions, ErrorKind, LayerOptions, MountOptions};
use tokio::io::AsyncReadExt as _;

use crate::hostile_blobs::{Blob, Draft, Member, dir, file};
use crate::manifest::{Manifest, differences, manifest};
use crate::odd_layers::odd;
use crate::support::{Layout, TestStore, assert_nothing_temporary, over, tar};

fn composefs(case: fn(TestStore) -> std::pin::Pin<Box<dyn Future<Output = ()>>>) {
    over("overlay", Layout::Composefs, case);
}

/// A layer below the others: with names that they delete, and names that contents have.
const BELOW: [(&str, &str); 7] = [
    ("d/", ""),
    ("d/below", "1"),
    ("gone", "2"),
    ("opaque/", ""),
    ("opaque/below", "3"),
    ("ab/", ""),
    ("ab/file", "4"),
];

fn deletions() -> Vec<Member> {
    vec![
        file(".wh.gone", ""),
        dir("opaque/"),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/new", "new"),
        dir("d/"),
        file("d/.wh.below", ""),
        file("cd", "a name that contents have"),
        file("same", "new"),
    ]
}

fn has_image(store: &TestStore, id: &str) -> bool {
    let dir = store.path().join("graph/overlay").join(id);
    dir.join("composefs-data/composefs.blob").is_file()
}

async fn apply(store: &TestStore, blob: &Blob, parent: Option<&str>, id: &str) -> graphroot::Result<()> {
    let staged = blob.prepare(store, Some(&blob.diff_id)).await?;
    let options = LayerOptions::default().id(id);
    store.apply_staged_layer(parent, options, staged).await?;
    assert!(has_image(store, id));
    Ok(())
}

/// What a mount of a layer shows. Directories without an entry have the time at which they were made.
async fn seen(store: &TestStore, id: &str, members: &[Member]) -> Manifest {
    let options = MountOptions::default().option("ro");
    let root = store.mount(id, options).await.unwrap();
    let mut tree = manifest(&root);
    store.unmount(id).await.unwrap();
    for (path, entry) in &mut tree {
        let is_named = members.iter().any(|member| {
            member.kind == "dir" && !member.name.starts_with(".wh.") && Path::new(&member.name) == *path
        });
        if entry.kind == "directory" && !is_named {
            entry.mtime = (0, 0);
        }
    }
    tree
}

async fn exported(store: &TestStore, from: Option<&str>, id: &str) -> Vec<u8> {
    let mut stream = store.diff(from, id, DiffOptions::uncompressed()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

async fn changed(store: &TestStore, from: Option<&str>, id: &str) -> Vec<(std::path::PathBuf, ChangeKind)> {
    let changes = store.changes(from, id).await.unwrap();
    let mut changes: Vec<_> = changes
        .into_iter()
        .map(|change| (change.path, change.kind))
        .collect();
    changes.sort_by(|one, other| one.0.cmp(&other.0));
    changes
}

#[test]
fn a_layer_with_an_image_is_that_of_the_ordinary_pull() {
    composefs(|store| {
        Box::pin(async move {
            store.put(None, "below", &BELOW).await;
            let layers = odd().into_iter().chain([("deletions", deletions())]);
            let mut faults = Vec::new();
            for (what, members) in layers {
                let blob = Draft::of(&members).finish();
                let options = LayerOptions::default().id("whole");
                let whole = store
                    .put_layer(Some("below"), options, Cursor::new(blob.tar.clone()))
                    .await;
                let parts = apply(&store, &blob, Some("below"), "parts").await;
                if let Err(error) = &whole {
                    let refused = parts.expect_err(what);
                    if refused.kind() != error.kind() {
                        faults.push(format!("{what}: {} but {}", error.chain(), refused.chain()));
                    }
                    continue;
                }
                if let Err(error) = parts {
                    faults.push(format!("{what} is refused: {}", error.chain()));
                    store.delete_layer("whole").await.unwrap();
                    continue;
                }
                let [expected, found] = [
                    seen(&store, "whole", &members).await,
                    seen(&store, "parts", &members).await,
                ];
                let differences = differences(&expected, &found);
                if !differences.is_empty() {
                    faults.push(format!("{what}: {differences:?}"));
                }
                if exported(&store, Some("below"), "parts").await != blob.tar {
                    faults.push(format!("{what}: another diff"));
                }
                let below = Some("below");
                let changes = [
                    changed(&store, below, "whole").await,
                    changed(&store, below, "parts").await,
                ];
                if changes[0] != changes[1] {
                    faults.push(format!("{what}: changes {changes:?}"));
                }
                let sizes = [
                    store.diff_size(below, "whole").await.unwrap(),
                    store.diff_size(below, "parts").await.unwrap(),
                ];
                if sizes[0] != sizes[1] {
                    faults.push(format!("{what}: sizes {sizes:?}"));
                }
                for id in ["whole", "parts"] {
                    store.delete_layer(id).await.unwrap();
                }
            }
            assert!(faults.is_empty(), "{}", faults.join("\n"));
            assert_eq!(store.own_layers().await.len(), 1);
            assert_nothing_temporary(&store).await;
        })
    });
}

/// Changes files of all kinds of layers.
fn change(root: &Path) {
    fs::set_permissions(root.join("same"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(root.join("opaque/new"), "changed").unwrap();
    fs::rename(root.join("d"), root.join("e")).unwrap();
    fs::remove_file(root.join("cd")).unwrap();
    fs::hard_link(root.join("same"), root.join("linked")).unwrap();
    symlink("nowhere", root.join("link")).unwrap();
    fs::create_dir(root.join("gone")).unwrap();
}

#[test]
fn containers_stand_on_images() {
    composefs(|store| {
        Box::pin(async move {
            let blob = Draft::of(&deletions()).finish();
            store.put(None, "below", &BELOW).await;
            let options = LayerOptions::default().id("whole");
            store
                .put_layer(Some("below"), options, Cursor::new(blob.tar.clone()))
                .await
                .unwrap();
            apply(&store, &blob, Some("below"), "parts").await.unwrap();
            let more = Draft::of(&[file("top", "1"), file("e5", "2")]).finish();
            for (parent, id) in [("whole", "whole-top"), ("parts", "parts-top")] {
                apply(&store, &more, Some(parent), id).await.unwrap();
                let options = LayerOptions::default().id(format!("{id}-box")).writeable(true);
                store.create_layer(Some(id), options).await.unwrap();
                let root = store
                    .mount(&format!("{id}-box"), MountOptions::default())
                    .await
                    .unwrap();
                assert_eq!(fs::read_to_string(root.join("same")).unwrap(), "new");
                assert_eq!(fs::read_to_string(root.join("ab/file")).unwrap(), "4");
                assert!(!root.join("gone").exists() && !root.join("opaque/below").exists());
                change(&root);
                store.unmount(&format!("{id}-box")).await.unwrap();
                let dir = store.path().join(format!("graph/overlay/{id}-box"));
                assert!(!dir.join("composefs-layers").exists());
            }
            let boxes = ["whole-top-box", "parts-top-box"];
            let mut trees = Vec::new();
            for id in boxes {
                let mut tree = seen(&store, id, &[]).await;
                // Made and changed at other times.
                tree.values_mut().for_each(|entry| entry.mtime = (0, 0));
                trees.push(tree);
            }
            assert_eq!(differences(&trees[0], &trees[1]), Vec::<String>::new());
            let expected = changed(&store, Some("whole-top"), boxes[0]).await;
            assert!(
                expected.contains(&("/same".into(), ChangeKind::Modify)),
                "{expected:?}"
            );
            assert_eq!(changed(&store, Some("parts-top"), boxes[1]).await, expected);
            // What a container has changed can be put on the ordinary layer.
            let diff = exported(&store, Some("parts-top"), boxes[1]).await;
            let options = LayerOptions::default().id("copy");
            store
                .put_layer(Some("whole-top"), options, Cursor::new(diff))
                .await
                .unwrap();
            let mut copy = seen(&store, "copy", &[]).await;
            copy.values_mut().for_each(|entry| entry.mtime = (0, 0));
            assert_eq!(differences(&trees[1], &copy), Vec::<String>::new());
            assert_eq!(store.shutdown_force().await.unwrap(), Vec::<String>::new());
        })
    });
}

#[test]
fn a_layer_with_an_image_is_not_changed() {
    composefs(|store| {
        Box::pin(async move {
            let blob = Draft::of(&[
                file("file", "content"),
                file("copy", "content"),
                file("empty", ""),
            ])
            .finish();
            apply(&store, &blob, None, "parts").await.unwrap();
            let before = seen(&store, "parts", &[]).await;
            let mut format = String::new();
            let mut item = store
                .layer_big_data("parts", "zstd-chunked-layer-data")
                .await
                .unwrap();
            item.read_to_string(&mut format).await.unwrap();
            assert_eq!(format, "{\"format\":1}");
            let error = store.mount("parts", MountOptions::default()).await.unwrap_err();
            assert!(
                error
                    .chain()
                    .contains("cannot mount a composefs layer as writeable"),
                "{}",
                error.chain()
            );
            let diff = tar(&[("new", "1")]);
            let error = store.apply_diff("parts", Cursor::new(diff)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotSupported, "{}", error.chain());
            let staged = blob.prepare(&store, None).await.unwrap();
            let options = LayerOptions::default().id("parts");
            let error = store.apply_staged_layer(None, options, staged).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotSupported, "{}", error.chain());
            assert_eq!(seen(&store, "parts", &[]).await, before);
            assert_eq!(exported(&store, None, "parts").await, blob.tar);
            let report = store.check(CheckOptions::everything()).await.unwrap();
            assert!(report.findings.is_empty(), "{:?}", report.findings);
            // An ordinary layer gets new content in the ordinary form.
            store.put(None, "plain", &[("old", "1")]).await;
            let plain = store.layer("plain").await.unwrap();
            let staged = blob.prepare(&store, None).await.unwrap();
            let options = LayerOptions::default().id(plain.id());
            store.apply_staged_layer(None, options, staged).await.unwrap();
            assert_eq!(exported(&store, None, "plain").await, blob.tar);
            let mut format = String::new();
            let mut item = store
                .layer_big_data("plain", "zstd-chunked-layer-data")
                .await
                .unwrap();
            item.read_to_string(&mut format).await.unwrap();
            assert_eq!(format, "{\"format\":0}");
            assert_nothing_temporary(&store).await;
        })
    });
}

/// Whether a mount of the layer in `dir` verifies contents: the file system has fs-verity, and the kernel is 6.6 or newer.
fn verifies(dir: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let image = dir.join("composefs-data/composefs.blob");
    let stat = statx(CWD, &image, AtFlags::empty(), StatxFlags::BASIC_STATS).unwrap();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(['.', '-'])
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    stat.stx_attributes.contains(StatxAttributes::VERITY) && version >= (6, 6)
}

#[test]
fn what_was_damaged_is_refused() {
    composefs(|store| {
        Box::pin(async move {
            let blob = Draft::of(&[file("file", "content"), file("other", "other")]).finish();
            apply(&store, &blob, None, "parts").await.unwrap();
            let layer = store.path().join("graph/overlay/parts");
            // A content that is gone, or a link to a file of the machine.
            let sum = graphroot::Digest::sha256("content").to_string();
            let name = sum.trim_start_matches("sha256:");
            let object = layer.join("diff").join(&name[..2]).join(&name[2..]);
            fs::remove_file(&object).unwrap();
            let planted = store.path().join("planted");
            fs::write(&planted, "planted").unwrap();
            for is_link in [false, true] {
                if is_link {
                    symlink(&planted, &object).unwrap();
                }
                let root = store
                    .mount("parts", MountOptions::default().option("ro"))
                    .await
                    .unwrap();
                fs::read(root.join("file")).unwrap_err();
                assert_eq!(fs::read_to_string(root.join("other")).unwrap(), "other");
                store.unmount("parts").await.unwrap();
                let mut stream = store
                    .diff(None, "parts", DiffOptions::uncompressed())
                    .await
                    .unwrap();
                stream.read_to_end(&mut Vec::new()).await.unwrap_err();
            }
            // Another content is noticed by who makes the stream again.
            fs::remove_file(&object).unwrap();
            fs::write(&object, "CONTENT").unwrap();
            // So does a mount, where the kernel verifies contents by the digests in the image.
            let root = store
                .mount("parts", MountOptions::default().option("ro"))
                .await
                .unwrap();
            match fs::read_to_string(root.join("file")) {
                Ok(content) => assert!(content == "CONTENT" && !verifies(&layer)),
                Err(error) => assert!(verifies(&layer), "{error}"),
            }
            store.unmount("parts").await.unwrap();
            let mut stream = store
                .diff(None, "parts", DiffOptions::uncompressed())
                .await
                .unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap_err();
            // No image.
            let image = layer.join("composefs-data/composefs.blob");
            fs::remove_file(&image).unwrap();
            symlink(&planted, &image).unwrap();
            let error = store
                .mount("parts", MountOptions::default().option("ro"))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{}", error.chain());
            store.delete_layer("parts").await.unwrap();
            assert_eq!(fs::read_to_string(&planted).unwrap(), "planted");
            assert_eq!(store.shutdown_force().await.unwrap(), Vec::<String>::new());
        })
    });
}
