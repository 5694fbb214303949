//! Copies files and directories between trees, for instance between mounted layers, with owners mapped on both sides.
//!
//! Nothing outside of the trees' roots can be reached, whatever links lie in them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::archive::apply::pipeline::{self, ApplyOptions, Content, Target};
use crate::archive::diff::export::Export;
use crate::bridge::{self, ByteStream};
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::{IdMappings, Owner};
use crate::sys::{at, privilege, random};

/// Where [`copy_content`] copies from or to.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct CopyEnd {
    /// The directory that plays `/`: absolute links and `..` end there. A layer's mount point, or `/`.
    pub root: PathBuf,
    /// The file or directory, seen from there.
    pub path: PathBuf,
    /// Owners on this side are host IDs of these mappings.
    pub mappings: IdMappings,
}

impl CopyEnd {
    /// A place in a tree whose owners are not mapped.
    pub fn new(root: impl Into<PathBuf>, path: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            path: path.into(),
            mappings: IdMappings::default(),
        }
    }

    /// Sets [`CopyEnd::mappings`].
    #[must_use]
    pub fn mappings(mut self, mappings: IdMappings) -> Self {
        self.mappings = mappings;
        self
    }

    fn open_root(&self) -> Result<OwnedFd> {
        at::open_dir(&self.root).at("opening", &self.root)
    }

    fn shown(&self) -> PathBuf {
        self.root.join(self.path.strip_prefix("/").unwrap_or(&self.path))
    }
}

/// Copies what is at `from` to `to`; links at the end of `from` are followed. `owner` (inside the container) becomes
/// the owner of everything, if it is given.
///
/// The content of a directory is merged into the directory `to`, which is made (0755) if it is missing. A file becomes
/// the file `to`, replacing another one; directories on the way are made (0700).
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a file that shall replace a directory, [`ErrorKind::NotSupported`] for a source that
/// is neither file nor directory, [`ErrorKind::InvalidMappings`] for owners that have no ID on the other side,
/// [`ErrorKind::Io`].
///
/// # Cancellation
/// Part of the content may have been copied.
pub async fn copy_content(from: CopyEnd, to: CopyEnd, owner: Option<Owner>) -> Result<()> {
    let what = format!("copying {:?} to {:?}", from.shown(), to.shown());
    copy(from, to, owner).await.context(|| what)
}

async fn copy(from: CopyEnd, to: CopyEnd, owner: Option<Owner>) -> Result<()> {
    let (source_mappings, target_mappings) = (from.mappings.clone(), to.mappings.clone());
    let opened = bridge::run(move || {
        let source = CopySource::open(&from)?;
        let root = to.open_root()?;
        match source {
            CopySource::Directory(dir) => {
                let made = match owner {
                    Some(owner) => to.mappings.to_host(owner)?,
                    None => to.mappings.root()?,
                };
                let path = clean(&to.path);
                make_dirs(root.as_fd(), &path, Mode::from_raw_mode(0o755), Some(made))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let target = at::open_in_root(root.as_fd(), &path, flags, Mode::empty());
                Ok(Some((dir, target.at("opening", &to.path)?)))
            }
            CopySource::File(file, stat) => {
                copy_file(&file, &stat, &from.mappings, root.as_fd(), &to, owner)?;
                Ok(None)
            }
        }
    })
    .await?;
    let Some((source, target)) = opened else {
        return Ok(());
    };
    let export = bridge::run(move || Export::tree(source.as_fd(), &source_mappings, 0)).await?;
    let target = Target {
        dir: target,
        content: Content::Files,
        root_entry: false,
        mappings: target_mappings,
        owner,
        ignore_chown_errors: false,
        force_mask: None,
        in_user_namespace: privilege::is_rootless(),
        present: None,
    };
    pipeline::apply(
        Box::pin(ByteStream::of(export)),
        target,
        ApplyOptions::default(),
        (),
    )
    .await
    .map(drop)
}

/// What is copied, open.
enum CopySource {
    Directory(OwnedFd),
    File(File, Box<Stat>),
}

impl CopySource {
    fn open(from: &CopyEnd) -> Result<Self> {
        let root = from.open_root()?;
        let path = clean(&from.path);
        let found =
            at::open_in_root(root.as_fd(), &path, OFlags::PATH, Mode::empty()).at("opening", &from.path)?;
        let stat = rustix::fs::fstat(&found).at("looking at", &from.path)?;
        // Opened again only now: opening a pipe or a device for reading would have effects.
        let flags = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => OFlags::RDONLY | OFlags::DIRECTORY,
            FileType::RegularFile => OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
            _ => {
                let what = format!(
                    "copying {}, which is neither file nor directory",
                    from.path.display()
                );
                return Err(ErrorKind::NotSupported.err(what));
            }
        };
        let opened = at::open_in_root(root.as_fd(), &path, flags, Mode::empty()).at("opening", &from.path)?;
        let stat = rustix::fs::fstat(&opened).at("looking at", &from.path)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Self::Directory(opened),
            _ => Self::File(File::from(opened), Box::new(stat)),
        })
    }
}

/// The names of a path without `.` and `..`, joined by slashes; `..` stops at the root.
fn clean(path: &Path) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name.as_bytes()),
            Component::ParentDir => drop(names.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    names.join(&b'/')
}

/// Makes a directory and those above it where they are missing.
fn make_dirs(root: BorrowedFd<'_>, path: &[u8], mode: Mode, owner: Option<Owner>) -> Result<()> {
    let shown = || Path::new("/").join(std::ffi::OsStr::from_bytes(path));
    let mut above: &[u8] = b"";
    let ends = path
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'/')
        .map(|(end, _)| end);
    for end in ends.chain((!path.is_empty()).then_some(path.len())) {
        let (dir, _) = path.split_at(end);
        match at::open_dir_in_root(root, dir) {
            Ok(_there) => {}
            Err(Errno::NOENT) => {
                let name = dir.get(above.len()..).unwrap_or_default();
                let name = name.strip_prefix(b"/").unwrap_or(name);
                let parent = at::open_dir_in_root(root, above).at("opening a directory above", shown())?;
                match rustix::fs::mkdirat(&parent, name, mode) {
                    Ok(()) => {}
                    // Another copy has made it meanwhile, and gives it its mode and owner.
                    Err(Errno::EXIST) => {
                        above = dir;
                        continue;
                    }
                    Err(error) => return Err(error).at("creating", shown()),
                }
                let made = at::open_dir_at(parent.as_fd(), name).at("opening", shown())?;
                rustix::fs::fchmod(&made, mode).at("setting the mode of", shown())?;
                if let Some(owner) = owner {
                    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
                    rustix::fs::fchown(&made, Some(uid), Some(gid)).at("setting the owner of", shown())?;
                }
            }
            Err(error) => return Err(error).at("looking for", shown()),
        }
        above = dir;
    }
    Ok(())
}

/// Makes a file anew under a name of its own, then puts it in the place of what is there.
fn copy_file(
    mut from: &File,
    stat: &Stat,
    mappings: &IdMappings,
    root: BorrowedFd<'_>,
    to: &CopyEnd,
    owner: Option<Owner>,
) -> Result<()> {
    let path = clean(&to.path);
    let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (
            path.get(..slash).unwrap_or_default(),
            path.get(slash + 1..).unwrap_or_default(),
        ),
        None => (&b""[..], &path[..]),
    };
    let replaces_dir =
        || ErrorKind::InvalidInput.err(format!("a file cannot replace the directory {:?}", to.path));
    if name.is_empty() {
        return Err(replaces_dir());
    }
    let inside = match owner {
        Some(owner) => owner,
        None => mappings.to_container(Owner {
            uid: stat.st_uid,
            gid: stat.st_gid,
        })?,
    };
    let owner = to.mappings.to_host(inside)?;
    make_dirs(root, dir, Mode::RWXU, None)?;
    let parent = at::open_dir_in_root(root, dir).at("opening a directory above", &to.path)?;
    let old = at::lstat_at(parent.as_fd(), name).at("looking at", &to.path)?;
    if old.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory) {
        return Err(replaces_dir());
    }
    // Several copies into one directory may run at once, and a killed one leaves its file.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let created = random::with_unused(|number| {
        let temp = format!(".graphroot-copy-{number}");
        let file = rustix::fs::openat(&parent, temp.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        Ok((file, temp))
    });
    let (file, temp) = created.at("creating a file beside", &to.path)?;
    let filled = fill(&mut from, file, stat, owner)
        .and_then(|()| Ok(rustix::fs::renameat(&parent, temp.as_str(), &parent, name)?));
    filled.map_err(|error| {
        // The first error is reported; a file that cannot be removed either stays under its temporary name.
        let _left = rustix::fs::unlinkat(&parent, temp.as_str(), AtFlags::empty());
        Error::io_at("writing", &to.path, error)
    })
}

fn fill(from: &mut &File, file: OwnedFd, stat: &Stat, owner: Owner) -> io::Result<()> {
    let mut file = File::from(file);
    io::copy(from, &mut file)?;
    rustix::fs::fchown(
        &file,
        Some(Uid::from_raw(owner.uid)),
        Some(Gid::from_raw(owner.gid)),
    )?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = |seconds: i64, nanoseconds: i64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
    let modified = time(stat.st_mtime, nanoseconds);
    rustix::fs::futimens(
        &file,
        &Timestamps {
            last_access: modified,
            last_modification: modified,
        },
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("src/sub")).unwrap();
        std::fs::write(dir.path().join("src/file"), "one").unwrap();
        std::fs::write(dir.path().join("src/.wh.x"), "").unwrap();
        std::fs::create_dir(dir.path().join("target")).unwrap();
        dir
    }

    fn end(dir: &tempfile::TempDir, root: &str, path: &str) -> CopyEnd {
        CopyEnd::new(dir.path().join(root), path)
    }

    #[tokio::test]
    async fn copies_into_the_same_directory_do_not_meet() {
        let dir = tree();
        // What a killed copy has left does not count, whatever the process ID.
        let left = format!("target/.graphroot-copy-{}", std::process::id());
        std::fs::write(dir.path().join(left), "").unwrap();
        std::fs::write(dir.path().join("src/file"), vec![1; 1 << 20]).unwrap();
        for round in 0..20 {
            let copies = (0..4).map(|number| {
                let to = end(&dir, "target", &format!("{round}/a/b/{number}"));
                tokio::spawn(copy_content(end(&dir, "src", "file"), to, None))
            });
            for copied in futures::future::join_all(copies.collect::<Vec<_>>()).await {
                copied.unwrap().unwrap();
            }
        }
    }

    #[tokio::test]
    async fn directories_merge_and_files_replace_files_only() {
        let dir = tree();
        for _ in 0..2 {
            copy_content(end(&dir, "src", ""), end(&dir, "target", "a/b"), None)
                .await
                .unwrap();
        }
        let target = dir.path().join("target");
        assert_eq!(std::fs::read_to_string(target.join("a/b/file")).unwrap(), "one");
        assert!(target.join("a/b/.wh.x").exists() && target.join("a/b/sub").is_dir());
        std::fs::write(dir.path().join("src/file"), "two").unwrap();
        std::fs::set_permissions(
            dir.path().join("src/file"),
            std::fs::Permissions::from_mode(0o4750),
        )
        .unwrap();
        copy_content(end(&dir, "src", "/file"), end(&dir, "target", "/a/b/file"), None)
            .await
            .unwrap();
        let copied = target.join("a/b/file");
        assert_eq!(std::fs::read_to_string(&copied).unwrap(), "two");
        assert_eq!(copied.metadata().unwrap().mode() & 0o7777, 0o4750);
        for (path, kind) in [("/a/b", ErrorKind::InvalidInput), ("/", ErrorKind::InvalidInput)] {
            let error = copy_content(end(&dir, "src", "file"), end(&dir, "target", path), None)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), kind, "{path}: {error:?}");
        }
        let missing = copy_content(end(&dir, "src", "gone"), end(&dir, "target", "x"), None)
            .await
            .unwrap_err();
        assert_eq!(missing.io_kind(), Some(io::ErrorKind::NotFound), "{missing:?}");
        assert!(!target.join("x").exists());
    }

    #[tokio::test]
    async fn no_link_leads_out() {
        let dir = tree();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        let target = dir.path().join("target");
        symlink(dir.path().join("outside"), target.join("absolute")).unwrap();
        symlink("../outside", target.join("relative")).unwrap();
        symlink("../secret", dir.path().join("src/link")).unwrap();
        for path in ["absolute/file", "relative/file", "../outside/file"] {
            // Inside the root the link's target is missing, or is made there.
            let _inside = copy_content(end(&dir, "src", "file"), end(&dir, "target", path), None).await;
        }
        let _inside = copy_content(end(&dir, "src", "sub"), end(&dir, "target", "relative"), None).await;
        assert_eq!(std::fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
        let error = copy_content(end(&dir, "src", "link"), end(&dir, "target", "y"), None)
            .await
            .unwrap_err();
        assert_eq!(error.io_kind(), Some(io::ErrorKind::NotFound), "{error:?}");
    }

    #[tokio::test]
    async fn owners_are_mapped_on_both_sides() {
        if !privilege::is_root() {
            crate::skip::skip("changing owners needs root");
            return;
        }
        let dir = tree();
        let mapped = |uid| IdMappings {
            uids: vec![crate::idmap::IdMap::new(0, uid, 10)],
            gids: vec![crate::idmap::IdMap::new(0, uid, 10)],
        };
        let chown =
            |path: &str, id| std::os::unix::fs::chown(dir.path().join(path), Some(id), Some(id)).unwrap();
        for path in ["src/file", "src/.wh.x", "src/sub"] {
            chown(path, 1003);
        }
        let from = |path: &str| end(&dir, "src", path).mappings(mapped(1000));
        let to = |path: &str| end(&dir, "target", path).mappings(mapped(2000));
        let owner = |path: &str| dir.path().join("target").join(path).metadata().unwrap().uid();
        copy_content(from(""), to("all"), None).await.unwrap();
        copy_content(from("file"), to("one"), None).await.unwrap();
        assert_eq!(
            (owner("all"), owner("all/file"), owner("one")),
            (2000, 2003, 2003)
        );
        let five = Some(Owner { uid: 5, gid: 5 });
        copy_content(from(""), to("five"), five).await.unwrap();
        copy_content(from("file"), to("five-file"), five).await.unwrap();
        assert_eq!(
            (owner("five"), owner("five/sub"), owner("five-file")),
            (2005, 2005, 2005)
        );
        let twenty = Some(Owner { uid: 20, gid: 5 });
        let error = copy_content(from("file"), to("no"), twenty).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidMappings);
        assert!(!dir.path().join("target/no").exists());
    }
}
