//! A layer with its cache file.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};

use super::open_files::{OpenFiles, Use};
use crate::chunked::cache::{CacheFile, ReadAt, Unusable};

/// The number of the next layer.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// See the module's head.
#[derive(Debug)]
pub(crate) struct LocalLayer {
    /// Another one for each layer that was loaded, in this process.
    pub(super) number: u64,
    pub(super) id: String,
    pub(super) cache: CacheFile,
    source: Source,
    /// All of the cache file, if it is kept in memory.
    bytes: Option<Arc<[u8]>>,
    /// Whether it is a layer of the store itself, not of an additional one.
    is_own: bool,
    /// Whether the cache file was found to be another one, or the layer gone.
    is_stale: AtomicBool,
}

/// Where the cache file is.
#[derive(Debug)]
enum Source {
    /// In the store, where another process may have replaced it.
    Store(PathBuf, Identity),
    /// It is a temporary file.
    Temporary(Arc<File>),
}

/// What tells a file from another one that has taken its place.
type Identity = (u64, u64, i64, i64, u64);

/// Why a layer has no cache file that can be used.
#[derive(Debug)]
pub(crate) enum NoCache {
    /// There is none.
    Missing,
    /// There is one.
    Unusable(Unusable),
}

impl fmt::Display for NoCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is none"),
            Self::Unusable(reason) => reason.fmt(f),
        }
    }
}

impl LocalLayer {
    /// Opens the cache file of layer `id` at `path`.
    ///
    /// # Errors
    /// Why it has to be made.
    pub(crate) fn open(id: &str, path: PathBuf) -> Result<(Self, File), NoCache> {
        let (file, stat) = open_regular(&path).ok_or(NoCache::Missing)?;
        let cache = CacheFile::open(&file, size_of(&stat)).map_err(NoCache::Unusable)?;
        let source = Source::Store(path, identity(&stat));
        Ok((Self::new(id, cache, source), file))
    }

    /// The layer `id`, whose cache is a temporary file of so many bytes.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn with_temporary(id: &str, file: File, size: u64) -> Result<Self, Unusable> {
        let cache = CacheFile::open(&file, size)?;
        Ok(Self::new(id, cache, Source::Temporary(Arc::new(file))))
    }

    fn new(id: &str, cache: CacheFile, source: Source) -> Self {
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            id: id.to_owned(),
            cache,
            source,
            bytes: None,
            is_own: false,
            is_stale: AtomicBool::new(false),
        }
    }

    /// Says that it is a layer of the store itself, not of an additional one.
    pub(crate) fn set_own(&mut self) {
        self.is_own = true;
    }

    /// Whether it is a layer of the store itself.
    pub(super) fn is_own(&self) -> bool {
        self.is_own
    }

    /// Keeps in memory what says quickly that something is not there. `file` is the cache file.
    pub(crate) fn load_filter(&mut self, file: &File) -> std::io::Result<()> {
        self.cache.load_filter(file)
    }

    /// Bytes of memory that [`LocalLayer::load_filter`] takes.
    pub(crate) fn filter_size(&self) -> usize {
        self.cache.filter_size()
    }

    /// Keeps all of the cache file in memory, so that look-ups do not read. `file` is the cache file, of `size` bytes.
    pub(crate) fn load_whole(&mut self, file: &File, size: usize) -> std::io::Result<()> {
        let mut bytes = vec![0; size];
        ReadAt::read_at(file, &mut bytes, 0)?;
        self.bytes = Some(bytes.into());
        Ok(())
    }

    /// Nothing is looked for in it from now on.
    pub(super) fn set_stale(&self) {
        self.is_stale.store(true, Ordering::Relaxed);
    }

    /// Whether it has to be opened anew, because the cache file was replaced or the layer is gone.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }

    /// Whether nothing can be found in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// The cache file; `None` if it is not the same any more.
    pub(super) fn cache_file(&self, open: &OpenFiles) -> Option<CacheBytes> {
        let file = match &self.source {
            Source::Temporary(file) => Some(Arc::clone(file)),
            Source::Store(path, known) => open.get(self.number, Use::Cache, || {
                let same = open_regular(path).filter(|(_, stat)| identity(stat) == *known);
                if same.is_none() {
                    self.set_stale();
                }
                same.map(|(file, _)| file)
            }),
        };
        Some(CacheBytes {
            file: file?,
            bytes: self.bytes.clone(),
        })
    }
}

/// The bytes of a cache file: in memory, or else in the file.
#[derive(Debug)]
pub(super) struct CacheBytes {
    file: Arc<File>,
    bytes: Option<Arc<[u8]>>,
}

impl ReadAt for CacheBytes {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        if self.bytes.is_none() {
            return ReadAt::read_at(&*self.file, buffer, offset);
        }
        let Some(bytes) = self.in_memory(offset, buffer.len()) else {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        };
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn in_memory(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.bytes.as_ref()?.get(start..start.checked_add(length)?)
    }
}

/// Opens a regular file for reading; `None` if there is none.
pub(crate) fn open_regular(path: &Path) -> Option<(File, Stat)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::openat(CWD, path, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    is_regular(&stat).then(|| (file.into(), stat))
}

pub(super) fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Bytes of a file.
pub(super) fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn identity(stat: &Stat) -> Identity {
    #[expect(clippy::useless_conversion, reason = "other types on other machines")]
    let nanoseconds = stat.st_ctime_nsec.into();
    (stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime, nanoseconds)
}
