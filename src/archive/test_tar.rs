//! Builds tar archives for tests, odd ones too.

use crate::archive::tar::header::BLOCK;

/// A pax record, `LENGTH KEY=VALUE\n`.
pub(crate) fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// One entry; every field can be set to something odd.
#[derive(Clone, Debug)]
pub(crate) struct Item {
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

impl Item {
    fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            kind,
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            content: Vec::new(),
            size: None,
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 1_600_000_000,
            device: (0, 0),
            magic: *b"ustar\x0000",
            records: Vec::new(),
            signed_checksum: false,
            patches: Vec::new(),
        }
    }

    pub(crate) fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Self::new(b'0', name).content(content)
    }

    pub(crate) fn dir(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', name)
    }

    pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'2', name).link(target)
    }

    pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'1', name).link(target)
    }

    pub(crate) fn fifo(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'6', name)
    }

    pub(crate) fn device(kind: u8, name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        let mut item = Self::new(kind, name);
        item.device = (major, minor);
        item
    }

    /// An entry of any type.
    pub(crate) fn typed(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self::new(kind, name)
    }

    pub(crate) fn kind(mut self, kind: u8) -> Self {
        self.kind = kind;
        self
    }

    pub(crate) fn link(mut self, target: impl AsRef<[u8]>) -> Self {
        self.link = target.as_ref().to_vec();
        self
    }

    pub(crate) fn content(mut self, content: impl AsRef<[u8]>) -> Self {
        self.content = content.as_ref().to_vec();
        self
    }

    /// The size field as bytes, whatever the content is.
    pub(crate) fn size_field(mut self, field: impl AsRef<[u8]>) -> Self {
        self.size = Some(field.as_ref().to_vec());
        self
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub(crate) fn mtime(mut self, mtime: i64) -> Self {
        self.mtime = mtime;
        self
    }

    /// Magic and version.
    pub(crate) fn magic(mut self, magic: &[u8; 8]) -> Self {
        self.magic = *magic;
        self
    }

    pub(crate) fn gnu(self) -> Self {
        self.magic(b"ustar  \0")
    }

    /// A pax record in an extended header before the entry.
    pub(crate) fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.records.extend(pax_record(key.as_ref(), value.as_ref()));
        self
    }

    pub(crate) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(format!("SCHILY.xattr.{name}"), value)
    }

    pub(crate) fn signed_checksum(mut self) -> Self {
        self.signed_checksum = true;
        self
    }

    /// Overwrites bytes of the header before the checksum is made.
    pub(crate) fn patch(mut self, at: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.patches.push((at, bytes.as_ref().to_vec()));
        self
    }

    fn header(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, &numeric(self.uid.cast_signed(), 8));
        put(116, &numeric(self.gid.cast_signed(), 8));
        put(124, &numeric(i64::try_from(self.content.len()).unwrap(), 12));
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

/// An archive in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct TarBuilder {
    bytes: Vec<u8>,
}

impl TarBuilder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn add(mut self, item: Item) -> Self {
        item.write(&mut self.bytes);
        self
    }

    /// Bytes as they are.
    pub(crate) fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.bytes.extend_from_slice(bytes.as_ref());
        self
    }

    /// The archive with two end blocks.
    pub(crate) fn end(self) -> Vec<u8> {
        self.raw([0; 2 * BLOCK]).bytes
    }

    /// The archive as it is.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

impl FromIterator<Item> for TarBuilder {
    fn from_iter<I: IntoIterator<Item = Item>>(items: I) -> Self {
        items.into_iter().fold(Self::new(), Self::add)
    }
}
