//! How files with the same content are found.

/// How [`Store::dedup`](crate::Store::dedup) finds files that may have the same content. The kernel compares them in any
/// case, so that a weak method costs time and nothing else.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DedupHashMethod {
    /// By a CRC-64 of their content.
    #[default]
    Crc,
    /// By their size alone: no content is read before the kernel compares it.
    FileSize,
    /// By the SHA-256 of their content.
    Sha256,
}

/// What [`Store::dedup`](crate::Store::dedup) does.
///
/// ```
/// use graphroot::{DedupHashMethod, DedupOptions};
///
/// let options = DedupOptions::default().hash_method(DedupHashMethod::Sha256);
/// assert_eq!(options.hash_method, DedupHashMethod::Sha256);
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DedupOptions {
    /// How files with the same content are found.
    pub hash_method: DedupHashMethod,
}

impl DedupOptions {
    /// Sets [`DedupOptions::hash_method`].
    #[must_use]
    pub fn hash_method(mut self, method: DedupHashMethod) -> Self {
        self.hash_method = method;
        self
    }
}
