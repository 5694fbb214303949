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

/// A mounted XFS.
struct Xfs(PathBuf, Child);

impl Xfs {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("an XFS is mounted by root");
            return None;
        }
        match scripted_fs::make_image("xfs", "1G") {
            Some(made) => Some(Self(made.dir, made.program)),
            None => {
                skip("an XFS cannot be made and mounted here");
                None
            }
        }
    }
}

impl Drop for Xfs {
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
    let Some(xfs) = Xfs::new() else { return };
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
    let takes = |kind, name: &[u8], value: &[u8]| trial.takes_attribute(kind, name, value).unwrap();
    assert!(takes(FileType::RegularFile, name, &value));
    assert!(!takes(FileType::RegularFile, name, b"none"));
    assert!(!takes(FileType::Symlink, b"user.test", b"1"));
    assert!(!takes(FileType::Directory, b"system.unknown", b"1"));
}
