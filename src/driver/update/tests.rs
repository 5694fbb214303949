//! Trees on file systems that cannot have everything.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Child;

use rustix::fs::FileType;

use super::*;
use crate::driver::conformance::scripted_fs;
use crate::driver::contract::LayerTree;
use crate::skip::skip;
use crate::sys::at;

/// A mounted file system.
struct Mounted(PathBuf, Child);

impl Mounted {
    fn new(kind: &str, size: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("file systems are mounted by root");
            return None;
        }
        match scripted_fs::make_image(kind, size) {
            Some(made) => Some(Self(made.dir, made.program)),
            None => {
                skip(&format!(
                    "a file system of the kind {kind} cannot be made and mounted here"
                ));
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.1.stdin.take());
        self.1.wait().unwrap();
    }
}

fn shown(root: &Path) -> ShownTree {
    ShownTree {
        root: at::open_dir(root).unwrap(),
        own: None,
        counts_names: true,
        one_mount: false,
        in_user_namespace: false,
    }
}

fn written(dir: OwnedFd) -> LayerTree {
    LayerTree {
        dir,
        whiteouts: WhiteoutFormat::Apply,
        root_entry: true,
        ignore_chown_errors: false,
        force_mask: None,
        in_user_namespace: false,
    }
}

/// XFS has links to paths of 1023 bytes, other file systems four times that.
#[test]
fn links_that_are_too_long_are_lost() {
    let Some(xfs) = Mounted::new("xfs", "1G") else {
        return;
    };
    let source = tempfile::tempdir_in("/dev/shm").unwrap();
    let (from, to) = (source.path(), xfs.0.join("tree"));
    let tmp = xfs.0.join("tmp");
    for dir in [&to, &tmp] {
        fs::create_dir(dir).unwrap();
    }
    fs::create_dir(from.join("dir")).unwrap();
    symlink("x".repeat(1024), from.join("dir/long")).unwrap();
    symlink("x".repeat(1023), from.join("dir/short")).unwrap();
    fs::write(from.join("dir/file"), "content").unwrap();
    // What was there in its place goes.
    fs::create_dir(to.join("dir")).unwrap();
    fs::write(to.join("dir/long"), "before").unwrap();
    let tree = written(at::open_dir(&to).unwrap());
    let new = NewTree {
        tree: &tree,
        below: None,
        ignored: None,
        durable: false,
    };
    let remaps = Remaps::default();
    let lost = [Loss {
        path: "/dir/long".into(),
        what: "a link to a path that is too long for the file system".to_owned(),
    }];
    assert_eq!(update(&shown(from), &new, &remaps).unwrap(), lost);
    assert!(to.join("dir/short").is_symlink() && to.join("dir/file").is_file());
    assert!(to.join("dir/long").symlink_metadata().is_err());

    let trial = || Trial::new(tmp.join("trial"), &to);
    let compare = |trial: Option<&Trial>| difference(&shown(from), &shown(&to), &remaps, trial).unwrap();
    let tried = trial();
    assert_eq!(compare(tried.as_ref()), (None, lost.to_vec()));
    drop(tried);
    assert_eq!(fs::read_dir(tmp.join("trial")).unwrap().count(), 0);
    // Nobody has tried.
    assert_eq!(compare(None).0, Some("/dir/long".into()));
    // Nor does what is found on another file system tell anything.
    assert!(Trial::new(source.path().join("trial"), &to).is_none());

    // One that could be there is missed.
    fs::remove_file(to.join("dir/short")).unwrap();
    let time = fs::metadata(from.join("dir")).unwrap().modified().unwrap();
    fs::File::open(to.join("dir"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    assert_eq!(compare(trial().as_ref()).0, Some("/dir/short".into()));
    symlink("x".repeat(1023), from.join("dir/new")).unwrap();
    fs::File::open(from.join("dir"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    fs::remove_file(from.join("dir/short")).unwrap();
    fs::File::open(from.join("dir"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    assert_eq!(compare(trial().as_ref()).0, Some("/dir/new".into()));
}

/// An attribute is lost where none of its kind can be.
#[test]
fn attributes_that_are_refused_are_no_difference() {
    let trees = tempfile::tempdir_in("/dev/shm").unwrap();
    let [from, to] = ["from", "to"].map(|name| trees.path().join(name));
    for tree in [&from, &to] {
        fs::create_dir(tree).unwrap();
        fs::write(tree.join("file"), "content").unwrap();
    }
    let dir = at::open_dir(&from).unwrap();
    let time = fs::metadata(from.join("file")).unwrap().modified().unwrap();
    for path in [&to.join("file"), &from, &to] {
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    }
    let name = b"security.capability";
    let compare =
        |trial: Option<&Trial>| difference(&shown(&from), &shown(&to), &Remaps::default(), trial).unwrap();
    let trial = Trial::new(trees.path().join("trial"), &to).unwrap();
    assert_eq!(compare(Some(&trial)), (None, Vec::new()));
    // Revision 2, which root may set.
    let value = [0x0200_0001u32, 1, 0, 0, 0].map(u32::to_le_bytes).concat();
    if crate::sys::xattr::set_at(dir.as_fd(), b"file", name, &value).is_err() {
        return skip("attributes of files are set by root");
    }
    assert_eq!(compare(Some(&trial)).0, Some("/file".into()));
    let takes = |kind, name: &[u8], value: &[u8]| {
        let wanted = [(name.to_vec(), value.to_vec())].into();
        let refused = trial.refused_attributes(kind, &wanted, true).unwrap();
        refused.is_empty()
    };
    assert!(takes(FileType::RegularFile, name, &value));
    assert!(!takes(FileType::RegularFile, name, b"none"));
    assert!(!takes(FileType::Symlink, b"user.test", b"1"));
    assert!(!takes(FileType::Directory, b"system.unknown", b"1"));
}

/// Ext4 has a block for all attributes of a file, and times from 1901 to 2446.
#[test]
fn large_attributes_and_far_times_are_lost() {
    let Some(ext4) = Mounted::new("ext4", "32M") else {
        return;
    };
    let source = tempfile::tempdir_in("/dev/shm").unwrap();
    let (from, to) = (source.path(), ext4.0.join("tree"));
    let tmp = ext4.0.join("tmp");
    for dir in [&to, &tmp] {
        fs::create_dir(dir).unwrap();
    }
    fs::create_dir(from.join("dir")).unwrap();
    symlink("file", from.join("link")).unwrap();
    let dir = at::open_dir(from).unwrap();
    let set = |name: &str, attribute: &str, length: usize| {
        crate::sys::xattr::set_at(
            dir.as_fd(),
            name.as_bytes(),
            attribute.as_bytes(),
            &vec![1; length],
        )
    };
    for name in ["large", "many", "small"] {
        fs::write(from.join(name), "").unwrap();
    }
    let block = usize::try_from(rustix::fs::statvfs(&to).unwrap().f_bsize).unwrap();
    if set("large", "user.large", block + 1).is_err() {
        return skip("there are no attributes in /dev/shm");
    }
    set("dir", "user.large", 60_000).unwrap();
    set("large", "user.short", 10).unwrap();
    for attribute in ["user.a", "user.b", "user.c"] {
        set("many", attribute, block * 2 / 5).unwrap();
    }
    set("small", "user.small", block / 2).unwrap();
    for (name, second) in [
        ("dir", 20_000_000_000),
        ("link", -3_000_000_000),
        ("small", -2_000_000_000),
    ] {
        let time = rustix::fs::Timespec {
            tv_sec: second,
            tv_nsec: 7,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(&dir, name, &times, flags).unwrap();
    }
    let tree = written(at::open_dir(&to).unwrap());
    let new = NewTree {
        tree: &tree,
        below: None,
        ignored: None,
        durable: false,
    };
    let remaps = Remaps::default();
    let sorted = |losses: Vec<Loss>| {
        let lines = losses
            .into_iter()
            .map(|loss| format!("{}: {}", loss.path.display(), loss.what));
        let mut lines: Vec<String> = lines.collect();
        lines.sort();
        lines
    };
    let time = "the time of its last change, which is out of the range of the file system";
    let lost = [
        format!("/dir: {time}"),
        "/dir: the extended attribute user.large".to_owned(),
        "/large: the extended attribute user.large".to_owned(),
        format!("/link: {time}"),
        "/many: the extended attribute user.c".to_owned(),
    ];
    let mut expected = lost.to_vec();
    expected.sort();
    assert_eq!(sorted(update(&shown(from), &new, &remaps).unwrap()), expected);

    let trial = Trial::new(tmp.join("trial"), &to).unwrap();
    let (path, losses) = difference(&shown(from), &shown(&to), &remaps, Some(&trial)).unwrap();
    assert_eq!((path, sorted(losses)), (None, expected));
    // Another time than the nearest one is a difference.
    let there = fs::File::open(to.join("dir")).unwrap();
    there.set_modified(std::time::UNIX_EPOCH).unwrap();
    let (path, _losses) = difference(&shown(from), &shown(&to), &remaps, Some(&trial)).unwrap();
    assert_eq!(path, Some("/dir".into()));

    // Where the disk is full it is not the attribute that is to blame.
    fs::remove_file(to.join("small")).unwrap();
    let mut filling = fs::File::create(tmp.join("filling")).unwrap();
    while std::io::Write::write_all(&mut filling, &[1; 4096]).is_ok() {}
    drop(filling);
    let error = update(&shown(from), &new, &remaps).unwrap_err();
    assert_eq!(
        error.io_kind(),
        Some(std::io::ErrorKind::StorageFull),
        "{error:?}"
    );
}

/// What is deleted, or replaced by something else, between any two steps is left out, or copied as what it is then.
#[test]
fn trees_that_are_changed_all_the_time_are_copied() {
    use std::os::unix::fs::OpenOptionsExt as _;
    let trees = tempfile::tempdir_in("/dev/shm").unwrap();
    let from = trees.path().join("from");
    for number in 0..3 {
        fs::create_dir_all(from.join(format!("dir{number}"))).unwrap();
    }
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let change = |mut seed: usize| {
        let mut below = |limit: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % limit
        };
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            let [one, other] = [(); 2].map(|()| from.join(format!("dir{}/{}", below(3), below(6))));
            // Most of these fail.
            match below(6) {
                0 | 1 => {
                    let mut options = fs::File::options();
                    options.write(true).create(true).truncate(true);
                    let no_wait = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
                    let opened = options.custom_flags(no_wait).open(one);
                    drop(opened.and_then(|mut file| std::io::Write::write_all(&mut file, &[1; 9000])));
                }
                2 => drop(fs::create_dir(one)),
                3 => drop(fs::hard_link(one, other)),
                4 => drop(symlink("target", one)),
                _ => drop(fs::remove_file(&one).or_else(|_| fs::remove_dir(&one))),
            }
        }
    };
    std::thread::scope(|scope| {
        for seed in [1, 2] {
            scope.spawn(move || change(seed));
        }
        let results: Vec<_> = (0..150)
            .map(|round| {
                let to = trees.path().join(format!("to{round}"));
                fs::create_dir(&to).unwrap();
                let tree = written(at::open_dir(&to).unwrap());
                let new = NewTree {
                    tree: &tree,
                    below: None,
                    ignored: None,
                    durable: false,
                };
                let once = update(&shown(&from), &new, &Remaps::default());
                let again = update(&shown(&from), &new, &Remaps::default());
                let compared = difference(&shown(&from), &shown(&to), &Remaps::default(), None);
                fs::remove_dir_all(&to).unwrap();
                once.and(again).and(compared.map(drop))
            })
            .collect();
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        let failures: Vec<_> = results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .collect();
        assert!(failures.is_empty(), "{}: {:?}", failures.len(), failures[0]);
    });
}
