//! The files of a layer, and how a mount shows them.

use super::*;

pub(super) fn empty_layer(setup: &Setup) {
    setup.create("a", None);
    let root = setup.mount("a", &[]);
    assert_eq!(listing(&root), []);
    assert_eq!(mode(&root), 0o555);
    let me = privilege::effective_owner();
    assert_eq!(owner(&root), (me.uid, me.gid));
    setup.driver.unmount("a").unwrap();
    setup.nothing_temporary();
}

pub(super) fn base_with_content(setup: &Setup) {
    setup.layer("base", None, |tree| {
        fs::create_dir(tree.join("dir")).unwrap();
        write(tree, "dir/file", "content");
    });
    assert_eq!(
        setup.seen("base"),
        pairs(&[("dir", "/"), ("dir/file", "content")])
    );
    setup.nothing_temporary();
}

pub(super) fn snapshot_sees_and_hides(setup: &Setup) {
    setup.layer("base", None, |tree| {
        for name in ["kept", "changed", "deleted"] {
            write(tree, name, "base");
        }
        for name in ["shared", "replaced"] {
            fs::create_dir(tree.join(name)).unwrap();
            write(tree, &format!("{name}/old"), "base");
        }
    });
    setup.layer("child", Some("base"), |tree| {
        write(tree, "changed", "child");
        setup.hide(tree, "deleted");
        fs::create_dir_all(tree.join("shared")).unwrap();
        write(tree, "shared/new", "child");
        setup.make_opaque(tree, "replaced");
        write(tree, "replaced/new", "child");
    });
    let expected = [
        ("changed", "child"),
        ("kept", "base"),
        ("replaced", "/"),
        ("replaced/new", "child"),
        ("shared", "/"),
        ("shared/new", "child"),
        ("shared/old", "base"),
    ];
    assert_eq!(setup.seen("child"), pairs(&expected));
    assert_eq!(setup.seen("base").len(), 7, "the parent is as it was");
}

pub(super) fn deep_chain(setup: &Setup) {
    let depth = 130;
    for number in 0..depth {
        let parent = (number > 0).then(|| format!("layer{}", number - 1));
        setup.layer(&format!("layer{number}"), parent.as_deref(), |tree| {
            write(tree, "top", &number.to_string());
            write(tree, &format!("file{number}"), "");
        });
    }
    let top = format!("layer{}", depth - 1);
    let seen = setup.seen(&top);
    assert_eq!(seen.len(), depth + 1);
    assert!(seen.contains(&("top".into(), (depth - 1).to_string())));
    // A layer that has content may be one that cannot be changed.
    setup.create("above", Some(&top));
    let root = setup.mount("above", &[]);
    write(&root, "file0", "written");
    setup.driver.unmount("above").unwrap();
    assert!(setup.seen("above").contains(&("file0".into(), "written".into())));
    assert!(setup.seen("layer0").contains(&("file0".into(), String::new())));
}

pub(super) fn root_mode_is_inherited(setup: &Setup) {
    setup.layer("base", None, |tree| {
        fs::set_permissions(tree, fs::Permissions::from_mode(0o7751)).unwrap();
    });
    setup.create("child", Some("base"));
    setup.layer("staged", Some("base"), |_tree| {});
    // Overlay takes only the nine permission bits of the parent's mode.
    let expected = if setup.is_overlay() { 0o751 } else { 0o7751 };
    for id in ["child", "staged"] {
        let root = setup.mount(id, &["ro"]);
        assert_eq!(mode(&root), expected, "{id}");
        setup.driver.unmount(id).unwrap();
    }
}

pub(super) fn modes_do_not_depend_on_the_umask(setup: &Setup) {
    let here = at::open_dir(&setup.config.root).unwrap();
    // Such a thread has a umask of its own.
    in_directory(here.as_fd(), || {
        rustix::process::umask(Mode::from_raw_mode(0o077));
        setup.create("a", None);
        setup.layer("b", Some("a"), |_tree| {});
    })
    .unwrap();
    for id in ["a", "b"] {
        let dir = match setup.is_zfs() {
            true => setup.mount(id, &[]),
            false => setup.dir(id),
        };
        if setup.is_overlay() {
            assert_eq!(mode(&dir.join("diff")), 0o555, "{id}");
            assert_eq!(mode(&dir.join("link")), 0o644, "{id}");
            assert_eq!(mode(&dir), 0o700, "{id}");
        } else {
            assert_eq!(mode(&dir), 0o555, "{id}");
        }
    }
}

pub(super) fn owners_can_be_mapped_by_a_copy(setup: &Setup) {
    if !privilege::is_root() {
        return skip("changing owners needs root");
    }
    setup.layer("base", None, |tree| {
        write(tree, "a", "one letter");
        fs::create_dir(tree.join("dir")).unwrap();
        write(tree, "dir/file", "content");
        fs::hard_link(tree.join("dir/file"), tree.join("link")).unwrap();
        std::os::unix::fs::chown(tree.join("a"), Some(7), Some(8)).unwrap();
    });
    let to = maps(10_000, 20_000);
    let options = |from: &IdMappings, to: &IdMappings| CreateOptions {
        mappings: to.clone(),
        parent_mappings: Some(from.clone()),
        ..CreateOptions::default()
    };
    let mapped = options(&IdMappings::default(), &to);
    setup.driver.create("mapped", Some("base"), &mapped).unwrap();
    setup
        .driver
        .create("child", Some("mapped"), &options(&to, &to))
        .unwrap();
    for id in ["mapped", "child"] {
        let root = setup.mount(id, &["ro"]);
        assert_eq!(owner(&root), (10_000, 20_000), "{id}");
        assert_eq!(owner(&root.join("a")), (10_007, 20_008), "{id}");
        for path in ["dir", "dir/file", "link"] {
            assert_eq!(owner(&root.join(path)), (10_000, 20_000), "{id} {path}");
        }
        let inode = |path: &str| root.join(path).metadata().unwrap().ino();
        assert_eq!(inode("dir/file"), inode("link"), "{id}");
        assert_eq!(fs::read_to_string(root.join("link")).unwrap(), "content");
        setup.driver.unmount(id).unwrap();
        // Files that were given owners may have been copied without their contents.
        let trees = setup.driver.file_trees(id).unwrap();
        let mut paths = trees
            .iter()
            .map(|tree| PathBuf::from(format!("/proc/self/fd/{}/a", tree.as_raw_fd())));
        let first = paths.find(|path| path.exists()).unwrap();
        assert_eq!(fs::read_to_string(first).unwrap(), "one letter", "{id}");
    }
    // A second time.
    let third = maps(30_000, 30_000);
    setup
        .driver
        .create("back", Some("mapped"), &options(&to, &third))
        .unwrap();
    let root = setup.mount("back", &["ro"]);
    assert_eq!(owner(&root.join("a")), (30_007, 30_008));
    setup.driver.unmount("back").unwrap();
    let root = setup.mount("base", &["ro"]);
    assert_eq!(owner(&root.join("a")), (7, 8), "the parent is as it was");
    setup.driver.unmount("base").unwrap();
    if setup.is_overlay() {
        assert!(setup.dir("back").join("diff1/a").exists() && !setup.dir("back").join("diff2").exists());
        assert_eq!(setup.driver.disk_usage("mapped").unwrap().inodes, 1);
    }
    if setup.has_native_diff() {
        let upper = setup
            .driver
            .overlay_diff("mapped", Some("base"))
            .unwrap()
            .unwrap();
        assert!(
            is_empty(&upper.dir),
            "new owners are no change of the layer's own"
        );
    }
}

fn is_empty(dir: &OwnedFd) -> bool {
    rustix::fs::Dir::read_from(dir).unwrap().count() == 2
}

pub(super) fn space_is_measured(setup: &Setup) {
    setup.layer("base", None, |tree| {
        write(tree, "file", "12345");
        fs::hard_link(tree.join("file"), tree.join("link")).unwrap();
        std::os::unix::fs::symlink("123", tree.join("symlink")).unwrap();
        fs::create_dir(tree.join("dir")).unwrap();
    });
    let usage = setup.driver.disk_usage("base").unwrap();
    // Of a composefs layer the contents count, in directories of their own.
    let expected = if setup.has_images() { (5, 3) } else { (8, 4) };
    assert_eq!((usage.size, usage.inodes), expected);
    setup.layer("child", Some("base"), |tree| write(tree, "more", "1234567"));
    let usage = setup.driver.disk_usage("child").unwrap();
    let expected = match setup.is_overlay() {
        true if setup.has_images() => (7, 3),
        true => (7, 2),
        false => (15, 5),
    };
    assert_eq!((usage.size, usage.inodes), expected);
}

pub(super) fn files_are_found_through_all_trees(setup: &Setup) {
    setup.layer("base", None, |tree| write(tree, "below", ""));
    setup.layer("child", Some("base"), |tree| write(tree, "above", ""));
    let trees = setup.driver.file_trees("child").unwrap();
    let holds = |tree: &OwnedFd, name: &[u8]| at::lstat_at(tree.as_fd(), name).unwrap().is_some();
    assert!(holds(&trees[0], b"above"));
    assert!(trees.iter().any(|tree| holds(tree, b"below")));
    let upper = setup.driver.overlay_diff("child", Some("base")).unwrap();
    assert_eq!(upper.is_some(), setup.has_native_diff());
    if let Some(upper) = upper {
        assert!(holds(&upper.dir, b"above") && !holds(&upper.dir, b"below"));
        assert!(upper.lowers.len() == 1 && holds(&upper.lowers[0], b"below"));
        assert!(
            setup.driver.overlay_diff("child", None).unwrap().is_none(),
            "it has a parent"
        );
        setup.create("grandchild", Some("child"));
        assert!(
            setup
                .driver
                .overlay_diff("grandchild", Some("base"))
                .unwrap()
                .is_none(),
            "not the direct parent"
        );
        assert!(setup.driver.overlay_diff("base", None).unwrap().is_some());
    }
}
