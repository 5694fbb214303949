//! I/O errors with the action and path that they belong to, and the way of an [`Error`] into an `io::Error` and back.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::error_type::{Error, Result};
use crate::error::kind::ErrorKind;

impl Error {
    /// The [`Error`] inside an `io::Error`, as the streams of this crate return it; any other error comes back unchanged.
    ///
    /// This is the inverse of `io::Error::from`. It finds the [`Error`] also where other readers have wrapped the
    /// `io::Error` in further ones.
    ///
    /// ```
    /// # use std::io;
    /// # use graphroot::{Error, ErrorKind};
    /// # fn handle(result: io::Result<u64>) {
    /// match result.map_err(Error::try_from_io) {
    ///     Ok(bytes) => println!("{bytes} bytes"),
    ///     Err(Ok(error)) if error.is_not_found() => println!("deleted meanwhile"),
    ///     Err(Ok(error)) if error.kind() == ErrorKind::LayerContentModified => println!("damaged"),
    ///     Err(Ok(error)) => println!("the store: {error}"),
    ///     Err(Err(other)) => println!("something else: {other}"),
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// `error` itself if there is no [`Error`] inside.
    pub fn try_from_io(mut error: io::Error) -> std::result::Result<Self, io::Error> {
        // Found before anything is taken apart, since that cannot be undone.
        let mut level = &error;
        loop {
            match level.get_ref() {
                Some(inner) if inner.is::<Self>() => break,
                Some(inner) => match inner.downcast_ref::<io::Error>() {
                    Some(next) => level = next,
                    None => return Err(error),
                },
                None => return Err(error),
            }
        }
        loop {
            match error.downcast::<Self>() {
                Ok(found) => return Ok(found),
                Err(outer) => error = outer.downcast::<io::Error>()?,
            }
        }
    }

    /// The `io::ErrorKind` that says most of this error.
    fn as_io_kind(&self) -> io::ErrorKind {
        use ErrorKind as K;
        match self.kind() {
            _ if self.is_not_found() => io::ErrorKind::NotFound,
            K::DuplicateId | K::DuplicateName => io::ErrorKind::AlreadyExists,
            _ if self.is_conflict() => io::ErrorKind::ResourceBusy,
            K::LockTimeout => io::ErrorKind::TimedOut,
            K::IncompleteOptions
            | K::InvalidBigDataName
            | K::InvalidInput
            | K::InvalidMappings
            | K::ParentIsContainer
            | K::UnsafePath => io::ErrorKind::InvalidInput,
            K::CorruptMetadata | K::DigestMismatch | K::InvalidArchive | K::LoadError => {
                io::ErrorKind::InvalidData
            }
            K::NotSupported => io::ErrorKind::Unsupported,
            K::StoreIsReadOnly => io::ErrorKind::ReadOnlyFilesystem,
            _ => self.io_kind().unwrap_or(io::ErrorKind::Other),
        }
    }

    /// An I/O failure while doing `action`.
    pub(crate) fn io(action: impl Into<Cow<'static, str>>, source: impl Into<io::Error>) -> Self {
        Self::from_io(action.into(), None, source.into())
    }

    /// An I/O failure while doing `action` to `path`.
    pub(crate) fn io_at(
        action: impl Into<Cow<'static, str>>,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::from_io(action.into(), Some(path.into()), source.into())
    }

    fn from_io(what: Cow<'static, str>, path: Option<PathBuf>, source: io::Error) -> Self {
        let error = match Self::try_from_io(source) {
            Ok(inner) => inner.kind().err(what).with_source(inner),
            Err(source) => ErrorKind::Io.err(what).with_source(source),
        };
        match path {
            Some(path) => error.at(path),
            None => error,
        }
    }
}

impl From<Error> for io::Error {
    /// An `io::Error` of the kind that says most ([`io::ErrorKind::NotFound`] for what [`Error::is_not_found`], and so
    /// on), with the whole [`Error`] inside. [`Error::try_from_io`] takes it out again.
    fn from(error: Error) -> Self {
        Self::new(error.as_io_kind(), error)
    }
}

/// The path that an error names. It is made only when there is an error.
pub(crate) trait ErrorPath {
    /// The path.
    fn into_path(self) -> PathBuf;
}

impl<P: AsRef<Path>> ErrorPath for P {
    fn into_path(self) -> PathBuf {
        self.as_ref().to_owned()
    }
}

/// Attaches what was being done to a failed system call.
pub(crate) trait IoContext<T> {
    /// `action` reads like "reading layer records from"; the path follows it.
    fn at(self, action: &'static str, path: impl ErrorPath) -> Result<T>;
    /// For calls that have no path.
    fn during(self, action: impl Into<Cow<'static, str>>) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: impl ErrorPath) -> Result<T> {
        self.map_err(|source| Error::io_at(action, path.into_path(), source))
    }

    fn during(self, action: impl Into<Cow<'static, str>>) -> Result<T> {
        self.map_err(|source| Error::io(action, source))
    }
}

/// Adds a level of context to this crate's own results.
pub(crate) trait ResultExt<T> {
    /// `what` reads like "creating layer X".
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Self {
        self.map_err(|error| error.context(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_error_survives_the_trip_through_io() {
        let io = io::Error::from(ErrorKind::InvalidArchive.err("entry \"x\""));
        let back = Error::io("unpacking", io);
        assert_eq!(back.kind(), ErrorKind::InvalidArchive);
        assert_eq!(back.chain(), "unpacking: entry \"x\": invalid archive");
        // Readers around readers wrap errors in errors.
        let io = io::Error::from(ErrorKind::LayerUnknown.err("layer"));
        let io = io::Error::new(io::ErrorKind::InvalidData, io::Error::other(io));
        assert_eq!(Error::try_from_io(io).unwrap().kind(), ErrorKind::LayerUnknown);
        for other in [
            io::Error::from_raw_os_error(28),
            io::Error::other("text"),
            io::Error::other(io::Error::other("text")),
            io::ErrorKind::TimedOut.into(),
        ] {
            let (kind, text) = (other.kind(), other.to_string());
            let same = Error::try_from_io(other).unwrap_err();
            assert_eq!((same.kind(), same.to_string()), (kind, text));
        }
    }

    #[test]
    fn every_kind_has_the_io_kind_that_says_most() {
        for (kind, expected) in [
            (ErrorKind::LayerUnknown, io::ErrorKind::NotFound),
            (ErrorKind::NotFound, io::ErrorKind::NotFound),
            (ErrorKind::DuplicateName, io::ErrorKind::AlreadyExists),
            (ErrorKind::LayerHasChildren, io::ErrorKind::ResourceBusy),
            (ErrorKind::LockTimeout, io::ErrorKind::TimedOut),
            (ErrorKind::UnsafePath, io::ErrorKind::InvalidInput),
            (ErrorKind::DigestMismatch, io::ErrorKind::InvalidData),
            (ErrorKind::NotSupported, io::ErrorKind::Unsupported),
            (ErrorKind::StoreIsReadOnly, io::ErrorKind::ReadOnlyFilesystem),
            (ErrorKind::Registry, io::ErrorKind::Other),
        ] {
            assert_eq!(io::Error::from(kind.err("x")).kind(), expected, "{kind:?}");
        }
        let denied = Error::io("opening", io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(io::Error::from(denied).kind(), io::ErrorKind::PermissionDenied);
        for kind in ErrorKind::ALL {
            let back = Error::try_from_io(kind.err("x").into()).unwrap();
            assert_eq!(back.kind(), *kind);
        }
    }
}
