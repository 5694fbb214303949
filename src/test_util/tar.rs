//! Tar archives for tests, well-formed ones and ones that are wrong in a chosen way.

use std::io::Write as _;

/// Size of a tar block.
const BLOCK: usize = 512;

/// A PAX record as it stands in an extended header: `LENGTH KEY=VALUE\n`, where the length counts itself.
pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// One entry of an archive. The setters can make it as odd as a test needs: whatever is not set is as GNU tar writes it
/// for an entry that root owns.
#[derive(Clone, Debug)]
pub struct TarEntry {
    kind: u8,
    name: Vec<u8>,
    link: Vec<u8>,
    content: Vec<u8>,
    size: Option<Vec<u8>>,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: i64,
    device: (u32, u32),
    magic: [u8; 8],
    records: Vec<u8>,
    signed_checksum: bool,
    patches: Vec<(usize, Vec<u8>)>,
}

impl TarEntry {
    /// An entry of any type: `b'0'` file, `b'1'` hard link, `b'2'` symbolic link, `b'3'` character device, `b'4'` block
    /// device, `b'5'` directory, `b'6'` FIFO, `b'x'` PAX header. Directories have the mode 0755, symbolic links 0777,
    /// all else 0644.
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            kind,
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            content: Vec::new(),
            size: None,
            mode: match kind {
                b'5' => 0o755,
                b'2' => 0o777,
                _ => 0o644,
            },
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            magic: *b"ustar\x0000",
            records: Vec::new(),
            signed_checksum: false,
            patches: Vec::new(),
        }
    }

    /// A regular file.
    pub fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Self::new(b'0', name).content(content)
    }

    /// A directory.
    pub fn dir(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', name)
    }

    /// A symbolic link.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'2', name).link(target)
    }

    /// A hard link to an entry before it.
    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'1', name).link(target)
    }

    /// A FIFO.
    pub fn fifo(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'6', name)
    }

    /// A character device.
    pub fn char_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self::new(b'3', name).device(major, minor)
    }

    /// A block device.
    pub fn block_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self::new(b'4', name).device(major, minor)
    }

    /// The mark that `path` of the layers below is deleted.
    pub fn whiteout(path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let (dir, name) = path.split_at(path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1));
        Self::file([dir, b".wh.", name].concat(), "")
    }

    /// The mark that a directory hides everything that the layers below have in it.
    pub fn opaque(dir: impl AsRef<[u8]>) -> Self {
        let dir = dir.as_ref();
        let dir = dir.strip_suffix(b"/").unwrap_or(dir);
        Self::file([dir, b"/.wh..wh..opq"].concat(), "")
    }

    /// Sets the type, see [`TarEntry::new`].
    #[must_use]
    pub fn kind(mut self, kind: u8) -> Self {
        self.kind = kind;
        self
    }

    /// Sets the target of a link.
    #[must_use]
    pub fn link(mut self, target: impl AsRef<[u8]>) -> Self {
        self.link = target.as_ref().to_vec();
        self
    }

    /// Sets the bytes after the header.
    #[must_use]
    pub fn content(mut self, content: impl AsRef<[u8]>) -> Self {
        self.content = content.as_ref().to_vec();
        self
    }

    /// Sets the size that the header states, whatever the content is.
    #[must_use]
    pub fn size(self, size: u64) -> Self {
        self.size_field(numeric(size.cast_signed(), 12))
    }

    /// Sets the bytes of the size field, whatever the content is.
    #[must_use]
    pub fn size_field(mut self, field: impl AsRef<[u8]>) -> Self {
        self.size = Some(field.as_ref().to_vec());
        self
    }

    /// Sets the mode: permissions, set-user-ID, set-group-ID and sticky bit.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Sets user and group ID.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Sets the modification time in seconds since 1970; with the PAX record `mtime` it can be finer.
    #[must_use]
    pub fn mtime(mut self, mtime: i64) -> Self {
        self.mtime = mtime;
        self
    }

    /// Sets the numbers of a device.
    #[must_use]
    pub fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }

    /// Sets magic and version of the header.
    #[must_use]
    pub fn magic(mut self, magic: &[u8; 8]) -> Self {
        self.magic = *magic;
        self
    }

    /// Sets magic and version of old GNU tar.
    #[must_use]
    pub fn gnu(self) -> Self {
        self.magic(b"ustar  \0")
    }

    /// Adds a PAX record in an extended header before the entry.
    #[must_use]
    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.records.extend(pax_record(key.as_ref(), value.as_ref()));
        self
    }

    /// Adds an extended attribute.
    #[must_use]
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(format!("SCHILY.xattr.{name}"), value)
    }

    /// Computes the checksum over signed bytes, as some old programs do.
    #[must_use]
    pub fn signed_checksum(mut self) -> Self {
        self.signed_checksum = true;
        self
    }

    /// Overwrites bytes of the header before the checksum is computed.
    #[must_use]
    pub fn patch(mut self, at: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.patches.push((at, bytes.as_ref().to_vec()));
        self
    }

    /// The header block alone, for an archive that is made piece by piece.
    pub fn header(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, &numeric(self.uid.cast_signed(), 8));
        put(116, &numeric(self.gid.cast_signed(), 8));
        put(
            124,
            &numeric(i64::try_from(self.content.len()).unwrap_or(i64::MAX), 12),
        );
        put(136, &numeric(self.mtime, 12));
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, &self.magic);
        if self.device != (0, 0) || matches!(self.kind, b'3' | b'4') {
            put(329, &numeric(self.device.0.into(), 8));
            put(337, &numeric(self.device.1.into(), 8));
        }
        if let Some(field) = &self.size {
            put(124, field);
        }
        for (at, bytes) in &self.patches {
            put(*at, bytes);
        }
        let sum: i64 = block
            .iter()
            .map(|byte| {
                if self.signed_checksum {
                    i64::from(byte.cast_signed())
                } else {
                    i64::from(*byte)
                }
            })
            .sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn write(&self, out: &mut Vec<u8>) {
        if !self.records.is_empty() {
            Self::new(b'x', "pax").content(&self.records).write(out);
        }
        let long = |kind, text: &[u8]| {
            Self::new(kind, "././@LongLink")
                .gnu()
                .content([text, b"\0"].concat())
        };
        if self.name.len() > 100 {
            long(b'L', &self.name).write(out);
        }
        if self.link.len() > 100 {
            long(b'K', &self.link).write(out);
        }
        out.extend(self.header());
        out.extend(&self.content);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
}

/// A number in octal where it fits, else in base-256.
fn numeric(value: i64, width: usize) -> Vec<u8> {
    let text = format!("{value:0width$o}", width = width - 1);
    if value >= 0 && text.len() < width {
        return text.into_bytes();
    }
    let mut field = vec![if value < 0 { 0xff } else { 0 }; width];
    let bytes = value.to_be_bytes();
    let count = width.min(8);
    field[width - count..].copy_from_slice(&bytes[8 - count..]);
    field[0] = (field[0] & 0x7f) | 0x80;
    field
}

/// Builds a tar archive in memory.
///
/// ```
/// use graphroot::test_util::{TarBuilder, TarEntry};
///
/// let layer = TarBuilder::new()
///     .dir("etc")
///     .file("etc/hostname", "test\n")
///     .symlink("etc/name", "hostname")
///     .entry(TarEntry::file("bin/tool", "#!/bin/sh\n").mode(0o755).owner(1000, 1000))
///     .entry(TarEntry::whiteout("etc/old"))
///     .build();
/// assert_eq!(layer.len() % 512, 0);
/// ```
#[derive(Clone, Debug, Default)]
pub struct TarBuilder {
    bytes: Vec<u8>,
}

impl TarBuilder {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry.
    #[must_use]
    pub fn entry(mut self, entry: TarEntry) -> Self {
        entry.write(&mut self.bytes);
        self
    }

    /// Adds a regular file.
    #[must_use]
    pub fn file(self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.entry(TarEntry::file(name, content))
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.entry(TarEntry::dir(name))
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(TarEntry::symlink(name, target))
    }

    /// Adds a hard link to an entry before it.
    #[must_use]
    pub fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(TarEntry::hard_link(name, target))
    }

    /// Adds the mark that `path` of the layers below is deleted.
    #[must_use]
    pub fn whiteout(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(TarEntry::whiteout(path))
    }

    /// Adds the mark that a directory hides everything that the layers below have in it.
    #[must_use]
    pub fn opaque(self, dir: impl AsRef<[u8]>) -> Self {
        self.entry(TarEntry::opaque(dir))
    }

    /// Adds an extended header with these PAX records for the next entry.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let records: Vec<Vec<u8>> = records
            .iter()
            .map(|(key, value)| pax_record(key.as_bytes(), value))
            .collect();
        self.entry(TarEntry::new(b'x', "PaxHeaders/entry").content(records.concat()))
    }

    /// Adds bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.bytes.extend_from_slice(bytes.as_ref());
        self
    }

    /// The archive with its end mark, two empty blocks.
    pub fn build(self) -> Vec<u8> {
        self.raw([0; 2 * BLOCK]).bytes
    }

    /// The archive with its end mark, compressed with gzip.
    pub fn build_gzip(self) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let written = encoder.write_all(&self.build());
        // Writing to memory does not fail.
        written.and_then(|()| encoder.finish()).unwrap_or_default()
    }

    /// The archive with its end mark, compressed with zstd.
    pub fn build_zstd(self) -> Vec<u8> {
        // Writing to memory does not fail.
        zstd::stream::encode_all(&self.build()[..], 1).unwrap_or_default()
    }

    /// The archive without an end mark.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

impl FromIterator<TarEntry> for TarBuilder {
    fn from_iter<I: IntoIterator<Item = TarEntry>>(entries: I) -> Self {
        entries.into_iter().fold(Self::new(), Self::entry)
    }
}
