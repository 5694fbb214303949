//! Everything that can be said of the files in a tree, to compare two of them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// One file of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: &'static str,
    /// Permission bits with set-ID and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, i64),
    /// Of regular files.
    pub(crate) size: Option<u64>,
    /// SHA-256 of regular files.
    pub(crate) content: Option<String>,
    pub(crate) link_target: Option<PathBuf>,
    /// Major and minor number of devices.
    pub(crate) device: Option<(u32, u32)>,
    /// The first of the names of a file with several.
    pub(crate) linked_with: Option<PathBuf>,
    /// Extended attributes.
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

/// The files of a tree by their path relative to it; the root is the empty path.
pub(crate) type Manifest = BTreeMap<PathBuf, Entry>;

/// Describes every file of a layer's tree, with content. The time of the root is left out: it is that of its making.
pub(crate) fn layer_manifest(tree: &Path) -> Manifest {
    let mut files = manifest(tree);
    files.get_mut(Path::new("")).unwrap().mtime = (0, 0);
    files
}

/// Describes every file below `root`, with content.
pub(crate) fn manifest(root: &Path) -> Manifest {
    let mut found = Manifest::new();
    let mut first_name = HashMap::new();
    let mut queue = vec![PathBuf::new()];
    while let Some(relative) = queue.pop() {
        // Joining the empty path would add a slash.
        let path = if relative.as_os_str().is_empty() {
            root.to_path_buf()
        } else {
            root.join(&relative)
        };
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if meta.is_dir() {
            for child in fs::read_dir(&path).unwrap() {
                queue.push(relative.join(child.unwrap().file_name()));
            }
        } else if meta.nlink() > 1 {
            let names: &mut Vec<PathBuf> = first_name.entry((meta.dev(), meta.ino())).or_default();
            names.push(relative.clone());
        }
        found.insert(relative, entry(&path, &meta));
    }
    for names in first_name.values_mut().filter(|names| names.len() > 1) {
        names.sort();
        for name in &*names {
            found.get_mut(name).unwrap().linked_with = Some(names[0].clone());
        }
    }
    found
}

fn entry(path: &Path, meta: &fs::Metadata) -> Entry {
    let kind = meta.file_type();
    let mut entry = Entry {
        kind: match () {
            () if kind.is_dir() => "directory",
            () if kind.is_file() => "file",
            () if kind.is_symlink() => "symbolic link",
            () if kind.is_char_device() => "character device",
            () if kind.is_block_device() => "block device",
            () if kind.is_fifo() => "fifo",
            () if kind.is_socket() => "socket",
            () => "unknown",
        },
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        xattrs: xattrs(path),
        ..Entry::default()
    };
    if kind.is_file() {
        entry.size = Some(meta.size());
        entry.content = Some(sha256_of(path));
    } else if kind.is_symlink() {
        entry.link_target = Some(fs::read_link(path).unwrap());
    } else if kind.is_char_device() || kind.is_block_device() {
        entry.device = Some((rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())));
    }
    entry
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 * 1024];
    let count = match rustix::fs::llistxattr(path, &mut names[..]) {
        // The file system has none.
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        count => count.unwrap(),
    };
    let mut found = BTreeMap::new();
    for name in names[..count]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 64 * 1024];
        let size = match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            // fuse-overlayfs lists the attribute that it applies, but does not show it.
            Err(rustix::io::Errno::NODATA) => continue,
            size => size.unwrap(),
        };
        value.truncate(size);
        found.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    found
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> String {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Panics with a readable list of differences unless both trees are the same.
#[track_caller]
pub(crate) fn assert_same(left_name: &str, left: &Manifest, right_name: &str, right: &Manifest) {
    let differences = differences(left, right);
    let shown = differences
        .iter()
        .take(40)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        differences.is_empty(),
        "{left_name} ({} files) and {right_name} ({} files) differ in {} places:\n{shown}",
        left.len(),
        right.len(),
        differences.len(),
    );
}

/// One line for each difference.
pub(crate) fn differences(left: &Manifest, right: &Manifest) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, a) in left {
        let show = String::from_utf8_lossy(path.as_os_str().as_bytes());
        let Some(b) = right.get(path) else {
            lines.push(format!("/{show}: only in the first ({})", a.kind));
            continue;
        };
        let mut differs = |what: &str, a: String, b: String| {
            if a != b {
                lines.push(format!("/{show}: {what} {a} / {b}"));
            }
        };
        differs("type", a.kind.into(), b.kind.into());
        differs("mode", format!("{:04o}", a.mode), format!("{:04o}", b.mode));
        differs(
            "owner",
            format!("{}:{}", a.uid, a.gid),
            format!("{}:{}", b.uid, b.gid),
        );
        differs("mtime", time(a.mtime), time(b.mtime));
        differs("size", format!("{:?}", a.size), format!("{:?}", b.size));
        differs("content", format!("{:?}", a.content), format!("{:?}", b.content));
        differs(
            "link target",
            format!("{:?}", a.link_target),
            format!("{:?}", b.link_target),
        );
        differs("device", format!("{:?}", a.device), format!("{:?}", b.device));
        differs(
            "linked with",
            format!("{:?}", a.linked_with),
            format!("{:?}", b.linked_with),
        );
        differs("attributes", attributes(a), attributes(b));
    }
    for (path, b) in right.iter().filter(|(path, _)| !left.contains_key(*path)) {
        lines.push(format!("/{}: only in the second ({})", path.display(), b.kind));
    }
    lines
}

fn time((seconds, nanoseconds): (i64, i64)) -> String {
    format!("{seconds}.{nanoseconds:09}")
}

fn attributes(entry: &Entry) -> String {
    let mut text = String::new();
    for (name, value) in &entry.xattrs {
        write!(text, "{name}={} ", value.escape_ascii()).unwrap();
    }
    text
}

#[test]
fn a_manifest_tells_every_kind_of_difference() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let dir = tempfile::tempdir().unwrap();
    for side in ["a", "b"] {
        let side = dir.path().join(side);
        fs::create_dir_all(side.join("sub")).unwrap();
        fs::write(side.join("sub/file"), "one").unwrap();
        fs::hard_link(side.join("sub/file"), side.join("link")).unwrap();
        symlink("sub", side.join("symbolic")).unwrap();
        for path in ["sub/file", "sub", ""] {
            let file = File::open(side.join(path)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }
    }
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let without_link_time = |root: &Path| {
        let mut manifest = manifest(root);
        manifest.get_mut(Path::new("symbolic")).unwrap().mtime = (0, 0);
        manifest
    };
    let before = without_link_time(&a);
    assert_same("a", &before, "b", &without_link_time(&b));
    assert_eq!(before[Path::new("sub/file")].linked_with, Some("link".into()));

    fs::write(a.join("sub/file"), "two!").unwrap();
    fs::set_permissions(a.join("sub"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_file(a.join("symbolic")).unwrap();
    symlink("elsewhere", a.join("symbolic")).unwrap();
    fs::write(b.join("more"), "").unwrap();
    let lines = differences(&without_link_time(&a), &without_link_time(&b)).join("\n");
    for expected in [
        "/sub: mode 0700",
        "/sub/file: size",
        "/sub/file: content",
        "/sub/file: mtime",
        "/symbolic: link target",
        "/more: only in the second",
    ] {
        assert!(lines.contains(expected), "{expected:?} is missing in:\n{lines}");
    }
}
