//! What a check finds: items, and what is wrong with each.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::archive::verify::difference::Difference;
use crate::digest::Digest;
use crate::error::ErrorKind;

/// Something in a store that can be damaged.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct CheckedItem {
    /// What it is.
    pub kind: ItemKind,
    /// Its ID.
    pub id: String,
    /// Whether it is in an additional store, and can only be read.
    pub read_only: bool,
}

/// What an item is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    /// A layer.
    Layer,
    /// An image.
    Image,
    /// A container.
    Container,
}

impl ItemKind {
    pub(crate) const fn noun(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Image => "image",
            Self::Container => "container",
        }
    }
}

impl fmt::Display for ItemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.noun())
    }
}

impl CheckedItem {
    pub(crate) fn new(kind: ItemKind, id: &str, read_only: bool) -> Self {
        Self {
            kind,
            id: id.to_owned(),
            read_only,
        }
    }
}

impl fmt::Display for CheckedItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read_only = if self.read_only { "read-only " } else { "" };
        write!(f, "{read_only}{} {}", self.kind.noun(), self.id)
    }
}

/// Something that is wrong with an item. As text it is the line of the Go program.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The item.
    pub item: CheckedItem,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with an item.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// A big data item is not as recorded.
    Data {
        /// Its key.
        key: String,
        /// What is wrong with it.
        problem: DataProblem,
    },
    /// The record's digest of the layer's stream is none.
    InvalidDigest {
        /// The text in the record.
        text: String,
        /// Why it is none.
        reason: String,
    },
    /// The layer came from a stream, and what is needed to make that again is missing.
    TarSplitMissing,
    /// The stream that the layer came from cannot be made again.
    DiffUnreadable {
        /// Why.
        reason: String,
    },
    /// A file of the layer is missing or has other content than recorded.
    FileModified {
        /// Its path in the layer, without a slash in front.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The stream has another digest than recorded.
    IncorrectDigest {
        /// As recorded.
        expected: Digest,
        /// As it is.
        found: Digest,
    },
    /// The stream has another size than recorded.
    IncorrectSize {
        /// As recorded.
        expected: i64,
        /// As it is.
        found: u64,
    },
    /// The layer's tree is not as its stream describes it.
    ContentModified(Difference),
    /// More names of the layer's tree than are told of one by one are not as its stream describes them.
    MoreModified {
        /// How many.
        count: u64,
    },
    /// The layer cannot be mounted.
    NotMountable {
        /// Why.
        reason: String,
    },
    /// A file in which the driver keeps what the layer stands on does not agree with the records. [`Store::repair`](crate::Store::repair)
    /// writes it anew.
    DriverData {
        /// Its name in the layer's directory.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The layer's record says that its content is not complete; in a store that can be written it would be removed.
    Incomplete,
    /// The layer below is missing.
    ParentMissing {
        /// Its ID.
        parent: String,
    },
    /// The layers below come back to this one.
    ParentLoop,
    /// No image, container or layer refers to the layer, and it is older than the options allow.
    Unreferenced,
    /// The driver has the layer, and there is no record of it.
    Unaccounted,
    /// A layer of the image or container is missing.
    LayerMissing {
        /// Its ID.
        layer: String,
    },
    /// The image of the container is missing.
    ImageMissing {
        /// Its ID.
        image: String,
    },
    /// Something that the item stands on is damaged.
    Inherited(#[serde(serialize_with = "plain")] Arc<Finding>),
}

fn plain<S: serde::Serializer>(finding: &Arc<Finding>, serializer: S) -> Result<S::Ok, S::Error> {
    (**finding).serialize(serializer)
}

/// What is wrong with a big data item.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DataProblem {
    /// Its file is not there.
    Missing,
    /// It cannot be read.
    Unreadable {
        /// Why.
        reason: String,
    },
    /// It has another size than recorded.
    Size {
        /// As recorded; 0 if the record says nothing.
        expected: i64,
        /// As it is.
        found: u64,
    },
    /// It has the recorded size and another digest.
    Digest {
        /// As recorded.
        expected: Digest,
        /// As it is.
        found: Digest,
    },
}

impl Problem {
    /// The layers whose driver files do not agree with the records, if that is what this, or what it is inherited from, is
    /// about.
    pub(crate) fn mendable_layer<'a>(&'a self, item: &'a CheckedItem) -> Option<&'a str> {
        match self {
            Self::Inherited(finding) => finding.problem.mendable_layer(&finding.item),
            Self::DriverData { .. } => Some(&item.id),
            _ => None,
        }
    }

    /// Whether it is about the contents of a layer, and not about what the records say of several items.
    pub(crate) fn is_of_contents(&self) -> bool {
        match self {
            Self::Data { .. }
            | Self::InvalidDigest { .. }
            | Self::TarSplitMissing
            | Self::DiffUnreadable { .. }
            | Self::FileModified { .. }
            | Self::IncorrectDigest { .. }
            | Self::IncorrectSize { .. }
            | Self::ContentModified(_)
            | Self::MoreModified { .. }
            | Self::NotMountable { .. } => true,
            Self::DriverData { .. }
            | Self::Incomplete
            | Self::ParentMissing { .. }
            | Self::ParentLoop
            | Self::Unreferenced
            | Self::Unaccounted
            | Self::LayerMissing { .. }
            | Self::ImageMissing { .. }
            | Self::Inherited(_) => false,
        }
    }

    /// Whether it may be that what is missing lies in an additional store.
    pub(crate) fn is_missing_layer(&self) -> bool {
        match self {
            Self::ParentMissing { .. } | Self::LayerMissing { .. } | Self::ImageMissing { .. } => true,
            Self::Inherited(finding) => finding.problem.is_missing_layer(),
            _ => false,
        }
    }

    /// Whether it is none if records were lost, or a store is missing.
    pub(crate) fn depends_on_records(&self) -> bool {
        match self {
            Self::Unreferenced | Self::Unaccounted => true,
            Self::Inherited(finding) => finding.problem.depends_on_records(),
            // A layer cannot be mounted without those below it.
            Self::NotMountable { .. } => true,
            _ => self.is_missing_layer(),
        }
    }

    /// The kind of error for which the Go library has a name; [`ErrorKind::CorruptMetadata`] or
    /// [`ErrorKind::Io`] for others.
    pub fn kind(&self, item: ItemKind) -> ErrorKind {
        match self {
            Self::Data { problem, .. } => problem.kind(item),
            Self::InvalidDigest { .. } | Self::DriverData { .. } | Self::Incomplete | Self::ParentLoop => {
                ErrorKind::CorruptMetadata
            }
            Self::TarSplitMissing | Self::IncorrectDigest { .. } => ErrorKind::LayerIncorrectContentDigest,
            Self::DiffUnreadable { .. } | Self::NotMountable { .. } => ErrorKind::Io,
            Self::FileModified { .. } | Self::ContentModified(_) | Self::MoreModified { .. } => {
                ErrorKind::LayerContentModified
            }
            Self::IncorrectSize { .. } => ErrorKind::LayerIncorrectContentSize,
            Self::ParentMissing { .. } => ErrorKind::LayerMissing,
            Self::Unreferenced => ErrorKind::LayerUnreferenced,
            Self::Unaccounted => ErrorKind::LayerUnaccounted,
            Self::LayerMissing { .. } if item == ItemKind::Container => ErrorKind::LayerMissing,
            Self::LayerMissing { .. } => ErrorKind::ImageLayerMissing,
            Self::ImageMissing { .. } => ErrorKind::ContainerImageMissing,
            Self::Inherited(finding) => finding.problem.kind(finding.item.kind),
        }
    }
}

impl DataProblem {
    const fn kind(&self, item: ItemKind) -> ErrorKind {
        match (self, item) {
            (Self::Missing, ItemKind::Layer) => ErrorKind::LayerDataMissing,
            (Self::Missing, ItemKind::Image) => ErrorKind::ImageDataMissing,
            (Self::Missing, ItemKind::Container) => ErrorKind::ContainerDataMissing,
            (Self::Size { .. }, ItemKind::Image) => ErrorKind::ImageDataIncorrectSize,
            (Self::Size { .. }, ItemKind::Container) => ErrorKind::ContainerDataIncorrectSize,
            (Self::Digest { .. }, _) => ErrorKind::DigestMismatch,
            _ => ErrorKind::Io,
        }
    }
}

impl Finding {
    pub(crate) fn new(item: &CheckedItem, problem: Problem) -> Self {
        Self {
            item: item.clone(),
            problem,
        }
    }

    /// The kind of error, see [`Problem::kind`].
    pub fn kind(&self) -> ErrorKind {
        self.problem.kind(self.item.kind)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let item = &self.item;
        let kind = self.kind();
        match &self.problem {
            Problem::Data { key, problem } => {
                write!(f, "{item}: data item {key:?}: ")?;
                match problem {
                    DataProblem::Missing => write!(f, "{kind}"),
                    DataProblem::Unreadable { reason } => f.write_str(reason),
                    DataProblem::Size { expected, found } => {
                        write!(f, "{found} bytes instead of {expected} bytes: {kind}")
                    }
                    DataProblem::Digest { expected, found } => {
                        write!(f, "digest {found} instead of {expected}: {kind}")
                    }
                }
            }
            Problem::InvalidDigest { text, reason } => write!(f, "{item}: digest {text:?}: {reason}"),
            Problem::TarSplitMissing => write!(f, "{item}: tar-split data is missing: {kind}"),
            Problem::DiffUnreadable { reason } | Problem::NotMountable { reason } => {
                write!(f, "{item}: {reason}")
            }
            Problem::FileModified { reason, .. } => write!(f, "{item}: {reason}"),
            Problem::IncorrectDigest { .. } => write!(f, "{item}: {kind}"),
            Problem::IncorrectSize { expected, found } => {
                write!(
                    f,
                    "{item}: read {found} bytes instead of {expected} bytes: {kind}"
                )
            }
            Problem::ContentModified(difference) => write!(f, "{item}: {difference}, {kind}"),
            Problem::MoreModified { count } => write!(f, "{item}: {count} more, {kind}"),
            Problem::DriverData { file, reason } => write!(f, "{item}: {file}: {reason}"),
            Problem::Incomplete => write!(f, "{item}: content is not complete"),
            Problem::ParentMissing { parent } => write!(f, "layer {parent}: {kind}"),
            Problem::ParentLoop => write!(f, "{item}: the layers below come back to this one"),
            Problem::Unreferenced | Problem::Unaccounted => write!(f, "{item}: {kind}"),
            Problem::LayerMissing { layer } => write!(f, "{item}: layer {layer}: {kind}"),
            Problem::ImageMissing { image } => write!(f, "image {image}: {kind}"),
            Problem::Inherited(finding) => write!(f, "{finding}"),
        }
    }
}
