//! One error type for the whole crate: what was being done to which item, a kind to match on, and the cause.
//!
//! [`Error`] is opaque; callers match on [`Error::kind`]. `Display` prints this level only,
//! [`std::error::Error::source`] carries the rest. There is deliberately no `From<std::io::Error>`: a path or an
//! action is always attached.

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
        /// The first group has one variant for each sentinel error of the Go library (`storage.ErrLayerUnknown` is
        /// [`ErrorKind::LayerUnknown`]); the second group is this library's own.
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorKind { $($(#[$doc])* $name,)* }

        impl ErrorKind {
            /// Every kind, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The fixed text of this kind (for the sentinels: the text that the Go library prints).
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
        // A typed error that travelled through an `io::Error` (async readers) keeps its kind.
        if source.get_ref().is_some_and(|inner| inner.is::<Self>()) {
            let inner = source
                .into_inner()
                .and_then(|inner| inner.downcast::<Self>().ok());
            if let Some(inner) = inner {
                let kind = inner.kind();
                return Self(Box::new(Inner {
                    kind,
                    what,
                    path,
                    source: Some(inner),
                }));
            }
            return Self(Box::new(Inner {
                kind: ErrorKind::Io,
                what,
                path,
                source: None,
            }));
        }
        Self(Box::new(Inner {
            kind: ErrorKind::Io,
            what,
            path,
            source: Some(Box::new(source)),
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

    /// The same error for somebody else who is concerned by it. Of causes that are of other types the text stays.
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

    /// This error as an `io::Error`, for the inside of a reader or writer; [`Error::io`] takes it out again.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
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
        let io = ErrorKind::InvalidArchive.err("entry \"x\"").into_io();
        let back = Error::io("unpacking", io);
        assert_eq!(back.kind(), ErrorKind::InvalidArchive);
        assert_eq!(back.chain(), "unpacking: entry \"x\": invalid archive");
    }
}
