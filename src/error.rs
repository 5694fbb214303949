//! The error type of the whole crate: what was being done to which item, a kind to match on, and the cause.
//!
//! [`Error`] is opaque; callers match on [`Error::kind`]. `Display` prints this level only,
//! [`std::error::Error::source`] leads to the rest. There is deliberately no `From<std::io::Error>`: inside this crate
//! an I/O error always gets the action or the path that it belongs to. Callers who get an [`Error`] back inside an
//! `io::Error` (from an `AsyncRead`) take it out with [`Error::try_from_io`].

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What went wrong, in a form that can be matched.
        ///
        /// The first variants stand for the sentinel errors of the Go library (`storage.ErrLayerUnknown` is
        /// [`ErrorKind::LayerUnknown`]); those from [`ErrorKind::Io`] on are this library's own. By what a caller does
        /// about them:
        ///
        /// | | Kinds | Query |
        /// |---|---|---|
        /// | It does not exist | `ContainerUnknown`, `ImageUnknown`, `LayerUnknown`, `ParentUnknown`, `NotAContainer`, `NotALayer`, `NotAnImage`, `NotAnId`, `NotFound`, and `Io` whose cause is `io::ErrorKind::NotFound` | [`Error::is_not_found`] |
        /// | Something else has the ID or name, or uses the item | `DuplicateId`, `DuplicateName`, `DuplicateImageNames`, `DuplicateLayerNames`, `ImageUsedByContainer`, `LayerHasChildren`, `LayerUsedByContainer`, `LayerUsedByImage`, and `Io` whose cause is `io::ErrorKind::AlreadyExists` | [`Error::is_conflict`] |
        /// | It may succeed later | `LockTimeout`, and `Io` whose cause is `io::ErrorKind::ResourceBusy` | [`Error::is_busy`] |
        /// | The arguments are wrong | `IncompleteOptions`, `InvalidBigDataName`, `InvalidInput`, `InvalidMappings`, `ParentIsContainer`, `UnsafePath` | |
        /// | The data is wrong | `CorruptMetadata`, `DigestMismatch`, `InvalidArchive`, `LoadError` | |
        /// | It is not possible here | `NoAvailableIds`, `NotSupported`, `StoreIsReadOnly`, `LayerNotMounted` | |
        /// | Nothing is known about it | `DigestUnknown`, `SizeUnknown` | |
        /// | A check found it | all that begin with "Check:" | |
        /// | Outside of the store | `Io`, `Registry`, `Cancelled` | |
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorKind { $($(#[$doc])* $name,)* }

        impl ErrorKind {
            /// Every kind, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The fixed text of this kind; for the sentinel errors the text that the Go library prints.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// No container has this ID, name or ID prefix.
    ContainerUnknown = "container not known",
    /// The digest of a big data item is not known and cannot be computed.
    DigestUnknown = "could not compute digest of item",
    /// The requested ID is taken.
    DuplicateId = "that ID is already in use",
    /// A read-only image store gives one name to several images.
    DuplicateImageNames = "read-only image store assigns the same name to multiple images",
    /// A read-only layer store gives one name to several layers.
    DuplicateLayerNames = "read-only layer store assigns the same name to multiple layers",
    /// The requested name is taken.
    DuplicateName = "that name is already in use",
    /// No image has this ID, name or ID prefix.
    ImageUnknown = "image not known",
    /// The image cannot be removed while a container uses it.
    ImageUsedByContainer = "image is in use by a container",
    /// The store options lack a root.
    IncompleteOptions = "missing necessary StoreOptions",
    /// An empty or impossible key for a big data item.
    InvalidBigDataName = "not a valid name for a big data item",
    /// ID mappings overlap or are not allowed here.
    InvalidMappings = "invalid mappings specified",
    /// The layer cannot be removed while it has children.
    LayerHasChildren = "layer has children",
    /// The layer is not mounted.
    LayerNotMounted = "layer is not mounted",
    /// No layer has this ID, name or ID prefix.
    LayerUnknown = "layer not known",
    /// The layer cannot be removed while a container uses it.
    LayerUsedByContainer = "layer is in use by a container",
    /// The layer cannot be removed while an image uses it.
    LayerUsedByImage = "layer is in use by an image",
    /// Metadata could not be loaded.
    LoadError = "error loading storage metadata",
    /// A user namespace does not have enough free IDs.
    NoAvailableIds = "not enough unused IDs in user namespace",
    /// The ID is not that of a container.
    NotAContainer = "identifier is not a container",
    /// The ID is not that of a layer.
    NotALayer = "identifier is not a layer",
    /// The ID is not that of a layer, image or container.
    NotAnId = "identifier is not a layer, image, or container",
    /// The ID is not that of an image.
    NotAnImage = "identifier is not an image",
    /// The driver, the kernel or the file system cannot do this.
    NotSupported = "not supported",
    /// The parent given for a layer is the layer of a container.
    ParentIsContainer = "would-be parent layer is a container",
    /// The parent of a layer is not known.
    ParentUnknown = "parent of layer not known",
    /// The size of a big data item is not known.
    SizeUnknown = "size is not known",
    /// The store may only be read.
    StoreIsReadOnly = "called a write method on a read-only store",
    /// Check: a layer of the driver has no record.
    LayerUnaccounted = "layer in lower level storage driver not accounted for",
    /// Check: nothing refers to the layer.
    LayerUnreferenced = "layer not referenced by any images or containers",
    /// Check: the layer's content has another digest than recorded.
    LayerIncorrectContentDigest = "layer content incorrect digest",
    /// Check: the layer's content has another size than recorded.
    LayerIncorrectContentSize = "layer content incorrect size",
    /// Check: the layer's content was changed.
    LayerContentModified = "layer content modified",
    /// Check: a big data item of a layer is missing.
    LayerDataMissing = "layer data item is missing",
    /// Check: a layer is missing.
    LayerMissing = "layer is missing",
    /// Check: the layer of an image is missing.
    ImageLayerMissing = "image layer is missing",
    /// Check: a big data item of an image is missing.
    ImageDataMissing = "image data item is missing",
    /// Check: a big data item of an image has another size than recorded.
    ImageDataIncorrectSize = "image data item has incorrect size",
    /// Check: the image of a container is missing.
    ContainerImageMissing = "image missing",
    /// Check: a big data item of a container is missing.
    ContainerDataMissing = "container data item is missing",
    /// Check: a big data item of a container has another size than recorded.
    ContainerDataIncorrectSize = "container data item has incorrect size",

    /// A system call failed; the path or action is in the text, the `io::Error` is the source.
    Io = "input/output error",
    /// A layer stream is not an archive that can be unpacked.
    InvalidArchive = "invalid archive",
    /// Content does not have the digest that was promised.
    DigestMismatch = "digest mismatch",
    /// A metadata file cannot be read.
    CorruptMetadata = "corrupt metadata",
    /// A lock was not free in time.
    LockTimeout = "lock time-out",
    /// A name would lead outside of where it belongs.
    UnsafePath = "unsafe path",
    /// An argument makes no sense.
    InvalidInput = "invalid input",
    /// A big data item that the record names, or that was asked for, does not exist.
    NotFound = "not found",
    /// A registry answered with an error, or could not be reached.
    Registry = "registry error",
    /// The other half of an operation was dropped before it was complete.
    Cancelled = "operation cancelled",
}

impl ErrorKind {
    /// An error of this kind about one thing: `what` says which item or what was being done.
    pub(crate) fn err(self, what: impl Into<Cow<'static, str>>) -> Error {
        Error(Box::new(Inner {
            kind: self,
            what: what.into(),
            path: None,
            source: None,
        }))
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The error of every fallible call of this crate.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    /// What was being done to which item; empty means the kind's own text says it all.
    what: Cow<'static, str>,
    path: Option<PathBuf>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
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

    /// Whether the same call may succeed later: a lock was not free in time, or the kernel says that something is in use
    /// (`EBUSY`).
    pub fn is_busy(&self) -> bool {
        match self.kind() {
            ErrorKind::LockTimeout => true,
            ErrorKind::Io => self.io_kind() == Some(io::ErrorKind::ResourceBusy),
            _ => false,
        }
    }

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
    ///     Err(Ok(error)) if error.kind() == ErrorKind::LayerContentModified => println!("damaged, or deleted meanwhile"),
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
        let (kind, source): (_, Box<dyn StdError + Send + Sync>) = match Self::try_from_io(source) {
            Ok(inner) => (inner.kind(), Box::new(inner)),
            Err(source) => (ErrorKind::Io, Box::new(source)),
        };
        Self(Box::new(Inner {
            kind,
            what,
            path,
            source: Some(source),
        }))
    }

    /// Adds a level that says what was being done; the kind stays.
    pub(crate) fn context(self, what: impl Into<Cow<'static, str>>) -> Self {
        let kind = self.kind();
        Self(Box::new(Inner {
            kind,
            what: what.into(),
            path: None,
            source: Some(Box::new(self)),
        }))
    }

    /// Attaches the cause.
    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
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

impl From<Error> for io::Error {
    /// An `io::Error` of the kind that says most ([`io::ErrorKind::NotFound`] for what [`Error::is_not_found`], and so
    /// on), with the whole [`Error`] inside. [`Error::try_from_io`] takes it out again.
    fn from(error: Error) -> Self {
        Self::new(error.as_io_kind(), error)
    }
}

/// Attaches what was being done to a failed system call.
pub(crate) trait IoContext<T> {
    /// `action` reads like "reading layer records from"; the path follows it.
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
    /// For calls that have no path.
    fn during(self, action: impl Into<Cow<'static, str>>) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::io_at(action, path.as_ref(), source))
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

    #[test]
    fn kinds_are_ordered_and_say_their_text() {
        assert!(ErrorKind::ALL.is_sorted());
        assert_eq!(ErrorKind::LayerUnknown.to_string(), "layer not known");
        let distinct: std::collections::HashSet<_> = ErrorKind::ALL.iter().collect();
        assert_eq!(distinct.len(), ErrorKind::ALL.len());
    }
}
