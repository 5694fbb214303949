//! Layers that get another tree.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use crate::driver::zfs::mounting::Mounter;
use crate::driver::zfs::tests::{Setup, container, fill, setup};
use crate::driver::{Copied, CreateOptions, LayerCopy, MountOptions, Staged};

const TREE: Copied = Copied::Tree { durable: true };

impl Setup {
    fn copy(&self, id: &str, copied: Copied) -> LayerCopy {
        self.driver.copy_layer(id, copied).unwrap().unwrap()
    }

    /// The names of the files of a layer.
    fn files(&self, id: &str) -> Vec<String> {
        let root = self.driver.mount(id, &MountOptions::default()).unwrap();
        let names = |root: &Path| {
            let entries = fs::read_dir(root).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<Vec<_>>()
        };
        let mut found = names(&root);
        self.driver.unmount(id).unwrap();
        found.sort();
        found
    }

    fn layers(&self) -> Vec<String> {
        let mut names = self.names();
        names.retain(|name| !name.contains('@'));
        names
    }

    /// What a process leaves that is killed between the two renames, while it gives `a` a tree with the file `new`. Its temporary
    /// directory has the number 1.
    fn cut_off(&self) {
        let mark = self.zfs(&["get", "-H", "-o", "value", "graphroot:home"], "a");
        let mark = format!("graphroot:home={}", mark.trim());
        self.create("b", None);
        self.write("b", "new");
        self.driver.unmount_all("a").unwrap();
        self.driver.unmount_all("b").unwrap();
        self.zfs(&["set", &mark], "a");
        self.zfs(&["set", "graphroot:replaces=1 a"], "b");
        for (from, to) in [("a", "graphroot-1-old"), ("b", "graphroot-1-new")] {
            let from = format!("{}/{from}", self.dataset.name());
            self.zfs(&["rename", &from], to);
        }
        if Mounter::find().unwrap() == Mounter::Daemon {
            let target = self.driver.home().join("graph/a");
            self.zfs(
                &["set", &format!("mountpoint={}", target.display())],
                "graphroot-1-new",
            );
        }
        let dirs = self.driver.home().join("tempdirs");
        fs::create_dir_all(dirs.join("temp-dir-1")).unwrap();
        fs::write(dirs.join("lock-1"), "").unwrap();
    }
}

#[test]
fn copies_take_the_place_of_a_dataset() {
    let Some(setup) = setup(&[]) else { return };
    setup.create("below", None);
    setup.create("a", Some("below"));
    setup.write("a", "file");
    for id in ["mounted", "resting"] {
        setup.create(id, Some("a"));
    }
    let mounted = setup.driver.mount("mounted", &MountOptions::default()).unwrap();
    let open = fs::File::open(mounted.join("file")).unwrap();
    let mut number = setup.driver.tree_number("a").unwrap();
    for (copied, files) in [(TREE, &["file"][..]), (TREE, &["file"]), (Copied::Root, &[])] {
        let copy = setup.copy("a", copied);
        let expected = copy.number().unwrap();
        assert_ne!(expected, number);
        drop(copy.take_place().unwrap());
        number = setup.driver.tree_number("a").unwrap();
        assert_eq!(number, expected);
        assert_eq!(setup.files("a"), files, "{copied:?}");
        assert_eq!(setup.files("resting"), ["file"], "{copied:?}");
        assert!(mounted.join("file").exists());
        assert_eq!(setup.layers(), ["a", "below", "mounted", "resting"]);
    }
    // It is the same mount all the time.
    let inode = |file: fs::Metadata| (file.dev(), file.ino());
    assert_eq!(
        inode(open.metadata().unwrap()),
        inode(mounted.join("file").metadata().unwrap())
    );
    drop(open);
    fs::write(mounted.join("more"), "").unwrap();
    setup.driver.unmount("mounted").unwrap();
    // One that is given up leaves nothing.
    drop(setup.copy("a", TREE));
    setup.create("child", Some("a"));
    assert_eq!(setup.files("child"), [""; 0]);
    for id in ["below", "a", "child", "resting", "mounted"] {
        drop(setup.driver.defer_remove(id).unwrap().unwrap());
    }
    assert_eq!(setup.names(), [""; 0]);
}

#[test]
fn what_was_staged_takes_the_place_of_a_dataset() {
    let Some(setup) = setup(&[]) else { return };
    setup.create("below", None);
    setup.write("below", "file");
    setup.driver.create("a", Some("below"), &container("8m")).unwrap();
    setup.write("a", "old");
    let staged = Arc::clone(&setup.driver).stage(Some("below"), &CreateOptions::default());
    let staged: Box<dyn Staged> = staged.unwrap();
    fs::write(staged.path().join("new"), "").unwrap();
    drop(staged.into_copy("a").unwrap().take_place().unwrap());
    assert_eq!(setup.files("a"), ["file", "new"]);
    assert_eq!(setup.layers(), ["a", "below"]);
    // It has the limit of the old one, and so has what takes its place.
    drop(setup.copy("a", Copied::Root).take_place().unwrap());
    let root = setup.driver.mount("a", &MountOptions::default()).unwrap();
    assert_eq!(fill(&root, 32), Err(Errno::DQUOT));
    setup.driver.unmount("a").unwrap();
}

#[test]
fn a_tree_with_open_files_stays() {
    let Some(setup) = setup(&[]) else { return };
    setup.create("a", None);
    setup.write("a", "file");
    let copy = setup.copy("a", Copied::Root);
    let open = setup.driver.mount_private("a").unwrap();
    match (copy.take_place(), Mounter::find().unwrap()) {
        (Err(error), Mounter::Daemon) => {
            assert!(error.is_busy(), "{error:?}");
            assert_eq!(setup.driver.tree_number("a").unwrap(), 0);
        }
        (Ok(_old), Mounter::Kernel) => {}
        other => panic!("{other:?}"),
    }
    let file = rustix::fs::openat(
        &open,
        "file",
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    );
    drop(file.unwrap());
    drop(open);
    setup.driver.prune().unwrap();
    assert_eq!(setup.layers(), ["a"]);
    drop(setup.copy("a", Copied::Root).take_place().unwrap());
    assert_eq!(setup.files("a"), [""; 0]);
}

#[test]
fn an_exchange_that_was_cut_off_is_completed() {
    let Some(setup) = setup(&[]) else { return };
    for asks_first in [false, true] {
        setup.create("a", None);
        setup.write("a", "old");
        setup.create("child", Some("a"));
        setup.cut_off();
        assert!(!setup.driver.exists("a").unwrap());
        if asks_first {
            assert_eq!(setup.driver.tree_number("a").unwrap(), 2);
            assert_eq!(setup.layers(), ["a", "child", "graphroot-1-old"]);
        }
        setup.driver.prune().unwrap();
        assert_eq!(setup.driver.tree_number("a").unwrap(), 2);
        assert_eq!(setup.layers(), ["a", "child"]);
        assert_eq!(setup.files("a"), ["new"]);
        assert_eq!(setup.files("child"), ["old"]);
        for id in ["a", "child"] {
            drop(setup.driver.defer_remove(id).unwrap().unwrap());
        }
        assert_eq!(setup.names(), [""; 0]);
    }
}

#[test]
fn an_exchange_that_was_not_begun_is_taken_back() {
    let Some(setup) = setup(&[]) else { return };
    setup.create("a", None);
    setup.write("a", "old");
    setup.cut_off();
    let old = format!("{}/graphroot-1-old", setup.dataset.name());
    setup.zfs(&["rename", &old], "a");
    setup.driver.prune().unwrap();
    assert_eq!(setup.driver.tree_number("a").unwrap(), 0);
    assert_eq!(setup.names(), ["a"]);
    assert_eq!(setup.files("a"), ["old"]);
    // Another one has the layer's name by now, and of a layer that is gone there is no exchange.
    setup.cut_off();
    setup.create("a", None);
    setup.driver.prune().unwrap();
    assert_eq!(setup.names(), ["a"]);
    assert_eq!(setup.files("a"), [""; 0]);
    setup.cut_off();
    setup.zfs(&["destroy"], "graphroot-1-old");
    setup.driver.prune().unwrap();
    assert_eq!(setup.names(), [""; 0]);
}

/// A layer on another one is begun without the lock under which trees are exchanged.
#[test]
fn a_parent_is_waited_for_that_gets_another_tree() {
    let Some(setup) = setup(&[]) else { return };
    setup.create("a", None);
    setup.cut_off();
    let dirs = setup.driver.home().join("tempdirs");
    let is_begun = || fs::read_dir(&dirs).unwrap().count() > 2;
    std::thread::scope(|scope| {
        let staging = scope.spawn(|| {
            let staged = Arc::clone(&setup.driver).stage(Some("a"), &CreateOptions::default());
            staged.map(|staged| staged.path().join("new").exists())
        });
        while !is_begun() && !staging.is_finished() {
            std::thread::yield_now();
        }
        assert_eq!(setup.driver.tree_number("a").unwrap(), 2);
        assert!(staging.join().unwrap().unwrap());
    });
}

/// A clone takes over what it has of the dataset, for which its quota needs room.
#[test]
fn clones_with_quotas_stay_on_what_is_removed() {
    let Some(setup) = setup(&[]) else { return };
    let base = |id: &str, clone: &str| {
        setup.create(id, None);
        let root = setup.driver.mount(id, &MountOptions::default()).unwrap();
        fill(&root, 16).unwrap();
        setup.driver.unmount(id).unwrap();
        setup.driver.create(clone, Some(id), &container("8m")).unwrap();
    };
    base("a", "box");
    if Mounter::find().unwrap() == Mounter::Daemon {
        // It would unmount the clone.
        let error = setup.copy("a", Copied::Root).take_place().unwrap_err();
        assert_eq!(
            error.io_kind(),
            Some(std::io::ErrorKind::StorageFull),
            "{error:?}"
        );
        assert_eq!(setup.files("a"), ["file"]);
    }
    // One without a quota takes all.
    setup.create("child", Some("a"));
    drop(setup.copy("a", Copied::Root).take_place().unwrap());
    assert_eq!(setup.layers(), ["a", "box", "child"]);
    assert_eq!(setup.files("a"), [""; 0]);

    base("b", "other");
    drop(setup.driver.defer_remove("b").unwrap().unwrap());
    assert!(!setup.driver.exists("b").unwrap());
    setup.driver.prune().unwrap_err();
    assert_eq!(setup.files("other"), ["file"]);
    drop(setup.driver.defer_remove("other").unwrap().unwrap());
    setup.driver.prune().unwrap();
    assert_eq!(setup.layers(), ["a", "box", "child"]);
}

/// The datasets are on disk before the directories to which they belong may be.
#[test]
fn what_belongs_to_lost_directories_is_removed() {
    let Some(setup) = setup(&[]) else { return };
    let dirs = setup.driver.home().join("tempdirs");
    setup.create("a", None);
    setup.cut_off();
    fs::remove_dir_all(&dirs).unwrap();
    setup.driver.prune().unwrap();
    assert_eq!(setup.layers(), ["graphroot-1-new", "graphroot-1-old"]);
    setup.driver.remove_strays().unwrap();
    assert_eq!(setup.layers(), ["a"]);
    assert_eq!(setup.files("a"), ["new"]);
    assert_eq!(fs::read_dir(&dirs).unwrap().count(), 0);
    // What is in use stays, and what somebody else has given such a name or property.
    let copy = setup.copy("a", TREE);
    for name in ["graphroot-x-old", "graphroot--new", "graphroot-7-old"] {
        setup.zfs(&["create"], name);
    }
    setup.zfs(&["create", "-o", "graphroot:removed=8"], "other");
    let before = setup.layers();
    setup.driver.remove_strays().unwrap();
    fs::create_dir(dirs.join("temp-dir-8")).unwrap();
    setup.driver.prune().unwrap();
    assert_eq!(setup.layers(), before);
    drop(copy.take_place().unwrap());
    assert_eq!(setup.files("a"), ["new"]);
}
