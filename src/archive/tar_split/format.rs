//! The tar-split file: everything of a layer's tar stream except what its files hold.
//!
//! On disk it is gzip (one member, level 1, when written here; any when read) over lines of JSON. A line is either a
//! segment of raw bytes (type 2: headers, padding, end blocks) or stands for one file's payload (type 1: name, size,
//! CRC-64). Segments and payloads, concatenated in order, are the stream, bit for bit.
//!
//! Other programs replay these files, and they refuse two type-1 lines of one cleaned name. What cannot be read back
//! from the extracted tree therefore goes into segments. Where segments are cut means nothing.
//!
//! The caller owns the file: it writes to a temporary name and renames, so a crash leaves no half-written one.

use std::io::{BufRead, BufReader, Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::Deserialize;

use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::json::push_escaped;

/// The largest segment that is written as one line.
pub(crate) const MAX_SEGMENT: usize = 1 << 20;

/// The longest line that is read: other writers put up to a few MiB of long names and attributes into one segment.
const MAX_LINE: usize = 32 << 20;

/// Bytes of lines without meaning that are passed over between two others: no writer makes more than one of them.
const MAX_PASSED: usize = 1 << 20;

/// One line of a tar-split file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Bytes of the stream.
    Segment(Vec<u8>),
    /// The payload of a file. With size 0 (also for everything that is no file) it stands for no bytes at all.
    File {
        /// The name as in the archive, not cleaned.
        name: Vec<u8>,
        /// How many bytes the payload has.
        size: u64,
        /// CRC-64 of the payload; meaningless for size 0.
        crc: [u8; 8],
    },
}

/// Writes a tar-split file, compression included.
pub(crate) struct TarSplitWriter<W: Write> {
    lines: TarSplitLines<GzEncoder<W>>,
}

impl<W: Write> TarSplitWriter<W> {
    /// A writer to `inner`, which should be buffered.
    pub(crate) fn new(inner: W) -> Self {
        Self {
            lines: TarSplitLines::new(GzEncoder::new(inner, flate2::Compression::fast())),
        }
    }

    /// How many lines were written, that is, the position of the next one.
    pub(crate) fn position(&self) -> u64 {
        self.lines.position
    }

    /// Adds raw bytes; no line for none, several for many.
    pub(crate) fn segment(&mut self, data: &[u8]) -> Result<()> {
        data.chunks(MAX_SEGMENT)
            .try_for_each(|part| self.lines.segment(part))
    }

    /// Adds a file's payload by reference.
    pub(crate) fn file(&mut self, name: &[u8], size: u64, crc: [u8; 8]) -> Result<()> {
        self.lines.file(name, size, crc)
    }

    /// Ends the compressed stream and hands back what is below.
    pub(crate) fn finish(self) -> Result<W> {
        let mut inner = self.lines.inner.finish().during("writing tar-split data")?;
        inner.flush().during("writing tar-split data")?;
        Ok(inner)
    }
}

/// Writes the lines of a tar-split file.
pub(crate) struct TarSplitLines<W: Write> {
    inner: W,
    position: u64,
    /// The line being built; kept for its allocation.
    line: String,
}

impl<W: Write> TarSplitLines<W> {
    /// A writer to `inner`.
    pub(crate) fn new(inner: W) -> Self {
        Self {
            inner,
            position: 0,
            line: String::new(),
        }
    }

    /// Adds raw bytes as one line.
    pub(crate) fn segment(&mut self, data: &[u8]) -> Result<()> {
        self.line.clear();
        self.line.push_str("{\"type\":2,\"payload\":\"");
        BASE64.encode_string(data, &mut self.line);
        self.line.push('"');
        self.end_line()
    }

    /// Adds a file's payload by reference.
    pub(crate) fn file(&mut self, name: &[u8], size: u64, crc: [u8; 8]) -> Result<()> {
        self.line.clear();
        match std::str::from_utf8(name) {
            Ok(name) => {
                self.line.push_str("{\"type\":1,\"name\":\"");
                push_escaped(&mut self.line, name);
            }
            Err(_not_text) => {
                self.line.push_str("{\"type\":1,\"name_raw\":\"");
                BASE64.encode_string(name, &mut self.line);
            }
        }
        self.line.push('"');
        if size == 0 {
            self.line.push_str(",\"payload\":null");
        } else {
            self.line.push_str(",\"size\":");
            push_number(&mut self.line, size);
            self.line.push_str(",\"payload\":\"");
            BASE64.encode_string(crc, &mut self.line);
            self.line.push('"');
        }
        self.end_line()
    }

    fn end_line(&mut self) -> Result<()> {
        self.line.push_str(",\"position\":");
        push_number(&mut self.line, self.position);
        self.line.push_str("}\n");
        self.position += 1;
        self.inner
            .write_all(self.line.as_bytes())
            .during("writing tar-split data")
    }

    /// Hands back what is below.
    pub(crate) fn into_inner(self) -> W {
        self.inner
    }
}

fn push_number(line: &mut String, number: u64) {
    use std::fmt::Write as _;
    // Writing to a string cannot fail.
    write!(line, "{number}").unwrap_or_default();
}

/// What a line may say; unknown keys are ignored, as are `position` and the order of keys.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: i64,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    name_raw: Option<String>,
    #[serde(default)]
    size: Option<i64>,
    #[serde(default)]
    payload: Option<String>,
}

/// Reads the lines of a tar-split file.
pub(crate) struct TarSplitReader<R> {
    inner: R,
    line: Vec<u8>,
    number: u64,
}

/// Reads a tar-split file as it is on disk.
pub(crate) type GzipTarSplitReader<R> = TarSplitReader<BufReader<MultiGzDecoder<R>>>;

impl<R: Read> GzipTarSplitReader<R> {
    /// A reader of the compressed file `inner`.
    pub(crate) fn new(inner: R) -> Self {
        Self::of_text(BufReader::with_capacity(64 << 10, MultiGzDecoder::new(inner)))
    }
}

impl<R: BufRead> TarSplitReader<R> {
    /// A reader of the lines themselves.
    pub(crate) fn of_text(inner: R) -> Self {
        Self {
            inner,
            line: Vec::new(),
            number: 0,
        }
    }

    /// The next entry, `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut passed = 0;
        loop {
            self.line.clear();
            self.number += 1;
            let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
            let count = (&mut self.inner)
                .take(limit)
                .read_until(b'\n', &mut self.line)
                .map_err(|error| {
                    let kind = error.kind();
                    if matches!(
                        kind,
                        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::UnexpectedEof
                    ) {
                        let text = match kind {
                            std::io::ErrorKind::UnexpectedEof => "unexpected EOF".to_owned(),
                            _ => error.to_string(),
                        };
                        return ErrorKind::CorruptMetadata
                            .err("decompressing tar-split data")
                            .with_source(text);
                    }
                    Error::io("reading tar-split data", error)
                })?;
            if count == 0 {
                return Ok(None);
            }
            if self.line.last() != Some(&b'\n') && count >= MAX_LINE {
                return Err(self.bad("too long"));
            }
            let is_blank = self.line.iter().all(u8::is_ascii_whitespace);
            if !is_blank && let Some(entry) = self.parse()? {
                return Ok(Some(entry));
            }
            passed += count;
            if passed > MAX_PASSED {
                return Err(self.bad("after too many without meaning"));
            }
        }
    }

    fn bad(&self, why: &str) -> Error {
        ErrorKind::CorruptMetadata.err(format!("line {} of tar-split data ({why})", self.number))
    }

    fn decode(&self, text: &str) -> Result<Vec<u8>> {
        BASE64
            .decode(text)
            .map_err(|error| self.bad("bad base64").with_source(error))
    }

    /// The entry in the current line; `None` for a type that is not known.
    fn parse(&self) -> Result<Option<Entry>> {
        let line: Line =
            serde_json::from_slice(&self.line).map_err(|error| self.bad("bad JSON").with_source(error))?;
        match line.kind {
            2 => Ok(Some(Entry::Segment(
                self.decode(line.payload.as_deref().unwrap_or_default())?,
            ))),
            1 => {
                let name = match line.name_raw {
                    Some(raw) if !raw.is_empty() => self.decode(&raw)?,
                    _ => line.name.unwrap_or_default().into_bytes(),
                };
                let size = line.size.unwrap_or(0);
                let size = u64::try_from(size).map_err(|_reason| self.bad("negative size"))?;
                let crc = match line.payload {
                    Some(payload) if size != 0 => {
                        let crc = self.decode(&payload)?;
                        <[u8; 8]>::try_from(crc)
                            .map_err(|_wrong_length| self.bad("checksum is not 8 bytes"))?
                    }
                    None if size != 0 => return Err(self.bad("no checksum")),
                    _ => [0; 8],
                };
                Ok(Some(Entry::File { name, size, crc }))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<Entry>> {
        let mut reader = TarSplitReader::new(bytes);
        std::iter::from_fn(|| reader.next().transpose()).collect()
    }

    fn text(bytes: &[u8]) -> String {
        let mut text = String::new();
        MultiGzDecoder::new(bytes).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn lines_are_written_in_the_known_form() {
        let mut writer = TarSplitWriter::new(Vec::new());
        writer.segment(b"").unwrap();
        writer.segment(b"abc").unwrap();
        writer.file(b"d/", 0, [9; 8]).unwrap();
        writer
            .file(
                b"<\"\\\n\x01\xc3\xa4>",
                6,
                0x614c_3eee_e2d8_1000_u64.to_be_bytes(),
            )
            .unwrap();
        writer.file(b"\xff", 0, [0; 8]).unwrap();
        let bytes = writer.finish().unwrap();
        assert_eq!(
            text(&bytes),
            concat!(
                "{\"type\":2,\"payload\":\"YWJj\",\"position\":0}\n",
                "{\"type\":1,\"name\":\"d/\",\"payload\":null,\"position\":1}\n",
                "{\"type\":1,\"name\":\"\\u003c\\\"\\\\\\n\\u0001ä\\u003e\",\"size\":6,",
                "\"payload\":\"YUw+7uLYEAA=\",\"position\":2}\n",
                "{\"type\":1,\"name_raw\":\"/w==\",\"payload\":null,\"position\":3}\n",
            )
        );
    }

    #[test]
    fn large_segments_are_cut() {
        let mut writer = TarSplitWriter::new(Vec::new());
        writer.segment(&vec![7; MAX_SEGMENT * 2 + 1]).unwrap();
        assert_eq!(writer.position(), 3);
        let entries = read_all(&writer.finish().unwrap()).unwrap();
        let lengths: Vec<_> = entries
            .iter()
            .map(|entry| match entry {
                Entry::Segment(data) => data.len(),
                Entry::File { .. } => unreachable!(),
            })
            .collect();
        assert_eq!(lengths, [MAX_SEGMENT, MAX_SEGMENT, 1]);
    }

    #[test]
    fn the_reader_takes_every_spelling() {
        let mut bytes = gzip(concat!(
            "\n{\"position\":77,\"payload\":\"YWJj\",\"type\":2,\"new\":{\"x\":[1]}}\n",
            "{\"type\":9}\n  \n",
            "{\"type\":1,\"name\":\"\\u0061\"}\n",
            "{\"type\":2}\n",
        ));
        bytes.extend(gzip(
            "{\"type\":1,\"name\":\"b\",\"size\":1,\"payload\":\"AAAAAAAAAAE=\"}",
        ));
        let file = |name: &[u8], size, crc: u64| Entry::File {
            name: name.into(),
            size,
            crc: crc.to_be_bytes(),
        };
        assert_eq!(
            read_all(&bytes).unwrap(),
            [
                Entry::Segment(b"abc".into()),
                file(b"a", 0, 0),
                Entry::Segment(Vec::new()),
                file(b"b", 1, 1)
            ]
        );
        assert!(read_all(&gzip("")).unwrap().is_empty());
    }

    #[test]
    fn damage_is_an_error_and_not_an_end() {
        let whole = gzip("{\"type\":2,\"payload\":\"YWJj\"}\n");
        let bad = [
            Vec::new(),
            b"{\"type\":2,\"payload\":\"YWJj\"}\n".to_vec(),
            whole[..whole.len() - 5].to_vec(),
            gzip("{\"type\":2,\"payload\":\"YW"),
            gzip("{\"type\":2,\"payload\":\"!!!!\"}"),
            gzip("{\"type\":1,\"name\":\"a\",\"size\":-1}"),
            gzip("{\"type\":1,\"name\":\"a\",\"size\":5}"),
            gzip("{\"type\":1,\"name\":\"a\",\"size\":5,\"payload\":\"YWJj\"}"),
        ];
        for bytes in bad {
            assert_eq!(
                read_all(&bytes).unwrap_err().kind(),
                ErrorKind::CorruptMetadata,
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn a_line_without_end_takes_no_unbounded_memory() {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let block = vec![b' '; 1 << 20];
        for _ in 0..40 {
            encoder.write_all(&block).unwrap();
        }
        let error = read_all(&encoder.finish().unwrap()).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in proptest::collection::vec(
            (any::<Vec<u8>>(), any::<u32>(), any::<[u8; 8]>(), any::<bool>()), 0..20)
        ) {
            let mut writer = TarSplitWriter::new(Vec::new());
            let mut expected = Vec::new();
            for (data, size, crc, segment) in entries {
                if segment {
                    writer.segment(&data).unwrap();
                    if !data.is_empty() {
                        expected.push(Entry::Segment(data));
                    }
                } else {
                    writer.file(&data, size.into(), crc).unwrap();
                    let crc = if size == 0 { [0; 8] } else { crc };
                    expected.push(Entry::File { name: data, size: size.into(), crc });
                }
            }
            prop_assert_eq!(read_all(&writer.finish().unwrap()).unwrap(), expected);
        }

        #[test]
        fn junk_never_panics(text in ".*", bytes in any::<Vec<u8>>()) {
            drop(read_all(&gzip(&text)));
            drop(read_all(&bytes));
        }
    }
}
