//! Which driver a graph root gets, if a program brings one.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use graphroot::{ErrorKind, Store, TreeDriver};

use crate::tree_drivers::doubles::{Copies, Mounted, Plain};
use crate::tree_drivers::{options, tar};

#[tokio::test]
async fn a_root_tells_whose_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let own = || options(dir.path()).tree_driver(Arc::new(Copies));
    let store = Store::open(own()).await.unwrap();
    assert_eq!(store.graph_driver_name(), "copies");
    let layer = store.put_image_layer(None, tar(&[("file", "")])).await.unwrap();
    store.free();

    let error = Store::open(options(dir.path())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(
        error.chain().contains("\"copies\"") && error.chain().contains("tree_driver"),
        "{error}"
    );
    let entries = fs::read_dir(dir.path().join("graph")).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        !names.iter().any(|name| name == "overlay" || name == "vfs"),
        "{names:?}"
    );

    // Known without being named, it is chosen by what is on disk.
    let mut known = own();
    known.driver = None;
    let store = Store::open(known).await.unwrap();
    assert!(store.exists(layer.id()).await.unwrap());
    store.free();

    // Another driver of a program is another one.
    let mut other = options(dir.path()).tree_driver(Arc::new(Plain));
    other.driver = None;
    let error = Store::open(other).await.unwrap_err();
    assert!(error.chain().contains("\"copies\""), "{error}");
}

#[tokio::test]
async fn two_drivers_on_one_root_are_both_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut vfs = options(dir.path()).driver("vfs");
    if !rustix::process::geteuid().is_root() {
        vfs = vfs.driver_option("vfs.ignore_chown_errors=true");
    }
    Store::open(vfs).await.unwrap().free();
    let own = || options(dir.path()).tree_driver(Arc::new(Copies));
    Store::open(own()).await.unwrap().free();
    let mut known = own();
    known.driver = None;
    for options in [options(dir.path()), known] {
        let error = Store::open(options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(
            error.chain().contains("several valid graphdrivers: vfs, copies;"),
            "{error}"
        );
    }
    assert_eq!(Store::open(own()).await.unwrap().graph_driver_name(), "copies");
}

#[tokio::test]
async fn a_new_root_gets_the_driver_that_is_brought() {
    let dir = tempfile::tempdir().unwrap();
    let known = |root: &str| {
        let mut known = options(&dir.path().join(root)).tree_driver(Arc::new(Copies));
        known.driver = None;
        known
    };
    let store = Store::open(known("one")).await.unwrap();
    assert_eq!(store.graph_driver_name(), "copies");
    let store = Store::open(known("two").driver_priority(["vfs"])).await.unwrap();
    assert_eq!(store.graph_driver_name(), "vfs");
    // One that does not work here says why, and leaves nothing.
    let three = dir.path().join("three");
    let volumes = three.join("graph/volumes");
    let mounted = || {
        Arc::new(Mounted {
            volumes: volumes.clone(),
            in_memory: false,
        })
    };
    let error = Store::open(options(&three).tree_driver(mounted()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    let text = error.chain();
    assert!(
        text.ends_with("the volumes are in the graph root") && text.matches("\"mounted\"").count() == 1,
        "{text}"
    );
    assert_eq!(text.matches(three.to_str().unwrap()).count(), 1, "{text}");
    assert!(!three.join("graph/mounted").exists());
}

#[derive(Debug)]
struct Named(&'static str);

impl TreeDriver for Named {
    fn name(&self) -> &'static str {
        self.0
    }

    fn clone_tree(&self, _source: &Path, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[tokio::test]
async fn names_that_a_driver_cannot_have_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("graph");
    for name in [
        "",
        "a",
        "..",
        "a/b",
        "Upper",
        "1st",
        "with-dash",
        "vfs",
        "overlay",
        "overlay2",
        "with space",
        "libpod",
        "volumes",
        "networks",
        "secrets",
        "artifacts",
        "tmp",
        "tempdirs",
        "cache",
        "mounts",
        "aufs",
        "devicemapper",
        "windows",
        "windowsfilter",
        "a123456789012345678901234567890123",
    ] {
        let error = Store::open(options(dir.path()).tree_driver(Arc::new(Named(name))))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}");
        assert!(error.chain().contains(&format!("{name:?}")), "{error}");
    }
    // A directory of something else.
    fs::create_dir_all(root.join("other/tmp")).unwrap();
    let error = Store::open(options(dir.path()).tree_driver(Arc::new(Named("other"))))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.chain().contains("belongs to something else"), "{error}");
    assert_eq!(fs::read_dir(root.join("other")).unwrap().count(), 1);
}

#[tokio::test]
async fn such_a_driver_has_few_options() {
    let dir = tempfile::tempdir().unwrap();
    let own = |option: &str| {
        options(dir.path())
            .tree_driver(Arc::new(Copies))
            .driver_option(option)
    };
    for option in ["size=1g", "copies.mountopt=ro", "nonsense", "other.x=1"] {
        let error = Store::open(own(option)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{option}");
    }
    // Those of other drivers do not matter.
    Store::open(own("overlay.mountopt=nodev")).await.unwrap().free();

    // An additional store.
    let additional = dir.path().join("additional");
    let filled = options(&additional).tree_driver(Arc::new(Copies));
    let filled = Store::open(filled).await.unwrap();
    let base = filled
        .put_image_layer(None, tar(&[("file", "base")]))
        .await
        .unwrap();
    filled.free();
    let store = format!("copies.imagestore={}", additional.join("graph").display());
    let store = Store::open(own(&store)).await.unwrap();
    let child = store
        .put_image_layer(Some(base.id()), tar(&[("other", "child")]))
        .await
        .unwrap();
    let tree = dir.path().join("graph/copies/dir").join(child.id());
    assert_eq!(fs::read_to_string(tree.join("file")).unwrap(), "base");
    assert!(store.layer(base.id()).await.unwrap().read_only());
}
