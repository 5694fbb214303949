//! Big data items: named blobs beside a record, one file each in the item's own directory.
//!
//! ```text
//! <store>/<driver>-layers/<layer ID>/<file name>         0600, in a directory 0700
//! <store>/<driver>-images/<image ID>/<file name>
//! <store>/<driver>-containers/<container ID>/<file name>
//! ```
//!
//! The file's name is the key itself, or `=` and the key in base64, by the Go library's rule ([`file_name`]).
//! The caller holds the lock of the store: exclusively for writing, shared for opening. Files are replaced by rename, so
//! an open file stays readable after the lock is released. A crash leaves at most a `.tmp-` file.
//!
//! The file of a new item is written before the record that names it. If the record has the size and digest of an item,
//! new content of an existing item is first written to a file `.new-…` beside the old file, with a name derived from that
//! size and digest; then the record is saved, with an [intent](crate::record::intent); then the new file is renamed over
//! the old one, and the intent removed. A reader looks for the `.new-…` file of the recorded size and digest first. So
//! content and record change atomically, whenever the writer is killed, and the next reader completes the rename.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use rustix::io::Errno;

use crate::bridge::CHUNK;
use crate::digest::Digest;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::record::raw_digest::RawDigest;
use crate::record::record_trait::Record;
use crate::sys::atomic::{self, AtomicFile};
use crate::sys::{at, list_dir_if_there, make_private_subdir, temporary_names};

/// The prefix of the name of a file that waits to replace the file of an item.
const WAITING: &str = ".new-";

/// Whether a file waits to replace that of an item.
pub(crate) fn is_waiting(name: &std::ffi::OsStr) -> bool {
    name.as_bytes().starts_with(WAITING.as_bytes())
}

/// The largest item that is read into memory, unless its record says that it has as many bytes.
const MAX_UNRECORDED: u64 = 256 << 20;

/// The longest name of a file on Linux.
const NAME_MAX: usize = 255;

/// The path, below the item's directory, that the Go library uses for `key`.
///
/// Compat: a character outside `.0-9a-z` matters only if it is not the key's last one.
fn go_name(key: &str) -> Cow<'_, str> {
    let plain = |c: char| c == '.' || c.is_ascii_digit() || c.is_ascii_lowercase();
    let mut rest = key.chars();
    while let Some(c) = rest.next() {
        if !plain(c) && !rest.as_str().is_empty() {
            return Cow::Owned(format!("={}", STANDARD.encode(key)));
        }
    }
    Cow::Borrowed(key)
}

/// The name of the file that holds the item `key`.
///
/// Keys that cannot work, or that would share a file with another key, are refused
/// ([`ErrorKind::InvalidBigDataName`]): empty, `.`, `..`, with a NUL, too long for a file name, or with a `/` in the
/// file name.
pub(crate) fn file_name(key: &str) -> Result<Cow<'_, str>> {
    let refuse = |why: &str| Err(ErrorKind::InvalidBigDataName.err(format!("big data key {key:?} ({why})")));
    let name = go_name(key);
    match &*name {
        "" => refuse("empty"),
        "." | ".." => refuse("a directory"),
        name if name.contains('\0') => refuse("NUL"),
        name if name.contains('/') => refuse("a slash in its file name"),
        name if name.len() > NAME_MAX => refuse("file name too long"),
        _ => Ok(name),
    }
}

/// Opens the item `key` in an item directory; `None` if there is none.
///
/// Compat: a file name that ends in `/` is found without it, where Go has put it.
pub(crate) fn open(dir: &Path, key: &str) -> Result<Option<File>> {
    if key.is_empty() {
        return Err(ErrorKind::InvalidBigDataName.err("big data key \"\" (empty)"));
    }
    let name = go_name(key);
    let name = name.trim_end_matches('/');
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) || name.len() > NAME_MAX {
        // No such file can have been written.
        return Ok(None);
    }
    let path = dir.join(name);
    match at::open_regular(&path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at("opening big data item", path),
    }
}

/// The size and digest of an item in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// Bytes.
    pub(crate) size: i64,
    /// Digest, as the record has it.
    pub(crate) digest: String,
}

/// A record with the sizes and digests of its items: an image's or a container's.
pub(crate) trait Items: Record {
    /// Keys in the order in which they were first set, then sizes and digests by key.
    fn items(&self) -> (&[String], &BTreeMap<String, i64>, &BTreeMap<String, RawDigest>);

    /// The same, to change.
    fn items_mut(
        &mut self,
    ) -> (
        &mut Vec<String>,
        &mut BTreeMap<String, i64>,
        &mut BTreeMap<String, RawDigest>,
    );

    /// The size and digest of `key`, if the record has them.
    fn recorded(&self, key: &str) -> Option<Recorded> {
        let (_keys, sizes, digests) = self.items();
        Some(Recorded {
            size: *sizes.get(key)?,
            digest: digests.get(key)?.as_str().to_owned(),
        })
    }

    /// Sets the size and digest of an item.
    fn record(&mut self, key: &str, size: usize, digest: Digest) {
        let (keys, sizes, digests) = self.items_mut();
        if !keys.iter().any(|known| known == key) {
            keys.push(key.to_owned());
        }
        sizes.insert(key.to_owned(), i64::try_from(size).unwrap_or(i64::MAX));
        digests.insert(key.to_owned(), digest.into());
    }

    /// Removes stale temporary files among the items of this record in `dir`, see [`remove_stale`].
    fn remove_stale_items(&self, dir: &Path) -> Result<()> {
        let (keys, ..) = self.items();
        remove_stale(dir, keys.iter().map(|key| (key, self.recorded(key))))
    }
}

impl Recorded {
    /// The name under which content that this describes waits for its place.
    fn waiting_name(&self, key: &str) -> String {
        let what = format!("{} {} {key}", self.size, self.digest);
        format!("{WAITING}{}", Digest::sha256(what).encoded())
    }
}

/// Refuses an item directory that is a symbolic link: it could lead anywhere, and nothing outside the store is changed.
fn refuse_link(dir: &Path) -> Result<()> {
    match dir.is_symlink() {
        true => Err(Errno::NOTDIR).at(
            "a symbolic link in the place of the directory of big data items",
            dir,
        ),
        false => Ok(()),
    }
}

/// Makes the directory of the items of something where it is missing.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    refuse_link(dir)?;
    make_private_subdir(dir)
}

/// Writes new content of the item `key` where it waits until the record says so.
pub(crate) fn write_waiting(dir: &Path, key: &str, content: &[u8], new: &Recorded, sync: bool) -> Result<()> {
    refuse_link(dir)?;
    atomic::write_file(&dir.join(new.waiting_name(key)), content, 0o600, sync).map(drop)
}

/// Renames the waiting file over the file of the item. The record has the new size and digest already.
pub(crate) fn settle(dir: &Path, key: &str, recorded: &Recorded) -> Result<()> {
    refuse_link(dir)?;
    let (from, to) = (dir.join(recorded.waiting_name(key)), dir.join(&*file_name(key)?));
    match std::fs::rename(from, &to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed.at("replacing", to),
    }
}

/// The temporary and waiting files in an item's directory, as long as no one else is writing there.
pub(crate) fn stale(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut stale = Vec::new();
    if dir.is_symlink() {
        return Ok(stale);
    }
    for entry in list_dir_if_there(dir)? {
        let name = entry?.file_name();
        if is_waiting(&name) || temporary_names::is_temporary(&name) {
            stale.push(dir.join(name));
        }
    }
    Ok(stale)
}

/// Settles the waiting files of a record's items, and removes the stale temporary files beside them. The caller holds the
/// lock exclusively.
pub(crate) fn remove_stale<'a>(
    dir: &Path,
    items: impl Iterator<Item = (&'a String, Option<Recorded>)>,
) -> Result<()> {
    let stale = stale(dir)?;
    if stale.is_empty() {
        return Ok(());
    }
    for (key, recorded) in items {
        if let Some(recorded) = recorded {
            settle(dir, key, &recorded)?;
        }
    }
    for path in stale {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("removing", path),
            _ => {}
        }
    }
    Ok(())
}

/// Reads the whole item `key`; `None` if there is none. `recorded` is what the record says about it.
pub(crate) fn read(dir: &Path, key: &str, recorded: Option<&Recorded>) -> Result<Option<Vec<u8>>> {
    if let Some(recorded) = recorded {
        let path = dir.join(recorded.waiting_name(key));
        match at::open_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            file => {
                return read_file(&file.at("reading big data item", &path)?, &path, Some(recorded)).map(Some);
            }
        }
    }
    let Some(file) = open(dir, key)? else {
        return Ok(None);
    };
    read_file(&file, &dir.join(&*go_name(key)), recorded).map(Some)
}

/// Reads the file of an item, whose size is looked at before memory is made for it.
fn read_file(mut file: &File, path: &Path, recorded: Option<&Recorded>) -> Result<Vec<u8>> {
    let size = file.metadata().at("looking at big data item", path)?.len();
    let is_recorded = recorded.is_some_and(|recorded| u64::try_from(recorded.size) == Ok(size));
    if size > MAX_UNRECORDED && !is_recorded {
        let what = format!("{size} bytes, of which the record says nothing, in big data item");
        return Err(ErrorKind::CorruptMetadata.err(what).at(path));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).at("reading big data item", path)?;
    Ok(content)
}

/// Sets the item `key` to `content`. `sync` forces it to disk first.
pub(crate) fn write_bytes(dir: &Path, key: &str, content: &[u8], sync: bool) -> Result<()> {
    write_stream(dir, key, &mut &*content, sync).map(drop)
}

/// Sets the item `key` to everything that `source` yields and returns how many bytes that was. If the source fails
/// the old item stays as it was.
pub(crate) fn write_stream(dir: &Path, key: &str, source: &mut dyn Read, sync: bool) -> Result<u64> {
    let name = file_name(key)?;
    make_dir(dir)?;
    let path = dir.join(&*name);
    let mut file = AtomicFile::create(&path)?;
    let mut buffer = Vec::new();
    let mut total = 0;
    loop {
        buffer.clear();
        // Grows with the content: most items are small.
        let count = source
            .take(CHUNK as u64)
            .read_to_end(&mut buffer)
            .during(format!("reading the content of big data item {key:?}"))?;
        if count == 0 {
            break;
        }
        file.write_all(&buffer).at("writing", &path)?;
        total += count as u64;
    }
    file.commit(sync, 0o600)?;
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn file_names_are_gos() {
        for (key, expected) in [
            ("manifest", "manifest"),
            ("a.1", "a.1"),
            ("A", "A"),
            ("a_", "a_"),
            ("manifesT", "manifesT"),
            ("ab~", "ab~"),
            ("é", "é"),
            ("abé", "abé"),
            ("=", "="),
            ("...", "..."),
            ("Foo", "=Rm9v"),
            ("a_b", "=YV9i"),
            ("éa", "=w6lh"),
            ("sha256:00", "=c2hhMjU2OjAw"),
            ("manifest-sha256:e3", "=bWFuaWZlc3Qtc2hhMjU2OmUz"),
            ("../etc/passwd", "=Li4vZXRjL3Bhc3N3ZA=="),
            ("../x", "=Li4veA=="),
            ("a/b", "=YS9i"),
            ("=Rm9v", "=PVJtOXY="),
        ] {
            assert_eq!(file_name(key).unwrap(), expected, "{key}");
        }
        let (long, longer) = ("a".repeat(255), "a".repeat(256));
        assert!(file_name(&long).is_ok());
        for key in [
            "",
            ".",
            "..",
            "/",
            "abc/",
            "a\0",
            "\0",
            "???",
            "???x",
            "..?/",
            &longer,
            &"_".repeat(190),
        ] {
            assert_eq!(
                file_name(key).unwrap_err().kind(),
                ErrorKind::InvalidBigDataName,
                "{key:?}"
            );
        }
    }

    #[test]
    fn items_are_written_replaced_and_read() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("id");
        assert!(open(&dir, "manifest").unwrap().is_none());
        for (key, content) in [
            ("manifest", "one"),
            ("sha256:ab", "two"),
            ("manifest", "three"),
            ("empty", ""),
        ] {
            write_bytes(&dir, key, content.as_bytes(), true).unwrap();
            assert_eq!(read(&dir, key, None).unwrap().unwrap(), content.as_bytes());
        }
        let mut names: Vec<_> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["=c2hhMjU2OmFi", "empty", "manifest"]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&dir), mode(&dir.join("manifest"))), (0o700, 0o600));
        assert!(read(&dir, "missing", None).unwrap().is_none() && read(&dir, "..", None).unwrap().is_none());
        assert_eq!(open(&dir, "").unwrap_err().kind(), ErrorKind::InvalidBigDataName);
        // Where Go puts `???`, whose base64 form ends in a slash.
        std::fs::write(dir.join("=Pz8"), "odd").unwrap();
        assert_eq!(read(&dir, "??", None).unwrap(), None);
        assert_eq!(go_name("???"), "=Pz8/");
        assert_eq!(read(&dir, "???", None).unwrap().unwrap(), b"odd");
    }

    #[test]
    fn a_failing_source_leaves_the_old_item() {
        struct Failing(usize);
        impl Read for Failing {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0 == 0 {
                    return Err(io::Error::other("source broke"));
                }
                let count = buffer.len().min(self.0);
                buffer[..count].fill(b'x');
                self.0 -= count;
                Ok(count)
            }
        }
        let tmp = tempfile::tempdir().unwrap();
        write_bytes(tmp.path(), "item", b"old", false).unwrap();
        for size in [0, 10, 3 * CHUNK] {
            let error = write_stream(tmp.path(), "item", &mut Failing(size), false).unwrap_err();
            assert!(
                error.chain().contains("\"item\": source broke"),
                "{}",
                error.chain()
            );
            assert_eq!(std::fs::read(tmp.path().join("item")).unwrap(), b"old");
            assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
        }
        let size = 2 * CHUNK as u64 + 7;
        let written = write_stream(tmp.path(), "item", &mut io::repeat(b'y').take(size), false).unwrap();
        assert_eq!(
            (written, std::fs::metadata(tmp.path().join("item")).unwrap().len()),
            (size, size)
        );
    }

    #[test]
    fn content_changes_with_the_record_and_stale_files_are_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let recorded = |content: &str| Recorded {
            size: i64::try_from(content.len()).unwrap(),
            digest: Digest::sha256(content).to_string(),
        };
        let (old, new, never) = (recorded("old"), recorded("new!"), recorded("never"));
        let read =
            |recorded: &Recorded| String::from_utf8(read(dir, "Item", Some(recorded)).unwrap().unwrap());
        write_bytes(dir, "Item", b"old", true).unwrap();
        write_waiting(dir, "Item", b"new!", &new, true).unwrap();
        assert_eq!(
            (read(&old).unwrap(), read(&new).unwrap()),
            ("old".into(), "new!".into())
        );
        settle(dir, "Item", &new).unwrap();
        settle(dir, "Item", &new).unwrap();
        assert_eq!(read(&new).unwrap(), "new!");
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);

        write_waiting(dir, "Item", b"old", &old, true).unwrap();
        write_waiting(dir, "Item", b"never", &never, true).unwrap();
        std::fs::write(dir.join(".tmp-a123"), "").unwrap();
        std::fs::create_dir(dir.join("userdata")).unwrap();
        let key = "Item".to_owned();
        remove_stale(dir, [(&key, Some(old.clone()))].into_iter()).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["=SXRlbQ==", "userdata"]);
        assert_eq!(read(&old).unwrap(), "old");
        remove_stale(&dir.join("missing"), std::iter::empty()).unwrap();
    }

    proptest! {
        #[test]
        fn no_two_allowed_keys_share_a_file(
            keys in prop::collection::btree_set("[a-c.=_/?~é\u{0}]{0,4}", 1..40)
        ) {
            let mut names: Vec<_> = keys.iter().filter_map(|key| file_name(key).ok()).collect();
            for name in &names {
                prop_assert!(!name.contains(['/', '\0']) && !matches!(&**name, "" | "." | ".."));
            }
            let count = names.len();
            names.sort();
            names.dedup();
            prop_assert_eq!(names.len(), count);
        }
    }
}
