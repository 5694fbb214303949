//! Ranges of a blob that are wanted, and the ranges to ask a server for.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Buf as _, Bytes};

use crate::error::{ErrorKind, Result};

/// The longest value of the header `Range`. Servers take lines of 8 KiB.
const MAX_HEADER: usize = 4096;

/// A gap between two ranges of one request that is rather read over: a part of its own has a header of up to 200 bytes.
const SMALL_GAP: u64 = 1024;

/// Larger gaps, the smallest first, are read over as long as all of them have no more than this part of the bytes that
/// are wanted: each range costs the server a seek and more, up to 3 ms.
const GAPS_SHARE: u64 = 50;

/// The largest gap that is read over for that.
const MAX_GAP: u64 = 64 * 1024;

/// The same where a request can ask for one range only: about what arrives while another request is on its way.
const SMALL_GAP_OF_SINGLES: u64 = 32 * 1024;

/// Bytes that nobody has asked for and that are read over all the same: what arrives in about one round trip.
const MAX_WASTE: u64 = 64 * 1024;

/// Whether an answer of `total` bytes has too much around the `needed` ones. Reading it would take longer than asking
/// otherwise.
pub(crate) fn is_wasteful(total: u64, needed: u64) -> bool {
    total.saturating_sub(needed) > MAX_WASTE.saturating_add(needed / 4)
}

/// Ranges of a blob that have not come yet: ascending, apart, none of them empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    ranges: VecDeque<Range<u64>>,
    bytes: u64,
    /// Gaps up to this are read over.
    gap: u64,
}

/// The size up to which gaps between `ranges` of `bytes` in all are read over.
fn gap_to_close(ranges: &[Range<u64>], bytes: u64) -> u64 {
    let mut gaps: Vec<u64> = ranges
        .windows(2)
        .filter_map(|pair| match pair {
            [before, after] => Some(after.start.saturating_sub(before.end)),
            _ => None,
        })
        .filter(|gap| (SMALL_GAP..=MAX_GAP).contains(gap))
        .collect();
    gaps.sort_unstable();
    let (mut sum, mut largest) = (0, SMALL_GAP);
    // All gaps of one size are closed, or none of them.
    for same in gaps.chunk_by(|a, b| a == b) {
        sum += same.iter().sum::<u64>();
        if sum > bytes / GAPS_SHARE {
            break;
        }
        largest = same.first().copied().unwrap_or(largest);
    }
    largest
}

impl Wanted {
    /// Ranges of a blob of `size` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if they are not ascending, apart, within the blob, and not empty.
    pub(crate) fn new(ranges: Vec<Range<u64>>, size: u64) -> Result<Self> {
        let (mut end, mut bytes) = (0, 0);
        for range in &ranges {
            if range.start < end || range.start >= range.end || range.end > size {
                let what = format!("range {range:?} after byte {end} of a blob of {size} bytes");
                return Err(ErrorKind::InvalidInput.err(what));
            }
            end = range.end;
            bytes += range.end - range.start;
        }
        Ok(Self {
            gap: gap_to_close(&ranges, bytes),
            ranges: ranges.into(),
            bytes,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes of all ranges.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the next byte that is wanted is.
    pub(crate) fn start(&self) -> Option<u64> {
        self.ranges.front().map(|range| range.start)
    }

    /// Where the last range ends.
    pub(crate) fn end(&self) -> u64 {
        self.ranges.back().map_or(0, |range| range.end)
    }

    /// Splits the next bytes that are wanted off from a chunk of the blob that begins at `position`, and drops those
    /// before them. `None` if there are no more of them in the chunk.
    pub(crate) fn pick(&mut self, position: &mut u64, chunk: &mut Bytes) -> Option<Bytes> {
        let range = self.ranges.front_mut()?;
        let gap = clamp(range.start.saturating_sub(*position), chunk.len());
        chunk.advance(gap);
        *position += gap as u64;
        if chunk.is_empty() || *position < range.start {
            return None;
        }
        let count = clamp(range.end - range.start, chunk.len());
        *position += count as u64;
        range.start += count as u64;
        self.bytes -= count as u64;
        if range.start >= range.end {
            self.ranges.pop_front();
        }
        Some(chunk.split_to(count))
    }

    /// Puts ranges back that lie before these.
    pub(crate) fn put_back(&mut self, mut before: Self) {
        before.ranges.append(&mut self.ranges);
        self.ranges = before.ranges;
        self.bytes += before.bytes;
        self.gap = self.gap.max(before.gap);
    }

    /// Takes the ranges for the next request away, one that may ask for `most` ranges.
    pub(crate) fn split_off(&mut self, most: usize) -> Self {
        let mut spans = Spans::new(most, self.gap);
        let mut taken = Self {
            gap: self.gap,
            ..Self::default()
        };
        while self.ranges.front().is_some_and(|range| spans.add(range))
            && let Some(range) = self.ranges.pop_front()
        {
            taken.bytes += range.end - range.start;
            taken.ranges.push_back(range);
        }
        self.bytes -= taken.bytes;
        taken
    }

    /// The ranges to ask for in a request that may ask for `most`: the first ones, with small gaps closed.
    pub(crate) fn spans(&self, most: usize) -> Vec<Range<u64>> {
        let mut spans = Spans::new(most, self.gap);
        // What does not fit is asked for later.
        for range in &self.ranges {
            if !spans.add(range) {
                break;
            }
        }
        spans.all
    }
}

/// `bytes`, at most `limit`.
fn clamp(bytes: u64, limit: usize) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).min(limit)
}

/// The value of the header `Range` for these ranges.
pub(crate) fn header(spans: &[Range<u64>]) -> String {
    let all: Vec<String> = spans
        .iter()
        .map(|span| format!("{}-{}", span.start, span.end.saturating_sub(1)))
        .collect();
    format!("bytes={}", all.join(","))
}

/// Bytes of `spans` that lie in `range`.
pub(crate) fn bytes_within(spans: &[Range<u64>], range: &Range<u64>) -> u64 {
    let within = |span: &Range<u64>| {
        let (start, end) = (span.start.max(range.start), span.end.min(range.end));
        end.saturating_sub(start)
    };
    spans.iter().map(within).sum()
}

/// The ranges of one request in the making.
struct Spans {
    most: usize,
    gap: u64,
    all: Vec<Range<u64>>,
    header: usize,
}

impl Spans {
    fn new(most: usize, gap: u64) -> Self {
        Self {
            most: most.max(1),
            gap: match most {
                0 | 1 => gap.max(SMALL_GAP_OF_SINGLES),
                _ => gap,
            },
            all: Vec::new(),
            header: "bytes=".len(),
        }
    }

    /// Adds a range behind the others; `false` if it does not fit.
    fn add(&mut self, range: &Range<u64>) -> bool {
        if let Some(last) = self.all.last_mut()
            && range.start.saturating_sub(last.end) <= self.gap
        {
            last.end = range.end;
            return true;
        }
        // Closing gaps later may make the end longer by a few digits, for which there is room.
        let length = format!("{}-{},", range.start, range.end).len();
        if self.all.len() >= self.most || self.header + length > MAX_HEADER {
            return false;
        }
        self.header += length;
        self.all.push(range.clone());
        true
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a range, not what it counts")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(ranges: &[Range<u64>]) -> Wanted {
        Wanted::new(ranges.to_vec(), u64::MAX).unwrap()
    }

    #[test]
    fn ranges_must_be_in_order_and_within_the_blob() {
        assert!(Wanted::new(vec![0..5, 5..10], 10).is_ok());
        for bad in [
            vec![5..5],
            vec![0..11],
            vec![5..10, 0..5],
            vec![0..5, 4..10],
            vec![Range { start: 9, end: 0 }],
        ] {
            assert!(Wanted::new(bad.clone(), 10).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn small_gaps_are_closed_and_requests_are_bounded() {
        let near = wanted(&[0..10, 10..20, 1000..1010, 10_000..10_010, 90_000..90_010]);
        assert_eq!(near.spans(200), [0..1010, 10_000..10_010, 90_000..90_010]);
        assert_eq!(near.spans(2), [0..1010, 10_000..10_010]);
        assert_eq!(near.spans(1), [0..10_010]);
        let far: Vec<Range<u64>> = (1..1000_u64).map(|at| (at << 40)..(at << 40) + 9).collect();
        let mut rest = wanted(&far);
        let mut all = Vec::new();
        while !rest.is_empty() {
            let batch = rest.split_off(200);
            let spans = batch.spans(200);
            let header = header(&spans);
            assert!(
                header.len() <= MAX_HEADER && spans.len() <= 200,
                "{}",
                header.len()
            );
            assert!(rest.is_empty() || header.len() > MAX_HEADER - 100);
            all.extend(spans);
        }
        assert_eq!(all, far);
        assert_eq!(header(&[0..1, 5..10]), "bytes=0-0,5-9");
    }

    #[test]
    fn larger_gaps_are_closed_if_they_make_little_of_it() {
        let gap_of = |ranges: &[Range<u64>]| wanted(ranges).gap;
        let mib = 1 << 20;
        assert_eq!(gap_of(&[0..mib, mib + 5000..2 * mib, 3 * mib..4 * mib]), 5000);
        assert_eq!(
            gap_of(&[0..mib, mib + 60_000..2 * mib, 2 * mib + 70_000..4 * mib]),
            60_000
        );
        assert_eq!(gap_of(&[0..10_000, 12_000..20_000]), SMALL_GAP);
        // None of several gaps of one size that make too much of it together.
        let many: Vec<Range<u64>> = (0..100).map(|at| at * 40_000..at * 40_000 + 30_000).collect();
        assert_eq!(gap_of(&many), SMALL_GAP);
        let two = wanted(&[0..mib, mib + 5000..2 * mib, 3 * mib..4 * mib]);
        assert_eq!(two.spans(200), [0..2 * mib, 3 * mib..4 * mib]);
    }

    #[test]
    fn what_is_read_over_is_bounded() {
        assert!(!is_wasteful(64 << 10, 0) && is_wasteful((64 << 10) + 1, 0));
        assert!(!is_wasteful(120 << 20, 100 << 20) && is_wasteful(130 << 20, 100 << 20));
        assert_eq!(bytes_within(&[0..10, 20..30], &(5..25)), 10);
    }

    proptest! {
        #[test]
        fn the_wanted_bytes_are_picked_in_any_chunks(
            lengths in proptest::collection::vec((0..30_u64, 1..30_u64), 0..20),
            from in 0..10_u64,
            chunks in proptest::collection::vec(1..50_usize, 1..20),
            most in 1..8_usize,
        ) {
            let blob: Vec<u8> = (0..2000_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
            let (mut ranges, mut at) = (Vec::new(), from);
            for (gap, length) in lengths {
                ranges.push(at + gap..at + gap + length);
                at += gap + length;
            }
            let expected: Vec<u8> = ranges
                .iter()
                .flat_map(|range| &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()])
                .copied()
                .collect();
            let mut rest = Wanted::new(ranges, 2000).unwrap();
            // Cut into requests and put together again it is the same.
            let whole = rest.clone();
            let batch = rest.split_off(most);
            prop_assert_eq!(batch.bytes() + rest.bytes(), whole.bytes());
            rest.put_back(batch);
            prop_assert_eq!(&rest, &whole);
            let (mut got, mut position) = (Vec::new(), 0);
            for size in chunks.iter().cycle() {
                let Some(_more) = rest.start() else { break };
                let start = usize::try_from(position).unwrap();
                let mut chunk = Bytes::copy_from_slice(&blob[start..blob.len().min(start + size)]);
                while let Some(piece) = rest.pick(&mut position, &mut chunk) {
                    got.extend_from_slice(&piece);
                }
            }
            prop_assert_eq!(got.len() as u64, expected.len() as u64);
            prop_assert_eq!(got, expected);
            prop_assert_eq!(rest.bytes(), 0);
        }
    }
}
