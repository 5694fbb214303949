//! How a layer's tree differs from what its stream describes.

use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use serde::Serialize;

/// One name in a layer's tree that is not as the layer's stream describes it.
///
/// As text it has the form of the Go program: `-/path` is missing, `+/path` was added, and `/path(mode:0644￫0755)` has other
/// attributes, each with what was expected and what was found. Directories end in a slash where they are missing or added.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The path, from the layer's root, beginning with a slash. Serialised with U+FFFD for what is not UTF-8.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// What is different.
    pub kind: DifferenceKind,
}

/// What is different at a name.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// It is not there.
    Missing {
        /// Whether a directory was expected.
        is_dir: bool,
    },
    /// It is there, and nothing was expected.
    Added {
        /// Whether a directory was found.
        is_dir: bool,
    },
    /// It is there with other attributes.
    Changed(Vec<AttributeChange>),
    /// The layers below show through, where the layer deletes what they have.
    NotDeleted,
    /// What the layers below have is hidden, where the layer says nothing of that.
    Hidden,
}

/// An attribute that is not as expected.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttributeChange {
    /// The type, as the letters of tar headers.
    Type {
        /// What was expected.
        expected: u8,
        /// What was found.
        found: u8,
    },
    /// The owner, as the layer's own user IDs.
    Owner {
        /// What was expected.
        expected: u32,
        /// What was found.
        found: u32,
    },
    /// The group, likewise.
    Group {
        /// What was expected.
        expected: u32,
        /// What was found.
        found: u32,
    },
    /// An owner or group that the layer's ID mappings do not have.
    Unmapped {
        /// The user ID on disk.
        uid: u32,
        /// The group ID on disk.
        gid: u32,
    },
    /// Bytes of a file.
    Size {
        /// What was expected.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// Permissions, with set-user-ID, set-group-ID and sticky bits.
    Mode {
        /// What was expected.
        expected: u32,
        /// What was found.
        found: u32,
    },
    /// The time of the last modification, in seconds since 1970. Those of directories are not compared.
    ModificationTime {
        /// What was expected.
        expected: i64,
        /// What was found.
        found: i64,
    },
    /// The number of a device.
    Device {
        /// What was expected.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// Where a symbolic link leads to.
    LinkTarget,
    /// An extended attribute, for instance file capabilities.
    Attribute(
        /// Its name.
        String,
    ),
    /// The content of a file.
    Content,
    /// Something about it that could not be read.
    Unreadable(
        /// Why.
        String,
    ),
}

fn lossy<S: serde::Serializer>(path: &std::path::Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

impl fmt::Display for AttributeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type { expected, found } => write!(f, "filetype:{expected}\u{ffeb}{found}"),
            Self::Owner { expected, found } => write!(f, "uid:{expected}\u{ffeb}{found}"),
            Self::Group { expected, found } => write!(f, "gid:{expected}\u{ffeb}{found}"),
            Self::Unmapped { uid, gid } => write!(f, "owner {uid}:{gid} is not in the ID mappings"),
            Self::Size { expected, found } => write!(f, "size:{expected}\u{ffeb}{found}"),
            Self::Mode { expected, found } => write!(f, "mode:{expected:04o}\u{ffeb}{found:04o}"),
            Self::ModificationTime { expected, found } => {
                write!(f, "mtime:{}\u{ffeb}{}", Hex(*expected), Hex(*found))
            }
            Self::Device { expected, found } => {
                let parts = |number: &u64| (rustix::fs::major(*number), rustix::fs::minor(*number));
                let ((a, b), (c, d)) = (parts(expected), parts(found));
                write!(f, "device:{a},{b}\u{ffeb}{c},{d}")
            }
            Self::LinkTarget => f.write_str("link target"),
            Self::Attribute(name) => write!(f, "attribute {name:?}"),
            Self::Content => f.write_str("content"),
            Self::Unreadable(why) => write!(f, "unreadable: {why}"),
        }
    }
}

/// A number as Go prints it in hexadecimal, with its sign.
struct Hex(i64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}0x{:x}", self.0.unsigned_abs())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = String::from_utf8_lossy(self.path.as_os_str().as_bytes());
        let slash = |is_dir: &bool| if *is_dir { "/" } else { "" };
        match &self.kind {
            DifferenceKind::Missing { is_dir } => write!(f, "-{path}{}", slash(is_dir)),
            DifferenceKind::Added { is_dir } => write!(f, "+{path}{}", slash(is_dir)),
            DifferenceKind::Changed(changes) => {
                write!(f, "{path}(")?;
                for (index, change) in changes.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(f, "{comma}{change}")?;
                }
                f.write_str(")")
            }
            DifferenceKind::NotDeleted => {
                write!(f, "+{path} (of the layers below, which this layer deletes)")
            }
            DifferenceKind::Hidden => write!(f, "-{path} (of the layers below)"),
        }
    }
}
