//! Applying whole archives (what comes out on disk, and whether the tar-split data gives the stream back) and producing them.

mod changes;
mod export;
mod framing;
mod hostile;
mod measure;
mod out_support;
mod overlay;
mod overlay_peers;
mod permissions;
mod real_tools;
mod replay;
mod stream;
mod tar_split;
mod tree;
mod whiteouts;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::archive::apply::merge::merge;
use crate::archive::apply::pipeline::{Applied, ApplyOptions, Content, Target, apply};
use crate::archive::apply::settle::settle;
use crate::archive::apply::shared_files::Sharing;
use crate::archive::path::clean;
use crate::archive::tar_split::crc::Crc;
use crate::archive::tar_split::format::{Entry, GzipTarSplitReader};
use crate::error::Result;
use crate::idmap::IdMappings;
use crate::skip::{have, root_or_skip};
use crate::whiteout::{Namespace, WhiteoutFormat};

/// Kernel overlayfs as root.
const OVERLAY: WhiteoutFormat = WhiteoutFormat::Overlay(Namespace::Trusted);

/// One runtime for all tests of this module, since many apply hundreds of archives; of the kind with a single thread,
/// where a blocking call in the async half would hang.
static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> = std::sync::LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
});

/// A directory to apply layers to, with a sentinel beside it that must not be touched.
struct Layer {
    tmp: tempfile::TempDir,
    form: WhiteoutFormat,
    root_entry: bool,
    mappings: IdMappings,
    in_user_namespace: bool,
    ignore_chown_errors: bool,
    sync: bool,
    force_mask: Option<u32>,
    /// The trees below, topmost first.
    below: Vec<PathBuf>,
}

impl Layer {
    fn new(form: WhiteoutFormat) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("root")).unwrap();
        std::fs::write(tmp.path().join("sentinel"), "outside").unwrap();
        Self {
            tmp,
            form,
            root_entry: form == WhiteoutFormat::Apply,
            mappings: IdMappings::default(),
            in_user_namespace: false,
            ignore_chown_errors: false,
            sync: false,
            force_mask: None,
            below: Vec::new(),
        }
    }

    /// Uses another directory.
    fn move_to(&mut self, tmp: tempfile::TempDir) {
        std::fs::create_dir(tmp.path().join("root")).unwrap();
        std::fs::write(tmp.path().join("sentinel"), "outside").unwrap();
        self.tmp = tmp;
    }

    fn root(&self) -> PathBuf {
        self.tmp.path().join("root")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn target(&self) -> Target {
        let complete = self.form == WhiteoutFormat::Apply;
        Target {
            dir: crate::sys::at::open_dir(&self.root()).unwrap(),
            content: if complete {
                Content::TreeLayer
            } else {
                Content::Layer
            },
            root_entry: self.root_entry,
            mappings: self.mappings.clone(),
            owner: None,
            ignore_chown_errors: self.ignore_chown_errors,
            force_mask: self.force_mask,
            in_user_namespace: self.in_user_namespace,
            present: None,
        }
    }

    fn split_path(&self) -> PathBuf {
        self.tmp.path().join("split")
    }

    /// Applies an archive to what is there; if that works, the tar-split data must give it back bit for bit.
    fn apply(&self, tar: &[u8]) -> Result<Applied> {
        let unpacked = self.tmp.path().join("unpacked");
        std::fs::create_dir(&unpacked).unwrap();
        let result = self.apply_beside(&unpacked, tar);
        crate::sys::tree::remove_tree(&unpacked).unwrap();
        self.check_outside();
        let applied = result?;
        assert!(self.replay() == tar, "the replayed stream differs");
        assert_eq!(applied.diff_size, tar.len() as u64);
        assert_eq!(applied.diff_digest, crate::digest::Digest::sha256(tar));
        Ok(applied)
    }

    /// Unpacks an archive to an empty directory, then merges it into the root.
    fn apply_beside(&self, unpacked: &Path, tar: &[u8]) -> Result<Applied> {
        let open = |path: &Path| crate::sys::at::open_dir(path).unwrap();
        let from = open(unpacked);
        let split = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.split_path())
            .unwrap();
        let options = ApplyOptions {
            tar_split: Some(split),
            sync: self.sync,
            ..ApplyOptions::default()
        };
        let source = Box::pin(std::io::Cursor::new(tar.to_vec()));
        let mut target = self.target();
        target.dir = from.try_clone().unwrap();
        let (mut applied, ()) = RUNTIME.block_on(apply(source, target, options, ()))?;
        let (into, marks) = (open(&self.root()), &mut applied.marks);
        let sharing = Sharing {
            files: &applied.shared,
            in_place: true,
        };
        merge(from.as_fd(), into.as_fd(), self.form, marks, sharing, self.sync)?;
        let below: Vec<_> = self.below.iter().map(|path| open(path)).collect();
        settle(into.as_fd(), self.form, marks, &below, self.sync)?;
        Ok(applied)
    }

    fn check_outside(&self) {
        let mut names: Vec<_> = std::fs::read_dir(self.tmp.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name != "split");
        names.sort();
        assert_eq!(
            names,
            ["root", "sentinel"],
            "something was made outside of the root"
        );
        assert_eq!(
            std::fs::read(self.tmp.path().join("sentinel")).unwrap(),
            b"outside"
        );
    }

    fn lines(&self) -> Vec<Entry> {
        let mut reader = GzipTarSplitReader::new(std::fs::File::open(self.split_path()).unwrap());
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    /// Names and sizes of the lines that refer to files.
    fn file_lines(&self) -> Vec<(String, u64)> {
        let files = self.lines().into_iter().filter_map(|line| match line {
            Entry::File { name, size, .. } => Some((String::from_utf8_lossy(&name).into_owned(), size)),
            Entry::Segment(_) => None,
        });
        files.collect()
    }

    /// What a reader makes of tar-split data and tree; also checks what other readers insist on.
    fn replay(&self) -> Vec<u8> {
        use rustix::fs::{Mode, OFlags};
        let root = crate::sys::at::open_dir(&self.root()).unwrap();
        let root = std::os::fd::AsFd::as_fd(&root);
        let mut names = std::collections::HashSet::new();
        let mut stream = Vec::new();
        for line in self.lines() {
            match line {
                Entry::Segment(data) => stream.extend(data),
                Entry::File { name, size, crc } => {
                    let mut path = Vec::new();
                    clean(&name, &mut path);
                    assert!(
                        names.insert(path.clone()),
                        "two lines for {:?}",
                        String::from_utf8_lossy(&name)
                    );
                    if size == 0 {
                        continue;
                    }
                    let file =
                        crate::sys::at::open_in_root(root, &path, OFlags::RDONLY, Mode::empty()).unwrap();
                    let mut content = Vec::new();
                    std::fs::File::from(file).read_to_end(&mut content).unwrap();
                    let mut sum = Crc::new();
                    sum.update(&content);
                    assert_eq!(
                        (content.len() as u64, sum.take()),
                        (size, crc),
                        "{:?}",
                        String::from_utf8_lossy(&name)
                    );
                    stream.extend(content);
                }
            }
        }
        stream
    }

    fn listing(&self) -> BTreeMap<String, String> {
        listing(&self.root())
    }

    /// The paths alone.
    fn names(&self) -> Vec<String> {
        self.listing().into_keys().collect()
    }

    fn read(&self, path: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.at(path)).unwrap()).into_owned()
    }

    /// `true` if it is a whiteout of overlayfs.
    fn is_whiteout(&self, path: &str) -> bool {
        let meta = std::fs::symlink_metadata(self.at(path)).unwrap();
        meta.file_type().is_char_device() && meta.rdev() == 0
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let path = if path.is_empty() { "." } else { path };
        let (parent, base) = path.rsplit_once('/').unwrap_or((".", path));
        let dir = crate::sys::at::open_dir(&self.at(parent)).unwrap();
        crate::sys::xattr::get_at(std::os::fd::AsFd::as_fd(&dir), base.as_bytes(), name).unwrap()
    }

    fn is_opaque(&self, path: &str) -> bool {
        self.xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

/// Everything below `root`, with all that a layer can set; hard links show the first of their names.
fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let name =
                String::from_utf8_lossy(path.strip_prefix(root).unwrap().as_os_str().as_bytes()).into_owned();
            let mut text = format!(
                "{:o} {}:{} {}.{:09}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec()
            );
            if meta.is_symlink() {
                text += &format!(" -> {:?}", std::fs::read_link(&path).unwrap());
            } else if meta.is_file() {
                text += &format!(
                    " {}",
                    crate::digest::Digest::sha256(std::fs::read(&path).unwrap())
                );
            } else if meta.is_dir() {
                todo.push(path.clone());
            } else {
                text += &format!(" rdev {}", meta.rdev());
            }
            let dir = crate::sys::at::open_dir(path.parent().unwrap()).unwrap();
            let dir = std::os::fd::AsFd::as_fd(&dir);
            let base = path.file_name().unwrap().as_bytes();
            let mut attributes = crate::sys::xattr::list_at(dir, base).unwrap();
            attributes.sort();
            for attribute in attributes {
                let value = crate::sys::xattr::get_at(dir, base, &attribute).unwrap();
                text += &format!(" {attribute}={value:?}");
            }
            if !meta.is_dir() && meta.nlink() > 1 {
                text += &format!(" linked to {}", inodes.entry(meta.ino()).or_insert(name.clone()));
            }
            all.insert(name, text);
        }
    }
    all
}
