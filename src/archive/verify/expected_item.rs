//! What is expected at a name of a tree. Pure.

use crate::archive::apply::metadata;
use crate::archive::tar::reader::Entry;

/// The attribute of file capabilities.
pub(super) const CAPABILITIES: &[u8] = b"security.capability";

/// The time of something of which nobody knows it.
pub(super) const UNSURE_TIME: i64 = i64::MIN;

/// The name and the value of an attribute.
type Attribute = (Box<[u8]>, Box<[u8]>);

/// The attributes of an item.
pub(crate) type Attributes = Box<[Attribute]>;

/// What is expected at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) what: What,
    /// Permissions and the bits above them. Of implied directories nothing is known.
    pub(crate) mode: u32,
    /// As in the archive.
    pub(crate) uid: u32,
    /// As in the archive.
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    /// Of the archive's attributes those that are content; `None` for none.
    pub(crate) attributes: Option<Attributes>,
    /// Whether the layer itself has brought it, and not one below.
    pub(crate) own: bool,
}

/// The type of an item, with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Directory {
        /// No entry describes it.
        implied: bool,
    },
    File {
        size: u64,
        content: Content,
    },
    SymbolicLink(Box<[u8]>),
    /// With the letter of the entry's type.
    Device {
        kind: u8,
        number: u64,
    },
    Fifo,
    /// Something is there, and the headers do not tell what.
    Unknown,
}

/// What is known of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Its checksum, which the reading of the layer compares.
    Read([u8; 8]),
    /// Its checksum, which nothing has been compared with: the layer's record has the content too.
    Recorded([u8; 8]),
}

impl Item {
    /// A directory that no entry describes.
    pub(super) fn implied_directory() -> Self {
        Self {
            what: What::Directory { implied: true },
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            attributes: None,
            own: true,
        }
    }

    /// What an entry describes.
    pub(super) fn of(entry: &Entry, what: What) -> Self {
        let own = entry
            .records
            .xattrs()
            .filter(|(name, _)| !metadata::is_foreign(name));
        let attributes: Vec<Attribute> = own.map(|(name, value)| (name.into(), value.into())).collect();
        let id = |number: i64| metadata::id(number).unwrap_or(u32::MAX);
        Self {
            what,
            mode: entry.mode & 0o7777,
            uid: id(entry.uid),
            gid: id(entry.gid),
            mtime: entry.mtime.secs,
            attributes: (!attributes.is_empty()).then(|| attributes.into_boxed_slice()),
            own: true,
        }
    }
}

/// The attributes that a file has after one entry and then another have described it: none is taken away.
pub(super) fn added(before: Option<Attributes>, after: Option<Attributes>) -> Option<Attributes> {
    let (Some(before), Some(after)) = (&before, &after) else {
        return before.or(after);
    };
    let is_new = |name: &[u8]| after.iter().all(|(other, _)| **other != *name);
    let kept = before.iter().filter(|(name, _)| is_new(name));
    Some(kept.chain(after.iter()).cloned().collect())
}
