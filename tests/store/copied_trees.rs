//! Containers, and layers of which nobody has the stream, in copies of stores: they have everything that no diff can say.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use graphroot::{
    ContainerOptions, CopyOptions, IdMap, IdMappingOptions, LayerOptions, MountOptions, Store, StoreOptions,
};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, mknodat, setxattr, utimensat,
};

use crate::copy_to::{is_root, put, with};
use crate::manifest::{Manifest, assert_same, manifest};
use crate::support::{Layout, TestStore, assert_clean, assert_nothing_temporary, skip, writable};

/// `u::rw-, u:1234:r--, g::r--, m::r--, o::---`
const ACL: &[u8] =
    b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xd2\x04\0\0\x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

const LARGE: usize = 300_000;

/// Whether the attribute could be set.
fn attribute(path: &Path, name: &str, value: &[u8]) -> bool {
    match setxattr(path, name, value, XattrFlags::empty()) {
        Ok(()) => true,
        // In a user namespace.
        Err(rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) => false,
        Err(error) => panic!("{name} of {}: {error}", path.display()),
    }
}

fn modified(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

async fn mounted(store: &Store, id: &str) -> PathBuf {
    writable(store.mount(id, MountOptions::default()).await.unwrap())
}

async fn shown(store: &Store, id: &str) -> Manifest {
    let mount = store.mount_guard(id, MountOptions::default()).await.unwrap();
    let files = manifest(&mount);
    mount.unmount().await.unwrap();
    files
}

/// An image whose upper layer was written in a mount.
async fn image(store: &Store) {
    let large = "large ".repeat(LARGE / 6);
    let base = [
        ("dir/", ""),
        ("dir/file", "content"),
        ("same", "before"),
        ("gone", "gone"),
        ("gone-dir/", ""),
        ("gone-dir/file", "1"),
        ("opaque/", ""),
        ("opaque/below", "below"),
        ("was-file", "file"),
        ("was-dir/", ""),
        ("was-dir/file", "2"),
        ("mode-only", &large),
        ("unchanged/", ""),
        ("unchanged/file", "unchanged"),
    ];
    let base = put(store, None, &base).await;
    let written = LayerOptions::default().id("written");
    store.create_layer(Some(&base), written).await.unwrap();
    let root = mounted(store, "written").await;
    for name in ["pair", "trio"] {
        fs::write(root.join(name), name).unwrap();
        fs::hard_link(root.join(name), root.join(format!("{name}-2"))).unwrap();
    }
    fs::hard_link(root.join("trio"), root.join("dir/trio-3")).unwrap();
    fs::write(root.join(".wh.of-the-layer"), "").unwrap();
    attribute(&root.join("pair"), "system.posix_acl_access", ACL);
    attribute(&root, "user.of-the-layer", b"1");
    fs::create_dir(root.join("inheriting")).unwrap();
    attribute(&root.join("inheriting"), "system.posix_acl_default", ACL);
    fs::remove_file(root.join("gone")).unwrap();
    modified(&root, 1_500_000_000, 5);
    store.unmount("written").await.unwrap();
    let options = graphroot::ImageOptions::default().id("image");
    store.create_image(Some("written"), options).await.unwrap();
}

/// A container of the image; returns its ID.
async fn container(store: &Store) -> String {
    let options = ContainerOptions::default();
    let container = store.create_container(Some("image"), options).await.unwrap();
    container.id().to_owned()
}

/// Changes a container in every way that a diff leaves out, and in others.
fn change(root: &Path) {
    fs::hard_link(root.join("dir/file"), root.join("dir/linked")).unwrap();
    let time = root.join("same").metadata().unwrap();
    fs::write(root.join("same"), "after!").unwrap();
    modified(&root.join("same"), time.mtime(), time.mtime_nsec());
    fs::write(root.join(".wh.same"), "no deletion").unwrap();
    fs::write(root.join("dir/.wh..wh..opq"), "no mark").unwrap();
    fs::write(root.join("acl"), "acl").unwrap();
    attribute(&root.join("acl"), "system.posix_acl_access", ACL);
    fs::write(root.join("inheriting/file"), "").unwrap();
    fs::create_dir(root.join("new-dir")).unwrap();
    fs::write(root.join("new-dir/file"), "before the list").unwrap();
    attribute(&root.join("new-dir"), "system.posix_acl_default", ACL);
    for name in ["trusted.test", "security.test", "user.test"] {
        attribute(&root.join("acl"), name, name.as_bytes());
        attribute(&root.join("dir"), name, name.as_bytes());
        attribute(root, name, name.as_bytes());
    }
    for (name, kind) in [("socket", FileType::Socket), ("fifo", FileType::Fifo)] {
        mknodat(CWD, root.join(name), kind, Mode::RUSR, 0).unwrap();
    }
    symlink("dir/file", root.join("symlink")).unwrap();
    if is_root() {
        chown(root.join("socket"), Some(50_000), Some(50_001)).unwrap();
        chown(root, Some(7), Some(8)).unwrap();
    }
    fs::set_permissions(root.join("mode-only"), fs::Permissions::from_mode(0o4701)).unwrap();
    fs::remove_dir_all(root.join("gone-dir")).unwrap();
    fs::remove_dir_all(root.join("opaque")).unwrap();
    fs::create_dir(root.join("opaque")).unwrap();
    fs::write(root.join("opaque/only"), "only").unwrap();
    fs::remove_file(root.join("was-file")).unwrap();
    fs::create_dir(root.join("was-file")).unwrap();
    fs::write(root.join("was-file/in"), "in").unwrap();
    fs::remove_dir_all(root.join("was-dir")).unwrap();
    fs::write(root.join("was-dir"), "file").unwrap();
    // Two files that look the same as the one that they were.
    let pair = root.join("pair-2");
    let time = pair.metadata().unwrap();
    fs::copy(&pair, root.join("copy")).unwrap();
    attribute(&root.join("copy"), "system.posix_acl_access", ACL);
    fs::rename(root.join("copy"), &pair).unwrap();
    modified(&pair, time.mtime(), time.mtime_nsec());
    fs::write(root.join("dir/trio-3"), "all three").unwrap();
    for name in ["new", "new-2", "dir/new-3"] {
        match name {
            "new" => fs::write(root.join(name), name).unwrap(),
            _ => fs::hard_link(root.join("new"), root.join(name)).unwrap(),
        }
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o1751)).unwrap();
    modified(&root.join("dir"), 1_400_000_000, 6);
    modified(root, 1_400_000_000, 7);
}

async fn assert_copied(from: &TestStore, to: &TestStore, id: &str) {
    let moment = format!("{id} of {:?} in {:?}", from.store, to.store);
    let (ours, theirs) = (shown(from, id).await, shown(to, id).await);
    assert_same("source", &ours, &moment, &theirs);
}

/// Copies a container that was changed, then what has changed again.
async fn case(from: TestStore, to: TestStore) {
    image(&from).await;
    let options = || ContainerOptions::default().name("changed");
    let changed = from.create_container(Some("image"), options()).await.unwrap();
    let id = changed.id();
    change(&mounted(&from, id).await);
    from.unmount(id).await.unwrap();
    let untouched = ContainerOptions::default().name("untouched");
    let untouched = from.create_container(Some("image"), untouched).await.unwrap();
    let report = from.copy_to(&to, CopyOptions::new()).await.unwrap();
    assert!(report.lost.is_empty(), "{report:#?}");
    for id in [id, untouched.id(), "written"] {
        assert_copied(&from, &to, id).await;
    }
    assert_clean(&to, "copied").await;
    assert_nothing_temporary(&to).await;

    let again = from.copy_to(&to, CopyOptions::new()).await.unwrap();
    assert!(
        again.copied.is_empty() && again.different.is_empty(),
        "{again:#?}"
    );
    assert_eq!(again.present.len(), report.copied.len(), "{again:#?}");

    // What has changed since is told, and copied when that is asked for.
    let root = mounted(&from, id).await;
    let time = root.join("same").metadata().unwrap();
    fs::write(root.join("same"), "third!").unwrap();
    modified(&root.join("same"), time.mtime(), time.mtime_nsec());
    from.unmount(id).await.unwrap();
    let before = shown(&to, id).await;
    let kept = from.copy_to(&to, CopyOptions::new()).await.unwrap();
    assert_eq!(kept.different.len(), 1, "{kept:#?}");
    assert_eq!(kept.different[0].item.id, id);
    let first = match is_root() {
        true => "another /same",
        // A mount that can be written to has another mode then.
        false => "another /",
    };
    assert_eq!(kept.different[0].difference, first);
    assert!(kept.copied.is_empty() && kept.refreshed.is_empty(), "{kept:#?}");
    assert_same("before", &before, "kept", &shown(&to, id).await);

    let refresh = || CopyOptions::new().refresh(true);
    let dry = from.copy_to(&to, refresh().dry_run(true)).await.unwrap();
    assert_same("before", &before, "dry", &shown(&to, id).await);
    let mount = to.mount_guard(id, MountOptions::default()).await.unwrap();
    let in_use = from.copy_to(&to, refresh()).await.unwrap();
    assert!(in_use.refreshed.is_empty(), "{in_use:#?}");
    let text = in_use.different[0].to_string();
    assert!(text.contains("it is mounted there"), "{text}");
    mount.unmount().await.unwrap();
    let refreshed = from.copy_to(&to, refresh()).await.unwrap();
    assert_eq!(refreshed, dry);
    assert_eq!(refreshed.refreshed.len(), 1, "{refreshed:#?}");
    assert_eq!(refreshed.refreshed[0].id, id);
    assert_copied(&from, &to, id).await;
    assert_clean(&to, "refreshed").await;

    if !is_root() {
        return;
    }
    // So is what was changed in the copy, and what is recorded.
    let root = mounted(&to, untouched.id()).await;
    fs::write(root.join("unchanged/new"), "new").unwrap();
    to.unmount(untouched.id()).await.unwrap();
    from.set_metadata(id, "other").await.unwrap();
    let kept = from.copy_to(&to, CopyOptions::new()).await.unwrap();
    let mut found: Vec<&str> = kept.different.iter().map(|found| &*found.difference).collect();
    found.sort_unstable();
    assert!(found[0].starts_with("another /unchanged"), "{found:?}");
    assert_eq!(found[1..], ["other metadata"]);
    from.copy_to(&to, refresh()).await.unwrap();
    for id in [id, untouched.id()] {
        assert_copied(&from, &to, id).await;
    }
    assert_eq!(to.metadata(id).await.unwrap(), "other");
    assert_clean(&to, "refreshed again").await;
    assert_nothing_temporary(&to).await;
}

/// The tests over each driver of the source, and those of the target, in modules by which others choose them.
macro_rules! pairs {
    ($case:ident; $($from:ident { $($name:ident: $to:literal;)* })*) => {
        $(mod $from {
            use super::*;

            $(#[test]
            fn $name() {
                with((stringify!($from), Layout::Plain), ($to, Layout::Plain), $case);
            })*
        })*
    };
}

mod changed {
    use super::*;

    pairs! {
        case;
        overlay {
            to_overlay: "overlay";
            to_vfs: "vfs";
            to_btrfs: "btrfs";
        }
        vfs {
            to_vfs: "vfs";
        }
        btrfs {
            to_overlay: "overlay";
            to_vfs: "vfs";
            to_btrfs: "btrfs";
        }
    }
}

/// From vfs to drivers that an ordinary user does not have.
mod privileged {
    use super::*;

    fn copy(to: &str) {
        with(("vfs", Layout::Plain), (to, Layout::Plain), case);
        with(("vfs", Layout::Plain), (to, Layout::Plain), mapped_case);
    }

    mod overlay {
        #[test]
        fn from_vfs() {
            super::copy("overlay");
        }
    }

    mod btrfs {
        #[test]
        fn from_vfs() {
            super::copy("btrfs");
        }
    }
}

/// What is in a subvolume of a container is copied as what is in any directory.
async fn nested(from: TestStore, to: TestStore) {
    image(&from).await;
    let id = &*container(&from).await;
    let subvolume = mounted(&from, id).await.join("dir/subvolume");
    let mut btrfs = std::process::Command::new("btrfs");
    let made = btrfs.args(["-q", "subvolume", "create"]).arg(&subvolume).status();
    assert!(made.unwrap().success());
    fs::create_dir(subvolume.join("in")).unwrap();
    fs::write(subvolume.join("in/it"), "content").unwrap();
    from.unmount(id).await.unwrap();
    let report = from.copy_to(&to, CopyOptions::new()).await.unwrap();
    assert!(report.lost.is_empty(), "{report:#?}");
    assert_copied(&from, &to, id).await;
    let there = shown(&to, id).await;
    assert_eq!(there[Path::new("dir/subvolume/in/it")].size, Some(7));
}

#[test]
fn subvolumes_of_containers_are_copied() {
    for target in ["btrfs", "vfs"] {
        with(("btrfs", Layout::Plain), (target, Layout::Plain), nested);
    }
}

/// Containers with ID mappings, of which one file is owned by nobody in the container.
async fn mapped_case(from: TestStore, to: TestStore) {
    if !is_root() {
        return;
    }
    image(&from).await;
    let maps = vec![IdMap::new(0, 10_000, 5000)];
    let options = ContainerOptions::default().id_mappings(IdMappingOptions::mapped(maps.clone(), maps));
    let container = from.create_container(Some("image"), options).await.unwrap();
    let id = container.id();
    let root = mounted(&from, id).await;
    for (name, owner) in [("inside", 10_001), ("outside", 50_000)] {
        fs::write(root.join(name), name).unwrap();
        chown(root.join(name), Some(owner), Some(owner)).unwrap();
    }
    chown(root.join("dir/file"), Some(50_000), Some(10_002)).unwrap();
    attribute(&root.join("inside"), "user.test", b"1");
    from.unmount(id).await.unwrap();
    let report = from.copy_to(&to, CopyOptions::new()).await.unwrap();
    assert!(report.lost.is_empty(), "{report:#?}");
    assert_copied(&from, &to, id).await;
    let there = shown(&to, id).await;
    let owner = |path: &str| there[Path::new(path)].uid;
    assert_eq!(
        ["inside", "outside", "dir/file", "unchanged/file"].map(owner),
        [10_001, 50_000, 50_000, 10_000]
    );
    let again = from.copy_to(&to, CopyOptions::new()).await.unwrap();
    assert!(
        again.copied.is_empty() && again.different.is_empty(),
        "{again:#?}"
    );
}

mod mapped {
    use super::*;

    pairs! {
        mapped_case;
        overlay {
            to_overlay: "overlay";
            to_vfs: "vfs";
            to_btrfs: "btrfs";
        }
        vfs {
            to_vfs: "vfs";
        }
        btrfs {
            to_overlay: "overlay";
        }
    }
}

/// What a tree of overlayfs cannot have is named.
#[test]
fn what_cannot_be_there_is_told() {
    with(
        ("vfs", Layout::Plain),
        ("overlay", Layout::Plain),
        |from, to| async move {
            let container = from
                .create_container(None, ContainerOptions::default())
                .await
                .unwrap();
            let id = container.id();
            let root = mounted(&from, id).await;
            fs::write(root.join("kept"), "kept").unwrap();
            let made = mknodat(CWD, root.join("zero"), FileType::CharacterDevice, Mode::RUSR, 0);
            if made.is_err() || !attribute(&root.join("kept"), "trusted.overlay.metacopy", b"") {
                return skip("marks of overlayfs need root");
            }
            from.unmount(id).await.unwrap();
            let report = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            let mut lost: Vec<String> = report.lost.iter().map(ToString::to_string).collect();
            lost.sort();
            assert!(!report.is_known(&report.lost[0]));
            assert_eq!(
                lost,
                [
                    format!("container {id}: /kept: the extended attribute trusted.overlay.metacopy"),
                    format!(
                        "container {id}: /zero: a character device 0:0, which overlayfs takes for a deletion"
                    ),
                ]
            );
            let there = shown(&to, id).await;
            assert_eq!(there.len(), 2, "{there:#?}");
            assert_eq!(there[Path::new("kept")].size, Some(4));

            // It is no difference the next time, but is still named.
            let again = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            assert!(
                again.different.is_empty() && again.copied.is_empty(),
                "{again:#?}"
            );
            let mut known: Vec<String> = again.lost.iter().map(ToString::to_string).collect();
            known.sort();
            assert_eq!(known, lost);
            assert!(again.lost.iter().all(|lost| again.is_known(lost)), "{again:#?}");
            let refreshed = from.copy_to(&to, CopyOptions::new().refresh(true)).await.unwrap();
            assert!(refreshed.refreshed.is_empty(), "{refreshed:#?}");
            // What has changed beside it is one.
            fs::write(mounted(&from, id).await.join("kept"), "more").unwrap();
            from.unmount(id).await.unwrap();
            let changed = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            assert_eq!(changed.different.len(), 1, "{changed:#?}");
            assert!(changed.lost.is_empty(), "{changed:#?}");
        },
    );
}

/// A file that is nearly nothing but a hole is not read.
#[test]
fn holes_are_not_compared() {
    const SIZE: u64 = 8 << 40;
    with(
        ("vfs", Layout::Plain),
        ("overlay", Layout::Plain),
        |from, to| async move {
            image(&from).await;
            let id = &*container(&from).await;
            let path = mounted(&from, id).await.join("sparse");
            let file = fs::File::create(&path).unwrap();
            if file.set_len(SIZE).is_err() {
                return skip("the file system has no files of that size");
            }
            file.write_all_at(b"data", SIZE / 2).unwrap();
            let report = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            assert!(report.lost.is_empty(), "{report:#?}");
            let again = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            assert!(again.different.is_empty(), "{again:#?}");
            // Data where the other one has a hole.
            let time = path.metadata().unwrap();
            file.write_all_at(b"data", SIZE / 4).unwrap();
            modified(&path, time.mtime(), time.mtime_nsec());
            from.unmount(id).await.unwrap();
            let changed = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            assert_eq!(changed.different[0].difference, "another /sparse");
        },
    );
}

/// Paths longer than one call takes.
#[test]
fn deep_trees_are_copied() {
    with(
        ("vfs", Layout::Plain),
        ("overlay", Layout::Plain),
        |from, to| async move {
            image(&from).await;
            let id = &*container(&from).await;
            let mut dir =
                rustix::fs::open(mounted(&from, id).await, OFlags::DIRECTORY, Mode::empty()).unwrap();
            let name = "d".repeat(200);
            for _ in 0..60 {
                rustix::fs::mkdirat(&dir, &*name, Mode::RWXU).unwrap();
                let flags = OFlags::DIRECTORY;
                dir = rustix::fs::openat(&dir, &*name, flags, Mode::empty()).unwrap();
            }
            from.unmount(id).await.unwrap();
            let report = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            assert!(report.lost.is_empty(), "{report:#?}");
            let again = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            assert!(again.different.is_empty(), "{again:#?}");
        },
    );
}

/// An attribute that the target cannot have is named also where nothing else of a file has changed.
#[test]
fn attributes_alone_are_told() {
    with(
        ("vfs", Layout::Plain),
        ("overlay", Layout::Plain),
        |from, to| async move {
            image(&from).await;
            let id = &*container(&from).await;
            let file = mounted(&from, id).await.join("unchanged/file");
            if !attribute(&file, "trusted.overlay.test", b"1") {
                return skip("marks of overlayfs need root");
            }
            from.unmount(id).await.unwrap();
            let report = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            let lost: Vec<String> = report.lost.iter().map(ToString::to_string).collect();
            let what = "/unchanged/file: the extended attribute trusted.overlay.test";
            assert_eq!(lost, [format!("container {id}: {what}")]);
            let again = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            assert!(again.different.is_empty(), "{again:#?}");
        },
    );
}

/// Nothing but its content tells that such a layer is another one now.
#[test]
fn a_changed_layer_without_a_digest_is_told() {
    with(
        ("vfs", Layout::Plain),
        ("overlay", Layout::Plain),
        |from, to| async move {
            image(&from).await;
            let copied = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            let again = from.copy_to(&to, CopyOptions::new()).await.unwrap();
            assert!(
                again.different.is_empty() && again.copied.is_empty(),
                "{again:#?}"
            );
            assert_eq!(again.present.len(), copied.copied.len());
            fs::write(mounted(&from, "written").await.join("dir/later"), "later").unwrap();
            from.unmount("written").await.unwrap();
            let changed = from.copy_to(&to, CopyOptions::new().refresh(true)).await.unwrap();
            assert_eq!(changed.different.len(), 1, "{changed:#?}");
            let told = changed.different[0].to_string();
            assert_eq!(told, "layer written: another /dir");
            assert_eq!(changed.present.len(), again.present.len() - 1);
            assert!(!shown(&to, "written").await.contains_key(Path::new("dir/later")));
        },
    );
}

/// A tree that is mounted elsewhere is in use, whoever counts that.
#[test]
fn copies_whose_trees_are_mounted_are_kept() {
    with(
        ("overlay", Layout::Plain),
        ("vfs", Layout::Plain),
        |from, to| async move {
            image(&from).await;
            let id = &*container(&from).await;
            from.copy_to(&to, CopyOptions::new()).await.unwrap();
            let tree = mounted(&to, id).await;
            to.unmount(id).await.unwrap();
            fs::write(mounted(&from, id).await.join("new"), "new").unwrap();
            from.unmount(id).await.unwrap();
            let place = tempfile::tempdir().unwrap();
            if rustix::mount::mount_bind(&tree, place.path()).is_err() {
                return skip("mounting needs root");
            }
            let refresh = || CopyOptions::new().refresh(true);
            let report = from.copy_to(&to, refresh()).await.unwrap();
            rustix::mount::unmount(place.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
            assert!(report.refreshed.is_empty(), "{report:#?}");
            let text = report.different[0].to_string();
            assert!(text.contains("it is mounted there"), "{text}");
            let report = from.copy_to(&to, refresh()).await.unwrap();
            assert_eq!(report.refreshed.len(), 1, "{report:#?}");
        },
    );
}

/// What is mounted in a tree is no part of the container, and what it hides is.
#[test]
fn what_is_mounted_in_a_tree_is_left_out() {
    let case = |from: TestStore, to: TestStore| async move {
        image(&from).await;
        let id = &*container(&from).await;
        let tree = mounted(&from, id).await;
        fs::create_dir(tree.join("place")).unwrap();
        fs::write(tree.join("place/hidden"), "hidden").unwrap();
        let expected = manifest(&tree);
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("other"), "other").unwrap();
        let places = [
            (other.path().to_owned(), tree.join("place")),
            (other.path().join("other"), tree.join("same")),
        ];
        if places
            .iter()
            .any(|(from, to)| rustix::mount::mount_bind(from, to).is_err())
        {
            return skip("mounting needs root");
        }
        let report = from.copy_to(&to, CopyOptions::new()).await.unwrap();
        let again = from.copy_to(&to, CopyOptions::new()).await.unwrap();
        for (_from, to) in &places {
            rustix::mount::unmount(to, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        from.unmount(id).await.unwrap();
        assert_eq!((report.mounted.len(), report.lost.len()), (1, 0), "{report:#?}");
        assert!(again.different.is_empty(), "{again:#?}");
        assert_same("source", &expected, "copy", &shown(&to, id).await);
    };
    with(("vfs", Layout::Plain), ("overlay", Layout::Plain), case);
    with(("btrfs", Layout::Plain), ("vfs", Layout::Plain), case);
    with(("overlay", Layout::Plain), ("vfs", Layout::Plain), case);
}

/// A mount that another run root has is one too.
#[test]
fn copies_that_others_use_are_kept() {
    with(
        ("vfs", Layout::Plain),
        ("overlay", Layout::Plain),
        |from, to| async move {
            image(&from).await;
            let id = &*container(&from).await;
            from.copy_to(&to, CopyOptions::new()).await.unwrap();
            let run = tempfile::tempdir().unwrap();
            let others = StoreOptions::new(to.graph_root(), run.path()).driver("overlay");
            let others = Store::open(others).await.unwrap();
            fs::write(mounted(&others, id).await.join("kept"), "kept").unwrap();
            fs::write(mounted(&from, id).await.join("new"), "new").unwrap();
            from.unmount(id).await.unwrap();
            let refresh = || CopyOptions::new().refresh(true);
            let report = from.copy_to(&to, refresh()).await.unwrap();
            assert!(report.refreshed.is_empty(), "{report:#?}");
            let text = report.different[0].to_string();
            assert!(text.contains("it is mounted there"), "{text}");
            assert_eq!(shown(&others, id).await[Path::new("kept")].size, Some(4));
            others.unmount(id).await.unwrap();
            others.free();
            from.copy_to(&to, refresh()).await.unwrap();
            assert_copied(&from, &to, id).await;
        },
    );
}

/// Files of which overlayfs has copied up everything but the content.
#[tokio::test(flavor = "multi_thread")]
async fn files_without_their_content_are_copied_with_it() {
    if !is_root() {
        return skip("overlayfs leaves contents below for root alone");
    }
    let dir = tempfile::tempdir().unwrap();
    let open = async |name: &str, driver: &str, option: &str| {
        let place = |what| dir.path().join(name).join(what);
        let options = StoreOptions::new(place("graph"), place("run")).driver(driver);
        Store::open(match option {
            "" => options,
            option => options.driver_option(option),
        })
        .await
        .unwrap()
    };
    let from = open("from", "overlay", "overlay.mountopt=metacopy=on").await;
    let sizes = [1, 4000, 4096, 5000, 60_000];
    let mut files = vec![("dir/".to_owned(), String::new())];
    files.extend(sizes.map(|size| (format!("dir/file{size}"), "x".repeat(size))));
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
    let layer = put(&from, None, &files).await;
    let options = graphroot::ImageOptions::default().id("image");
    from.create_image(Some(&layer), options).await.unwrap();
    let id = &*container(&from).await;
    let root = mounted(&from, id).await;
    for (number, size) in sizes.iter().enumerate() {
        let file = root.join(format!("dir/file{size}"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        if number % 2 == 1 {
            fs::rename(&file, root.join(format!("renamed{size}"))).unwrap();
        }
    }
    from.unmount(id).await.unwrap();
    let expected = shown(&from, id).await;
    for driver in ["overlay", "vfs"] {
        let to = open(driver, driver, "").await;
        let report = from.copy_to(&to, CopyOptions::new()).await.unwrap();
        assert!(report.lost.is_empty(), "{report:#?}");
        assert_same("source", &expected, driver, &shown(&to, id).await);
        to.shutdown().await.unwrap();
        to.free();
    }
    from.shutdown().await.unwrap();
    from.free();
}
