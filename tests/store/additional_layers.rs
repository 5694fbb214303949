//! Layers that other programs offer in additional layer stores.

use std::fs;
use std::io::{Cursor, Write as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use graphroot::{
    Compression, ContainerOptions, DiffOptions, Digest, Durability, ErrorKind, IdMappingOptions,
    ImageOptions, Layer, LayerOptions, MountOptions, Store, StoreOptions,
};

use crate::support::{Layout, TestStore, kind, read_all, tar};

const REFERENCE: &str = "docker.io/library/some:1";

const FILES: &[(&str, &str)] = &[
    ("dir/", ""),
    ("dir/file", "from another program"),
    ("link", "-> dir/file"),
];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer in an additional layer store.
struct Offered {
    dir: PathBuf,
    toc: Digest,
    tar: Vec<u8>,
    blob: Vec<u8>,
}

impl Offered {
    fn info(&self) -> serde_json::Value {
        serde_json::json!({
            "id": "not for the store to say",
            "names": ["nor this"],
            "flags": {"incomplete": true},
            "uidmap": [{"container_id": 0, "host_id": 1000, "size": 1}],
            "big-data-names": ["nor this"],
            "created": "2001-02-03T04:05:06Z",
            "compressed-diff-digest": Digest::sha256(&self.blob),
            "compressed-size": self.blob.len(),
            "diff-digest": Digest::sha256(&self.tar),
            "diff-size": self.tar.len(),
            "toc-digest": self.toc,
            "compression": 2,
            "uidset": [7, 0, 7],
        })
    }

    fn say(&self, info: impl AsRef<[u8]>) {
        fs::write(self.dir.join("info"), info).unwrap();
    }
}

/// Offers a layer of [`FILES`] in the store in which layers are found by the reference of their image.
fn offer(store: &TestStore) -> Offered {
    let toc = Digest::sha256("a table of contents");
    let name = base64::engine::general_purpose::STANDARD.encode(REFERENCE);
    offer_in(store.path().join("offered").join(name), toc)
}

fn offer_in(parent: PathBuf, toc: Digest) -> Offered {
    let dir = parent.join(toc.as_str());
    let tar = tar(FILES);
    let offered = Offered {
        blob: gzip(&tar),
        dir,
        toc,
        tar,
    };
    fs::create_dir_all(offered.dir.join("diff/dir")).unwrap();
    fs::write(offered.dir.join("diff/dir/file"), "from another program").unwrap();
    symlink("dir/file", offered.dir.join("diff/link")).unwrap();
    fs::write(offered.dir.join("blob"), &offered.blob).unwrap();
    offered.say(offered.info().to_string());
    offered
}

/// A store, and a layer that is offered to it.
async fn with_offered() -> Option<(TestStore, Offered)> {
    let store = TestStore::open("overlay", Layout::LayerStores).await?;
    let offered = offer(&store);
    Some((store, offered))
}

async fn put(store: &TestStore, offered: &Offered, id: &str, parent: Option<&str>) -> Layer {
    let found = store
        .lookup_additional_layer(&offered.toc, REFERENCE)
        .await
        .unwrap();
    let layer = found.put_as(id, parent, [format!("name of {id}")]).await.unwrap();
    found.release().await.unwrap();
    layer
}

fn layer_dir(store: &TestStore, id: &str) -> PathBuf {
    store.path().join("graph/overlay").join(id)
}

/// Nothing of the offered layer has changed.
fn is_whole(offered: &Offered) -> bool {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    names(&offered.dir) == ["blob", "diff", "info"]
        && names(&offered.dir.join("diff")) == ["dir", "link"]
        && fs::read_to_string(offered.dir.join("diff/dir/file")).unwrap() == "from another program"
}

#[tokio::test]
async fn a_layer_is_found_by_its_table_of_contents_and_its_image() {
    let Some((store, offered)) = with_offered().await else {
        return;
    };
    let found = store
        .lookup_additional_layer(&offered.toc, REFERENCE)
        .await
        .unwrap();
    assert_eq!(found.toc_digest(), Some(&offered.toc));
    assert_eq!(found.compressed_digest(), Some(&Digest::sha256(&offered.blob)));
    assert_eq!(found.compressed_size(), Some(offered.blob.len() as u64));
    assert_eq!(found.uncompressed_digest(), Some(&Digest::sha256(&offered.tar)));
    assert_eq!(found.uncompressed_size(), Some(offered.tar.len() as u64));
    assert_eq!(found.compression(), Compression::Gzip);
    assert_eq!(read_all(found.blob().await.unwrap()).await, offered.blob);
    drop(found);
    // Layers of the store without references are found by any.
    let other = Digest::sha256("another table of contents");
    drop(offer_in(store.path().join("plain"), other.clone()));
    for (toc, reference) in [
        (&offered.toc, "docker.io/library/some:2"),
        (&offered.toc, ""),
        (&offered.toc, "\u{ff}/../?\n"),
        (&offered.toc, &"x".repeat(5000)),
        (&Digest::sha256("unknown"), REFERENCE),
    ] {
        let error = store.lookup_additional_layer(toc, reference).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LayerUnknown);
        let words = format!("additional layer (\"{toc}\", {reference:?}) not found: layer not known");
        assert_eq!(error.chain(), words);
    }
    for reference in ["docker.io/library/some:2", ""] {
        let found = store.lookup_additional_layer(&other, reference).await.unwrap();
        assert_eq!(found.toc_digest(), Some(&other));
    }
    let vfs = TestStore::open("vfs", Layout::Plain).await.unwrap();
    let error = vfs.lookup_additional_layer(&offered.toc, REFERENCE).await;
    assert_eq!(kind(error), ErrorKind::LayerUnknown);
    assert!(is_whole(&offered));
}

#[tokio::test]
async fn a_layer_of_an_offered_one_is_a_layer_like_others() {
    let Some((store, offered)) = with_offered().await else {
        return;
    };
    let base = store
        .put(None, "base", &[("below", "1"), ("dir/", ""), ("dir/old", "2")])
        .await;
    let layer = put(&store, &offered, "additional", Some("base")).await;
    assert_eq!((layer.id(), layer.parent()), ("additional", Some(base.id())));
    assert_eq!(layer.names(), ["name of additional"]);
    assert_eq!(layer.toc_digest(), Some(offered.toc.clone()));
    assert_eq!(layer.compressed_digest(), Some(Digest::sha256(&offered.blob)));
    assert_eq!(layer.uncompressed_size(), Some(offered.tar.len() as u64));
    assert_eq!(
        (layer.uids(), layer.compression()),
        (&[0, 7][..], Compression::Gzip)
    );
    assert!(layer.flags().is_empty() && layer.uid_map().is_empty() && layer.big_data_names().is_empty());
    assert!(layer.created() >= base.created());
    let dir = layer_dir(&store, "additional");
    assert_eq!(fs::read_link(dir.join("diff")).unwrap(), offered.dir.join("diff"));
    assert_eq!(
        fs::read_to_string(dir.join("additionallayer")).unwrap(),
        offered.dir.to_str().unwrap()
    );

    // It is there for other processes.
    let other = store.reopen().await;
    assert_eq!(
        other.layers_by_toc_digest(&offered.toc).await.unwrap()[0].id(),
        "additional"
    );
    assert_eq!(
        other.layer("name of additional").await.unwrap().parent(),
        Some(base.id())
    );
    let again = other
        .lookup_additional_layer(&offered.toc, REFERENCE)
        .await
        .unwrap();
    let nobody: [&str; 0] = [];
    assert_eq!(
        kind(again.put_as("additional", None, nobody).await),
        ErrorKind::DuplicateId
    );
    assert_eq!(
        kind(again.put_as("x", None, ["base"]).await),
        ErrorKind::DuplicateName
    );
    assert_eq!(
        kind(again.put_as("x", Some("nobody"), nobody).await),
        ErrorKind::LayerUnknown
    );
    for id in ["", "..", "a/b", "l"] {
        assert_eq!(
            kind(again.put_as(id, None, nobody).await),
            ErrorKind::UnsafePath,
            "{id:?}"
        );
    }
    assert_eq!(other.layers().await.unwrap().len(), 2);

    // It is mounted read-only; what is made on it can be written.
    let path = store.mount("additional", Default::default()).await.unwrap();
    assert_eq!(
        fs::read_to_string(path.join("link")).unwrap(),
        "from another program"
    );
    assert_eq!(fs::read_to_string(path.join("dir/old")).unwrap(), "2");
    assert!(fs::write(path.join("dir/file"), "x").is_err());
    store.unmount("additional").await.unwrap();
    let options = LayerOptions::default().id("top").writeable(true);
    store.create_layer(Some("additional"), options).await.unwrap();
    let path = store.mount("top", Default::default()).await.unwrap();
    fs::write(path.join("dir/file"), "changed").unwrap();
    fs::remove_file(path.join("below")).unwrap();
    store.unmount("top").await.unwrap();
    let changes = store.changes(None, "top").await.unwrap();
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["D /below", "C /dir/file"]);
    assert!(is_whole(&offered));
    let above = store
        .put(
            Some("additional"),
            "above",
            &[("dir/.wh.file", ""), ("more", "3")],
        )
        .await;
    let path = store.mount(above.id(), Default::default()).await.unwrap();
    assert!(!path.join("dir/file").exists() && path.join("dir/old").exists());
    store.unmount(above.id()).await.unwrap();

    let changes = store.changes(None, "additional").await.unwrap();
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["C /dir", "A /dir/file", "A /link"]);
    assert_eq!(store.diff_size(None, "additional").await.unwrap(), 20 + 8);
    let usage = store
        .graph_driver()
        .read_write_disk_usage("additional")
        .await
        .unwrap();
    assert_eq!(usage.inodes, 4);
    store.garbage_collect().await.unwrap();
    assert!(is_whole(&offered));

    assert_eq!(
        store.differ_target("additional").await.unwrap(),
        offered.dir.join("diff")
    );
    // Its files are not the store's.
    let diff = Cursor::new(tar(&[("new", "x")]));
    let error = store.apply_diff("additional", diff).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIsReadOnly);
    assert!(
        error.chain().contains("additional layer store"),
        "{}",
        error.chain()
    );
    assert!(is_whole(&offered));
    for id in ["top", above.id(), "additional"] {
        store.delete_layer(id).await.unwrap();
    }
    assert!(is_whole(&offered) && !dir.exists());
    drop(put(&store, &offered, "additional", None).await);
    store.wipe().await.unwrap();
    assert!(is_whole(&offered) && store.layers().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_diff_of_such_a_layer_is_its_blob() {
    let Some((store, offered)) = with_offered().await else {
        return;
    };
    drop(put(&store, &offered, "one", None).await);
    let diff = async |options| read_all(store.diff(None, "one", options).await.unwrap()).await;
    assert_eq!(diff(DiffOptions::default()).await, offered.blob);
    assert_eq!(
        diff(DiffOptions::compressed(Compression::Gzip)).await,
        offered.blob
    );
    assert_eq!(diff(DiffOptions::uncompressed()).await, offered.tar);
    assert_eq!(
        diff(DiffOptions::uncompressed().range(600..700)).await,
        offered.tar[600..700]
    );
    assert_eq!(diff(DiffOptions::default().range(5..)).await, offered.blob[5..]);
    let zstd = diff(DiffOptions::compressed(Compression::Zstd)).await;
    assert_eq!(zstd::stream::decode_all(&*zstd).unwrap(), offered.tar);
    let other = diff(DiffOptions::compressed(Compression::Gzip).level(1)).await;
    assert_ne!(other, offered.blob);
    let stream = store
        .diff(None, "one", DiffOptions::uncompressed())
        .await
        .unwrap();
    assert_eq!(stream.size(), Some(offered.tar.len() as u64));
    // Copied into another store it is a layer like others.
    let copy = store
        .put_layer(None, LayerOptions::default().name("copy"), stream)
        .await
        .unwrap();
    assert_eq!(
        copy.layer.uncompressed_digest(),
        Some(Digest::sha256(&offered.tar))
    );

    let ends_with = async |options: DiffOptions, words: &str| {
        let mut stream = store.diff(None, "one", options).await.unwrap();
        let error = tokio::io::copy(&mut stream, &mut tokio::io::sink())
            .await
            .unwrap_err();
        let error = graphroot::Error::try_from_io(error).unwrap();
        assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error:?}");
        assert!(error.chain().contains(words), "{}", error.chain());
    };
    // Another blob with the same content, and one with another.
    let same = gzip(&[&offered.tar[..], &[0; 512]].concat());
    fs::write(offered.dir.join("blob"), &same).unwrap();
    for options in [DiffOptions::default(), DiffOptions::uncompressed()] {
        ends_with(
            options,
            "the blob of a layer in an additional layer store has digest",
        )
        .await;
    }
    // A blob of another compression than is recorded is not given out as it is.
    let mut info = offered.info();
    let plain = &offered.tar;
    fs::write(offered.dir.join("blob"), plain).unwrap();
    info["compressed-diff-digest"] = Digest::sha256(plain).as_str().into();
    offered.say(info.to_string());
    store.delete_layer("one").await.unwrap();
    drop(put(&store, &offered, "one", None).await);
    let repacked = diff(DiffOptions::default()).await;
    let mut decoded = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*repacked), &mut decoded).unwrap();
    assert_eq!(decoded, offered.tar);
    // The digest of the tar stream counts as well.
    info["diff-digest"] = Digest::sha256("x").as_str().into();
    offered.say(info.to_string());
    store.delete_layer("one").await.unwrap();
    drop(put(&store, &offered, "one", None).await);
    ends_with(
        DiffOptions::uncompressed(),
        "the tar stream of a layer in an additional layer store",
    )
    .await;
    // A blob that is gone, or is none.
    fs::remove_file(offered.dir.join("blob")).unwrap();
    assert_eq!(
        kind(store.diff(None, "one", DiffOptions::default()).await),
        ErrorKind::Io
    );
    rustix::fs::mknodat(
        rustix::fs::CWD,
        offered.dir.join("blob"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let error = store.diff(None, "one", DiffOptions::default()).await;
    assert_eq!(kind(error), ErrorKind::CorruptMetadata);
}

#[tokio::test]
async fn what_a_store_says_is_checked() {
    let Some((store, offered)) = with_offered().await else {
        return;
    };
    let refused = async |words: &str| {
        let error = store
            .lookup_additional_layer(&offered.toc, REFERENCE)
            .await
            .unwrap_err();
        assert!(error.chain().contains(words), "{}", error.chain());
        assert!(
            error.chain().contains(offered.dir.to_str().unwrap()),
            "{}",
            error.chain()
        );
        error.kind()
    };
    let changed = |key: &str, value: serde_json::Value| {
        let mut info = offered.info();
        info[key] = value;
        info.to_string()
    };
    for (info, words) in [
        (String::new(), "empty"),
        ("nonsense".into(), "not the record of a layer"),
        ("[]".into(), "not the record of a layer"),
        ("{\"compressed-size\":".into(), "not the record of a layer"),
        (
            changed("compressed-size", "1".into()),
            "not the record of a layer",
        ),
        (changed("compressed-size", (-1).into()), "sizes"),
        (changed("diff-size", (-2).into()), "sizes"),
        (changed("compression", 17.into()), "unknown compression"),
        (changed("toc-digest", "../../etc/passwd".into()), "not a digest"),
        (changed("diff-digest", "sha256:/".into()), "not a digest"),
        (changed("compressed-diff-digest", "md5:x".into()), "not a digest"),
    ] {
        offered.say(&info);
        assert_eq!(refused(words).await, ErrorKind::CorruptMetadata, "{info}");
    }
    offered.say(changed("toc-digest", Digest::sha256("x").as_str().into()));
    assert_eq!(refused("table of contents").await, ErrorKind::DigestMismatch);
    // Far too much of it; the file has holes only.
    let file = fs::File::create(offered.dir.join("info")).unwrap();
    file.set_len(1 << 30).unwrap();
    assert_eq!(refused("more than").await, ErrorKind::CorruptMetadata);
    // What follows the record does not count, and little has to be said.
    offered.say("{} nonsense");
    let found = store
        .lookup_additional_layer(&offered.toc, REFERENCE)
        .await
        .unwrap();
    assert_eq!((found.toc_digest(), found.compressed_size()), (None, None));
    let layer = found.put_as("little", None, ["little"]).await.unwrap();
    assert_eq!((layer.toc_digest(), layer.uncompressed_size()), (None, None));
    // Layers that lack something, or have something else in its place, are not found.
    let unknown = async || {
        let found = store.lookup_additional_layer(&offered.toc, REFERENCE).await;
        assert_eq!(kind(found), ErrorKind::LayerUnknown);
    };
    let (outside, name) = (store.path().join("outside"), |name: &str| offered.dir.join(name));
    fs::create_dir(&outside).unwrap();
    fs::rename(name("diff"), outside.join("diff")).unwrap();
    unknown().await;
    fs::write(name("diff"), "").unwrap();
    unknown().await;
    fs::remove_file(name("diff")).unwrap();
    symlink(outside.join("diff"), name("diff")).unwrap();
    unknown().await;
    // A handle does not help.
    let error = found.put_as("late", None, ["late"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{}", error.chain());
    let error = store.mount("little", Default::default()).await.unwrap_err();
    assert!(error.chain().contains("not a directory"), "{}", error.chain());
    fs::remove_file(name("diff")).unwrap();
    let error = store.mount("little", Default::default()).await.unwrap_err();
    let words = "failed to access to the linked additional layer";
    assert!(error.chain().contains(words), "{}", error.chain());
    assert!(store.layer("late").await.is_err() && !layer_dir(&store, "late").exists());
    fs::rename(outside.join("diff"), name("diff")).unwrap();
    // The file that says that a layer is in use is not written through a link.
    fs::write(outside.join("precious"), "x").unwrap();
    symlink(outside.join("precious"), name("use")).unwrap();
    drop(
        store
            .lookup_additional_layer(&offered.toc, REFERENCE)
            .await
            .unwrap(),
    );
    assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "x");
}

#[tokio::test]
async fn links_of_layers_lead_to_where_they_were_made_of() {
    let Some((store, offered)) = with_offered().await else {
        return;
    };
    drop(put(&store, &offered, "one", None).await);
    let options = LayerOptions::default().id("two");
    store.create_layer(Some("one"), options).await.unwrap();
    let dir = layer_dir(&store, "one");
    let lead_to = |target: &str| {
        fs::remove_file(dir.join("diff")).unwrap();
        symlink(target, dir.join("diff")).unwrap();
    };
    lead_to("../../../offered");
    for id in ["one", "two"] {
        let error = store.mount(id, Default::default()).await.unwrap_err();
        assert!(
            error.chain().contains("linkpath must be absolute (got: \"../"),
            "{}",
            error.chain()
        );
    }
    lead_to("/etc");
    for id in ["one", "two"] {
        let error = store.mount(id, Default::default()).await.unwrap_err();
        assert!(error.chain().contains("leads to \"/etc\""), "{}", error.chain());
    }
    let error = store.diff(None, "one", DiffOptions::default()).await;
    assert_eq!(kind(error), ErrorKind::CorruptMetadata);
    store.delete_layer("two").await.unwrap();
    store.delete_layer("one").await.unwrap();
    assert!(Path::new("/etc/passwd").exists() && is_whole(&offered));
    // Nothing but the directory of a layer is removed when a use ends.
    drop(put(&store, &offered, "one", None).await);
    let empty = store.path().join("empty");
    fs::create_dir(&empty).unwrap();
    fs::write(dir.join("additionallayer"), empty.to_str().unwrap()).unwrap();
    store.delete_layer("one").await.unwrap();
    assert!(empty.exists() && !dir.exists());
}

/// Opens a store in other directories, whose driver has these options.
async fn open_beside(store: &TestStore, name: &str, options: &[String]) -> Store {
    let root = store.path().join(name);
    let all = StoreOptions::new(root.join("graph"), root.join("run"))
        .driver("overlay")
        .durability(Durability::None)
        .driver_options(options.iter().cloned());
    Store::open(all).await.unwrap()
}

fn offered_option(store: &TestStore) -> String {
    format!(
        "additionallayerstore={}:ref",
        store.path().join("offered").display()
    )
}

#[tokio::test]
async fn images_of_a_separate_image_store_can_have_such_layers() {
    let Some((store, offered)) = with_offered().await else {
        return;
    };
    let (root, images) = (store.path().join("split"), store.path().join("split/images"));
    let options = StoreOptions::new(root.join("graph"), root.join("run"))
        .driver("overlay")
        .driver_option(offered_option(&store))
        .image_store(&images);
    let split = Store::open(options).await.unwrap();
    let found = split
        .lookup_additional_layer(&offered.toc, REFERENCE)
        .await
        .unwrap();
    let layer = found.put_as("one", None, ["one"]).await.unwrap();
    assert!(images.join("overlay/one/diff").is_symlink());
    let image = ImageOptions::default().name("image");
    split.create_image(Some(layer.id()), image).await.unwrap();
    let container = split
        .create_container(Some("image"), ContainerOptions::default())
        .await
        .unwrap();
    let path = split.mount(container.id(), Default::default()).await.unwrap();
    assert_eq!(
        fs::read_to_string(path.join("link")).unwrap(),
        "from another program"
    );
    fs::write(path.join("dir/file"), "changed").unwrap();
    split.unmount(container.id()).await.unwrap();
    let path = split.mount_image("image", Default::default()).await.unwrap();
    assert_eq!(
        fs::read_to_string(path.join("link")).unwrap(),
        "from another program"
    );
    split.unmount_image("image").await.unwrap();
    split.delete_container(container.id()).await.unwrap();
    split.delete_image("image").await.unwrap();
    assert!(!images.join("overlay/one").exists() && is_whole(&offered));
}

#[tokio::test]
async fn links_of_an_additional_image_store_lead_into_known_layer_stores() {
    let Some((store, offered)) = with_offered().await else {
        return;
    };
    drop(put(&store, &offered, "one", None).await);
    store.free();
    let image_store = format!("imagestore={}", store.path().join("graph").display());
    let known = open_beside(&store, "known", &[image_store.clone(), offered_option(&store)]).await;
    let options = || LayerOptions::default().id("above").writeable(true);
    known.create_layer(Some("one"), options()).await.unwrap();
    let path = known.mount("above", Default::default()).await.unwrap();
    assert_eq!(
        fs::read_to_string(path.join("link")).unwrap(),
        "from another program"
    );
    let diff = known.diff(None, "one", DiffOptions::default()).await.unwrap();
    assert_eq!(read_all(diff).await, offered.blob);
    let read_only = || MountOptions::default().option("ro");
    known.mount("one", read_only()).await.unwrap();

    let unknown = open_beside(&store, "unknown", &[image_store]).await;
    let refused = |error: graphroot::Error| {
        assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{}", error.chain());
        assert!(
            error.chain().contains("in no additional layer store"),
            "{}",
            error.chain()
        );
    };
    refused(unknown.create_layer(Some("one"), options()).await.unwrap_err());
    refused(unknown.mount("one", read_only()).await.unwrap_err());
    refused(
        unknown
            .diff(None, "one", DiffOptions::default())
            .await
            .unwrap_err(),
    );
    // A link out of a known one is none into it.
    let etc = store.path().join("offered/../etc");
    fs::create_dir_all(store.path().join("etc/diff")).unwrap();
    let dir = layer_dir(&store, "one");
    fs::write(dir.join("additionallayer"), etc.to_str().unwrap()).unwrap();
    fs::remove_file(dir.join("diff")).unwrap();
    symlink(etc.join("diff"), dir.join("diff")).unwrap();
    refused(known.diff(None, "one", DiffOptions::default()).await.unwrap_err());
}

#[tokio::test]
async fn a_program_mounts_such_layers() {
    let Some(store) = TestStore::open("overlay", Layout::Program).await else {
        return;
    };
    let offered = offer(&store);
    let program = "mount_program=/usr/bin/fuse-overlayfs".to_owned();
    let store_of_program = open_beside(&store, "program", &[program, offered_option(&store)]).await;
    let found = store_of_program
        .lookup_additional_layer(&offered.toc, REFERENCE)
        .await
        .unwrap();
    found.put_as("one", None, ["one"]).await.unwrap();
    let above = tar(&[("dir/.wh.file", ""), ("more", "x")]);
    let above = store_of_program
        .put_layer(
            Some("one"),
            LayerOptions::default().name("above"),
            Cursor::new(above),
        )
        .await
        .unwrap();
    let path = store_of_program.mount("one", Default::default()).await.unwrap();
    assert_eq!(
        fs::read_to_string(path.join("link")).unwrap(),
        "from another program"
    );
    assert!(fs::write(path.join("new"), "x").is_err());
    store_of_program.unmount("one").await.unwrap();
    let path = store_of_program
        .mount(above.layer.id(), Default::default())
        .await
        .unwrap();
    assert!(path.join("dir").exists() && !path.join("dir/file").exists());
    fs::write(path.join("new"), "x").unwrap();
    store_of_program.unmount(above.layer.id()).await.unwrap();
    assert_eq!(store_of_program.changes(None, "one").await.unwrap().len(), 3);
    assert!(is_whole(&offered));
}

#[tokio::test]
async fn owners_of_such_layers_are_mapped_in_containers() {
    let Some((store, offered)) = with_offered().await else {
        return;
    };
    drop(put(&store, &offered, "one", None).await);
    let image = ImageOptions::default().name("image");
    store.create_image(Some("one"), image).await.unwrap();
    let mapped = vec![graphroot::IdMap::new(0, 100_000, 65_536)];
    let mut options = ContainerOptions::default();
    options.id_mappings = IdMappingOptions::mapped(mapped.clone(), mapped);
    let container = store.create_container(Some("image"), options).await.unwrap();
    let path = store.mount(container.id(), Default::default()).await.unwrap();
    for name in ["", "dir/file", "link"] {
        let found = path.join(name).symlink_metadata().unwrap();
        assert_eq!((found.uid(), found.gid()), (100_000, 100_000), "{name:?}");
    }
    store.unmount(container.id()).await.unwrap();
    let found = offered.dir.join("diff/dir/file").symlink_metadata().unwrap();
    assert_eq!(found.uid(), 0);
    assert!(is_whole(&offered));
}
