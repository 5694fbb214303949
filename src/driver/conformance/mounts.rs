//! Mounting, counting uses, unmounting.

use super::*;

pub(super) fn read_only_mount(setup: &Setup) {
    setup.layer("a", None, |tree| write(tree, "file", "content"));
    let root = setup.mount("a", &["ro"]);
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "content");
    if setup.mounts() {
        let error = fs::write(root.join("file"), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    setup.driver.unmount("a").unwrap();
}

pub(super) fn writes_land_in_the_layer_only(setup: &Setup) {
    setup.layer("base", None, |tree| {
        write(tree, "file", "base");
        write(tree, "doomed", "base");
    });
    setup.create("child", Some("base"));
    let root = setup.mount("child", &[]);
    write(&root, "file", "child");
    write(&root, "new", "child");
    fs::remove_file(root.join("doomed")).unwrap();
    setup.driver.unmount("child").unwrap();
    assert_eq!(setup.seen("child"), pairs(&[("file", "child"), ("new", "child")]));
    assert_eq!(setup.seen("base"), pairs(&[("doomed", "base"), ("file", "base")]));
    let content = setup.driver.layer_tree("child").unwrap();
    assert!(at::lstat_at(content.dir.as_fd(), b"new").unwrap().is_some());
}

pub(super) fn mounts_are_counted(setup: &Setup) {
    setup.create("a", None);
    let path = setup.mount("a", &[]);
    assert_eq!(
        setup.mount("a", &["ro"]),
        path,
        "the second use gets the same mount"
    );
    let other = setup.second_driver();
    assert_eq!(other.mount("a", &MountOptions::default()).unwrap(), path);
    for remaining in [2, 1, 0] {
        assert_eq!(is_mounted(&path), setup.mounts(), "{remaining} uses and this one");
        setup.driver.unmount("a").unwrap();
    }
    assert!(!is_mounted(&path));
    setup.driver.unmount("a").unwrap();
    assert!(!is_mounted(&path));
}

pub(super) fn a_mount_of_another_process_counts_once(setup: &Setup) {
    if !setup.mounts() {
        return;
    }
    setup.create("a", None);
    // As if another process had mounted it.
    let merged = setup.target("a");
    fs::create_dir_all(&merged).unwrap();
    rustix::mount::mount(
        c"none",
        &merged,
        c"tmpfs",
        rustix::mount::MountFlags::empty(),
        c"",
    )
    .unwrap();
    write(&merged, "foreign", "");
    assert_eq!(setup.mount("a", &[]), merged);
    assert!(merged.join("foreign").exists(), "nothing was mounted over it");
    setup.driver.unmount("a").unwrap();
    assert!(is_mounted(&merged), "a use that only looks does not end it");
    setup.driver.unmount("a").unwrap();
    assert!(!is_mounted(&merged));
    assert!(!setup.is_overlay() || mode(&merged) == 0o700);
}

pub(super) fn a_mount_ended_by_another_process_is_made_again(setup: &Setup) {
    if !setup.mounts() {
        return;
    }
    setup.create("a", None);
    let path = setup.mount("a", &[]);
    if !zfs::unmounts(&path) {
        unmount_lazily(&path).unwrap();
    }
    assert_eq!(setup.mount("a", &[]), path);
    assert!(is_mounted(&path));
    setup.driver.unmount("a").unwrap();
    assert!(!is_mounted(&path));
}

pub(super) fn a_mount_whose_program_died_is_made_again(setup: &Setup) {
    if !setup.uses_program() {
        return;
    }
    setup.layer("a", None, |tree| write(tree, "file", ""));
    for used_again in [true, false] {
        let path = setup.mount("a", &[]);
        let program = program_of(&path);
        rustix::process::kill_process(program, rustix::process::Signal::KILL).unwrap();
        // The kernel closes its end of the connection after the kill. It may still know the attributes of the root.
        while rustix::fs::statfs(&path).is_ok() {
            std::thread::yield_now();
        }
        if used_again {
            assert_eq!(setup.mount("a", &[]), path);
            assert_eq!(listing(&path).len(), 1);
        }
        setup.driver.unmount("a").unwrap();
        assert!(!is_mounted(&path));
    }
    assert_eq!(setup.seen("a").len(), 1);
}

/// The process that serves a mount.
fn program_of(mounted: &Path) -> rustix::process::Pid {
    let target = mounted.to_str().unwrap();
    let serves = |dir: &fs::DirEntry| {
        let line = fs::read(dir.path().join("cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        arguments
            .first()
            .is_some_and(|program| program.ends_with(b"fuse-overlayfs"))
            && arguments.contains(&target.as_bytes())
    };
    let found = fs::read_dir("/proc").unwrap().flatten().find(serves).unwrap();
    let pid: i32 = found.file_name().to_str().unwrap().parse().unwrap();
    rustix::process::Pid::from_raw(pid).unwrap()
}

pub(super) fn a_mounted_layer_can_be_removed(setup: &Setup) {
    setup.layer("a", None, |tree| write(tree, "file", ""));
    let root = setup.mount("a", setup.own_options());
    if !setup.has_images() {
        write(&root, "more", "");
    }
    drop(setup.driver.defer_remove("a").unwrap().unwrap());
    setup.nothing_temporary();
    let mounts = mounts_below(setup.driver.home()).unwrap();
    assert!(
        mounts.iter().all(|mounted| mounted == setup.driver.home()),
        "{mounts:?}"
    );
}

pub(super) fn owners_can_be_mapped_by_the_mount(setup: &Setup) {
    let to = maps(10_000, 20_000);
    if !setup.driver.supports_shifting(&to) {
        // In a user namespace no file system can be ID-mapped.
        if setup.is_overlay() && !privilege::is_rootless() {
            skip("no ID-mapped lowers on this kernel and file system");
        }
        return;
    }
    setup.layer("base", None, |tree| write(tree, "base", ""));
    setup.layer("middle", Some("base"), |tree| {
        write(tree, "middle", "");
        std::os::unix::fs::chown(tree.join("middle"), Some(7), Some(8)).unwrap();
    });
    let create = CreateOptions {
        mappings: to.clone(),
        read_write: true,
        ..CreateOptions::default()
    };
    setup.driver.create("top", Some("middle"), &create).unwrap();
    let options = MountOptions {
        mappings: to.clone(),
        ..MountOptions::default()
    };
    for round in 0..2 {
        let root = setup.driver.mount("top", &options).unwrap();
        assert_eq!(owner(&root), (10_000, 20_000));
        assert_eq!(owner(&root.join("base")), (10_000, 20_000));
        assert_eq!(owner(&root.join("middle")), (10_007, 20_008));
        write(&root, "new", "");
        if setup.uses_program() {
            let new = root.join("new");
            std::os::unix::fs::chown(&new, Some(10_003), Some(20_004)).unwrap();
            assert_eq!(owner(&new), (10_003, 20_004));
            let on_disk = setup.dir("top").join("diff/new");
            assert_eq!(owner(&on_disk), (3, 4), "a program maps what is written too");
        } else {
            assert_eq!(
                owner(&root.join("new")),
                (0, 0),
                "what is written has the host's owner"
            );
        }
        let inside = mounts_below(&setup.dir("top")).unwrap();
        assert_eq!(
            inside,
            std::slice::from_ref(&root),
            "ID-mapped mounts are gone, round {round}"
        );
        assert!(!setup.dir("top").join("mapped").exists());
        setup.driver.unmount("top").unwrap();
    }
    let plain = MountOptions {
        mappings: IdMappings::default(),
        ..options
    };
    let root = setup.driver.mount("top", &plain).unwrap();
    assert_eq!(owner(&root.join("middle")), (7, 8));
    setup.driver.unmount("top").unwrap();
}

pub(super) fn a_private_mount_has_no_path_and_no_other_user(setup: &Setup) {
    setup.layer("base", None, |tree| write(tree, "below", ""));
    setup.layer("a", Some("base"), |tree| {
        write(tree, "file", "content");
        setup.hide(tree, "below");
    });
    let only_the_home = || {
        let mounts = mounts_below(setup.config.root.parent().unwrap()).unwrap();
        !setup.mounts_privately() || mounts.iter().all(|mounted| mounted == setup.driver.home())
    };
    let root = setup.driver.mount_private("a").unwrap();
    assert!(only_the_home());
    setup.nothing_temporary();
    let names = || {
        let mut entries = rustix::fs::Dir::read_from(&root).unwrap();
        let mut names = Vec::new();
        while let Some(entry) = entries.read() {
            let name = entry.unwrap().file_name().to_str().unwrap().to_owned();
            names.extend(Some(name).filter(|name| !name.starts_with('.')));
        }
        names
    };
    assert_eq!(names(), ["file"]);
    // The layer is mounted and unmounted beside it.
    let merged = setup.mount("a", setup.own_options());
    let second = setup.driver.mount_private("a").unwrap();
    setup.driver.unmount("a").unwrap();
    assert!(!setup.mounts_privately() || !is_mounted(&merged));
    drop(second);
    assert_eq!(names(), ["file"]);
    if setup.mounts() && setup.mounts_privately() {
        let flags = OFlags::WRONLY | OFlags::CREATE;
        let refused = rustix::fs::openat(&root, c"new", flags, Mode::RUSR).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::ROFS);
    }
    // The layer can be removed while the private mount lives.
    drop(setup.driver.defer_remove("a").unwrap().unwrap());
    drop(root);
    assert!(only_the_home());
    let error = setup.driver.mount_private("a").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LayerUnknown);
}

pub(super) fn a_private_mount_shows_what_was_written_so_far(setup: &Setup) {
    setup.layer("base", None, |tree| write(tree, "below", "base"));
    setup.create("a", Some("base"));
    let merged = setup.mount("a", &[]);
    for round in 0..20 {
        let content = format!("{round}").repeat(20_000);
        write(&merged, "file", &content);
        fs::remove_file(merged.join("below")).unwrap_or_default();
        let root = setup.driver.mount_private("a").unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
        assert!(
            fs::read_to_string(path.join("file")).unwrap() == content,
            "{round}"
        );
        assert!(!path.join("below").exists(), "{round}");
    }
    setup.driver.unmount("a").unwrap();
}

pub(super) fn private_mounts_of_a_killed_process_are_detached(setup: &Setup) {
    setup.layer("a", None, |tree| write(tree, "file", "content"));
    let treasure = setup.config.root.join("treasure");
    fs::create_dir(&treasure).unwrap();
    write(&treasure, "file", "");
    for root in setup.temp_dirs().into_iter().filter(|root| root.exists()) {
        // The state after a kill between a mount and its detachment: the lock is free.
        let stale = root.join("temp-dir-1/0-addition/merged");
        fs::create_dir_all(&stale).unwrap();
        fs::write(root.join("lock-1"), "").unwrap();
        if privilege::is_root() {
            rustix::mount::mount_bind(&treasure, &stale).unwrap();
        }
        let used = TempDir::create(&root).unwrap();
        setup.driver.prune().unwrap();
        assert!(!root.join("temp-dir-1").exists() && !root.join("lock-1").exists());
        assert!(used.path().exists());
        assert!(
            treasure.join("file").exists(),
            "nothing is deleted through a mount"
        );
        drop(used);
    }
    setup.nothing_temporary();
    let mounts = mounts_below(setup.config.root.parent().unwrap()).unwrap();
    assert!(
        !setup.mounts_privately() || mounts.iter().all(|mounted| mounted == setup.driver.home()),
        "{mounts:?}"
    );
}

pub(super) fn shutdown_leaves_no_mount(setup: &Setup) {
    setup.create("a", None);
    let _path = setup.mount("a", &[]);
    setup.driver.unmount("a").unwrap();
    assert_eq!(
        is_mount_point(setup.driver.home()).unwrap(),
        setup.is_overlay(),
        "private while in use"
    );
    setup.driver.cleanup().unwrap();
    assert!(mounts_below(&setup.config.root).unwrap().is_empty());
    setup.driver.cleanup().unwrap();
    assert_eq!(setup.seen("a"), [], "works again afterwards");
}

pub(super) fn unknown_mount_options_are_refused(setup: &Setup) {
    setup.create("a", None);
    let options = MountOptions {
        options: vec!["nonsense=1".into()],
        ..MountOptions::default()
    };
    // A program ignores options that it does not know.
    if setup.uses_program() {
        return;
    }
    setup.driver.mount("a", &options).unwrap_err();
    assert!(!setup.mounts() || !is_mounted(&setup.target("a")));
    assert_eq!(setup.seen("a"), [], "a failed mount does not count");
    let storage = CreateOptions {
        storage_opt: [("nonsense".into(), "1g".into())].into(),
        ..CreateOptions::default()
    };
    setup.driver.create("b", None, &storage).unwrap_err();
    assert!(!setup.driver.exists("b").unwrap());
}

pub(super) fn volatile_mounts_can_be_repeated(setup: &Setup) {
    setup.create("a", None);
    for _ in 0..3 {
        let options = MountOptions {
            volatile: true,
            ..MountOptions::default()
        };
        let root = setup.driver.mount("a", &options).unwrap();
        write(&root, "file", "");
        setup.driver.unmount("a").unwrap();
    }
    assert_eq!(setup.seen("a").len(), 1);
}
