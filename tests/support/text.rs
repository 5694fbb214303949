//! Content that compresses somewhat and does not repeat itself.

/// So many lines, the same for each seed.
pub(crate) fn text(lines: u32, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("line {} of {}\n", state >> 8, state % 10)
    };
    (0..lines).flat_map(|_| next().into_bytes()).collect()
}
