//! What a writer says of where the parts of its blob are: annotations and footer. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::chunked::location::{
    MAGIC, SKIPPABLE_HEAD, SKIPPABLE_MAGIC, Section, TAR_SPLIT_POSITION, TOC_CHECKSUM, TOC_POSITION, TYPE,
    ZSTD,
};
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};

/// Where the parts of a zstd:chunked blob are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Positions {
    /// Digest of the compressed table of contents.
    pub(crate) digest: Digest,
    pub(crate) toc: Section,
    pub(crate) tar_split: Section,
}

impl Positions {
    /// The annotations of the layer in a manifest.
    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        let Self {
            digest,
            toc,
            tar_split,
        } = self;
        let toc_position = format!("{}:{}:{}:{TYPE}", toc.range.start, toc.length(), toc.size);
        let tar_split_position = format!(
            "{}:{}:{}",
            tar_split.range.start,
            tar_split.length(),
            tar_split.size
        );
        BTreeMap::from([
            (format!("{ZSTD}{TOC_CHECKSUM}"), digest.to_string()),
            (format!("{ZSTD}{TOC_POSITION}"), toc_position),
            (format!("{ZSTD}{TAR_SPLIT_POSITION}"), tar_split_position),
        ])
    }

    /// What the skippable frame at the end of a blob holds.
    pub(crate) fn footer(&self) -> Vec<u8> {
        let numbers = [
            self.toc.range.start,
            self.toc.length(),
            self.toc.size,
            TYPE,
            self.tar_split.range.start,
            self.tar_split.length(),
            self.tar_split.size,
        ];
        let mut footer: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        footer.extend_from_slice(&MAGIC);
        footer
    }
}

/// Appends data as a skippable frame, which decoders pass over; returns where in the blob it is, of which `out` begins
/// at `offset`.
pub(crate) fn push_skippable(out: &mut Vec<u8>, offset: u64, data: &[u8]) -> Result<Range<u64>> {
    let length = u32::try_from(data.len()).map_err(|_too_long| {
        ErrorKind::InvalidInput.err(format!("{} bytes in one skippable frame", data.len()))
    })?;
    let start = offset + out.len() as u64 + SKIPPABLE_HEAD;
    out.extend_from_slice(&SKIPPABLE_MAGIC);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(data);
    Ok(start..start + u64::from(length))
}
