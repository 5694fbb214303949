//! Tar archives byte by byte, so that they can be as wrong as a test needs.

/// Size of a tar block.
pub(crate) const BLOCK: usize = 512;

/// One header in the making. The defaults are those of an empty regular file.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    block: [u8; BLOCK],
}

impl Header {
    /// A header of type `kind` (`b'0'` file, `b'1'` hard link, `b'2'` symbolic link, `b'3'` character device, `b'4'`
    /// block device, `b'5'` directory, `b'6'` FIFO).
    pub(crate) fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        let mut header = Self { block: [0; BLOCK] };
        header.put(0, 100, name.as_ref());
        header.block[156] = kind;
        header.put(257, 8, b"ustar\x0000");
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        header.mode(mode).owner(0, 0).size(0).mtime(1_700_000_000)
    }

    fn put(&mut self, at: usize, len: usize, value: &[u8]) {
        assert!(value.len() <= len, "{} does not fit", value.escape_ascii());
        self.block[at..at + len].fill(0);
        self.block[at..at + value.len()].copy_from_slice(value);
    }

    fn number(mut self, at: usize, len: usize, value: u64) -> Self {
        let text = format!("{value:0width$o}\0", width = len - 1);
        self.put(at, len, text.as_bytes());
        self
    }

    pub(crate) fn mode(self, mode: u32) -> Self {
        self.number(100, 8, mode.into())
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Self {
        self.number(108, 8, uid.into()).number(116, 8, gid.into())
    }

    /// The size that the header states.
    pub(crate) fn size(self, size: u64) -> Self {
        self.number(124, 12, size)
    }

    /// The twelve bytes of the size field as they are, for sizes that no octal number expresses.
    pub(crate) fn raw_size(mut self, field: &[u8; 12]) -> Self {
        self.put(124, 12, field);
        self
    }

    pub(crate) fn mtime(self, seconds: u64) -> Self {
        self.number(136, 12, seconds)
    }

    pub(crate) fn link(mut self, target: impl AsRef<[u8]>) -> Self {
        self.put(157, 100, target.as_ref());
        self
    }

    pub(crate) fn device(self, major: u32, minor: u32) -> Self {
        self.number(329, 8, major.into()).number(337, 8, minor.into())
    }

    /// The block, with its checksum.
    pub(crate) fn bytes(mut self) -> [u8; BLOCK] {
        self.block[148..156].fill(b' ');
        let sum: u64 = self.block.iter().map(|byte| u64::from(*byte)).sum();
        self.put(148, 8, format!("{sum:06o}\0 ").as_bytes());
        self.block
    }
}

/// An archive in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A header followed by `content`, padded, whatever size the header states.
    pub(crate) fn entry(mut self, header: Header, content: impl AsRef<[u8]>) -> Self {
        self.bytes.extend(header.bytes());
        self.bytes.extend(content.as_ref());
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(crate) fn file(self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        let size = content.as_ref().len().try_into().unwrap();
        self.entry(Header::new(b'0', name).size(size), content)
    }

    pub(crate) fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.entry(Header::new(b'5', name), "")
    }

    pub(crate) fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(Header::new(b'2', name).mode(0o777).link(target), "")
    }

    pub(crate) fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(Header::new(b'1', name).link(target), "")
    }

    /// PAX records for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let content: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| pax_record(key, value))
            .collect();
        let header = Header::new(b'x', "PaxHeaders/entry").size(content.len().try_into().unwrap());
        self.entry(header, content)
    }

    /// Bytes as they are.
    pub(crate) fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.bytes.extend(bytes.as_ref());
        self
    }

    /// The archive so far, without an end mark.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.bytes
    }

    /// The archive with its end mark.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.raw([0; 2 * BLOCK]).bytes
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend(value);
    record.push(b'\n');
    record
}

#[test]
fn tar_reads_what_the_builder_writes() {
    use super::peers::Run as _;
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}end", "long/".repeat(40));
    let archive = Tar::new()
        .dir("d/")
        .file("d/file", "content")
        .hard_link("d/second", "d/file")
        .symlink("d/symbolic", "file")
        .pax(&[("path", long.as_bytes()), ("mtime", b"1700000000.123456789")])
        .file("short", vec![7; 1000])
        .finish();
    std::fs::write(dir.path().join("a.tar"), archive).unwrap();
    let listed = std::process::Command::new("tar")
        .args(["--list", "--verbose", "--full-time", "--utc", "--file", "a.tar"])
        .current_dir(dir.path())
        .run();
    for expected in [
        "d/second link to d/file",
        "d/symbolic -> file",
        "2023-11-14 22:13:20.123456789 long/",
        "/end",
        " 1000 ",
    ] {
        assert!(listed.contains(expected), "{expected:?} is missing in:\n{listed}");
    }
}
