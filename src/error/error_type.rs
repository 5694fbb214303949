//! The error value: what was being done to which item, a kind to match on, and the cause.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::kind::ErrorKind;

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl ErrorKind {
    /// An error of this kind about one thing: `what` says which item or what was being done.
    pub(crate) fn err(self, what: impl Into<Cow<'static, str>>) -> Error {
        Error(Box::new(Inner {
            kind: self,
            what: what.into(),
            path: None,
            source: None,
            of_tree_driver: false,
        }))
    }
}

/// The error of every fallible call of this crate.
///
/// `{}` prints one level: what was being done. [`Error::chain`] prints all, down to the failed system call or the registry's
/// answer, as does a program that follows [`source`](std::error::Error::source).
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    /// What was being done to which item; empty means the kind's own text says it all.
    what: Cow<'static, str>,
    path: Option<PathBuf>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    /// The source is the error of a method of a [`TreeDriver`](crate::TreeDriver).
    of_tree_driver: bool,
}

impl Error {
    /// An error of a [`Differ`](crate::Differ) or a [`BlobSource`](crate::chunked::BlobSource) of one's own: `what` says
    /// which item, or what was being done. [`Error::with_source`] adds the cause.
    ///
    /// ```
    /// use graphroot::{Error, ErrorKind};
    ///
    /// let cause = std::io::Error::other("connection refused");
    /// let error = Error::new(ErrorKind::Registry, "fetching a range of the blob").with_source(cause);
    /// assert_eq!(error.chain(), "fetching a range of the blob: connection refused");
    /// ```
    pub fn new(kind: ErrorKind, what: impl Into<Cow<'static, str>>) -> Self {
        kind.err(what)
    }

    /// What went wrong, to match on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The file or directory concerned, if one is known at this level or below.
    pub fn path(&self) -> Option<&Path> {
        if let Some(path) = &self.0.path {
            return Some(path);
        }
        self.0.source.as_ref()?.downcast_ref::<Self>()?.path()
    }

    /// The `io::ErrorKind` of the system call below, if one failed.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        let source = self.0.source.as_ref()?;
        if let Some(io) = source.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        source.downcast_ref::<Self>()?.io_kind()
    }

    /// Whether there was no space, no inode or no quota left for the store itself. What a driver of the program says is about
    /// something that the store does not know.
    pub(crate) fn is_full(&self) -> bool {
        matches!(
            self.own_io_kind(),
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        )
    }

    /// As [`Error::io_kind`], for system calls of this library.
    pub(crate) fn own_io_kind(&self) -> Option<io::ErrorKind> {
        self.io_kind().filter(|_| !self.is_of_tree_driver())
    }

    fn is_of_tree_driver(&self) -> bool {
        let below = self
            .0
            .source
            .as_ref()
            .and_then(|source| source.downcast_ref::<Self>());
        self.0.of_tree_driver || below.is_some_and(Self::is_of_tree_driver)
    }

    /// Says that a method of a [`TreeDriver`](crate::TreeDriver) has failed.
    pub(crate) fn of_tree_driver(mut self) -> Self {
        self.0.of_tree_driver = true;
        self
    }

    /// The number (`errno`) of the system call below that failed, if one did.
    pub fn raw_os_error(&self) -> Option<i32> {
        let source = self.0.source.as_ref()?;
        if let Some(io) = source.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        source.downcast_ref::<Self>()?.raw_os_error()
    }

    /// Whether the system call failed with this number, however deep the error is.
    pub(crate) fn has_errno(&self, errno: rustix::io::Errno) -> bool {
        self.raw_os_error() == Some(errno.raw_os_error())
    }

    /// Whether this says nothing of the item or file that it is about: no more files can be opened, there is no memory, a call
    /// was interrupted, the server of the file system did not answer, or a lock could not be had.
    pub(crate) fn is_passing(&self) -> bool {
        use rustix::io::Errno as E;
        if matches!(self.kind(), ErrorKind::LockTimeout | ErrorKind::Cancelled) {
            return true;
        }
        let passing = [
            E::MFILE,
            E::NFILE,
            E::NOMEM,
            E::NOBUFS,
            E::INTR,
            E::AGAIN,
            E::TIMEDOUT,
            E::STALE,
        ];
        passing.into_iter().any(|errno| self.has_errno(errno))
    }

    /// As [`Error::is_passing`], and of a disk that may answer the next time, or of a file that another user may look at.
    pub(crate) fn may_pass(&self) -> bool {
        use rustix::io::Errno as E;
        self.is_passing()
            || self.is_full()
            || [E::IO, E::ACCESS].into_iter().any(|errno| self.has_errno(errno))
    }

    /// Whether the item, or a file of it, does not exist: no such layer, image, container, parent or big data item.
    ///
    /// ```
    /// # async fn look_up(store: &graphroot::Store) -> graphroot::Result<()> {
    /// match store.image("0123456789ab").await {
    ///     Ok(image) => println!("{}", image.id()),
    ///     Err(error) if error.is_not_found() => println!("not pulled yet"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_not_found(&self) -> bool {
        use ErrorKind as K;
        match self.kind() {
            K::ContainerUnknown
            | K::ImageUnknown
            | K::LayerUnknown
            | K::ParentUnknown
            | K::NotAContainer
            | K::NotALayer
            | K::NotAnImage
            | K::NotAnId
            | K::NotFound => true,
            K::Io => self.io_kind() == Some(io::ErrorKind::NotFound),
            _ => false,
        }
    }

    /// Whether something else stands in the way: an ID or name is taken, or the item is in use by another item.
    pub fn is_conflict(&self) -> bool {
        use ErrorKind as K;
        match self.kind() {
            K::DuplicateId
            | K::DuplicateName
            | K::DuplicateImageNames
            | K::DuplicateLayerNames
            | K::ImageUsedByContainer
            | K::LayerHasChildren
            | K::LayerUsedByContainer
            | K::LayerUsedByImage => true,
            K::Io => self.io_kind() == Some(io::ErrorKind::AlreadyExists),
            _ => false,
        }
    }

    /// Whether the same call may succeed later, without anything being done about it: a lock was not free in time, or the
    /// kernel says that something is in use (`EBUSY`).
    ///
    /// Too many open files (`EMFILE`, `ENFILE`), no memory and no space are not that: repeated calls make them worse.
    /// They are [`ErrorKind::Io`], and [`Error::raw_os_error`] tells them apart.
    pub fn is_busy(&self) -> bool {
        match self.kind() {
            ErrorKind::LockTimeout => true,
            ErrorKind::Io => self.io_kind() == Some(io::ErrorKind::ResourceBusy),
            _ => false,
        }
    }

    /// Adds a level that says what was being done; the kind stays.
    pub(crate) fn context(self, what: impl Into<Cow<'static, str>>) -> Self {
        let kind = self.kind();
        Self(Box::new(Inner {
            kind,
            what: what.into(),
            path: None,
            source: Some(Box::new(self)),
            of_tree_driver: false,
        }))
    }

    /// Attaches the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Attaches the path concerned.
    pub(crate) fn at(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.path = Some(path.into());
        self
    }

    /// A copy of this error, for a second task that waited for the same result. Causes of other types become their text.
    pub(crate) fn again(&self) -> Self {
        let inner = &*self.0;
        let source = inner.source.as_ref().map(|source| {
            let copy: Box<dyn StdError + Send + Sync> = if let Some(error) = source.downcast_ref::<Self>() {
                Box::new(error.again())
            } else if let Some(error) = source.downcast_ref::<io::Error>() {
                Box::new(match error.raw_os_error() {
                    Some(number) => io::Error::from_raw_os_error(number),
                    None => io::Error::new(error.kind(), error.to_string()),
                })
            } else {
                source.to_string().into()
            };
            copy
        });
        Self(Box::new(Inner {
            kind: inner.kind,
            what: inner.what.clone(),
            path: inner.path.clone(),
            source,
            of_tree_driver: inner.of_tree_driver,
        }))
    }

    /// All levels in one line, `outer: inner: cause`.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        match (inner.what.is_empty(), &inner.path) {
            (true, None) => f.write_str(inner.kind.as_str())?,
            (true, Some(path)) => write!(f, "{}", path.display())?,
            (false, None) => f.write_str(&inner.what)?,
            (false, Some(path)) => write!(f, "{} {}", inner.what, path.display())?,
        }
        // The kind's text ends the chain where nothing below says it.
        if inner.source.is_none()
            && !(inner.what.is_empty() && inner.path.is_none())
            && inner.kind != ErrorKind::Io
        {
            write!(f, ": {}", inner.kind.as_str())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| {
            let source: &(dyn StdError + 'static) = &**source;
            source
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_error_again_says_the_same() {
        let io = || io::Error::from_raw_os_error(28);
        for error in [
            ErrorKind::DuplicateId.err("layer \"a\""),
            Error::io_at("writing", "/x", io()).context("saving"),
            Error::io("reading", io::Error::other("lost")),
            ErrorKind::CorruptMetadata.err("loading").with_source("some text"),
        ] {
            let again = error.again();
            assert_eq!(again.kind(), error.kind());
            assert_eq!((again.path(), again.io_kind()), (error.path(), error.io_kind()));
            assert_eq!(again.chain(), error.chain());
        }
    }

    #[test]
    fn display_is_one_level_and_chain_has_all() {
        let error = Error::io_at("opening", "/x/y", io::Error::from(io::ErrorKind::NotFound))
            .context("loading layer a");
        assert_eq!(error.to_string(), "loading layer a");
        assert!(
            error.chain().starts_with("loading layer a: opening /x/y: "),
            "{}",
            error.chain()
        );
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(error.path(), Some(Path::new("/x/y")));
        assert_eq!(error.io_kind(), Some(io::ErrorKind::NotFound));
    }

    #[test]
    fn a_sentinel_says_its_text_once() {
        let error = ErrorKind::LayerUnknown.err("locating layer with ID \"x\"");
        assert_eq!(error.to_string(), "locating layer with ID \"x\": layer not known");
        assert_eq!(
            error.context("mounting").chain(),
            "mounting: locating layer with ID \"x\": layer not known"
        );
    }

    #[test]
    fn queries_are_exclusive_and_look_through_context() {
        let queries = |error: &Error| [error.is_not_found(), error.is_conflict(), error.is_busy()];
        for kind in ErrorKind::ALL {
            let yes = queries(&kind.err("x")).iter().filter(|yes| **yes).count();
            assert!(yes <= 1, "{kind:?}");
        }
        let not_found = ErrorKind::ALL.iter().filter(|kind| kind.err("x").is_not_found());
        assert_eq!(not_found.count(), 9);
        let io =
            |kind: io::ErrorKind| Error::io_at("opening", "/x", io::Error::from(kind)).context("loading");
        for (kind, expected) in [
            (io::ErrorKind::NotFound, [true, false, false]),
            (io::ErrorKind::AlreadyExists, [false, true, false]),
            (io::ErrorKind::ResourceBusy, [false, false, true]),
            (io::ErrorKind::PermissionDenied, [false; 3]),
        ] {
            assert_eq!(queries(&io(kind)), expected, "{kind:?}");
        }
        // Descriptors, memory and space do not come back by waiting.
        for number in [
            rustix::io::Errno::MFILE,
            rustix::io::Errno::NFILE,
            rustix::io::Errno::NOMEM,
            rustix::io::Errno::NOSPC,
        ] {
            let error = Error::io_at("opening", "/x", number).context("loading");
            assert_eq!(queries(&error), [false; 3], "{number}");
            assert_eq!(error.raw_os_error(), Some(number.raw_os_error()));
        }
        // A layer that cannot be unpacked because a file is missing is no missing layer.
        let cause = io(io::ErrorKind::NotFound);
        assert!(
            !ErrorKind::InvalidArchive
                .err("x")
                .with_source(cause)
                .is_not_found()
        );
        assert_eq!(
            queries(&ErrorKind::LockTimeout.err("x").context("y")),
            [false, false, true]
        );
        assert_eq!(
            queries(&ErrorKind::LayerHasChildren.err("x")),
            [false, true, false]
        );
    }
}
