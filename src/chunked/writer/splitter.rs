//! Where the content of a file is cut into chunks.
//!
//! A chunk ends where the checksum of the last 64 bytes has a certain value, so equal parts of different files are cut
//! alike wherever they begin: 64 KiB on the average, with neither minimum nor maximum. Runs of zeros from 1024 on are
//! chunks of their own, whatever their length. All of this is as the Go library does it: only chunks that are cut at
//! the same places are shared between blobs.

/// Bytes that the checksum covers.
const WINDOW: usize = 64;

/// What each byte counts for beside its value.
const OFFSET: u32 = 31;

/// The bits of the checksum that are all set where a chunk ends.
const MASK: u32 = 0xffff;

/// Zeros that make a hole.
const HOLE: u64 = 1024;

/// What is told of the content of a file, in order.
pub(super) trait Chunks {
    /// Bytes of the current chunk.
    fn bytes(&mut self, bytes: &[u8]);
    /// So many zeros in the current chunk.
    fn zeros(&mut self, count: u64);
    /// The current chunk ends, a hole or not. It may be empty and is none then.
    fn end(&mut self, is_hole: bool);
}

/// The checksum of the last 64 bytes, as in `bup`.
struct RollingSum {
    s1: u32,
    s2: u32,
    window: [u8; WINDOW],
    at: usize,
}

impl RollingSum {
    const WEIGHT: u32 = 64;

    fn new() -> Self {
        Self {
            s1: Self::WEIGHT * OFFSET,
            s2: Self::WEIGHT * (Self::WEIGHT - 1) * OFFSET,
            window: [0; WINDOW],
            at: 0,
        }
    }

    /// Takes a byte in; whether a chunk ends with it.
    #[inline]
    fn roll(&mut self, byte: u8) -> bool {
        let place = &mut self.window[self.at % WINDOW];
        let gone = u32::from(std::mem::replace(place, byte));
        self.at = self.at.wrapping_add(1);
        self.s1 = self.s1.wrapping_add(u32::from(byte)).wrapping_sub(gone);
        self.s2 = self
            .s2
            .wrapping_add(self.s1)
            .wrapping_sub(Self::WEIGHT * (gone + OFFSET));
        self.s2 & MASK == MASK
    }

    /// Takes the zeros of a hole in. From a whole window of them on nothing changes any more.
    fn roll_hole(&mut self) {
        for _ in 0..WINDOW {
            self.roll(0);
        }
    }
}

/// Cuts the content of one file. See the module's head.
pub(super) struct Splitter {
    sum: RollingSum,
    /// Zeros at the end of what has come, too few for a hole so far.
    zeros: u64,
    is_in_hole: bool,
}

impl Splitter {
    /// At the start of a file.
    pub(super) fn new() -> Self {
        Self {
            sum: RollingSum::new(),
            zeros: 0,
            is_in_hole: false,
        }
    }

    /// Bytes that were pushed and are still to be told of.
    pub(super) fn held_back(&self) -> usize {
        // Fewer than make a hole.
        usize::try_from(self.zeros).unwrap_or(0)
    }

    /// Takes the next bytes of the file in.
    pub(super) fn push(&mut self, mut bytes: &[u8], out: &mut impl Chunks) {
        while !bytes.is_empty() {
            let run = leading_zeros(bytes);
            if self.is_in_hole {
                out.zeros(run as u64);
                bytes = bytes.get(run..).unwrap_or_default();
                if bytes.is_empty() {
                    return;
                }
                self.is_in_hole = false;
                out.end(true);
            } else if run > 0 {
                self.zeros += run as u64;
                bytes = bytes.get(run..).unwrap_or_default();
                if self.zeros >= HOLE {
                    self.sum.roll_hole();
                    out.end(false);
                    out.zeros(std::mem::take(&mut self.zeros));
                    self.is_in_hole = true;
                } else if bytes.is_empty() {
                    return;
                }
            } else {
                self.short_run(out);
                bytes = self.scan(bytes, out);
            }
        }
    }

    /// At the end of the file.
    pub(super) fn finish(mut self, out: &mut impl Chunks) {
        self.short_run(out);
        out.end(self.is_in_hole);
    }

    /// Zeros that turned out to be no hole.
    fn short_run(&mut self, out: &mut impl Chunks) {
        let mut before = 0;
        for _ in 0..std::mem::take(&mut self.zeros) {
            before += 1;
            if self.sum.roll(0) {
                out.zeros(std::mem::take(&mut before));
                out.end(false);
            }
        }
        if before > 0 {
            out.zeros(before);
        }
    }

    /// Takes bytes in up to zeros of which it cannot be told yet what they are; returns those and what follows.
    fn scan<'a>(&mut self, mut bytes: &'a [u8], out: &mut impl Chunks) -> &'a [u8] {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            // Zeros that end soon are ordinary bytes; others are looked at by the caller.
            if byte == 0 {
                let run = leading_zeros(bytes.get(at..).unwrap_or_default());
                if run as u64 >= HOLE || at + run == bytes.len() {
                    break;
                }
                for _ in 0..run {
                    at += 1;
                    if self.sum.roll(0) {
                        bytes = cut(bytes, &mut at, out);
                    }
                }
            } else {
                at += 1;
                if self.sum.roll(byte) {
                    bytes = cut(bytes, &mut at, out);
                }
            }
        }
        let (taken, rest) = bytes.split_at_checked(at).unwrap_or((bytes, &[]));
        if !taken.is_empty() {
            out.bytes(taken);
        }
        rest
    }
}

/// Ends a chunk with the bytes before `at`; returns those behind, which `at` counts from again.
fn cut<'a>(bytes: &'a [u8], at: &mut usize, out: &mut impl Chunks) -> &'a [u8] {
    let (chunk, rest) = bytes.split_at_checked(std::mem::take(at)).unwrap_or((bytes, &[]));
    out.bytes(chunk);
    out.end(false);
    rest
}

fn leading_zeros(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| **byte == 0).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Seen {
        bytes: Vec<u8>,
        /// Ends, and whether they are those of holes.
        ends: Vec<(usize, bool)>,
    }

    impl Chunks for Seen {
        fn bytes(&mut self, bytes: &[u8]) {
            self.bytes.extend_from_slice(bytes);
        }

        fn zeros(&mut self, count: u64) {
            self.bytes
                .resize(self.bytes.len() + usize::try_from(count).unwrap(), 0);
        }

        fn end(&mut self, is_hole: bool) {
            if self.ends.last().map_or(0, |(end, _)| *end) < self.bytes.len() {
                self.ends.push((self.bytes.len(), is_hole));
            }
        }
    }

    fn split<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Seen {
        let mut seen = Seen::default();
        let mut splitter = Splitter::new();
        for piece in pieces {
            splitter.push(piece, &mut seen);
        }
        splitter.finish(&mut seen);
        seen
    }

    /// The rules, one byte after the other.
    fn plainly(data: &[u8]) -> Vec<(usize, bool)> {
        let (mut window, mut s1, mut s2) = (vec![0u8; 64], 64 * 31u32, 64 * 63 * 31u32);
        let mut ends: Vec<(usize, bool)> = Vec::new();
        let mut end = |at: usize, is_hole| {
            if ends.last().map_or(0, |(end, _)| *end) < at {
                ends.push((at, is_hole));
            }
        };
        let mut at = 0;
        while at < data.len() {
            let run = data[at..].iter().take_while(|byte| **byte == 0).count();
            let (count, is_hole) = if run >= 1024 {
                (run, true)
            } else {
                (run.max(1), false)
            };
            if is_hole {
                end(at, false);
            }
            for _ in 0..count {
                let (gone, new) = (u32::from(window.remove(0)), data[at]);
                window.push(new);
                s1 = s1.wrapping_add(u32::from(new)).wrapping_sub(gone);
                s2 = s2.wrapping_add(s1).wrapping_sub(64 * (gone + 31));
                at += 1;
                if !is_hole && s2 & 0xffff == 0xffff {
                    end(at, false);
                }
            }
            if is_hole {
                end(at, true);
            }
        }
        end(data.len(), false);
        ends
    }

    fn noise(size: usize, mut state: u32) -> Vec<u8> {
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        };
        std::iter::repeat_with(next).take(size).collect()
    }

    #[test]
    fn chunks_end_where_the_rules_say() {
        let mut data = noise(300_000, 1);
        data.extend(vec![0; 1023]);
        data.extend(noise(70_000, 2));
        data.extend(vec![0; 1024]);
        data.extend(noise(200_000, 3));
        data.extend(vec![0; 100_000]);
        let seen = split([&*data]);
        assert!(seen.bytes == data);
        assert_eq!(seen.ends, plainly(&data));
        let holes: Vec<usize> = seen.ends.iter().filter(|end| end.1).map(|end| end.0).collect();
        assert_eq!(holes, [372_047, 672_047], "{:?}", seen.ends);
        assert!(seen.ends.len() > 8, "{:?}", seen.ends);
    }

    #[test]
    fn a_file_may_be_one_hole_or_nothing() {
        assert_eq!(split([&[0; 5000][..]]).ends, [(5000, true)]);
        assert_eq!(split([&[0; 1023][..]]).ends, [(1023, false)]);
        assert_eq!(split([]).ends, []);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pieces_do_not_matter(
            parts in prop::collection::vec((0usize..3000, any::<u32>(), 0usize..3000), 0..20),
            size in 1usize..5000,
        ) {
            let mut data = Vec::new();
            for (bytes, seed, zeros) in parts {
                data.extend(noise(bytes, seed));
                data.extend(vec![0; zeros]);
            }
            let whole = split([&*data]);
            prop_assert_eq!(&whole.ends, &plainly(&data));
            prop_assert!(whole.bytes == data);
            prop_assert_eq!(split(data.chunks(size)), whole);
        }
    }
}
