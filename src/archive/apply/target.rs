//! Where a layer is unpacked to, what is known of it already, and what is known of it afterwards.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::archive::apply::marks::LayerMarks;
use crate::archive::apply::origins::Origins;
use crate::archive::apply::present_tree::PresentTree;
use crate::archive::apply::selection::Selection;
use crate::archive::apply::shared_files::SharedFiles;
use crate::archive::compress::stream_hash::CheckContents;
use crate::archive::tar::reader::Entry;
use crate::compression::Compression;
use crate::digest::Digest;
use crate::error::Result;
use crate::idmap::{IdMappings, Owner};

/// What an archive holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A layer of which only the driver's own files are kept.
    Layer,
    /// A layer that becomes part of a complete tree: the private files of AUFS are left out.
    TreeLayer,
    /// Files that are no layer: the names of whiteouts mean nothing special.
    Files,
}

/// Where a layer goes, and how.
#[derive(Debug)]
pub(crate) struct Target {
    /// The directory, open for reading before anything was written below it. That of a layer is empty.
    pub(crate) dir: OwnedFd,
    pub(crate) content: Content,
    /// Whether the entry `./` changes the directory itself.
    pub(crate) root_entry: bool,
    /// Owners.
    pub(crate) mappings: IdMappings,
    /// The owner (inside the container) of every entry, whatever the archive says.
    pub(crate) owner: Option<Owner>,
    /// Go on when an owner cannot be set.
    pub(crate) ignore_chown_errors: bool,
    /// Mode for everything; owner, mode and type go into an attribute.
    pub(crate) force_mask: Option<u32>,
    /// Devices cannot be made and are left out.
    pub(crate) in_user_namespace: bool,
    /// The tree of the layer to which a diff is applied; `None` for a layer that is not there yet.
    pub(crate) present: Option<PresentTree>,
}

/// Looks at a tar stream while it is unpacked.
pub(crate) trait Inspect: Send + fmt::Debug {
    /// Before an entry is unpacked.
    ///
    /// # Errors
    /// Whatever is wrong with it; the unpacking ends with that.
    fn entry(&mut self, entry: &Entry) -> Result<()>;

    /// The next bytes of the content of the regular file `entry`, which lie at `offset` of the stream.
    fn content(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) {
        let _ = (entry, offset, bytes);
    }

    /// After the content of a regular file: its sha256 sum, if that is known.
    ///
    /// # Errors
    /// As for an entry.
    fn content_end(&mut self) -> Result<Option<[u8; 32]>> {
        Ok(None)
    }

    /// After the last one.
    ///
    /// # Errors
    /// Likewise.
    fn end(&mut self) -> Result<()>;
}

/// What else is wanted, and what is known already.
#[derive(Debug, Default)]
pub(crate) struct ApplyOptions {
    /// An empty file, open for writing, for the tar-split data.
    pub(crate) tar_split: Option<File>,
    /// Digest of the stream as sent (or of the blob that it comes from); believed unless `verify`.
    pub(crate) original_digest: Option<Digest>,
    /// Size of that blob; counts only together with `original_digest`.
    pub(crate) original_size: Option<u64>,
    /// Digest of the decoded stream; believed unless `verify`.
    pub(crate) uncompressed_digest: Option<Digest>,
    /// Whether given digests are checked.
    pub(crate) verify: bool,
    /// Whether everything is on disk before the layer is reported as applied.
    pub(crate) sync: bool,
    /// Files that have the content of payloads.
    pub(crate) origins: Option<Arc<Origins>>,
    /// The entries that are unpacked; `None` for all. The others are read all the same.
    pub(crate) selection: Option<Selection>,
    /// Contents of the decoded stream whose sums are checked.
    pub(crate) contents: Option<Box<dyn CheckContents>>,
    /// Sees each header, and the content of regular files.
    pub(crate) inspect: Option<Box<dyn Inspect>>,
}

/// What a layer's record says after it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// How the stream was compressed.
    pub(crate) compression: Compression,
    /// Digest of the stream as sent, or the one given for it.
    pub(crate) compressed_digest: Digest,
    /// Its size, or the one given for it.
    pub(crate) compressed_size: u64,
    /// Digest of the decoded stream, or the one given for it.
    pub(crate) diff_digest: Digest,
    /// Size of the decoded stream.
    pub(crate) diff_size: u64,
    /// User IDs in the headers (inside the container), sorted.
    pub(crate) uids: Vec<u32>,
    /// Group IDs in the headers, sorted.
    pub(crate) gids: Vec<u32>,
    /// Bytes in files: for a complete tree what all headers declare, else what lies in files and symbolic links.
    pub(crate) content_size: u64,
    /// How many entries the archive had.
    pub(crate) entries: u64,
    /// What the archive says of the layers below.
    pub(crate) marks: LayerMarks,
    /// Files that the layer had before and to which hard links lead.
    pub(crate) shared: SharedFiles,
}
