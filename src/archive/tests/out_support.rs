//! What the tests of diffs share: trees made by hand, overlay mounts, a list of what is in a tar stream.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
pub(super) use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, UTIME_OMIT, XattrFlags};

use super::*;
use crate::archive::diff::changes::{Change, ComparedTree, TreeComparison};
use crate::archive::diff::export::Export;
use crate::archive::tar::reader::{self, ChunkSource, TarReader};
use crate::bridge::{Producer, run_to_end};
use crate::sys::at;

/// Runs a program that has to succeed.
pub(super) fn run(program: &str, args: &[&OsStr]) -> Vec<u8> {
    let output = Command::new(program).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    output.stdout
}

/// A tree below a temporary directory.
pub(super) struct Tree {
    pub(super) tmp: tempfile::TempDir,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            tmp: tempfile::tempdir().unwrap(),
        }
    }

    /// Ends a chain of calls.
    pub(super) fn done(&self) {}

    pub(super) fn path(&self) -> &Path {
        self.tmp.path()
    }

    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.tmp.path().join(path)
    }

    pub(super) fn open(&self) -> OwnedFd {
        at::open_dir(self.path()).unwrap()
    }

    pub(super) fn dir(&self, path: &str) -> &Self {
        std::fs::create_dir_all(self.at(path)).unwrap();
        self
    }

    pub(super) fn file(&self, path: &str, content: &str) -> &Self {
        self.dir(path.rsplit_once('/').map_or("", |(dir, _)| dir));
        std::fs::write(self.at(path), content).unwrap();
        self
    }

    pub(super) fn symlink(&self, path: &str, target: &str) -> &Self {
        std::os::unix::fs::symlink(target, self.at(path)).unwrap();
        self
    }

    pub(super) fn hard_link(&self, path: &str, target: &str) -> &Self {
        std::fs::hard_link(self.at(target), self.at(path)).unwrap();
        self
    }

    pub(super) fn node(&self, path: &str, kind: FileType, device: (u32, u32)) -> &Self {
        self.dir(path.rsplit_once('/').map_or("", |(dir, _)| dir));
        let device = rustix::fs::makedev(device.0, device.1);
        rustix::fs::mknodat(CWD, self.at(path), kind, Mode::from_raw_mode(0o600), device).unwrap();
        self
    }

    pub(super) fn whiteout(&self, path: &str) -> &Self {
        self.node(path, FileType::CharacterDevice, (0, 0))
    }

    pub(super) fn opaque(&self, path: &str) -> &Self {
        self.dir(path).xattr(path, "trusted.overlay.opaque", b"y")
    }

    pub(super) fn xattr(&self, path: &str, name: &str, value: &[u8]) -> &Self {
        rustix::fs::lsetxattr(self.at(path), name, value, XattrFlags::empty()).unwrap();
        self
    }

    pub(super) fn mode(&self, path: &str, mode: u32) -> &Self {
        rustix::fs::chmodat(
            CWD,
            self.at(path),
            Mode::from_raw_mode(mode),
            rustix::fs::AtFlags::empty(),
        )
        .unwrap();
        self
    }

    pub(super) fn owner(&self, path: &str, uid: u32, gid: u32) -> &Self {
        std::os::unix::fs::lchown(self.at(path), Some(uid), Some(gid)).unwrap();
        self
    }

    pub(super) fn mtime(&self, path: &str, secs: i64, nanos: u32) -> &Self {
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: secs,
                tv_nsec: nanos.into(),
            },
        };
        rustix::fs::utimensat(CWD, self.at(path), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        self
    }

    /// Gives everything below the same time.
    pub(super) fn settle(&self) -> &Self {
        let touch = [
            "-mindepth",
            "1",
            "-exec",
            "touch",
            "-h",
            "-d",
            "@1500000000",
            "{}",
            "+",
        ]
        .map(arg);
        run("find", &[&[self.path().as_os_str()], &touch[..]].concat());
        self
    }
}

/// A copy of a tree, all metadata included.
pub(super) fn copy_into(from: &Path, to: &Path) {
    let mut from = from.as_os_str().to_owned();
    from.push("/.");
    run(
        "cp",
        &[
            OsStr::new("-a"),
            OsStr::new("--reflink=never"),
            &from,
            to.as_os_str(),
        ],
    );
}

/// An overlay mount, undone when dropped.
pub(super) struct Mount(pub(super) PathBuf);

impl Mount {
    /// Mounts `lowers` (topmost first), and what is to be written in `upper`, if anything.
    pub(super) fn new(lowers: &[&Path], upper: Option<(&Path, &Path)>, target: &Path) -> Self {
        let mut options = std::ffi::OsString::from("lowerdir=");
        for (index, lower) in lowers.iter().enumerate() {
            options.push(if index == 0 { "" } else { ":" });
            options.push(lower);
        }
        if let Some((upper, work)) = upper {
            options.push(",upperdir=");
            options.push(upper);
            options.push(",workdir=");
            options.push(work);
        }
        options.push(",redirect_dir=off,metacopy=off,index=off");
        let args = ["-t", "overlay", "overlay", "-o"].map(OsStr::new);
        run("mount", &[&args[..], &[&options, target.as_os_str()]].concat());
        Self(target.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a program that another test starts at this moment may hold our descriptors until it runs.
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        // A second panic would end the whole test run.
        assert!(
            std::thread::panicking() || unmounted.unwrap().success(),
            "cannot unmount {:?}",
            self.0
        );
    }
}

/// What a listing says to the second: streams hold no more.
pub(super) fn to_the_second(listing: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let cut = |text: String| {
        let dot = text.find('.').unwrap();
        text[..dot].to_owned() + &text[dot + 10..]
    };
    listing
        .into_iter()
        .map(|(name, text)| (name, cut(text)))
        .collect()
}

/// A stream in one piece.
struct Whole(Option<bytes::Bytes>);

impl ChunkSource for Whole {
    fn next_chunk(&mut self) -> Result<Option<bytes::Bytes>> {
        Ok(self.0.take())
    }
}

/// The entries of a stream: name, type, mode, owner, size, link target, attributes.
pub(super) fn entries(tar: &[u8]) -> Vec<(String, String)> {
    let mut reader = TarReader::new(Whole(Some(bytes::Bytes::copy_from_slice(tar))));
    let mut entry = reader::Entry::default();
    let mut all = Vec::new();
    while reader.next(&mut entry, &mut |_| Ok(())).unwrap() {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let reader::Entry {
            kind,
            mode,
            uid,
            gid,
            size,
            ..
        } = entry;
        let mut text = format!("{} {mode:o} {uid}:{gid} {size}", char::from(kind));
        if !entry.link.is_empty() {
            text += &format!(" -> {}", lossy(&entry.link));
        }
        for (key, value) in entry.records.iter() {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                text += &format!(" {}={}", lossy(name), lossy(value));
            }
        }
        all.push((lossy(&entry.name), text));
    }
    all
}

/// The names alone.
pub(super) fn names(tar: &[u8]) -> Vec<String> {
    entries(tar).into_iter().map(|(name, _)| name).collect()
}

/// Changes as they are displayed.
pub(super) fn shown(changes: &[Change]) -> Vec<String> {
    changes.iter().map(ToString::to_string).collect()
}

/// A layer for complete trees that holds a copy of `tree`.
pub(super) fn layer_with(tree: &Path) -> Layer {
    let layer = Layer::new(WhiteoutFormat::Apply);
    copy_into(tree, &layer.root());
    layer
}

/// A name for [`run`].
pub(super) fn arg(text: &(impl AsRef<OsStr> + ?Sized)) -> &OsStr {
    text.as_ref()
}

/// As [`arg`], for bytes.
pub(super) fn bytes(text: &[u8]) -> &OsStr {
    OsStr::from_bytes(text)
}

/// Everything that a producer makes. `make` starts it at an offset of the stream; neither that nor how many bytes a
/// step may make changes the bytes.
pub(super) fn produced<P: Producer>(make: impl Fn(u64) -> P) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    run_to_end(make(0), 1 << 20, &mut whole)?;
    let mut again = Vec::new();
    run_to_end(make(0), 701, &mut again)?;
    assert!(again == whole, "two streams of one tree differ");
    for offset in [1, whole.len() / 3, whole.len() / 2 + 1, whole.len()] {
        let mut rest = Vec::new();
        run_to_end(make(offset as u64), 10_007, &mut rest)?;
        assert!(
            rest == whole.get(offset..).unwrap_or_default(),
            "from byte {offset} on"
        );
    }
    let error = run_to_end(make(whole.len() as u64 + 9), 1 << 20, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("beyond the end"), "{error}");
    Ok(whole)
}

/// The stream of a whole tree.
pub(super) fn tree_stream(root: &OwnedFd, mappings: &IdMappings) -> Vec<u8> {
    produced(|offset| Export::tree(root.as_fd(), mappings, offset).unwrap()).unwrap()
}

/// The stream of an overlay upper directory.
pub(super) fn upper_stream(
    upper: &OwnedFd,
    lowers: &[OwnedFd],
    namespace: Namespace,
    mappings: &IdMappings,
) -> Vec<u8> {
    let lowers = || lowers.iter().map(|lower| lower.try_clone().unwrap()).collect();
    produced(|offset| Export::upper(upper.as_fd(), lowers(), namespace, mappings, offset).unwrap()).unwrap()
}

/// The stream of some changes.
pub(super) fn changes_stream(new: &OwnedFd, changes: &[Change]) -> Vec<u8> {
    let mappings = IdMappings::default();
    produced(|offset| Export::changes(new.try_clone().unwrap(), changes.to_vec(), &mappings, offset)).unwrap()
}

/// What differs between two trees.
pub(super) fn compared(
    (new, new_mappings): (&OwnedFd, &IdMappings),
    old: Option<(&OwnedFd, &IdMappings)>,
) -> Vec<Change> {
    let new = ComparedTree {
        root: new.as_fd(),
        mappings: new_mappings,
    };
    let old = old.map(|(old, mappings)| ComparedTree {
        root: old.as_fd(),
        mappings,
    });
    let mut lists = [usize::MAX, 1].map(|count| {
        let mut comparison = TreeComparison::new(new, old).unwrap();
        while comparison.step(count).unwrap() {}
        comparison.into_changes()
    });
    assert_eq!(lists[0], lists[1], "in single steps");
    std::mem::take(&mut lists[0])
}
