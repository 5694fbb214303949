//! Builds a tar stream, byte for byte by fixed rules, so that an unchanged layer always gives the same stream.
//!
//! A header is USTAR where everything fits, else pax, and never GNU; the choices within are those of the Go library,
//! so that streams of either are equal. The block's layout and the pax records come from `tar-core`; the builder of
//! `tokio-tar` encodes long names and large numbers differently.
//!
//! Content is written dense. A file has as many bytes in the stream as its header says, whatever happens to it
//! meanwhile: more are cut off, missing ones are zeros.
//!
//! The writer is a queue of what was decided and not yet taken: headers as bytes, content as an open file. It never
//! holds more than the headers of one file system object and one file.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::SeekFrom;

use tar_core::builder::PaxBuilder;
use tar_core::{EntryType, Header, UstarHeader};

use crate::bridge::read_spare;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::idmap::Owner;

use crate::archive::path;
use crate::archive::tar::block::{NAME, is_plain, pax_name, put_text, seal, split_at};
use crate::archive::tar::header::BLOCK;

/// Largest number in a field of 8 bytes.
const MAX_8: u64 = 0o777_7777;
/// Largest number in a field of 12 bytes.
const MAX_12: u64 = 0o777_7777_7777;
/// What is read of one pax header at most, here and by others.
const MAX_PAX: usize = 1 << 20;

/// One entry, all that its header says.
#[derive(Clone, Debug)]
pub(crate) struct Item<'a> {
    /// Path from the root, without a slash in front; directories end in one.
    pub(crate) name: &'a [u8],
    /// What it is.
    pub(crate) kind: EntryType,
    /// Permissions with set-ID and sticky bits.
    pub(crate) mode: u32,
    /// Owner as the container sees it.
    pub(crate) owner: Owner,
    /// Bytes of content that follow; 0 for all but regular files.
    pub(crate) size: u64,
    /// Modification time in seconds since 1970.
    pub(crate) mtime: i64,
    /// Nanoseconds within that second.
    pub(crate) nanoseconds: u32,
    /// Target of a symbolic or hard link.
    pub(crate) link: &'a [u8],
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes, names with their namespace.
    pub(crate) xattrs: &'a [(String, Vec<u8>)],
}

impl<'a> Item<'a> {
    /// An empty regular file, mode 0, of root, from 1970: all that a mark of a deletion needs.
    pub(crate) fn mark(name: &'a [u8]) -> Self {
        Self {
            name,
            kind: EntryType::Regular,
            mode: 0,
            owner: Owner::default(),
            size: 0,
            mtime: 0,
            nanoseconds: 0,
            link: &[],
            device: (0, 0),
            xattrs: &[],
        }
    }
}

/// A time as a pax record has it.
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    const SECOND: i128 = 1_000_000_000;
    let time = i128::from(seconds) * SECOND + i128::from(nanoseconds);
    let (sign, time) = if time < 0 { ("-", -time) } else { ("", time) };
    let (seconds, rest) = (time / SECOND, time % SECOND);
    match rest {
        0 => format!("{sign}{seconds}"),
        _ => format!("{sign}{seconds}.{rest:09}"),
    }
}

/// Where the padding after `size` bytes ends, seen from there.
fn padding(size: u64) -> usize {
    let block = BLOCK as u64;
    usize::try_from(size.next_multiple_of(block) - size).unwrap_or(0)
}

/// A tar stream being written. See the module's head.
#[derive(Default)]
pub(crate) struct TarWriter {
    /// Bytes of the stream that are passed over; content that lies in them is not read.
    skip: u64,
    /// Headers, padding and end blocks.
    queued: Vec<u8>,
    /// How many of them were taken.
    taken: usize,
    /// What comes after them.
    content: Option<Content>,
}

/// Content that is still to be read.
struct Content {
    file: OwnedFd,
    /// Bytes that are still to come, and those after them that pad the last block.
    rest: u64,
    padding: usize,
    /// The file ended early.
    ended: bool,
    /// For messages.
    name: PathBuf,
}

impl TarWriter {
    /// A stream from its byte `offset` on.
    pub(crate) fn new(offset: u64) -> Self {
        Self {
            skip: offset,
            ..Self::default()
        }
    }

    /// Whether everything that was queued has been taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.content.is_none() && self.taken >= self.queued.len()
    }

    /// Bytes that are still to be passed over.
    pub(crate) fn skip(&self) -> u64 {
        self.skip
    }

    /// Takes at most `room` bytes of what is queued, and appends them to `out`, which has the capacity for them.
    pub(crate) fn take(&mut self, out: &mut Vec<u8>, room: usize) -> Result<()> {
        let end = out.len() + room;
        while out.len() < end {
            let queued = self.queued.get(self.taken..).unwrap_or_default();
            if !queued.is_empty() {
                let skipped = usize::try_from(self.skip).map_or(queued.len(), |skip| skip.min(queued.len()));
                self.skip -= skipped as u64;
                let queued = queued.get(skipped..).unwrap_or_default();
                let part = queued.get(..end - out.len()).unwrap_or(queued);
                out.extend_from_slice(part);
                self.taken += skipped + part.len();
                continue;
            }
            self.queued.clear();
            self.taken = 0;
            let Some(content) = &mut self.content else {
                break;
            };
            content.take(out, end - out.len(), &mut self.skip)?;
            if content.rest == 0 {
                self.queued.resize(content.padding, 0);
                self.content = None;
            }
        }
        Ok(())
    }

    /// Queues the header, all blocks of it. The content has to follow, with [`TarWriter::content`].
    pub(crate) fn header(&mut self, item: &Item<'_>) -> Result<()> {
        let mut header = Header::new_ustar();
        let mut records: Vec<(&str, Vec<u8>)> = Vec::new();
        let long = |text: &[u8]| text.len() > NAME || !is_plain(text);

        let too_big = |number: u64, max: u64, key: &'static str, records: &mut Vec<(&str, Vec<u8>)>| {
            if number <= max {
                return number;
            }
            records.push((key, number.to_string().into_bytes()));
            0
        };
        let uid = too_big(item.owner.uid.into(), MAX_8, "uid", &mut records);
        let gid = too_big(item.owner.gid.into(), MAX_8, "gid", &mut records);
        let size = too_big(item.size, MAX_12, "size", &mut records);
        let mtime = match u64::try_from(item.mtime) {
            Ok(mtime) if item.nanoseconds == 0 => too_big(mtime, MAX_12, "mtime", &mut records),
            mtime => {
                records.push(("mtime", decimal_time(item.mtime, item.nanoseconds).into_bytes()));
                mtime.ok().filter(|mtime| *mtime <= MAX_12).unwrap_or(0)
            }
        };
        let bad = |error| {
            ErrorKind::InvalidInput
                .err(format!("numbers of entry {}", path::show(item.name)))
                .with_source(error)
        };
        header.set_mode(item.mode).map_err(bad)?;
        header.set_uid(uid).map_err(bad)?;
        header.set_gid(gid).map_err(bad)?;
        header.set_size(size).map_err(bad)?;
        header.set_mtime(mtime).map_err(bad)?;
        header.set_device(item.device.0, item.device.1).map_err(bad)?;

        if long(item.link) {
            records.push(("linkpath", item.link.to_vec()));
        }
        let split = (long(item.name) && is_plain(item.name))
            .then(|| split_at(item.name))
            .flatten();
        let pax = !records.is_empty() || !item.xattrs.is_empty() || (long(item.name) && split.is_none());
        let block: &mut UstarHeader = header.as_ustar_mut();
        match split {
            Some(slash) if !pax => {
                let (prefix, rest) = item.name.split_at(slash);
                for (to, from) in block.prefix.iter_mut().zip(prefix) {
                    *to = *from;
                }
                put_text(&mut block.name, rest.get(1..).unwrap_or_default());
            }
            _ => {
                if long(item.name) {
                    records.push(("path", item.name.to_vec()));
                }
                put_text(&mut block.name, item.name);
            }
        }
        put_text(&mut block.linkname, item.link);
        seal(&mut header, item.kind);
        if pax {
            self.pax_header(item, records)?;
        }
        self.queued.extend_from_slice(header.as_bytes());
        Ok(())
    }

    fn pax_header(&mut self, item: &Item<'_>, records: Vec<(&str, Vec<u8>)>) -> Result<()> {
        let xattrs = item
            .xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), &**value));
        let mut all: Vec<(String, &[u8])> = xattrs.collect();
        all.extend(records.iter().map(|(key, value)| ((*key).to_owned(), &**value)));
        all.sort_unstable();
        let mut pax = PaxBuilder::new();
        for (key, value) in &all {
            pax.add(key, value);
        }
        let data = pax.finish();
        if data.len() > MAX_PAX {
            let what = format!(
                "attributes of entry {} ({} bytes)",
                path::show(item.name),
                data.len()
            );
            return Err(ErrorKind::InvalidInput.err(what));
        }
        let mut header = Header::new_ustar();
        let size = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let bad = |error| {
            ErrorKind::InvalidInput
                .err("size of attributes")
                .with_source(error)
        };
        header.set_mode(0).map_err(bad)?;
        header.set_uid(0).map_err(bad)?;
        header.set_gid(0).map_err(bad)?;
        header.set_size(size).map_err(bad)?;
        header.set_mtime(0).map_err(bad)?;
        put_text(&mut header.as_ustar_mut().name, &pax_name(item.name));
        seal(&mut header, EntryType::XHeader);
        self.queued.extend_from_slice(header.as_bytes());
        self.queued.extend_from_slice(&data);
        self.queued.resize(self.queued.len() + padding(size), 0);
        Ok(())
    }

    /// Queues the content of the entry whose header said `size`. Nothing else may be queued before it was taken.
    pub(crate) fn content(&mut self, file: OwnedFd, size: u64, name: PathBuf) {
        self.content = Some(Content {
            file,
            rest: size,
            padding: padding(size),
            ended: false,
            name,
        });
    }

    /// Queues the end of the archive.
    pub(crate) fn finish(&mut self) {
        self.queued.resize(self.queued.len() + 2 * BLOCK, 0);
    }
}

impl Content {
    /// Appends at most `room` bytes; some, if there are any and not all are passed over.
    fn take(&mut self, out: &mut Vec<u8>, room: usize, skip: &mut u64) -> Result<()> {
        let skipped = self.rest.min(*skip);
        if skipped > 0 {
            let forward = i64::try_from(skipped).unwrap_or(i64::MAX);
            rustix::fs::seek(&self.file, SeekFrom::Current(forward)).at("seeking in", &self.name)?;
            *skip -= skipped;
            self.rest -= skipped;
        }
        let limit = usize::try_from(self.rest).map_or(room, |rest| rest.min(room));
        if limit == 0 {
            return Ok(());
        }
        let mut count = 0;
        if !self.ended {
            count =
                read_spare(self.file.as_fd(), out, limit).at("copying into the layer stream", &self.name)?;
        }
        if count == 0 {
            if !self.ended {
                let (file, missing) = (self.name.display(), self.rest);
                tracing::warn!(%file, missing, "file shrank while it was read; filled with zeros");
            }
            self.ended = true;
            out.resize(out.len() + limit, 0);
            count = limit;
        }
        self.rest = self.rest.saturating_sub(count as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::pax_record;
    use std::io::{Seek as _, SeekFrom, Write as _};

    /// Everything that is queued, taken in parts of `room` bytes.
    fn taken(tar: &mut TarWriter, room: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while !tar.is_empty() {
            out.reserve(room);
            tar.take(&mut out, room).unwrap();
        }
        out
    }

    fn blocks(item: &Item<'_>) -> Vec<u8> {
        let mut tar = TarWriter::default();
        tar.header(item).unwrap();
        taken(&mut tar, 1 << 20)
    }

    fn field(block: &[u8], at: usize, length: usize) -> String {
        String::from_utf8_lossy(&block[at..at + length])
            .trim_end_matches('\0')
            .to_owned()
    }

    #[test]
    fn times_are_decimal_numbers() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (5, 1, "5.000000001"),
            (-5, 0, "-5"),
            (-5, 500_000_000, "-4.500000000"),
            (-1, 999_999_999, "-0.000000001"),
        ] {
            assert_eq!(decimal_time(seconds, nanoseconds), text);
        }
    }

    #[test]
    fn a_plain_entry_is_one_block() {
        let item = Item {
            kind: EntryType::Symlink,
            mode: 0o4755,
            owner: Owner {
                uid: 1000,
                gid: 2_097_151,
            },
            mtime: 8_589_934_591,
            link: b"target",
            ..Item::mark(b"dir/name")
        };
        let out = blocks(&item);
        assert_eq!(out.len(), BLOCK);
        assert_eq!(field(&out, 0, 100), "dir/name");
        assert_eq!(&out[100..108], b"0004755\0");
        assert_eq!(&out[108..116], b"0001750\0");
        assert_eq!(&out[116..124], b"7777777\0");
        assert_eq!(&out[124..136], b"00000000000\0");
        assert_eq!(&out[136..148], b"77777777777\0");
        assert_eq!(&out[154..156], b"\0 ");
        assert_eq!(out[156], b'2');
        assert_eq!(field(&out, 157, 100), "target");
        assert_eq!(&out[257..265], b"ustar\x0000");
        assert_eq!(&out[329..345], b"0000000\x000000000\0");
        let sum: u32 = out[..148]
            .iter()
            .chain(b"        ")
            .chain(&out[156..])
            .map(|b| u32::from(*b))
            .sum();
        assert_eq!(field(&out, 148, 6), format!("{sum:06o}"));
    }

    #[test]
    fn long_names_are_split_where_they_can_be() {
        let name = |parts: &[usize], end: &str| {
            let parts: Vec<String> = parts.iter().map(|n| "x".repeat(*n)).collect();
            parts.join("/") + end
        };
        // Name, length of the prefix (`None`: pax is needed).
        let cases = [
            (name(&[50, 50], ""), Some(50)),
            (name(&[155, 100], ""), Some(155)),
            (name(&[156, 99], ""), None),
            (name(&[155, 101], ""), None),
            (name(&[101], ""), None),
            (name(&[60, 60], "/"), Some(60)),
            (name(&[101], "/"), None),
            (name(&[155, 99], "/"), Some(155)),
            (name(&[155, 100], "/"), None),
            (name(&[30, 30, 30, 30], ""), Some(92)),
            (format!("/{}", "x".repeat(100)), None),
            (name(&[100], ""), Some(0)),
        ];
        for (name, prefix) in cases {
            let out = blocks(&Item::mark(name.as_bytes()));
            match prefix {
                Some(prefix) => {
                    assert_eq!(out.len(), BLOCK, "{name}");
                    let (head, tail) = (field(&out, 345, 155), field(&out, 0, 100));
                    assert_eq!(head.len(), prefix, "{name}");
                    let joined = if head.is_empty() {
                        tail
                    } else {
                        format!("{head}/{tail}")
                    };
                    assert_eq!(joined, name);
                }
                None => {
                    assert_eq!(out.len(), 3 * BLOCK, "{name}");
                    assert!(field(&out, 512, 512).contains(&format!(" path={name}\n")));
                    assert_eq!(field(&out, 1024 + 345, 155), "");
                    assert!(!field(&out, 1024, 100).ends_with('/'));
                }
            }
        }
    }

    #[test]
    fn pax_holds_what_the_block_cannot_and_nothing_else() {
        let xattrs = [
            ("user.b".to_owned(), vec![0, 255, b'\n']),
            ("security.capability".to_owned(), Vec::new()),
        ];
        let item = Item {
            owner: Owner {
                uid: 2_097_152,
                gid: 5,
            },
            mtime: -7,
            xattrs: &xattrs,
            link: "\u{e4}l".as_bytes(),
            ..Item::mark("d\u{e4}/f\u{e4}".as_bytes())
        };
        let out = blocks(&item);
        assert_eq!(field(&out, 0, 100), "d/PaxHeaders.0/f");
        assert_eq!(out[156], b'x');
        assert_eq!(&out[100..124], b"0000000\x000000000\x000000000\0");
        assert_eq!(&out[329..345], &[0; 16]);
        let data = &out[512..1024];
        let expected = [
            pax_record(b"SCHILY.xattr.security.capability", b""),
            pax_record(b"SCHILY.xattr.user.b", b"\0\xff\n"),
            pax_record(b"linkpath", "\u{e4}l".as_bytes()),
            pax_record(b"mtime", b"-7"),
            pax_record(b"path", "d\u{e4}/f\u{e4}".as_bytes()),
            pax_record(b"uid", b"2097152"),
        ]
        .concat();
        assert_eq!(
            String::from_utf8_lossy(&data[..expected.len()]),
            String::from_utf8_lossy(&expected)
        );
        assert!(data[expected.len()..].iter().all(|byte| *byte == 0));
        let main = &out[1024..];
        assert_eq!(field(main, 0, 100), "d/f");
        assert_eq!(field(main, 157, 100), "l");
        assert_eq!(&main[108..124], b"0000000\x000000005\0");
        assert_eq!(&main[136..148], b"00000000000\0");

        let name = format!("{}/", "x".repeat(99)) + "/y";
        let dir = Item {
            kind: EntryType::Directory,
            xattrs: &xattrs,
            ..Item::mark(b"d/")
        };
        assert_eq!(field(&blocks(&dir), 0, 100), "d/PaxHeaders.0");
        // Cut off in the middle of slashes.
        let cut = Item {
            xattrs: &xattrs,
            ..Item::mark(name.as_bytes())
        };
        assert_eq!(field(&blocks(&cut)[1024..], 0, 100), "x".repeat(99));
    }

    #[test]
    fn content_has_the_size_that_was_promised() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        for promised in [0u64, 1, 511, 512, 513, 99_999, 100_000, 100_001, 200_000] {
            for room in [1 << 20, 4096, 701] {
                let mut whole = Vec::new();
                for offset in [
                    0,
                    1,
                    promised / 2,
                    promised,
                    promised.next_multiple_of(512) + 1000,
                ] {
                    file.seek(SeekFrom::Start(0)).unwrap();
                    let mut tar = TarWriter::new(offset);
                    if promised > 0 {
                        tar.content(file.try_clone().unwrap().into(), promised, "/x".into());
                    }
                    let mut out = taken(&mut tar, room);
                    tar.finish();
                    out.extend(taken(&mut tar, room));
                    assert_eq!(tar.skip(), 0);
                    if offset == 0 {
                        let promised = usize::try_from(promised).unwrap();
                        assert_eq!(out.len(), promised.next_multiple_of(512) + 1024);
                        let there = promised.min(100_000);
                        assert!(out[..there].iter().all(|byte| *byte == 7));
                        assert!(out[there..].iter().all(|byte| *byte == 0));
                        whole = out;
                    } else {
                        assert!(
                            out == whole[usize::try_from(offset).unwrap()..],
                            "{promised} {offset}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn attributes_beyond_what_readers_take_are_refused() {
        let xattrs = [("user.big".to_owned(), vec![1; MAX_PAX])];
        let item = Item {
            xattrs: &xattrs,
            ..Item::mark(b"f")
        };
        let error = TarWriter::default().header(&item).unwrap_err();
        assert!(error.to_string().contains("attributes of entry \"f\""), "{error}");
    }
}
