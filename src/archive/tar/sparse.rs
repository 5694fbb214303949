//! Maps of sparse files: which parts of the logical file the archive holds. Pure, but for the blocks that the old GNU
//! form and form 1.0 keep beside the header, which [`crate::archive::tar::reader`] feeds in.

use tar_core::{GnuHeader, GnuSparseHeader};

use crate::archive::tar::header::{BLOCK, number};
use crate::archive::tar::pax::{Records, decimal};

/// A bound on what a map may take in memory, beside the 1 MiB that the text of a map may have.
const MAX_FRAGMENTS: usize = 1 << 18;

/// One run of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// Where in the logical file.
    pub(crate) offset: u64,
    /// How long.
    pub(crate) length: u64,
}

/// Which form of map a pax header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PaxForm {
    /// 0.0 or 0.1: the map is in the header.
    InHeader,
    /// 1.0: the map is text before the data.
    BeforeData,
}

/// The form that the records announce, `None` for a file that is not sparse (or in an unknown form).
pub(crate) fn pax_form(records: &Records) -> Option<PaxForm> {
    let (major, minor) = (records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor"));
    match (major, minor) {
        (b"0", b"0" | b"1") => Some(PaxForm::InHeader),
        (b"1", b"0") => Some(PaxForm::BeforeData),
        // The first forms had no version records.
        (b"", b"") if records.sparse().len() > 0 || !records.get(b"GNU.sparse.map").is_empty() => {
            Some(PaxForm::InHeader)
        }
        _ => None,
    }
}

fn fragment(offset: i64, length: i64) -> Option<Fragment> {
    Some(Fragment {
        offset: u64::try_from(offset).ok()?,
        length: u64::try_from(length).ok()?,
    })
}

/// The map of form 0.0 or 0.1; `None` if it is malformed.
pub(crate) fn pax_map(records: &Records) -> Option<Vec<Fragment>> {
    let count = usize::try_from(decimal(records.get(b"GNU.sparse.numblocks"))?).ok()?;
    let list = records.get(b"GNU.sparse.map");
    if records.sparse().len() > 0 {
        return pairs(records.sparse(), count);
    }
    if list.is_empty() {
        return (count == 0).then(Vec::new);
    }
    pairs(list.split(|byte| *byte == b','), count)
}

fn pairs<'a>(mut numbers: impl Iterator<Item = &'a [u8]>, count: usize) -> Option<Vec<Fragment>> {
    let mut map = Vec::new();
    while let Some(offset) = numbers.next() {
        if map.len() >= count {
            return None;
        }
        map.push(fragment(decimal(offset)?, decimal(numbers.next()?)?)?);
    }
    (map.len() == count).then_some(map)
}

/// The map of form 1.0: lines with the count, then offsets and lengths in turn, in whole blocks.
#[derive(Debug, Default)]
pub(crate) struct TextMap {
    map: Vec<Fragment>,
    count: Option<usize>,
    offset: Option<i64>,
    /// Digits of a number that goes on in the next block.
    digits: Vec<u8>,
}

impl TextMap {
    /// Reads one block and says whether the map ends in it; `None` if it is malformed.
    pub(crate) fn block(&mut self, block: &[u8; BLOCK]) -> Option<bool> {
        for byte in block {
            if *byte != b'\n' {
                // No number is that long; the rest of the last block is not read.
                if self.digits.len() > 20 {
                    return None;
                }
                self.digits.push(*byte);
                continue;
            }
            let number = decimal(&self.digits)?;
            self.digits.clear();
            match (self.count, self.offset.take()) {
                (None, _) => self.count = Some(usize::try_from(number).ok()?),
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(offset)) => self.map.push(fragment(offset, number)?),
            }
            if self.count == Some(self.map.len()) {
                return Some(true);
            }
        }
        Some(false)
    }

    /// The map, once [`TextMap::block`] has said that it is complete.
    pub(crate) fn into_map(self) -> Vec<Fragment> {
        self.map
    }
}

/// The map of the old GNU form, which continues in blocks after the header.
#[derive(Debug, Default)]
pub(crate) struct GnuMap {
    map: Vec<Fragment>,
}

impl GnuMap {
    fn add(&mut self, entries: &[GnuSparseHeader]) -> Option<()> {
        for entry in entries.iter().take_while(|entry| entry.offset[0] != 0) {
            if self.map.len() >= MAX_FRAGMENTS {
                return None;
            }
            self.map
                .push(fragment(number(&entry.offset)?, number(&entry.numbytes)?)?);
        }
        Some(())
    }

    /// Reads the header's part; whether a block follows.
    pub(crate) fn header(&mut self, header: &GnuHeader) -> Option<bool> {
        self.add(&header.sparse)?;
        Some(header.isextended[0] != 0)
    }

    /// Reads one block (21 entries and the flag that another follows); whether another follows.
    pub(crate) fn block(&mut self, block: &[u8; BLOCK]) -> Option<bool> {
        let mut entries = [GnuSparseHeader::default(); 21];
        for (entry, bytes) in entries.iter_mut().zip(block.chunks_exact(24)) {
            let (offset, length) = bytes.split_at(12);
            entry.offset.copy_from_slice(offset);
            entry.numbytes.copy_from_slice(length);
        }
        self.add(&entries)?;
        Some(block.get(504).is_some_and(|flag| *flag != 0))
    }

    /// The complete map.
    pub(crate) fn into_map(self) -> Vec<Fragment> {
        self.map
    }
}

/// Checks a map against the logical size: in order, no overlap, inside. Returns how many bytes the data has.
pub(crate) fn check(map: &[Fragment], size: u64) -> Option<u64> {
    let mut end = 0;
    let mut sum = 0u64;
    for fragment in map {
        if fragment.offset < end {
            return None;
        }
        end = fragment.offset.checked_add(fragment.length)?;
        if end > size {
            return None;
        }
        sum += fragment.length;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pairs: &[(u64, u64)]) -> Vec<Fragment> {
        pairs
            .iter()
            .map(|(offset, length)| Fragment {
                offset: *offset,
                length: *length,
            })
            .collect()
    }

    #[test]
    fn maps_are_checked_against_the_size() {
        assert_eq!(check(&at(&[]), 0), Some(0));
        assert_eq!(check(&at(&[(0, 5), (5, 0), (10, 5)]), 15), Some(10));
        for (bad, size) in [
            (&[(0, 5)][..], 4),
            (&[(0, 5), (4, 1)], 10),
            (&[(5, 1), (0, 1)], 10),
            (&[(1, u64::MAX)], u64::MAX),
        ] {
            assert_eq!(check(&at(bad), size), None, "{bad:?}");
        }
    }

    #[test]
    fn text_maps_may_be_cut_anywhere() {
        let mut text = b"60\n".to_vec();
        for index in 0..60 {
            text.extend_from_slice(format!("{}\n{}\n", index * 1_000_000, index).as_bytes());
        }
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        let mut map = TextMap::default();
        let blocks = text.as_chunks::<BLOCK>().0;
        for (index, block) in blocks.iter().enumerate() {
            assert_eq!(map.block(block), Some(index + 1 == blocks.len()));
        }
        let map = map.into_map();
        assert_eq!(
            (map.len(), map[59]),
            (
                60,
                Fragment {
                    offset: 59_000_000,
                    length: 59
                }
            )
        );
        for bad in [
            &b"x\n"[..],
            b"-1\n",
            b"1\n-1\n1\n",
            b"\n",
            b"1111111111111111111111111",
        ] {
            let mut block = [0; BLOCK];
            block[..bad.len()].copy_from_slice(bad);
            assert_eq!(TextMap::default().block(&block), None);
        }
    }
}
