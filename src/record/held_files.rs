//! The files of records under their locks, whatever is in them: to tell what is wrong with files that cannot be loaded, and
//! to put others in their place.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::lock::record_lock::{Deadline, ExclusiveLock, SharedLock};
use crate::record::cache::{Location, RecordsInner};
use crate::record::files::read_whole;
use crate::record::mount_point::MountPoints;
use crate::record::record_trait::Record;
use crate::record::records::{ReadOnlyRecords, Records};
use crate::record::table::Table;
use crate::sys::name_sync::{self, NameSync};
use crate::sys::{at, reserve, temporary_names};

/// Files that one damaged file is kept as.
const MAX_KEPT: usize = 1000;

/// The files of the records of one store. Dropping it releases the locks.
#[derive(Debug)]
pub(crate) struct HeldFiles<R: Record> {
    core: Arc<RecordsInner<R>>,
    _shared: Vec<SharedLock>,
    /// Empty if the locks are held shared.
    exclusive: Vec<ExclusiveLock>,
}

impl<R: Record> Records<R> {
    /// Takes the locks, exclusively if the files are to be replaced.
    ///
    /// If dropped: nothing happened.
    pub(crate) async fn hold_files(&self, exclusive: bool) -> Result<HeldFiles<R>> {
        HeldFiles::of(self.inner(), exclusive).await
    }
}

impl<R: Record> ReadOnlyRecords<R> {
    /// Takes the locks shared.
    pub(crate) async fn hold_files(&self) -> Result<HeldFiles<R>> {
        HeldFiles::of(self.inner(), false).await
    }
}

impl<R: Record> HeldFiles<R> {
    async fn of(core: &Arc<RecordsInner<R>>, exclusive: bool) -> Result<Self> {
        let deadline = Deadline::new(core.lock_timeout);
        let mut held = Self {
            core: Arc::clone(core),
            _shared: Vec::new(),
            exclusive: Vec::new(),
        };
        for lock in &core.locks {
            match exclusive {
                true => held.exclusive.push(lock.exclusive(deadline.left()).await?),
                false => held._shared.push(lock.shared(deadline.left()).await?),
            }
        }
        Ok(held)
    }

    /// The files.
    pub(crate) fn locations(&self) -> &[Location] {
        &self.core.locations
    }

    /// The content of each file; `None` for one that is not there. Blocking.
    pub(crate) fn read(&self) -> Result<Vec<Option<Bytes>>> {
        let locations = self.core.locations.iter();
        locations.map(|location| read_file(&location.path)).collect()
    }

    /// Replaces the file of a location, and keeps the old one beside it ([`keep_beside`]), of which it returns the path.
    /// Blocking.
    ///
    /// A process that is killed meanwhile leaves the old file in its place or the new one.
    pub(crate) fn replace(&self, location: usize, content: &[u8]) -> Result<Option<PathBuf>> {
        let Some(location) = self.core.locations.get(location) else {
            return Err(ErrorKind::InvalidInput.err("replacing a file of records that is none"));
        };
        let sync = self.core.names != NameSync::Off;
        let kept = replace_file(&location.path, content, &self.exclusive, sync)?;
        drop(self.core.cached().forget());
        Ok(kept)
    }
}

/// A file of records, as a whole.
fn read_file(path: &Path) -> Result<Option<Bytes>> {
    let file = match at::open_regular(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io_at("opening", path, error)),
    };
    Ok(Some(read_whole(file, path)?.into()))
}

/// Replaces a file under its `locks`, and keeps the old one beside it.
fn replace_file(path: &Path, content: &[u8], locks: &[ExclusiveLock], sync: bool) -> Result<Option<PathBuf>> {
    let kept = keep_beside(path)?;
    // Of this one too, if it was killed before.
    temporary_names::remove_stale(&[path])?;
    // Compat: the token before the data, as with every save.
    for lock in locks {
        reserve::or_release(path, || lock.write_token())?;
    }
    reserve::or_release(path, || reserve::write_file(path, content, 0o600, sync).map(drop))?;
    match path.parent() {
        Some(dir) if sync => name_sync::sync_dir(dir)?,
        _ => {}
    }
    Ok(kept)
}

/// Gives a file another name beside it, `<name>.damaged-<time>`, and never takes that of another file. Returns the path;
/// `None` if there is no file. One that a killed process has kept already is not kept twice.
///
/// It is a link, which needs no space for the content. Where a file system counts it as a file and has room for none, a
/// reserve goes.
fn keep_beside(path: &Path) -> Result<Option<PathBuf>> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at("looking at", path),
    };
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(None);
    };
    let mut prefix = name.to_owned();
    prefix.push(".damaged-");
    for entry in std::fs::read_dir(dir).at("listing", dir)? {
        let entry = entry.at("listing", dir)?;
        let is_kept = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_encoded_bytes());
        if is_kept
            && let Ok(other) = entry.metadata()
            && (other.dev(), other.ino()) == (metadata.dev(), metadata.ino())
        {
            return Ok(Some(entry.path()));
        }
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.map_or(0, |since| since.as_secs());
    for attempt in 0..MAX_KEPT {
        let mut name: OsString = prefix.clone();
        name.push(match attempt {
            0 => format!("{seconds}"),
            _ => format!("{seconds}-{attempt}"),
        });
        let kept = dir.join(name);
        // Some file systems count a link as a file.
        let linked = reserve::or_release(path, || match std::fs::hard_link(path, &kept) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error).at("keeping a damaged file as", &kept),
        });
        if linked?.0 {
            return Ok(Some(kept));
        }
    }
    Err(ErrorKind::Io
        .err("no free name to keep a damaged file as")
        .at(path))
}

/// The texts of the files of some rows, after what contradicts itself has been resolved as loading does: of two rows with
/// one ID the first stays (of images both do), of two with one name the later one keeps it.
pub(crate) fn texts_of<R: Record>(rows: Vec<Vec<(Arc<R>, Bytes)>>) -> Result<Vec<Vec<u8>>> {
    let files = rows.len();
    let mut table = Table::load(rows, false)?;
    let texts = (0..files).map(|location| {
        table.fill_texts(location)?;
        Ok(table.join_texts(location))
    });
    texts.collect()
}

/// The file of mount points under its lock.
#[derive(Debug)]
pub(crate) struct HeldMounts {
    path: PathBuf,
    _shared: Option<SharedLock>,
    /// `None` if the lock is held shared.
    exclusive: Option<ExclusiveLock>,
}

impl MountPoints {
    /// Takes the lock, exclusively if the file is to be replaced.
    pub(crate) async fn hold_file(&self, exclusive: bool) -> Result<HeldMounts> {
        let (lock, timeout) = self.lock();
        let (path, mut held) = (self.path().to_owned(), (None, None));
        match exclusive {
            true => held.0 = Some(lock.exclusive(timeout).await?),
            false => held.1 = Some(lock.shared(timeout).await?),
        }
        Ok(HeldMounts {
            path,
            exclusive: held.0,
            _shared: held.1,
        })
    }
}

impl HeldMounts {
    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its content; `None` if it is not there. Blocking.
    pub(crate) fn read(&self) -> Result<Option<Bytes>> {
        read_file(&self.path)
    }

    /// As [`HeldFiles::replace`].
    pub(crate) fn replace(&self, content: &[u8]) -> Result<Option<PathBuf>> {
        replace_file(&self.path, content, self.exclusive.as_slice(), true)
    }
}
