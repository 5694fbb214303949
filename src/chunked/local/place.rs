//! Where a content is, in little space: the plan of a layer has one for each of its files.

/// Where a content is. It belongs to the [`LocalContent`](super::LocalContent) that has found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of a layer, perhaps with [`WHOLE`]; or [`OSTREE`].
    pub(super) source: u32,
    /// The position of the name in the layer's cache file; or the number of what was found in repositories.
    pub(super) name: u32,
    /// Which byte of the file it begins at.
    pub(super) offset: u64,
}

/// The content is that of the whole file.
pub(super) const WHOLE: u32 = 1 << 31;

/// In an OSTree repository.
pub(super) const OSTREE: u32 = u32::MAX;

impl Place {
    /// The number of the layer.
    pub(super) fn layer(self) -> usize {
        (self.source & !WHOLE) as usize
    }

    /// Whether the content is that of the whole file.
    pub(super) fn is_whole(self) -> bool {
        self.source & WHOLE != 0
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_place_is_small() {
        assert_eq!(size_of::<super::Place>(), 16);
    }
}
