//! The JSON text of a table of contents, read in one stream.
//!
//! As lenient as the Go library where real tables need it: keys in any case, unknown keys, `null` for nothing, bytes in
//! strings that are no UTF-8. Numbers are whole, keys of the table itself are there once, and after the table there is
//! nothing.

use std::fmt;
use std::io::{self, BufReader, Read};

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::builder::{Bounds, Builder, MAX_TEXT, bad};
use super::raw_entry::{RawEntry, Sink};
use super::table::Toc;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// The one version of tables.
const VERSION: i64 = 1;

/// Bytes of a string before its escapes are undone and base64 is decoded.
const MAX_STRING: usize = 6 * MAX_TEXT;

/// Bytes of a text that is read as a whole: that of a table with some 15,000 entries.
const MAX_HEAD: u64 = 8 << 20;

/// Size of the buffer before the parser.
const BUFFER: usize = 64 * 1024;

/// Reads a table of contents; its text is what `input` has.
///
/// # Errors
/// [`ErrorKind::InvalidArchive`] for what no table can say; [`ErrorKind::NotSupported`] for one that is too large, or of
/// another version; [`ErrorKind::Io`].
pub(crate) fn parse(input: impl Read, bounds: Bounds) -> Result<Toc> {
    let mut builder = Builder::new(bounds);
    parse_entries(input, &mut builder)?;
    builder.finish()
}

/// Gives the entries of a table of contents to `sink`, with what the text says of them. Nothing of it is checked but its
/// form.
///
/// # Errors
/// As [`parse`], and those of `sink`.
pub(crate) fn parse_entries(input: impl Read, sink: &mut dyn Sink) -> Result<()> {
    let mut reading = Reading {
        sink,
        raw: RawEntry::default(),
        entries: 0,
        version: None,
        has_entries: false,
        has_tar_split: false,
        failure: None,
    };
    let mut head = Head::new(input);
    let parsed = head
        .read()
        .map_err(serde_json::Error::io)
        .and_then(|is_all| match is_all {
            true => table(
                &mut serde_json::Deserializer::from_slice(&head.bytes),
                &mut reading,
            ),
            false => {
                let guard = ShortStrings::new(BufReader::with_capacity(BUFFER, head));
                let buffered = BufReader::with_capacity(BUFFER, guard);
                table(&mut serde_json::Deserializer::from_reader(buffered), &mut reading)
            }
        });
    if let Some(failure) = reading.failure {
        return Err(failure);
    }
    if let Err(error) = parsed {
        let error: io::Error = error.into();
        // What the reader below has failed with is about reading and not about the text.
        if error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
            return Err(Error::io("reading the table of contents", error));
        }
        let kind = match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => ErrorKind::InvalidArchive,
            _ => return Err(Error::io("reading the table of contents", error)),
        };
        return Err(kind.err("parsing the table of contents").with_source(error));
    }
    match reading.version {
        Some(VERSION) => Ok(()),
        other => {
            let version = other.map_or("no".to_owned(), |version| version.to_string());
            Err(ErrorKind::NotSupported.err(format!("a table of contents of version {version}")))
        }
    }
}

/// Reads a table, and that nothing follows it.
fn table<'de, R: serde_json::de::Read<'de>>(
    json: &mut serde_json::Deserializer<R>,
    reading: &mut Reading<'_>,
) -> serde_json::Result<()> {
    json.deserialize_map(TableVisitor(reading))?;
    json.end()
}

/// The first bytes of a text, which may be all of it. A text in memory is gone through several times as fast.
struct Head<R> {
    bytes: Vec<u8>,
    /// Those that were read again.
    given: usize,
    rest: R,
}

impl<R: Read> Head<R> {
    fn new(rest: R) -> Self {
        Self {
            bytes: Vec::new(),
            given: 0,
            rest,
        }
    }

    /// Reads them; whether there are no more.
    fn read(&mut self) -> io::Result<bool> {
        let count = (&mut self.rest).take(MAX_HEAD).read_to_end(&mut self.bytes)?;
        Ok((count as u64) < MAX_HEAD)
    }
}

impl<R: Read> Read for Head<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(mut left) = self.bytes.get(self.given..).filter(|left| !left.is_empty()) else {
            // The table takes memory from here on.
            self.bytes = Vec::new();
            return self.rest.read(out);
        };
        let count = left.read(out)?;
        self.given += count;
        Ok(count)
    }
}

/// What has been read so far.
struct Reading<'s> {
    sink: &'s mut dyn Sink,
    raw: RawEntry,
    entries: u64,
    version: Option<i64>,
    has_entries: bool,
    has_tar_split: bool,
    /// Why parsing was given up, where it is not for the text's form.
    failure: Option<Error>,
}

impl Reading<'_> {
    fn fail<E: serde::de::Error>(&mut self, failure: Error) -> E {
        self.failure = Some(failure);
        E::custom("refused")
    }
}

struct TableVisitor<'a, 's>(&'a mut Reading<'s>);

impl<'de> Visitor<'de> for TableVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self(reading) = self;
        let mut key = Vec::new();
        while map.next_key_seed(Text(&mut key))?.is_some() {
            key.make_ascii_lowercase();
            match &*key {
                b"version" => reading.version = map.next_value()?,
                b"entries" => {
                    if std::mem::replace(&mut reading.has_entries, true) {
                        return Err(reading.fail(bad("a table of contents with two lists of entries")));
                    }
                    map.next_value_seed(Entries(&mut *reading))?;
                }
                b"tarsplitdigest" => {
                    let mut text = Vec::new();
                    map.next_value_seed(Text(&mut text))?;
                    let digest = std::str::from_utf8(&text)
                        .ok()
                        .and_then(|text| text.parse::<Digest>().ok());
                    let Some(digest) = digest else {
                        let what =
                            format!("tarSplitDigest {:?} is no digest", String::from_utf8_lossy(&text));
                        return Err(reading.fail(bad(what)));
                    };
                    if std::mem::replace(&mut reading.has_tar_split, true) {
                        return Err(
                            reading.fail(bad("a table of contents with two digests of tar-split data"))
                        );
                    }
                    reading.sink.set_tar_split_digest(digest);
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// The list of entries.
struct Entries<'a, 's>(&'a mut Reading<'s>);

impl<'de> DeserializeSeed<'de> for Entries<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self(reading) = self;
        loop {
            reading.raw.clear();
            if list.next_element_seed(Fields(&mut reading.raw))?.is_none() {
                return Ok(());
            }
            reading.entries += 1;
            if let Err(error) = reading.sink.add(&reading.raw) {
                let number = reading.entries;
                return Err(reading.fail(error.context(format!("entry {number} of the table of contents"))));
            }
        }
    }
}

/// The fields of one entry.
struct Fields<'a>(&'a mut RawEntry);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self(raw) = self;
        let mut key = Key::default();
        while map.next_key_seed(&mut key)?.is_some() {
            let text = match key.bytes() {
                b"type" => Some(&mut raw.kind),
                b"name" => Some(&mut raw.name),
                b"linkname" => Some(&mut raw.link),
                b"modtime" => Some(&mut raw.time),
                b"accesstime" => Some(&mut raw.access_time),
                b"changetime" => Some(&mut raw.change_time),
                b"digest" => Some(&mut raw.digest),
                b"chunkdigest" => Some(&mut raw.chunk_digest),
                b"chunktype" => Some(&mut raw.chunk_type),
                _ => None,
            };
            if let Some(text) = text {
                map.next_value_seed(Text(text))?;
                continue;
            }
            let number = match key.bytes() {
                b"mode" => Some(&mut raw.mode),
                b"size" => Some(&mut raw.size),
                b"uid" => Some(&mut raw.uid),
                b"gid" => Some(&mut raw.gid),
                b"devmajor" => Some(&mut raw.dev_major),
                b"devminor" => Some(&mut raw.dev_minor),
                b"offset" => Some(&mut raw.offset),
                b"endoffset" => Some(&mut raw.end_offset),
                b"inneroffset" => Some(&mut raw.inner_offset),
                b"chunksize" => Some(&mut raw.chunk_size),
                b"chunkoffset" => Some(&mut raw.chunk_offset),
                _ => None,
            };
            if let Some(number) = number {
                *number = map.next_value::<Option<i64>>()?.unwrap_or(0);
            } else if key.bytes() == b"xattrs" {
                map.next_value_seed(Xattrs(&mut raw.xattrs))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The key of a field in lower case, as far as that is needed to know it.
#[derive(Default)]
struct Key {
    bytes: [u8; 16],
    length: usize,
}

impl Key {
    fn bytes(&self) -> &[u8] {
        // Longer than every key that is known.
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl<'de> DeserializeSeed<'de> for &mut Key {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for &mut Key {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<(), E> {
        self.length = bytes.len();
        if let Some(room) = self.bytes.get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
            room.make_ascii_lowercase();
        }
        Ok(())
    }
}

/// A string, whatever its bytes are; `null` is an empty one.
struct Text<'a>(&'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        self.0.clear();
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_bytes(self)
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<(), E> {
        self.0.clear();
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Names and values of extended attributes.
struct Xattrs<'a>(&'a mut Vec<(Vec<u8>, Vec<u8>)>);

impl<'de> DeserializeSeed<'de> for Xattrs<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Xattrs<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("attributes")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self(xattrs) = self;
        let mut name = Vec::new();
        let mut total = 0;
        while map.next_key_seed(Text(&mut name))?.is_some() {
            let mut value = Vec::new();
            map.next_value_seed(Text(&mut value))?;
            if xattrs.len() >= MAX_XATTRS {
                return Err(A::Error::custom(format!("more than {MAX_XATTRS} attributes")));
            }
            total += name.len() + value.len();
            if total > MAX_STRING {
                return Err(A::Error::custom(format!("attributes of over {MAX_STRING} bytes")));
            }
            xattrs.push((std::mem::take(&mut name), value));
        }
        Ok(())
    }
}

/// Attributes of one entry. Linux keeps all of a file's names within 64 KiB.
const MAX_XATTRS: usize = 65_536 / 2;

/// Refuses text with strings that are longer than any that is wanted, before the parser gathers them.
struct ShortStrings<R> {
    inner: R,
    is_within: bool,
    is_escaped: bool,
    length: usize,
}

impl<R> ShortStrings<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            is_within: false,
            is_escaped: false,
            length: 0,
        }
    }
}

impl<R: Read> Read for ShortStrings<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        for byte in out.iter().take(count) {
            if !self.is_within {
                self.is_within = *byte == b'"';
                self.length = 0;
            } else if std::mem::take(&mut self.is_escaped) {
                self.length += 2;
            } else {
                match byte {
                    b'"' => self.is_within = false,
                    b'\\' => self.is_escaped = true,
                    _ => self.length += 1,
                }
            }
        }
        if self.length > MAX_STRING {
            let what = format!("a string of over {MAX_STRING} bytes in the table of contents");
            return Err(bad(what).into());
        }
        Ok(count)
    }
}
