//! The kinds of errors, to match on, with the fixed text of each.

use std::fmt;

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
        /// | It does not exist | `ContainerUnknown`, `ImageUnknown`, `LayerUnknown`, `ParentUnknown`, `NotAContainer`, `NotALayer`, `NotAnImage`, `NotAnId`, `NotFound`, and `Io` whose cause is `io::ErrorKind::NotFound` | [`Error::is_not_found`](crate::Error::is_not_found) |
        /// | Something else has the ID or name, or uses the item | `DuplicateId`, `DuplicateName`, `DuplicateImageNames`, `DuplicateLayerNames`, `ImageUsedByContainer`, `LayerHasChildren`, `LayerUsedByContainer`, `LayerUsedByImage`, and `Io` whose cause is `io::ErrorKind::AlreadyExists` | [`Error::is_conflict`](crate::Error::is_conflict) |
        /// | It may succeed later | `LockTimeout`, and `Io` whose cause is `io::ErrorKind::ResourceBusy` | [`Error::is_busy`](crate::Error::is_busy) |
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
    /// The signature policy or the registries configuration forbids it.
    Rejected = "rejected by configuration",
    /// The other half of an operation was dropped before it was complete.
    Cancelled = "operation cancelled",
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_ordered_and_say_their_text() {
        assert!(ErrorKind::ALL.is_sorted());
        assert_eq!(ErrorKind::LayerUnknown.to_string(), "layer not known");
        let distinct: std::collections::HashSet<_> = ErrorKind::ALL.iter().collect();
        assert_eq!(distinct.len(), ErrorKind::ALL.len());
    }
}
