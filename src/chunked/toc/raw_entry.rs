//! Entries as the text of a table of contents has them.

use crate::digest::Digest;
use crate::error::Result;

/// Takes the entries of a table of contents, one after the other.
pub(crate) trait Sink {
    /// Takes one.
    fn add(&mut self, raw: &RawEntry) -> Result<()>;

    /// Notes the digest of the tar-split data that belongs to the table.
    fn set_tar_split_digest(&mut self, _digest: Digest) {}
}

/// The sha256 sum of nothing.
pub(crate) const SUM_OF_NOTHING: &str =
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// An entry as the text has it; what is not there is empty or 0. Reused for its allocations.
#[derive(Debug, Default)]
pub(crate) struct RawEntry {
    pub(crate) kind: Vec<u8>,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: i64,
    pub(crate) size: i64,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) time: Vec<u8>,
    pub(crate) access_time: Vec<u8>,
    pub(crate) change_time: Vec<u8>,
    pub(crate) dev_major: i64,
    pub(crate) dev_minor: i64,
    /// Names and values in base64.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) digest: Vec<u8>,
    pub(crate) offset: i64,
    pub(crate) end_offset: i64,
    pub(crate) inner_offset: i64,
    pub(crate) chunk_size: i64,
    pub(crate) chunk_offset: i64,
    pub(crate) chunk_digest: Vec<u8>,
    pub(crate) chunk_type: Vec<u8>,
}

impl RawEntry {
    pub(super) fn clear(&mut self) {
        let texts = [
            &mut self.kind,
            &mut self.name,
            &mut self.link,
            &mut self.time,
            &mut self.access_time,
            &mut self.change_time,
            &mut self.digest,
            &mut self.chunk_digest,
            &mut self.chunk_type,
        ];
        texts.into_iter().for_each(Vec::clear);
        let numbers = [
            &mut self.mode,
            &mut self.size,
            &mut self.uid,
            &mut self.gid,
            &mut self.dev_major,
            &mut self.dev_minor,
            &mut self.offset,
            &mut self.end_offset,
            &mut self.inner_offset,
            &mut self.chunk_size,
            &mut self.chunk_offset,
        ];
        numbers.into_iter().for_each(|number| *number = 0);
        self.xattrs.clear();
    }
}
