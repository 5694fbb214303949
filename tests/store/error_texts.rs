//! What errors say: every level of a failure says something that no other level says.

use graphroot::{
    CommitOptions, Compression, ContainerOptions, DiffOptions, Digest, Error, ErrorKind, ImageBuilder,
    ImageOptions, LayerOptions, Result, Store, StoreOptions,
};
use std::io::Cursor;

use crate::support::{TestStore, tar};

/// The texts of the levels, the outermost first.
fn levels(error: &Error) -> Vec<String> {
    let mut levels = vec![error.to_string()];
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        levels.push(cause.to_string());
        next = cause.source();
    }
    levels
}

/// What is wrong with the text of an error.
fn fault(error: &Error) -> Option<String> {
    let levels = levels(error);
    let chain = error.chain();
    let kind = error.kind().as_str();
    if chain.matches(kind).count() > 1 {
        return Some(format!("says {kind:?} twice"));
    }
    for (index, level) in levels.iter().enumerate() {
        if level.is_empty()
            || level.ends_with(['.', ':', ' '])
            || level.contains("  ")
            || level.contains('\n')
        {
            return Some(format!("has the level {level:?}"));
        }
        if level.contains("Error") || level.starts_with("error") || level.contains("os error 0") {
            return Some(format!("calls itself an error in {level:?}"));
        }
        let other = |other: &(usize, &String)| other.0 != index && other.1.contains(level.as_str());
        if levels.iter().enumerate().any(|place| other(&place)) {
            return Some(format!("says {level:?} on two levels"));
        }
    }
    // Words that stand beside each other twice, as in "reading: reading".
    let words: Vec<&str> = chain
        .split_whitespace()
        .map(|word| word.trim_end_matches([':', ',']))
        .collect();
    words
        .windows(2)
        .find(|pair| pair[0] == pair[1] && pair[0].len() > 2)
        .map(|pair| format!("says {:?} twice in a row", pair[0]))
}

struct Failures(Vec<(&'static str, Error)>);

impl Failures {
    #[track_caller]
    fn add<T>(&mut self, what: &'static str, result: Result<T>) {
        let error = result.err().unwrap_or_else(|| panic!("{what} is no failure"));
        self.0.push((what, error));
    }
}

async fn lookups(store: &Store, failures: &mut Failures) {
    failures.add("layer", store.layer("nobody").await);
    failures.add("image", store.image("nobody").await);
    failures.add("container", store.container("nobody").await);
    failures.add("lookup", store.lookup("nobody").await);
    failures.add("names", store.names("nobody").await);
    failures.add("metadata", store.metadata("nobody").await);
    failures.add("mount", store.mount("nobody", Default::default()).await);
    failures.add(
        "mount image",
        store.mount_image("nobody", Default::default()).await,
    );
    failures.add("unmount", store.unmount("nobody").await);
    failures.add("diff", store.diff(None, "nobody", DiffOptions::default()).await);
    failures.add("changes", store.changes(None, "nobody").await);
    failures.add("image size", store.image_size("nobody").await);
    failures.add("container size", store.container_size("nobody").await);
    failures.add("layers of image", store.image_layers("nobody").await);
    failures.add("manifest", store.image_manifest("nobody").await);
    failures.add(
        "manifest of an image without",
        store.image_manifest("image").await,
    );
    failures.add("config of an image without", store.image_config("image").await);
    failures.add("manifest that is none", store.image_manifest("odd").await);
    failures.add("commit", store.commit("nobody", CommitOptions::new()).await);
    failures.add("big data of layer", store.layer_big_data("base", "nothing").await);
    failures.add(
        "big data of image",
        store.image_big_data("image", "nothing").await,
    );
    failures.add(
        "big data of container",
        store.container_big_data("box", "nothing").await,
    );
    failures.add(
        "size of big data",
        store.image_big_data_size("image", "nothing").await,
    );
    failures.add(
        "digest of big data",
        store.image_big_data_digest("image", "nothing").await,
    );
    failures.add(
        "size of container's",
        store.container_big_data_size("box", "nothing").await,
    );
    failures.add(
        "digest of container's",
        store.container_big_data_digest("nobody", "x").await,
    );
    failures.add("file", store.from_container_directory("box", "nothing").await);
    failures.add(
        "file outside",
        store.from_container_directory("box", "../x").await,
    );
}

async fn changes(store: &Store, failures: &mut Failures) {
    let layer = LayerOptions::default;
    failures.add("same ID", store.create_layer(None, layer().id("base-id")).await);
    failures.add("same name", store.create_layer(None, layer().name("base")).await);
    failures.add("no parent", store.create_layer(Some("nobody"), layer()).await);
    failures.add(
        "no template",
        store.create_layer(None, layer().template("nobody")).await,
    );
    failures.add("odd ID", store.create_layer(None, layer().id("a/b")).await);
    failures.add(
        "image without layer",
        store.create_image(Some("nobody"), ImageOptions::default()).await,
    );
    let taken = ImageOptions::default().name("image");
    failures.add("image of the same name", store.create_image(None, taken).await);
    let empty = ImageOptions::default().big_data("", "x");
    failures.add("image with an odd key", store.create_image(None, empty).await);
    failures.add(
        "container without image",
        store.create_container(Some("nobody"), Default::default()).await,
    );
    let taken = ContainerOptions::default().name("box");
    failures.add(
        "container of the same name",
        store.create_container(None, taken).await,
    );
    failures.add("delete layer in use", store.delete_layer("base").await);
    failures.add("delete image in use", store.delete_image("image").await);
    failures.add("delete layer", store.delete_layer("nobody").await);
    failures.add("delete image", store.delete_image("nobody").await);
    failures.add("delete container", store.delete_container("nobody").await);
    failures.add("delete", store.delete("nobody").await);
    failures.add("add names", store.add_names("nobody", ["x"]).await);
    failures.add("set metadata", store.set_metadata("nobody", "x").await);
    failures.add("odd key", store.set_image_big_data("image", "", "x", None).await);
    failures.add(
        "build on nothing",
        ImageBuilder::new().top_layer("nobody").build(store).await,
    );
    failures.add(
        "build from nothing",
        ImageBuilder::new().base("nobody").build(store).await,
    );
    failures.add(
        "build with an odd name",
        ImageBuilder::new().name("A b").build(store).await,
    );
}

async fn streams(store: &Store, failures: &mut Failures) {
    let good = tar(&[("d/", ""), ("d/f", "content")]);
    let put = async |bytes: &[u8]| {
        store
            .put_layer(None, LayerOptions::default(), Cursor::new(bytes.to_vec()))
            .await
    };
    failures.add("no tar", put(&[b'x'; 4096]).await);
    failures.add("text", put(b"hello, I am no archive\n").await);
    failures.add("a cut tar", put(&good[..700]).await);
    failures.add("a cut header", put(&good[..300]).await);
    let gzip = store
        .put_layer(
            None,
            LayerOptions::default().name("good"),
            Cursor::new(good.clone()),
        )
        .await
        .unwrap();
    let options = DiffOptions::compressed(Compression::Gzip);
    let packed = crate::support::read_all(store.diff(None, gzip.layer.id(), options).await.unwrap()).await;
    failures.add("a cut gzip", put(&packed[..packed.len() - 20]).await);
    let mut damaged = packed.clone();
    damaged[30] ^= 0xff;
    failures.add("a damaged gzip", put(&damaged).await);
    failures.add("a gzip of nothing", put(&packed[..10]).await);
    failures.add(
        "a zstd of nothing",
        put(b"\x28\xb5\x2f\xfd\0\0\0\0\0\0\0\0").await,
    );
    failures.add("an xz of nothing", put(b"\xfd7zXZ\0\0\0\0\0\0\0\0").await);
    failures.add("a bzip2 of nothing", put(b"BZh9\0\0\0\0\0\0\0\0").await);
    for (what, entry) in [("an entry outside", "../x"), ("an entry on a file", "d/f/g")] {
        let bytes = tar(&[("d/", ""), ("d/f", "content")]);
        let more = graphroot::test_util::TarBuilder::new()
            .raw(&bytes[..bytes.len() - 1024])
            .file(entry, "x")
            .build();
        if let Err(error) = put(&more).await {
            failures.0.push((what, error));
        }
    }
    let wrong = Digest::sha256("something else");
    let verified = LayerOptions::default().verify_original_digest(wrong.clone());
    failures.add(
        "another blob",
        store.put_layer(None, verified, Cursor::new(good.clone())).await,
    );
    let verified = LayerOptions::default().verify_uncompressed_digest(wrong);
    failures.add(
        "another diff ID",
        store
            .put_image_layer_with(None, verified, Cursor::new(good.clone()))
            .await,
    );
    failures.add(
        "apply no tar",
        store.apply_diff("good", Cursor::new(vec![b'x'; 4096])).await,
    );
    let bzip2 = DiffOptions::compressed(Compression::Bzip2);
    failures.add("compression", store.diff(None, "good", bzip2).await);
    failures.add(
        "offset",
        store
            .diff(None, "good", DiffOptions::uncompressed().offset(1 << 40))
            .await,
    );

    let mut diff = store
        .diff(
            None,
            "good",
            DiffOptions::compressed(Compression::Zstd).offset(1 << 40),
        )
        .await
        .unwrap();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut diff, &mut Vec::new()).await;
    failures.add(
        "offset in a stream",
        read.map_err(|error| Error::try_from_io(error).unwrap()),
    );
    let mut diff = store
        .diff(None, "good", DiffOptions::uncompressed())
        .await
        .unwrap();
    store.delete_layer("good").await.unwrap();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut diff, &mut Vec::new()).await;
    failures.add(
        "a layer that goes",
        read.map_err(|error| Error::try_from_io(error).unwrap()),
    );
}

async fn openings(store: &TestStore, failures: &mut Failures) {
    let dir = store.path().join("other");
    let options = || StoreOptions::new(dir.join("graph"), dir.join("run"));
    failures.add(
        "no root",
        Store::open(StoreOptions::default().driver("vfs")).await,
    );
    failures.add("no driver", Store::open(options().driver("nonsense")).await);
    failures.add(
        "no option",
        Store::open(options().driver("vfs").driver_option("vfs.nonsense=1")).await,
    );
    failures.add(
        "no value",
        Store::open(options().driver("overlay").driver_option("overlay.mountopt")).await,
    );
    std::fs::write(store.path().join("file"), "").unwrap();
    let below = StoreOptions::new(store.path().join("file/graph"), dir.join("run")).driver("vfs");
    failures.add("below a file", Store::open(below).await);
    let other = Store::open(options().driver("vfs")).await.unwrap();
    for text in ["[{]", "{}", "[{\"id\":7}]"] {
        std::fs::write(dir.join("graph/vfs-layers/layers.json"), text).unwrap();
        std::fs::write(dir.join("graph/vfs-layers/layers.lock"), text).unwrap();
        failures.add("damaged records", other.layers().await);
    }
}

#[test]
fn no_error_says_the_same_twice() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(Box::pin(async {
        let store = TestStore::open("vfs", crate::support::Layout::Plain)
            .await
            .unwrap();
        store
            .create_layer(None, LayerOptions::default().id("base-id").name("base"))
            .await
            .unwrap();
        store
            .create_image(Some("base"), ImageOptions::default().name("image"))
            .await
            .unwrap();
        store
            .create_image(
                None,
                ImageOptions::default()
                    .name("odd")
                    .big_data("manifest", "no JSON"),
            )
            .await
            .unwrap();
        store
            .create_container(Some("image"), ContainerOptions::default().name("box"))
            .await
            .unwrap();
        let mut failures = Failures(Vec::new());
        lookups(&store, &mut failures).await;
        changes(&store, &mut failures).await;
        streams(&store, &mut failures).await;
        openings(&store, &mut failures).await;
        let mut faults = Vec::new();
        for (what, error) in &failures.0 {
            eprintln!("{what}: {error:?}");
            faults.extend(fault(error).map(|fault| format!("{what}: {:?} {fault}", error.chain())));
        }
        assert!(faults.is_empty(), "{faults:#?}");
        let kinds: std::collections::HashSet<ErrorKind> =
            failures.0.iter().map(|(_, error)| error.kind()).collect();
        assert!(kinds.len() > 15, "{kinds:?}");
    }));
}

/// One entry of a type, with this name and data.
async fn entry(
    builder: &mut tokio_tar::Builder<Vec<u8>>,
    kind: tokio_tar::EntryType,
    name: &str,
    data: &[u8],
) {
    let mut header = tokio_tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(data.len() as u64);
    builder.append_data(&mut header, name, data).await.unwrap();
}

/// Failures of `mknod` and `setxattr` name the call, the entry and the reason.
#[tokio::test]
async fn unpacking_names_the_call() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var("GRAPHROOT_TEST_REQUIRE").as_deref() != Ok("all"));
        eprintln!("SKIPPED: devices need root");
        return;
    }
    let Some(store) = TestStore::open("vfs", crate::support::Layout::Plain).await else {
        return;
    };
    let mut device = tokio_tar::Builder::new(Vec::new());
    entry(&mut device, tokio_tar::EntryType::Char, &"n".repeat(300), b"").await;
    let record = format!(" SCHILY.xattr.user.large={}\n", "v".repeat(70_000));
    let record = format!("{}{record}", record.len() + 5);
    let mut attribute = tokio_tar::Builder::new(Vec::new());
    entry(
        &mut attribute,
        tokio_tar::EntryType::XHeader,
        "records",
        record.as_bytes(),
    )
    .await;
    entry(
        &mut attribute,
        tokio_tar::EntryType::Regular,
        "with-attribute",
        b"content",
    )
    .await;
    for (archive, parts) in [
        (device, ["mknod", "nnnnnnnn", "File name too long"]),
        (
            attribute,
            ["setxattr", "with-attribute", "Argument list too long"],
        ),
    ] {
        let archive = Cursor::new(archive.into_inner().await.unwrap());
        let put = store.put_layer(None, LayerOptions::default(), archive).await;
        let text = put.unwrap_err().chain();
        for part in parts {
            assert!(text.contains(part), "{part} in {text:?}");
        }
    }
}
