//! Writes a tree as an EROFS image, byte for byte as `mkcomposefs` writes one of the same tree. Pure.
//!
//! ```text
//!        0  composefs header: magic, version, flags (1: there are ACLs), version of the format
//!     1024  superblock
//!     1152  inodes, breadth first, in slots of 32 bytes; behind each its attributes and the end of its data
//!           attributes that several inodes have
//!    block  directories and symbolic links that do not fit behind their inodes
//! ```
//!
//! Files have no data in the image: an attribute says where their content is.
//!
//! The format: "EROFS Enhanced Read-Only File System" in the kernel's documentation, and `fs/erofs/erofs_fs.h`. What an image
//! needs for composefs, and the order of things, where the format leaves a choice: `mkcomposefs` 1.0.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::ops::Range;

use rustix::fs::FileType;

use super::layout::{BLOCK, Placed, SLOT, place};
use super::name_hash::name_hash;
use super::node::{Attribute, Content, Node, Tree};
use crate::error::{ErrorKind, Result};

/// Where the superblock is.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_SIZE: u64 = 128;
/// Where inodes begin.
const INODES: u64 = SUPERBLOCK + SUPERBLOCK_SIZE;

/// The first four bytes of an image for composefs.
pub(super) const COMPOSEFS_MAGIC: u32 = 0xd078_629a;
/// A flag in the header of an image for composefs: files have ACLs.
pub(super) const HAS_ACL: u32 = 1;
const COMPOSEFS_VERSION: u32 = 1;
const EROFS_MAGIC: u32 = 0xe0f5_e1e2;
/// Times in inodes are those of changes; attributes have filters.
const COMPATIBLE_FEATURES: u32 = 2 | 4;

/// Bytes of a directory's entry without the name.
const ENTRY: u64 = 12;
/// Bytes before the attributes of an inode, and before an attribute.
const ATTRIBUTES_HEAD: u64 = 12;
const ATTRIBUTE_HEAD: u64 = 4;
/// How many shared attributes an inode may have.
const MAX_SHARED: usize = 128;

/// The largest chunk, as a power of two, and so the largest file: it has one chunk, which is a hole.
const MAX_CHUNK: u32 = 31 + 12;

/// Layouts of an inode's data.
const PLAIN: u16 = 0;
const INLINE: u16 = 2;
const CHUNKS: u16 = 4;

/// The prefixes of attribute names that have numbers.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// What is known of an image before it is written.
pub(super) struct Image<'a> {
    tree: &'a Tree,
    /// The nodes, breadth first.
    order: Vec<usize>,
    /// For each node the directory that it was first found in.
    parents: Vec<usize>,
    /// For each node, where its inode is.
    placed: Vec<Placed>,
    /// Attributes that several inodes have, in the order of the image, and where each is.
    shared: Vec<Attribute<'a>>,
    shared_at: HashMap<Attribute<'a>, u64>,
    /// Where inodes end.
    inodes_end: u64,
    shared_size: u64,
    /// Blocks with data.
    blocks: u64,
    oldest: (i64, u32),
    has_acl: bool,
}

/// Refuses what no image can have.
fn check(node: &Node) -> Result<()> {
    let refuse = |what: String| Err(ErrorKind::NotSupported.err(format!("an EROFS image with {what}")));
    if let Content::File { size, .. } = node.content
        && size > 1 << MAX_CHUNK
    {
        return refuse(format!("a file of {size} bytes"));
    }
    for attribute in node.attributes() {
        let (_, suffix) = split_name(attribute.name());
        if suffix.len() > 255 || attribute.value().len() > usize::from(u16::MAX) {
            return refuse("an attribute of such a size".to_owned());
        }
    }
    Ok(())
}

impl<'a> Image<'a> {
    /// Decides where everything goes.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] for what no image can have.
    pub(super) fn new(tree: &'a Tree) -> Result<Self> {
        let mut image = Self {
            tree,
            order: Vec::with_capacity(tree.nodes.len()),
            parents: vec![usize::MAX; tree.nodes.len()],
            placed: Vec::new(),
            shared: Vec::new(),
            shared_at: HashMap::new(),
            inodes_end: 0,
            shared_size: 0,
            blocks: 0,
            oldest: (i64::MAX, u32::MAX),
            has_acl: false,
        };
        image.find_order();
        for node in image.nodes() {
            check(node)?;
        }
        image.oldest = image.nodes().map(|node| node.mtime).min().unwrap_or_default();
        let has_acl = image.nodes().any(has_acl);
        image.has_acl = has_acl;
        image.share_attributes();
        image.place_inodes()?;
        Ok(image)
    }

    fn nodes(&self) -> impl Iterator<Item = &'a Node> {
        let tree = self.tree;
        self.order
            .iter()
            .filter_map(move |number| tree.nodes.get(*number))
    }

    fn find_order(&mut self) {
        let mut waiting = VecDeque::from([(0, 0)]);
        while let Some((number, parent)) = waiting.pop_front() {
            let (Some(node), Some(known)) = (self.tree.nodes.get(number), self.parents.get_mut(number))
            else {
                continue;
            };
            if *known != usize::MAX {
                continue;
            }
            *known = parent;
            self.order.push(number);
            if let Content::Directory(entries) = &node.content {
                let mut sorted: Vec<_> = entries.iter().collect();
                sorted.sort();
                waiting.extend(sorted.into_iter().map(|(_, child)| (*child, number)));
            }
        }
    }

    fn share_attributes(&mut self) {
        let mut counts: HashMap<Attribute<'a>, u32> = HashMap::new();
        for attribute in self.nodes().flat_map(Node::attributes) {
            *counts.entry(attribute).or_default() += 1;
        }
        let mut shared: Vec<Attribute<'a>> = Vec::new();
        shared.extend(
            counts
                .iter()
                .filter(|(_, count)| **count > 1)
                .map(|(attribute, _)| *attribute),
        );
        shared.sort_by_cached_key(|attribute| {
            let value = attribute.value();
            Reverse((attribute.name(), value.len(), value))
        });
        for attribute in &shared {
            self.shared_at.insert(*attribute, self.shared_size);
            self.shared_size += size_of_attribute(attribute);
        }
        self.shared = shared;
    }

    /// The attributes of an inode: where its shared ones are, and those of its own.
    fn split_attributes(&self, node: &'a Node) -> (Vec<u64>, Vec<Attribute<'a>>) {
        let (mut shared, mut own) = (Vec::new(), Vec::new());
        for attribute in node.attributes() {
            match self.shared_at.get(&attribute) {
                Some(at) if shared.len() < MAX_SHARED => shared.push(*at),
                _ => own.push(attribute),
            }
        }
        (shared, own)
    }

    fn place_inodes(&mut self) -> Result<()> {
        let mut at = INODES;
        let mut placed = vec![Placed::default(); self.tree.nodes.len()];
        for number in &self.order {
            let Some(node) = self.tree.nodes.get(*number) else {
                continue;
            };
            let (shared, own) = self.split_attributes(node);
            let own: u64 = own.iter().map(size_of_attribute).sum();
            let attributes = match (shared.len() as u64, own) {
                (0, 0) => 0,
                (shared, own) => ATTRIBUTES_HEAD + shared * 4 + own,
            };
            if attributes / 4 > u64::from(u16::MAX) {
                return Err(ErrorKind::NotSupported.err("an EROFS image with so many attributes of one file"));
            }
            let size = self.size_of(*number, node);
            let compact = node.mtime == self.oldest
                && links(self.tree, node) <= u32::from(u16::MAX)
                && node.uid <= u32::from(u16::MAX)
                && node.gid <= u32::from(u16::MAX)
                && size <= u64::from(u32::MAX);
            let is_link = matches!(node.content, Content::Link(_));
            let (blocks, tail) = match &node.content {
                Content::Directory(_) => (size / BLOCK, size % BLOCK),
                Content::Link(target) => (0, target.len() as u64),
                Content::File { size: 1.., .. } => (0, 4),
                _ => (0, 0),
            };
            let inode = place(at, compact, attributes, blocks, tail, is_link);
            at = inode.end();
            self.blocks += inode.blocks;
            if let Some(place) = placed.get_mut(*number) {
                *place = inode;
            }
        }
        self.placed = placed;
        self.inodes_end = at.next_multiple_of(SLOT);
        Ok(())
    }

    /// Bytes of a file's data.
    fn size_of(&self, number: usize, node: &Node) -> u64 {
        match &node.content {
            Content::Directory(entries) => {
                let chunks = chunks(&self.entries(number, entries));
                let last = chunks.last().map_or(0, |(_, size)| *size);
                let whole = (chunks.len() as u64).saturating_sub(1) * BLOCK;
                // No more than half a block is put behind the inode.
                whole + if last > BLOCK / 2 { BLOCK } else { last }
            }
            Content::File { size, .. } => *size,
            Content::Link(target) => target.len() as u64,
            Content::Device(_) | Content::Nothing => 0,
        }
    }

    /// The entries of a directory, by name.
    fn entries<'b>(&self, number: usize, entries: &'b [(Box<[u8]>, usize)]) -> Vec<(&'b [u8], usize)> {
        let parent = self.parents.get(number).copied().unwrap_or_default();
        let mut all: Vec<(&[u8], usize)> = vec![(b".", number), (b"..", parent)];
        all.extend(entries.iter().map(|(name, child)| (&**name, *child)));
        all.sort_unstable();
        all
    }

    fn place_of(&self, number: usize) -> Placed {
        self.placed.get(number).copied().unwrap_or_default()
    }

    /// Writes the image.
    pub(super) fn write(&self, out: impl Write) -> io::Result<()> {
        let mut out = Output { out, written: 0 };
        let flags = if self.has_acl { HAS_ACL } else { 0 };
        for number in [COMPOSEFS_MAGIC, COMPOSEFS_VERSION, flags, 0] {
            out.write(&number.to_le_bytes())?;
        }
        out.pad_to(SUPERBLOCK)?;
        let data = (self.inodes_end + self.shared_size).next_multiple_of(BLOCK);
        self.write_superblock(&mut out, data)?;
        let mut next_block = data / BLOCK;
        for (index, number) in self.order.iter().enumerate() {
            let Some(node) = self.tree.nodes.get(*number) else {
                continue;
            };
            self.write_inode(&mut out, index, *number, node, &mut next_block)?;
        }
        out.pad_to(self.inodes_end)?;
        for attribute in &self.shared {
            out.attribute(attribute)?;
        }
        out.pad_to(data)?;
        for (number, node) in self.order.iter().zip(self.nodes()) {
            let blocks = self.place_of(*number).blocks;
            match &node.content {
                Content::Directory(entries) => {
                    let entries = self.entries(*number, entries);
                    for (range, _) in chunks(&entries)
                        .into_iter()
                        .take(blocks.try_into().unwrap_or(usize::MAX))
                    {
                        self.write_entries(&mut out, entries.get(range).unwrap_or_default())?;
                        out.pad_to(out.written.next_multiple_of(BLOCK))?;
                    }
                }
                Content::Link(target) if blocks > 0 => {
                    out.write(target)?;
                    out.pad_to(out.written.next_multiple_of(BLOCK))?;
                }
                _ => {}
            }
        }
        out.out.flush()
    }

    fn write_superblock(&self, out: &mut Output<impl Write>, data: u64) -> io::Result<()> {
        let root = self.place_of(0).number();
        let mut block = Vec::new();
        block.extend(EROFS_MAGIC.to_le_bytes());
        block.extend(0_u32.to_le_bytes());
        block.extend(COMPATIBLE_FEATURES.to_le_bytes());
        block.extend([12, 0]);
        block.extend(narrow::<u16>(root)?.to_le_bytes());
        block.extend((self.order.len() as u64).to_le_bytes());
        block.extend(self.oldest.0.to_le_bytes());
        block.extend(self.oldest.1.to_le_bytes());
        block.extend(narrow::<u32>(data / BLOCK + self.blocks)?.to_le_bytes());
        block.extend(0_u32.to_le_bytes());
        block.extend(narrow::<u32>(self.inodes_end / BLOCK)?.to_le_bytes());
        out.write(&block)?;
        out.pad_to(INODES)
    }

    fn write_inode(
        &self,
        out: &mut Output<impl Write>,
        index: usize,
        number: usize,
        node: &'a Node,
        next_block: &mut u64,
    ) -> io::Result<()> {
        let place = self.place_of(number);
        out.pad_to(place.at)?;
        let (layout, extra) = match &node.content {
            Content::File { size: size @ 1.., .. } => (CHUNKS, chunk_bits(*size) - 12),
            Content::Device(device) => (PLAIN, *device),
            _ => {
                let layout = if place.tail > 0 { INLINE } else { PLAIN };
                let block = if place.blocks > 0 { narrow(*next_block)? } else { 0 };
                *next_block += place.blocks;
                (layout, block)
            }
        };
        let size = match &node.content {
            Content::Directory(_) => place.blocks * BLOCK + place.tail,
            _ => self.size_of(number, node),
        };
        let (shared, own) = self.split_attributes(node);
        let units = match place.attributes {
            0 => 0,
            size => (size - ATTRIBUTES_HEAD) / 4 + 1,
        };
        let (index, links) = (narrow::<u32>(index as u64)?, links(self.tree, node));
        let format = layout << 1 | u16::from(!place.compact);
        let mut inode = Vec::with_capacity(64);
        inode.extend(format.to_le_bytes());
        inode.extend(narrow::<u16>(units)?.to_le_bytes());
        inode.extend(narrow::<u16>(node.mode.into())?.to_le_bytes());
        if place.compact {
            inode.extend(narrow::<u16>(links.into())?.to_le_bytes());
            inode.extend(narrow::<u32>(size)?.to_le_bytes());
            inode.extend(0_u32.to_le_bytes());
            inode.extend(extra.to_le_bytes());
            inode.extend(index.to_le_bytes());
            inode.extend(narrow::<u16>(node.uid.into())?.to_le_bytes());
            inode.extend(narrow::<u16>(node.gid.into())?.to_le_bytes());
            inode.extend(0_u32.to_le_bytes());
        } else {
            inode.extend(0_u16.to_le_bytes());
            inode.extend(size.to_le_bytes());
            inode.extend(extra.to_le_bytes());
            inode.extend(index.to_le_bytes());
            inode.extend(node.uid.to_le_bytes());
            inode.extend(node.gid.to_le_bytes());
            inode.extend(node.mtime.0.to_le_bytes());
            inode.extend(node.mtime.1.to_le_bytes());
            inode.extend(links.to_le_bytes());
            inode.extend([0; 16]);
        }
        out.write(&inode)?;
        if place.attributes > 0 {
            let all = node.attributes();
            let filter = all
                .iter()
                .fold(0, |filter, attribute| filter | filter_bit(attribute.name()));
            out.write(&(!filter).to_le_bytes())?;
            out.write(&[narrow(shared.len() as u64)?, 0, 0, 0, 0, 0, 0, 0])?;
            for at in &shared {
                let at = narrow::<u32>((self.inodes_end % BLOCK + at) / 4)?;
                out.write(&at.to_le_bytes())?;
            }
            for attribute in &own {
                out.attribute(attribute)?;
            }
        }
        match &node.content {
            Content::Directory(entries) if place.tail > 0 => {
                let entries = self.entries(number, entries);
                match chunks(&entries).pop() {
                    Some((range, _)) => self.write_entries(out, entries.get(range).unwrap_or_default()),
                    None => Ok(()),
                }
            }
            Content::Link(target) if place.tail > 0 => out.write(target),
            // One chunk, and no block for it: a hole.
            Content::File { size: 1.., .. } => out.write(&u32::MAX.to_le_bytes()),
            _ => Ok(()),
        }
    }

    fn write_entries(&self, out: &mut Output<impl Write>, entries: &[(&[u8], usize)]) -> io::Result<()> {
        let mut name_at = entries.len() as u64 * ENTRY;
        for (name, child) in entries {
            let node = self.tree.nodes.get(*child);
            out.write(&self.place_of(*child).number().to_le_bytes())?;
            out.write(&narrow::<u16>(name_at)?.to_le_bytes())?;
            out.write(&[node.map_or(0, |node| type_number(node.file_type())), 0])?;
            name_at += name.len() as u64;
        }
        entries.iter().try_for_each(|(name, _)| out.write(name))
    }
}

fn has_acl(node: &Node) -> bool {
    let mut names = node.attributes.iter().map(|(name, _)| &**name);
    names.any(|name| ACLS.contains(&name))
}

/// The parts of a directory that are in one block each, with their bytes.
fn chunks(entries: &[(&[u8], usize)]) -> Vec<(Range<usize>, u64)> {
    let mut chunks = Vec::new();
    let (mut first, mut size) = (0, 0);
    for (index, (name, _)) in entries.iter().enumerate() {
        let length = ENTRY + name.len() as u64;
        if size + length > BLOCK {
            chunks.push((first..index, size));
            (first, size) = (index, 0);
        }
        size += length;
    }
    chunks.push((first..entries.len(), size));
    chunks
}

/// The names of a file; of a directory also those in itself and in its subdirectories.
fn links(tree: &Tree, node: &Node) -> u32 {
    let Content::Directory(entries) = &node.content else {
        return node.links;
    };
    let children = entries.iter().filter_map(|(_, child)| tree.nodes.get(*child));
    let dirs = children.filter(|child| child.file_type() == FileType::Directory);
    u32::try_from(dirs.count()).map_or(u32::MAX, |dirs| dirs.saturating_add(2))
}

/// The power of two that a file of so many bytes is a chunk of.
fn chunk_bits(size: u64) -> u32 {
    let bits = u64::BITS - size.saturating_sub(1).leading_zeros();
    bits.clamp(12, MAX_CHUNK)
}

/// The number of a name's prefix, and the rest of the name.
fn split_name(name: &[u8]) -> (u8, &[u8]) {
    let mut found = PREFIXES
        .iter()
        .filter_map(|(prefix, number)| Some((*number, name.strip_prefix(*prefix)?)));
    found.next().unwrap_or((0, name))
}

fn filter_bit(name: &[u8]) -> u32 {
    let (prefix, rest) = split_name(name);
    1 << (name_hash(rest, prefix) % 32)
}

fn size_of_attribute(attribute: &Attribute<'_>) -> u64 {
    let (_, rest) = split_name(attribute.name());
    (ATTRIBUTE_HEAD + rest.len() as u64 + attribute.value().len() as u64).next_multiple_of(4)
}

fn type_number(file_type: FileType) -> u8 {
    match file_type {
        FileType::RegularFile => 1,
        FileType::Directory => 2,
        FileType::CharacterDevice => 3,
        FileType::BlockDevice => 4,
        FileType::Fifo => 5,
        FileType::Socket => 6,
        FileType::Symlink => 7,
        FileType::Unknown => 0,
    }
}

/// A number in the bytes that the format has for it.
fn narrow<T: TryFrom<u64>>(number: u64) -> io::Result<T> {
    T::try_from(number)
        .map_err(|_too_large| io::Error::new(io::ErrorKind::FileTooLarge, "too large for an EROFS image"))
}

/// An image that is being written.
struct Output<W> {
    out: W,
    written: u64,
}

impl<W: Write> Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad_to(&mut self, at: u64) -> io::Result<()> {
        let mut missing = usize::try_from(at.saturating_sub(self.written)).unwrap_or(usize::MAX);
        while missing > 0 {
            let zeros = [0; 512];
            let part = zeros.get(..missing).unwrap_or(&zeros);
            self.write(part)?;
            missing -= part.len();
        }
        Ok(())
    }

    fn attribute(&mut self, attribute: &Attribute<'_>) -> io::Result<()> {
        let (prefix, rest) = split_name(attribute.name());
        let value = attribute.value();
        self.write(&[narrow(rest.len() as u64)?, prefix])?;
        self.write(&narrow::<u16>(value.len() as u64)?.to_le_bytes())?;
        self.write(rest)?;
        self.write(&value)?;
        self.pad_to(self.written.next_multiple_of(4))
    }
}
