//! Creating, staging, committing, removing.

use super::*;

pub(super) fn removal_is_immediate_and_deletion_deferred(setup: &Setup) {
    setup.layer("a", None, |tree| write(tree, "file", ""));
    setup.create("b", Some("a"));
    let names = setup.link_ids();
    let temp = setup.driver.defer_remove("b").unwrap().unwrap();
    assert!(!setup.driver.exists("b").unwrap() && setup.driver.exists("a").unwrap());
    assert_eq!(setup.driver.list_layers().unwrap(), ["a"]);
    assert!(setup.link_ids() < names || !setup.is_overlay());
    assert_eq!(
        fs::read_dir(temp.path()).unwrap().count(),
        match setup.driver.name() {
            "overlay" => 2,
            // A dataset is no directory.
            "zfs" => 0,
            _ => 1,
        }
    );
    drop(temp);
    setup.nothing_temporary();
    assert!(setup.driver.defer_remove("b").unwrap().is_none());
    assert_eq!(
        setup
            .driver
            .mount("b", &MountOptions::default())
            .unwrap_err()
            .kind(),
        ErrorKind::LayerUnknown
    );
    assert_eq!(
        setup.driver.layer_tree("b").unwrap_err().kind(),
        ErrorKind::LayerUnknown
    );
}

pub(super) fn leftovers_are_replaced(setup: &Setup) {
    for id in ["plain", "staged"] {
        setup.layer(id, None, |tree| write(tree, "old", ""));
    }
    let names = setup.link_ids();
    setup.create("plain", None);
    setup.layer("staged", None, |tree| write(tree, "new", ""));
    assert_eq!(setup.seen("plain"), []);
    assert_eq!(setup.seen("staged"), pairs(&[("new", "")]));
    assert_eq!(setup.link_ids(), names);
    setup.nothing_temporary();
    if setup.is_zfs() {
        return;
    }
    // Entries that are no layers.
    fs::create_dir(setup.dir("empty")).unwrap();
    fs::write(setup.dir("file"), "").unwrap();
    for id in ["empty", "file"] {
        setup.layer(id, None, |tree| write(tree, "new", ""));
        assert_eq!(setup.seen(id), pairs(&[("new", "")]), "{id}");
    }
}

pub(super) fn staged_content_is_nothing_until_committed(setup: &Setup) {
    setup.create("base", None);
    let names = setup.link_ids();
    let staged = setup.stage(Some("base"));
    write(&path_of(&*staged), "file", "");
    assert!(
        at::lstat_at(staged.tree().dir.as_fd(), b"file")
            .unwrap()
            .is_some(),
        "the path is the directory's"
    );
    assert_eq!(setup.driver.list_layers().unwrap(), ["base"]);
    setup.driver.prune().unwrap();
    assert!(
        path_of(&*staged).join("file").exists(),
        "what is in use is not pruned"
    );
    drop(staged);
    setup.nothing_temporary();
    assert_eq!(setup.link_ids(), names);
}

pub(super) fn a_vanished_parent_is_noticed(setup: &Setup) {
    let options = CreateOptions::default();
    assert_eq!(
        Arc::clone(&setup.driver)
            .stage(Some("none"), &options)
            .unwrap_err()
            .kind(),
        ErrorKind::LayerUnknown
    );
    assert_eq!(
        setup
            .driver
            .create("a", Some("none"), &options)
            .unwrap_err()
            .kind(),
        ErrorKind::LayerUnknown
    );
    assert!(!setup.driver.exists("a").unwrap());
    setup.create("base", None);
    let staged = setup.stage(Some("base"));
    drop(setup.driver.defer_remove("base").unwrap());
    let error = staged.commit("a", Some("base"), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LayerUnknown, "{error:?}");
    assert!(error.chain().contains("base"), "{}", error.chain());
    assert!(!setup.driver.exists("a").unwrap());
    assert_eq!(setup.driver.list_layers().unwrap(), [""; 0]);
    assert_eq!(setup.link_ids(), 0);
    setup.nothing_temporary();
}

pub(super) fn content_can_be_staged_apart(setup: &Setup) {
    if !setup.driver.capabilities().stages_apart {
        return;
    }
    let options = CreateOptions::default();
    setup.layer("base", None, |tree| {
        write(tree, "below", "");
        fs::set_permissions(tree, fs::Permissions::from_mode(0o751)).unwrap();
        std::os::unix::fs::chown(tree, Some(5), Some(6)).unwrap();
    });
    let alone = setup.stage(None);
    write(&path_of(&*alone), "above", "");
    alone.commit("child", Some("base"), &options).unwrap();
    assert_eq!(setup.seen("child"), pairs(&[("above", ""), ("below", "")]));
    let root = setup.mount("child", &["ro"]);
    assert_eq!((mode(&root), owner(&root)), (0o751, (5, 6)));
    setup.driver.unmount("child").unwrap();
    assert!(!setup.dir("child").join("empty").exists());
    // Staged on one layer, committed on another; and on another layer of the same ID.
    let moved = setup.stage(Some("base"));
    moved.commit("grandchild", Some("child"), &options).unwrap();
    assert_eq!(setup.seen("grandchild").len(), 2);
    let late = setup.stage(Some("base"));
    setup.layer("base", None, |tree| write(tree, "other", ""));
    late.commit("late", Some("base"), &options).unwrap();
    assert_eq!(setup.seen("late"), pairs(&[("other", "")]));
    let orphan = setup.stage(Some("base"));
    assert_eq!(
        orphan.commit("orphan", None, &options).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

pub(super) fn layers_are_listed_and_described(setup: &Setup) {
    setup.create("a", None);
    setup.create("b", Some("a"));
    let mut ids = setup.driver.list_layers().unwrap();
    ids.sort();
    assert_eq!(ids, ["a", "b"]);
    assert!(setup.driver.exists("a").unwrap() && !setup.driver.exists("c").unwrap());
    assert!(setup.driver.home().starts_with(&setup.config.root));
    let (status, metadata) = (setup.driver.status(), setup.driver.metadata("b").unwrap());
    if setup.is_zfs() {
        let names: Vec<&str> = status.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "Zpool",
            "Zpool Health",
            "Parent Dataset",
            "Space Used By Parent",
            "Space Available",
            "Parent Quota",
            "Compression",
        ];
        assert_eq!(names, expected);
        assert_eq!((status[1].1.as_str(), status[5].1.as_str()), ("ONLINE", "no"));
        assert!(status[3].1.parse::<u64>().unwrap() > 0, "{status:?}");
        assert_eq!(metadata["Mountpoint"], setup.target("b").to_str().unwrap());
        assert_eq!(metadata["Dataset"], format!("{}/b", status[2].1));
        let error = setup.driver.metadata("c").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LayerUnknown);
        return;
    }
    if !setup.is_overlay() {
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
    let home = setup.driver.home().to_str().unwrap();
    assert_eq!(metadata["UpperDir"], format!("{home}/b/diff"));
    assert_eq!(metadata["WorkDir"], format!("{home}/b/work"));
    assert_eq!(metadata["MergedDir"], format!("{home}/b/merged"));
    assert_eq!(metadata["LowerDir"], format!("{home}/a/diff"));
    assert!(!setup.driver.metadata("a").unwrap().contains_key("LowerDir"));
    assert_eq!(
        setup.driver.metadata("c").unwrap_err().kind(),
        ErrorKind::LayerUnknown
    );
}

pub(super) fn entries_have_kinds(setup: &Setup) {
    setup.create("a", None);
    fs::write(setup.driver.home().join("strange"), "").unwrap();
    if !setup.is_zfs() {
        fs::write(setup.dir("file"), "").unwrap();
    }
    drop(setup.stage(None));
    let kind = |name: &str| {
        let entries = setup.driver.list().unwrap();
        let mut found = entries.iter().filter(|entry| entry.name == name);
        let kind = found.next().unwrap().kind;
        assert!(found.next().is_none(), "{name}");
        kind
    };
    assert_eq!(kind("a"), EntryKind::Layer);
    assert_eq!(kind("tempdirs"), EntryKind::Internal);
    let internal: &[&str] = if setup.is_overlay() {
        &["l", ".has-mount-program"]
    } else if setup.driver.name() == "btrfs" {
        &["subvolumes"]
    } else if setup.is_zfs() {
        &["graph"]
    } else {
        &["dir"]
    };
    if setup.is_zfs() {
        setup.mount("a", &[]);
    }
    for name in internal {
        assert_eq!(kind(name), EntryKind::Internal, "{name}");
    }
    assert_eq!(kind("strange"), EntryKind::Unknown);
    assert!(setup.is_zfs() || kind("file") == EntryKind::Unknown);
    assert_eq!(setup.driver.list_layers().unwrap(), ["a"]);
}

pub(super) fn names_of_a_layer_are_told(setup: &Setup) {
    setup.layer("a", None, |_tree| {});
    setup.create("b", Some("a"));
    for id in ["a", "b"] {
        let dirs = setup.driver.names_to_sync(id).unwrap();
        let tree = setup.dir(id);
        assert!(dirs.iter().all(|dir| dir.is_dir()), "{dirs:?}");
        // The names of datasets are on disk when they are made.
        let is_told = dirs.iter().any(|dir| Some(&**dir) == tree.parent());
        assert_eq!(is_told, !setup.is_zfs(), "{dirs:?}");
        if setup.is_overlay() {
            assert!(
                dirs.contains(&tree) && dirs.contains(&setup.driver.home().join("l")),
                "{dirs:?}"
            );
        }
    }
    let error = setup.driver.names_to_sync("none").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LayerUnknown);
}

pub(super) fn limits_need_quotas(setup: &Setup) {
    setup.create("a", None);
    if matches!(setup.driver.name(), "btrfs" | "zfs") {
        // Tests of its own set limits, on a file system of their own.
        assert!(setup.driver.capabilities().quota);
        return;
    }
    assert!(!setup.driver.capabilities().quota);
    let options = CreateOptions {
        read_write: true,
        storage_opt: [("size".into(), "1g".into())].into(),
        ..CreateOptions::default()
    };
    let driver = &setup.driver;
    let error = driver.create("b", None, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported, "{}", error.chain());
    let error = Arc::clone(driver).stage(None, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported, "{}", error.chain());
    assert!(!driver.exists("b").unwrap());
    setup.nothing_temporary();
}

pub(super) fn bad_ids_are_refused(setup: &Setup) {
    setup.layer("a", None, |tree| write(tree, "file", ""));
    let options = CreateOptions::default();
    let reserved: &[&str] = if setup.is_overlay() {
        &["l", "staging", "tempdirs"]
    } else if setup.is_zfs() {
        &["a@b", "a b", "graphroot-1-new"]
    } else {
        &[]
    };
    let long = "x".repeat(201);
    let impossible = ["", ".", "..", "a/b", "../x", "x\0y", long.as_str()];
    for id in impossible.iter().chain(reserved).copied() {
        let driver = &setup.driver;
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
        let staged = setup.stage(None);
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
        assert!(!driver.exists(id).unwrap(), "{id:?}");
    }
    assert_eq!(setup.seen("a"), pairs(&[("file", "")]), "nothing was touched");
}
