//! The tree of an image in memory. Pure.

use std::borrow::Cow;

use rustix::fs::FileType;

use crate::digest::hex;

/// The attribute of a file whose content is elsewhere; its value may have the fs-verity digest of that.
const METACOPY: &[u8] = b"trusted.overlay.metacopy";
/// Where the content is, from the root of a layer's directory of contents.
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
/// fs-verity's number for SHA-256.
const VERITY_SHA256: u8 = 1;

/// The name and the value of an attribute.
pub(super) type OwnAttribute = (Box<[u8]>, Box<[u8]>);

/// A SHA-256 sum.
pub(super) type Sum = [u8; 32];

/// A content, stored by its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) sum: Sum,
    /// Its fs-verity digest, if the kernel verifies it.
    pub(super) verity: Option<Sum>,
}

impl Object {
    /// One that stands for no content; another one for each number.
    pub(super) fn placeholder(number: usize) -> Self {
        let mut sum = [0; 32];
        for (byte, digit) in sum.iter_mut().zip(number.to_le_bytes()) {
            *byte = digit;
        }
        Self {
            sum,
            verity: Some(sum),
        }
    }
}

/// Everything about a file but its names.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Type and permissions.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// How many names it has. Not used for directories.
    pub(super) links: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    /// In no order.
    pub(super) attributes: Vec<OwnAttribute>,
    pub(super) content: Content,
}

/// What a file has.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Names, and the numbers of the nodes that have them; in no order, without `.` and `..`.
    Directory(Vec<(Box<[u8]>, usize)>),
    File {
        size: u64,
        object: Object,
    },
    Link(Box<[u8]>),
    /// The number, as the kernel writes it in 32 bits.
    Device(u32),
    /// Nothing: pipes and sockets.
    Nothing,
}

/// A tree; the first node is its root.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
}

/// An attribute as an image has it. Those that tell of contents are made when they are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Attribute<'a> {
    Metacopy(Option<Sum>),
    Redirect(Sum),
    Own(&'a [u8], &'a [u8]),
}

impl<'a> Attribute<'a> {
    pub(super) fn name(&self) -> &'a [u8] {
        match self {
            Self::Metacopy(_) => METACOPY,
            Self::Redirect(_) => REDIRECT,
            Self::Own(name, _) => name,
        }
    }

    pub(super) fn value(&self) -> Cow<'a, [u8]> {
        match self {
            Self::Metacopy(None) => Cow::Borrowed(b""),
            Self::Metacopy(Some(verity)) => {
                // Version, length, flags, algorithm, digest.
                let head = [0, 36, 0, VERITY_SHA256];
                Cow::Owned([&head[..], verity].concat())
            }
            Self::Redirect(sum) => Cow::Owned(format!("/{}", object_path(sum)).into_bytes()),
            Self::Own(_, value) => Cow::Borrowed(value),
        }
    }
}

impl Node {
    pub(super) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// The attributes of the image's file, by name.
    pub(super) fn attributes(&self) -> Vec<Attribute<'_>> {
        let own = self.attributes.iter();
        let mut all: Vec<Attribute<'_>> = own.map(|(name, value)| Attribute::Own(name, value)).collect();
        // An empty file needs no content.
        if let Content::File { size: 1.., object } = &self.content {
            all.push(Attribute::Metacopy(object.verity));
            all.push(Attribute::Redirect(object.sum));
        }
        all.sort_by_key(Attribute::name);
        all
    }
}

/// Where a content is, in a layer's directory of contents.
pub(super) fn object_path(sum: &Sum) -> String {
    let name = hex(sum);
    let (dir, file) = name.split_at(2);
    format!("{dir}/{file}")
}
