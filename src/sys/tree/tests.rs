//! Walks, removal and measuring on large, deep and hostile trees.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::{fs, io};

use rustix::fs::{FileType, IFlags, Mode, OFlags, mkdirat};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::Error;
use crate::skip::root_or_skip;
use crate::sys::tree::dir::{identity, open_and_compare, open_on_same_mount};
use crate::sys::tree::dir_stack::{DirStack, MAX_OPEN};
use crate::sys::tree::remove::{MAX_PENDING, remove_tree};
use crate::sys::tree::usage::{Usage, usage};

/// Where there is a file system in memory: these trees are large.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_none| tempfile::tempdir())
        .unwrap()
}

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap()
}

/// A chain of directories with a file in each; far longer than any path may be.
fn make_deep(top: &Path, depth: usize) {
    fs::create_dir(top).unwrap();
    let mut dir = open(top);
    for _ in 0..depth {
        mkdirat(&dir, c"directory", Mode::RWXU).unwrap();
        rustix::fs::openat(&dir, c"file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        dir = rustix::fs::openat(&dir, c"directory", OFlags::PATH, Mode::empty()).unwrap();
    }
}

fn make_wide(top: &Path) {
    for dir in 0..100 {
        let dir = top.join(format!("directory {dir}"));
        fs::create_dir_all(dir.join("empty")).unwrap();
        for file in 0..50 {
            fs::write(dir.join(format!("file {file}")), "0123456789").unwrap();
        }
    }
}

#[test]
fn everything_goes_and_what_links_point_to_stays() {
    let tmp = in_memory();
    let outside = tmp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    let tree = tmp.path().join("tree");
    make_wide(&tree);
    symlink(&outside, tree.join("link")).unwrap();
    symlink("../../outside", tree.join("directory 1/link")).unwrap();
    fs::hard_link(outside.join("file"), tree.join("hard link")).unwrap();
    let fifo = Command::new("mkfifo").arg(tree.join("fifo")).status().unwrap();
    assert!(fifo.success());

    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    remove_tree(&tree).unwrap();
    remove_tree(&tree.join("not/there")).unwrap();
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept");

    // A link, and a file, themselves.
    let link = tmp.path().join("link");
    symlink(&outside, &link).unwrap();
    remove_tree(&link).unwrap();
    assert!(link.symlink_metadata().is_err());
    assert!(outside.join("file").exists());
    remove_tree(&outside.join("file")).unwrap();
    assert!(!outside.join("file").exists());

    for bad in ["/", "..", "", "a/.."] {
        assert_eq!(
            remove_tree(Path::new(bad)).unwrap_err().kind(),
            io::ErrorKind::InvalidInput,
            "{bad}"
        );
    }
}

#[test]
fn depth_costs_no_stack() {
    let tmp = in_memory();
    let tree = tmp.path().join("tree");
    make_deep(&tree, 10_000);
    let walk = || {
        assert_eq!(
            usage(open(&tree).as_fd()).unwrap(),
            Usage {
                size: 0,
                inodes: 20_001
            }
        );
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    };
    std::thread::scope(|scope| {
        let small = std::thread::Builder::new().stack_size(128 * 1024);
        small.spawn_scoped(scope, walk).unwrap().join().unwrap();
    });
}

#[test]
fn depth_costs_no_open_files_and_a_moved_directory_is_noticed() {
    let tmp = in_memory();
    let tree = tmp.path().join("tree");
    make_deep(&tree, 100);
    let enter_all = || {
        let mut stack = DirStack::new(open(&tree));
        for _ in 0..100 {
            let next = open_on_same_mount(stack.current().unwrap(), c"directory").unwrap();
            stack.enter(next).unwrap();
        }
        let open = stack.open_count();
        assert!(open <= MAX_OPEN + 1, "{open}");
        stack
    };
    let mut stack = enter_all();
    for _ in 0..100 {
        stack.leave().unwrap();
    }
    assert_eq!(identity(&rustix::fs::fstat(stack.current().unwrap()).unwrap()), {
        let top = fs::metadata(&tree).unwrap();
        (top.dev(), top.ino())
    });

    let mut stack = enter_all();
    let mut half = tree.clone();
    half.extend(std::iter::repeat_n("directory", 50));
    fs::rename(&half, tmp.path().join("elsewhere")).unwrap();
    let result = (0..100).try_for_each(|_| stack.leave());
    assert_eq!(result, Err(Errno::STALE));
}

#[test]
fn more_subdirectories_than_are_remembered() {
    let tmp = in_memory();
    let tree = tmp.path().join("tree");
    let count = 2 * MAX_PENDING / 240;
    for n in 0..count {
        fs::create_dir_all(tree.join(format!("{n:0240}"))).unwrap();
        fs::write(tree.join(format!("{n:0240}/file")), "").unwrap();
    }
    let used = usage(open(&tree).as_fd()).unwrap();
    assert_eq!(used.inodes, u64::try_from(2 * count + 1).unwrap());
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
}

#[test]
fn usage_counts_each_inode_once_and_no_directory_sizes() {
    let tmp = in_memory();
    let tree = tmp.path().join("tree");
    make_wide(&tree);
    fs::hard_link(tree.join("directory 1/file 1"), tree.join("directory 2/again")).unwrap();
    fs::hard_link(tree.join("directory 1/file 1"), tmp.path().join("outside")).unwrap();
    symlink("7 bytes", tree.join("link")).unwrap();
    if rustix::process::geteuid().is_root() {
        for name in [c"whiteout", c"whiteout 2"] {
            rustix::fs::mknodat(open(&tree), name, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        }
    }
    let used = usage(open(&tree).as_fd()).unwrap();
    assert_eq!(used.size, 100 * 50 * 10 + 7);
    // The same from another program.
    let found = Command::new("find")
        .arg(&tree)
        .args(["-printf", "%i\n"])
        .output()
        .unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    let distinct: HashSet<&str> = text.lines().collect();
    assert_eq!(used.inodes, u64::try_from(distinct.len()).unwrap());
    assert_eq!(text.lines().count(), distinct.len() + 1);
}

/// What runs as another user can do nothing as root; the thread ends afterwards.
fn as_user(uid: u32, work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let uid = rustix::process::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            work();
        });
        thread.join().unwrap();
    });
}

#[test]
fn missing_permissions_are_added_where_they_can_be() {
    if !root_or_skip() {
        return;
    }
    let tmp = in_memory();
    let user = Some(65_534);
    let chmod = |path: &Path, mode| rustix::fs::chmod(path, Mode::from_raw_mode(mode)).unwrap();
    std::os::unix::fs::chown(tmp.path(), user, None).unwrap();
    chmod(tmp.path(), 0o700);
    let tree = tmp.path().join("tree");
    for (name, mode) in [
        ("none", 0),
        ("read", 0o400),
        ("search", 0o100),
        ("write", 0o200),
        ("fixed", 0o500),
    ] {
        let dir = tree.join(name);
        fs::create_dir_all(dir.join("inner/inmost")).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        for path in [
            dir.join("inner/inmost"),
            dir.join("inner"),
            dir.join("file"),
            dir.clone(),
        ] {
            std::os::unix::fs::chown(&path, user, None).unwrap();
            chmod(&path, mode);
        }
    }
    std::os::unix::fs::chown(&tree, user, None).unwrap();
    chmod(&tree, 0);
    as_user(65_534, || remove_tree(&tree).unwrap());
    assert!(!tree.exists());

    // What belongs to another user cannot be removed, and is named.
    fs::create_dir_all(tree.join("theirs")).unwrap();
    fs::write(tree.join("theirs/file"), "").unwrap();
    std::os::unix::fs::chown(&tree, user, None).unwrap();
    as_user(65_534, || {
        let error = remove_tree(&tree).unwrap_err();
        let error = Error::io("removing a layer", error);
        assert_eq!(error.io_kind(), Some(io::ErrorKind::PermissionDenied));
        assert!(
            error
                .chain()
                .starts_with("removing a layer: removing tree/theirs/file: "),
            "{}",
            error.chain()
        );
    });
    assert!(tree.join("theirs/file").exists());
}

#[test]
fn immutable_and_append_only_entries_go() {
    if !root_or_skip() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    for top_too in [false, true] {
        let tree = tmp.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/file"), "").unwrap();
        fs::write(tree.join("a/b/file"), "").unwrap();
        let flags = [
            ("a/b/file", IFlags::APPEND),
            ("a/b", IFlags::IMMUTABLE),
            ("a/file", IFlags::IMMUTABLE),
            ("a", IFlags::APPEND),
            (if top_too { "" } else { "a" }, IFlags::IMMUTABLE),
        ];
        for (name, flag) in flags {
            let file = fs::File::open(tree.join(name)).unwrap();
            if let Err(error) = rustix::fs::ioctl_setflags(&file, flag) {
                crate::skip::skip(&format!("no inode flags here: {error}"));
                return;
            }
        }
        fs::remove_dir_all(&tree).unwrap_err();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}

#[test]
fn mounts_inside_are_detached_and_their_content_stays() {
    if !root_or_skip() {
        return;
    }
    let tmp = in_memory();
    let outside = tmp.path().join("outside");
    fs::create_dir_all(outside.join("inner")).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    fs::write(outside.join("inner/file"), "kept").unwrap();
    let tree = tmp.path().join("tree");
    // A name of which the tree's is the beginning.
    let sibling = tmp.path().join("tree2");
    for dir in ["a/dir", "a/twice", "top"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    fs::create_dir(&sibling).unwrap();
    fs::write(tree.join("a/file"), "").unwrap();
    let bind = |from: &Path, to: &Path| rustix::mount::mount_bind(from, to).unwrap();
    bind(&outside, &sibling);
    bind(&outside, &tree.join("a/dir"));
    bind(&outside, &tree.join("a/dir/inner"));
    bind(&outside, &tree.join("a/twice"));
    bind(&outside, &tree.join("a/twice"));
    bind(&outside.join("file"), &tree.join("a/file"));
    // The tree itself is a mount of another tree.
    bind(&outside, &tree.join("top"));

    let a = open(&tree.join("a"));
    assert_eq!(open_on_same_mount(a.as_fd(), c"dir").unwrap_err(), Errno::XDEV);
    assert_eq!(open_and_compare(a.as_fd(), c"dir").unwrap_err(), Errno::XDEV);
    let top = open(&tree);
    assert!(open_on_same_mount(top.as_fd(), c"a").is_ok());
    assert!(open_and_compare(top.as_fd(), c"a").is_ok());

    let at_top = remove_tree(&tree.join("top"));
    let all = remove_tree(&tree);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounted = |path: &Path| {
        mounts
            .lines()
            .filter(|line| line.contains(path.to_str().unwrap()))
            .count()
    };
    let (below, beside) = (mounted(&tree.join("")), mounted(&sibling));
    rustix::mount::unmount(&sibling, UnmountFlags::DETACH).unwrap();

    at_top.unwrap();
    all.unwrap();
    assert!(!tree.exists());
    assert_eq!((below, beside), (0, 1));
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept");
    assert_eq!(fs::read(outside.join("inner/file")).unwrap(), b"kept");
}
