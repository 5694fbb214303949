//! Creating, staging, committing, removing.

use super::*;

pub(super) fn removal_is_immediate_and_deletion_deferred(bench: &Bench) {
    bench.layer("a", None, |tree| write(tree, "file", ""));
    bench.create("b", Some("a"));
    let names = bench.link_ids();
    let temp = bench.driver.defer_remove("b").unwrap().unwrap();
    assert!(!bench.driver.exists("b") && bench.driver.exists("a"));
    assert_eq!(bench.driver.list_layers().unwrap(), ["a"]);
    assert!(bench.link_ids() < names || !bench.is_overlay());
    assert_eq!(
        fs::read_dir(temp.path()).unwrap().count(),
        if bench.is_overlay() { 2 } else { 1 }
    );
    drop(temp);
    bench.nothing_temporary();
    assert!(bench.driver.defer_remove("b").unwrap().is_none());
    assert_eq!(
        bench
            .driver
            .mount("b", &MountOptions::default())
            .unwrap_err()
            .kind(),
        ErrorKind::LayerUnknown
    );
    assert_eq!(
        bench.driver.layer_tree("b").unwrap_err().kind(),
        ErrorKind::LayerUnknown
    );
}

pub(super) fn leftovers_are_replaced(bench: &Bench) {
    for id in ["plain", "staged"] {
        bench.layer(id, None, |tree| write(tree, "old", ""));
    }
    let names = bench.link_ids();
    bench.create("plain", None);
    bench.layer("staged", None, |tree| write(tree, "new", ""));
    assert_eq!(bench.seen("plain"), []);
    assert_eq!(bench.seen("staged"), pairs(&[("new", "")]));
    assert_eq!(bench.link_ids(), names);
    bench.nothing_temporary();
    // Not even a layer.
    fs::create_dir(bench.dir("empty")).unwrap();
    fs::write(bench.dir("file"), "").unwrap();
    for id in ["empty", "file"] {
        bench.layer(id, None, |tree| write(tree, "new", ""));
        assert_eq!(bench.seen(id), pairs(&[("new", "")]), "{id}");
    }
}

pub(super) fn staged_content_is_nothing_until_committed(bench: &Bench) {
    bench.create("base", None);
    let names = bench.link_ids();
    let staged = bench.stage(Some("base"));
    write(&path_of(&*staged), "file", "");
    assert!(
        at::lstat_at(staged.tree().dir.as_fd(), b"file")
            .unwrap()
            .is_some(),
        "the path is the directory's"
    );
    assert_eq!(bench.driver.list_layers().unwrap(), ["base"]);
    bench.driver.prune().unwrap();
    assert!(
        path_of(&*staged).join("file").exists(),
        "what is in use is not pruned"
    );
    drop(staged);
    bench.nothing_temporary();
    assert_eq!(bench.link_ids(), names);
}

pub(super) fn a_vanished_parent_is_noticed(bench: &Bench) {
    let options = CreateOptions::default();
    assert_eq!(
        Arc::clone(&bench.driver)
            .stage(Some("none"), &options)
            .unwrap_err()
            .kind(),
        ErrorKind::LayerUnknown
    );
    assert_eq!(
        bench
            .driver
            .create("a", Some("none"), &options)
            .unwrap_err()
            .kind(),
        ErrorKind::LayerUnknown
    );
    assert!(!bench.driver.exists("a"));
    bench.create("base", None);
    let staged = bench.stage(Some("base"));
    drop(bench.driver.defer_remove("base").unwrap());
    let error = staged.commit("a", Some("base"), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LayerUnknown, "{error:?}");
    assert!(error.chain().contains("base"), "{}", error.chain());
    assert!(!bench.driver.exists("a"));
    assert_eq!(bench.driver.list_layers().unwrap(), [""; 0]);
    assert_eq!(bench.link_ids(), 0);
    bench.nothing_temporary();
}

pub(super) fn content_can_be_staged_apart(bench: &Bench) {
    if !bench.driver.capabilities().stages_apart {
        return;
    }
    let options = CreateOptions::default();
    bench.layer("base", None, |tree| {
        write(tree, "below", "");
        fs::set_permissions(tree, fs::Permissions::from_mode(0o751)).unwrap();
        std::os::unix::fs::chown(tree, Some(5), Some(6)).unwrap();
    });
    let alone = bench.stage(None);
    write(&path_of(&*alone), "above", "");
    alone.commit("child", Some("base"), &options).unwrap();
    assert_eq!(bench.seen("child"), pairs(&[("above", ""), ("below", "")]));
    let root = bench.mount("child", &["ro"]);
    assert_eq!((mode(&root), owner(&root)), (0o751, (5, 6)));
    bench.driver.unmount("child").unwrap();
    assert!(!bench.dir("child").join("empty").exists());
    // Staged on one layer, committed on another; and on one of the same name that is not the same.
    let moved = bench.stage(Some("base"));
    moved.commit("grandchild", Some("child"), &options).unwrap();
    assert_eq!(bench.seen("grandchild").len(), 2);
    let late = bench.stage(Some("base"));
    bench.layer("base", None, |tree| write(tree, "other", ""));
    late.commit("late", Some("base"), &options).unwrap();
    assert_eq!(bench.seen("late"), pairs(&[("other", "")]));
    let orphan = bench.stage(Some("base"));
    assert_eq!(
        orphan.commit("orphan", None, &options).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

pub(super) fn layers_are_listed_and_described(bench: &Bench) {
    bench.create("a", None);
    bench.create("b", Some("a"));
    let mut ids = bench.driver.list_layers().unwrap();
    ids.sort();
    assert_eq!(ids, ["a", "b"]);
    assert!(bench.driver.exists("a") && !bench.driver.exists("c"));
    assert!(bench.driver.home().starts_with(&bench.config.root));
    let (status, metadata) = (bench.driver.status(), bench.driver.metadata("b").unwrap());
    if !bench.is_overlay() {
        assert_eq!((status.len(), metadata.len()), (0, 0));
        return;
    }
    let names: Vec<&str> = status.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "Backing Filesystem",
        "Supports d_type",
        "Native Overlay Diff",
        "Using metacopy",
        "Supports shifting",
        "Supports volatile",
    ];
    assert_eq!(names, expected);
    let home = bench.driver.home().to_str().unwrap();
    assert_eq!(metadata["UpperDir"], format!("{home}/b/diff"));
    assert_eq!(metadata["WorkDir"], format!("{home}/b/work"));
    assert_eq!(metadata["MergedDir"], format!("{home}/b/merged"));
    assert_eq!(metadata["LowerDir"], format!("{home}/a/diff"));
    assert!(!bench.driver.metadata("a").unwrap().contains_key("LowerDir"));
    assert_eq!(
        bench.driver.metadata("c").unwrap_err().kind(),
        ErrorKind::LayerUnknown
    );
}

pub(super) fn entries_have_kinds(bench: &Bench) {
    bench.create("a", None);
    fs::write(bench.driver.home().join("strange"), "").unwrap();
    fs::write(bench.dir("file"), "").unwrap();
    drop(bench.stage(None));
    let kind = |name: &str| {
        let entries = bench.driver.list().unwrap();
        let mut found = entries.iter().filter(|entry| entry.name == name);
        let kind = found.next().unwrap().kind;
        assert!(found.next().is_none(), "{name}");
        kind
    };
    assert_eq!(kind("a"), EntryKind::Layer);
    assert_eq!(kind("tempdirs"), EntryKind::Internal);
    let internal: &[&str] = if bench.is_overlay() {
        &["l", ".has-mount-program"]
    } else {
        &["dir"]
    };
    for name in internal {
        assert_eq!(kind(name), EntryKind::Internal, "{name}");
    }
    for name in ["strange", "file"] {
        assert_eq!(kind(name), EntryKind::Unknown, "{name}");
    }
    assert_eq!(bench.driver.list_layers().unwrap(), ["a"]);
}

pub(super) fn names_of_a_layer_are_told(bench: &Bench) {
    bench.layer("a", None, |_tree| {});
    bench.create("b", Some("a"));
    for id in ["a", "b"] {
        let dirs = bench.driver.names_to_sync(id).unwrap();
        let tree = bench.dir(id);
        assert!(dirs.iter().all(|dir| dir.is_dir()), "{dirs:?}");
        assert!(dirs.iter().any(|dir| Some(&**dir) == tree.parent()), "{dirs:?}");
        if bench.is_overlay() {
            assert!(
                dirs.contains(&tree) && dirs.contains(&bench.driver.home().join("l")),
                "{dirs:?}"
            );
        }
    }
    let error = bench.driver.names_to_sync("none").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LayerUnknown);
}

pub(super) fn limits_need_quotas(bench: &Bench) {
    let quota = Quota {
        size: Some(1 << 30),
        inodes: None,
    };
    bench.create("a", None);
    assert!(!bench.driver.capabilities().quota);
    let error = bench.driver.set_quota("a", &quota).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    let options = CreateOptions {
        read_write: true,
        storage_opt: [("size".into(), "1g".into())].into(),
        ..CreateOptions::default()
    };
    let driver = &bench.driver;
    let error = driver.create("b", None, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported, "{}", error.chain());
    let error = Arc::clone(driver).stage(None, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported, "{}", error.chain());
    assert!(!driver.exists("b"));
    bench.nothing_temporary();
}

pub(super) fn bad_ids_are_refused(bench: &Bench) {
    bench.layer("a", None, |tree| write(tree, "file", ""));
    let options = CreateOptions::default();
    let reserved: &[&str] = if bench.is_overlay() {
        &["l", "staging", "tempdirs"]
    } else {
        &[]
    };
    let long = "x".repeat(201);
    let impossible = ["", ".", "..", "a/b", "../x", "x\0y", long.as_str()];
    for id in impossible.iter().chain(reserved).copied() {
        let driver = &bench.driver;
        assert_eq!(
            driver.check_id(id).unwrap_err().kind(),
            ErrorKind::UnsafePath,
            "{id:?}"
        );
        assert_eq!(
            driver.create(id, None, &options).unwrap_err().kind(),
            ErrorKind::UnsafePath,
            "{id:?}"
        );
        let staged = bench.stage(None);
        let error = staged.commit(id, None, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsafePath, "{id:?}");
        assert_eq!(
            driver.defer_remove(id).unwrap_err().kind(),
            ErrorKind::UnsafePath,
            "{id:?}"
        );
        assert_eq!(
            driver.mount(id, &MountOptions::default()).unwrap_err().kind(),
            ErrorKind::UnsafePath,
            "{id:?}"
        );
        assert!(!driver.exists(id), "{id:?}");
    }
    assert_eq!(bench.seen("a"), pairs(&[("file", "")]), "nothing was touched");
}
