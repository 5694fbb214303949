//! What is where in a cache file, version 3, which the Go library writes and reads too. All integers are little-endian.
//!
//! | part | content |
//! |---|---|
//! | u64, u64, u64 | version, bytes of a tag, bytes of a digest |
//! | u64, u32, u64 … | words of the filter, hashes, the filter: which digests there may be (a Bloom filter) |
//! | u64, u64, u64 | bytes of tags, locations and names |
//! | tags | sorted; each is a digest (`sha256:` and 32 bytes), the position of its location, and the location's bytes |
//! | locations | three varints (LEB128): position of the name, offset in the file, length |
//! | names | each with its length as u32 in front |
//!
//! A file has a tag with the digest of its content and one with its fingerprint, a chunk of a file one with its
//! digest. A file without content is there too. Without any file, tags and digests have a length of 0.

/// Key of the big data item with the cache.
pub(crate) const CACHE_KEY: &str = "chunked-manifest-cache";

/// Key of the big data item with the text of the table of contents.
pub(crate) const TOC_KEY: &str = "zstd-chunked-manifest";

/// Key of the big data item that says how the layer's files are stored.
pub(crate) const FORMAT_KEY: &str = "zstd-chunked-layer-data";

/// The one version of cache files. Another one is replaced by either side.
pub(super) const VERSION: u64 = 3;

/// Bytes of a sha256 digest as in a tag.
pub(super) const DIGEST_LENGTH: usize = DIGEST_PREFIX.len() + 32;

/// What the digest in a tag begins with.
pub(super) const DIGEST_PREFIX: &[u8] = b"sha256:";

/// Bytes of a tag.
pub(super) const TAG_LENGTH: usize = DIGEST_LENGTH + 16;

/// Bytes of all tags that the Go library reads.
pub(super) const MAX_TAGS_LENGTH: u64 = 100_000_000;
