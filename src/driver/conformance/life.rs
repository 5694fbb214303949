//! Creating, staging, committing, removing.

use super::*;

pub(super) fn removal_is_immediate_and_deletion_deferred(bench: &Bench) {
    bench.layer("a", None, |tree| write(tree, "file", ""));
    bench.create("b", Some("a"));
    let names = bench.short_names();
    let temp = bench.driver.defer_remove("b").unwrap().unwrap();
    assert!(!bench.driver.exists("b") && bench.driver.exists("a"));
    assert_eq!(bench.driver.list_layers().unwrap(), ["a"]);
    assert!(bench.short_names() < names || !bench.is_overlay());
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
            .get("b", &MountOptions::default())
            .unwrap_err()
            .kind(),
        ErrorKind::LayerUnknown
    );
    assert_eq!(
        bench.driver.content("b").unwrap_err().kind(),
        ErrorKind::LayerUnknown
    );
}

pub(super) fn leftovers_are_replaced(bench: &Bench) {
    for id in ["plain", "staged"] {
        bench.layer(id, None, |tree| write(tree, "old", ""));
    }
    let names = bench.short_names();
    bench.create("plain", None);
    bench.layer("staged", None, |tree| write(tree, "new", ""));
    assert_eq!(bench.seen("plain"), []);
    assert_eq!(bench.seen("staged"), pairs(&[("new", "")]));
    assert_eq!(bench.short_names(), names);
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
    let names = bench.short_names();
    let staged = bench.stage(Some("base"));
    write(&staged.path, "file", "");
    assert!(
        at::lstat_at(staged.content.dir.as_fd(), b"file")
            .unwrap()
            .is_some(),
        "the path is the directory's"
    );
    assert_eq!(bench.driver.list_layers().unwrap(), ["base"]);
    for root in bench.driver.temp_dir_roots() {
        temp_dir::recover(&root).unwrap();
    }
    assert!(
        staged.path.join("file").exists(),
        "others do not take it for litter"
    );
    drop(staged);
    bench.nothing_temporary();
    assert_eq!(bench.short_names(), names);
}

pub(super) fn a_vanished_parent_is_noticed(bench: &Bench) {
    let options = CreateOptions::default();
    assert_eq!(
        bench.driver.stage(Some("none"), &options).unwrap_err().kind(),
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
    let error = bench
        .driver
        .commit_staged("a", Some("base"), &options, staged)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LayerUnknown, "{error:?}");
    assert!(error.chain().contains("base"), "{}", error.chain());
    assert!(!bench.driver.exists("a"));
    assert_eq!(bench.driver.list_layers().unwrap(), [""; 0]);
    assert_eq!(bench.short_names(), 0);
    bench.nothing_temporary();
}

pub(super) fn content_can_be_staged_apart(bench: &Bench) {
    if !bench.driver.stages_apart() {
        return;
    }
    let options = CreateOptions::default();
    bench.layer("base", None, |tree| {
        write(tree, "below", "");
        fs::set_permissions(tree, fs::Permissions::from_mode(0o751)).unwrap();
        std::os::unix::fs::chown(tree, Some(5), Some(6)).unwrap();
    });
    let alone = bench.stage(None);
    write(&alone.path, "above", "");
    bench
        .driver
        .commit_staged("child", Some("base"), &options, alone)
        .unwrap();
    assert_eq!(bench.seen("child"), pairs(&[("above", ""), ("below", "")]));
    let root = bench.mount("child", &["ro"]);
    assert_eq!((mode(&root), owner(&root)), (0o751, (5, 6)));
    bench.driver.put("child").unwrap();
    assert!(!bench.dir("child").join("empty").exists());
    // Staged on one layer, committed on another; and on one of the same name that is not the same.
    let moved = bench.stage(Some("base"));
    bench
        .driver
        .commit_staged("grandchild", Some("child"), &options, moved)
        .unwrap();
    assert_eq!(bench.seen("grandchild").len(), 2);
    let late = bench.stage(Some("base"));
    bench.layer("base", None, |tree| write(tree, "other", ""));
    bench
        .driver
        .commit_staged("late", Some("base"), &options, late)
        .unwrap();
    assert_eq!(bench.seen("late"), pairs(&[("other", "")]));
    let orphan = bench.stage(Some("base"));
    assert_eq!(
        bench
            .driver
            .commit_staged("orphan", None, &options, orphan)
            .unwrap_err()
            .kind(),
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
        "FilesystemType Filesystem",
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

pub(super) fn bad_ids_are_refused(bench: &Bench) {
    bench.layer("a", None, |tree| write(tree, "file", ""));
    let options = CreateOptions::default();
    for id in ["", ".", "..", "a/b", "../x", "l", "staging", "tempdirs", "x\0y"] {
        let driver = &bench.driver;
        assert_eq!(
            driver.create(id, None, &options).unwrap_err().kind(),
            ErrorKind::UnsafePath,
            "{id:?}"
        );
        let staged = bench.stage(None);
        let error = driver.commit_staged(id, None, &options, staged).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsafePath, "{id:?}");
        assert_eq!(
            driver.defer_remove(id).unwrap_err().kind(),
            ErrorKind::UnsafePath,
            "{id:?}"
        );
        assert_eq!(
            driver.get(id, &MountOptions::default()).unwrap_err().kind(),
            ErrorKind::UnsafePath,
            "{id:?}"
        );
        assert!(!driver.exists(id), "{id:?}");
    }
    assert_eq!(bench.seen("a"), pairs(&[("file", "")]), "nothing was touched");
}
