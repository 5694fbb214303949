//! A tar file as a set of named members: indexed once, header by header, then read at random.
//!
//! The index costs one small read per member; contents are passed over, not read. `tar-core` parses the headers,
//! since it does no I/O: a reader that takes the archive for a stream would read all of it.
//!
//! Archives are taken for hostile. The number of members and the length of names are bounded, contents have to lie
//! within the file, links are followed in the index only and a bounded number of times, and a name that stands for two
//! members stands for none: readers differ in which one they take.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tar_core::EntryType;
use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};

use super::files;
use super::spool::Spool;
use crate::bridge;
use crate::chunked::FileBlob;
use crate::compression::Compression;
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::store::Store;

/// More members than any image archive has.
const MAX_MEMBERS: usize = 100_000;

/// The longest name of a member or target of a link in bytes.
const MAX_NAME: u32 = 4096;

/// All names and targets of links together, in bytes.
const MAX_NAMES: usize = 16 << 20;

/// Extended headers and long names of one member, in bytes.
const MAX_METADATA: u32 = 1 << 20;

/// Bytes that are read where a header is expected.
const HEADER_STEP: usize = 4096;

/// Links from a name to its content.
const MAX_LINKS: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    Content {
        offset: u64,
        size: u64,
    },
    /// Another name.
    Link(String),
    /// There are several of this name.
    Ambiguous,
}

/// A tar file and where its members lie. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tarball {
    file: Arc<File>,
    path: Arc<Path>,
    members: Arc<HashMap<String, Member>>,
}

/// A name relative to the archive's root, without `.` and `..`.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The index while it is made.
#[derive(Default)]
struct Index {
    members: HashMap<String, Member>,
    count: usize,
    names: usize,
}

impl Index {
    fn add(&mut self, entry: &ParsedEntry<'_>, offset: u64, file_size: u64) -> Result<()> {
        let invalid = |what: String| Err(ErrorKind::InvalidArchive.err(what));
        self.count += 1;
        if self.count > MAX_MEMBERS {
            return invalid(format!("more than {MAX_MEMBERS} members"));
        }
        let name = entry.path_lossy();
        let size = entry.size;
        if size > file_size.saturating_sub(offset) {
            return invalid(format!("member {name:?} of {size} bytes is cut off"));
        }
        let target = || entry.link_target_lossy().unwrap_or_default();
        let member = match entry.entry_type {
            EntryType::Regular | EntryType::Continuous => Member::Content { offset, size },
            EntryType::Link => Member::Link(clean(&target())),
            EntryType::Symlink => Member::Link(clean(&format!("{name}/../{}", target()))),
            // Directories and devices are nothing that an image is made of.
            _ => return Ok(()),
        };
        let name = clean(&name);
        self.names += name.len();
        if let Member::Link(target) = &member {
            self.names += target.len();
        }
        if self.names > MAX_NAMES {
            return invalid(format!("names of more than {MAX_NAMES} bytes"));
        }
        match self.members.entry(name) {
            Entry::Vacant(place) => drop(place.insert(member)),
            Entry::Occupied(mut place) => drop(place.insert(Member::Ambiguous)),
        }
        Ok(())
    }
}

/// Reads all headers of an archive of `size` bytes.
fn index(file: &File, size: u64, path: &Path) -> Result<HashMap<String, Member>> {
    let mut parser = Parser::new(Limits {
        max_metadata_size: MAX_METADATA,
        max_path_len: Some(MAX_NAME),
        ..Limits::default()
    });
    let mut index = Index::default();
    let (mut at, mut wanted) = (0_u64, HEADER_STEP);
    loop {
        let input = files::read_up_to(file, at, wanted as u64, path)?;
        let event = parser.parse(&input).map_err(|error| {
            ErrorKind::InvalidArchive
                .err(format!("the header at byte {at}"))
                .with_source(error)
        })?;
        match event {
            ParseEvent::NeedData { min_bytes } if input.len() == wanted && min_bytes > wanted => {
                wanted = min_bytes;
            }
            // One block of zeros, or none, ends an archive as well as two do.
            ParseEvent::NeedData { .. } if input.iter().all(|byte| *byte == 0) => break,
            ParseEvent::NeedData { .. } => {
                let what = format!("the header at byte {at} is cut off");
                return Err(ErrorKind::InvalidArchive.err(what));
            }
            ParseEvent::Entry { consumed, entry } => {
                let offset = at.saturating_add(consumed as u64);
                index.add(&entry, offset, size)?;
                at = offset.saturating_add(entry.size).next_multiple_of(512);
                wanted = HEADER_STEP;
            }
            ParseEvent::SparseEntry { entry, .. } => {
                let what = format!("sparse member {:?}", entry.path_lossy());
                return Err(ErrorKind::NotSupported.err(what));
            }
            ParseEvent::GlobalExtensions { consumed, .. } => {
                at = at.saturating_add(consumed as u64);
                wanted = HEADER_STEP;
                index.count += 1;
                if index.count > MAX_MEMBERS {
                    return Err(ErrorKind::InvalidArchive.err(format!("more than {MAX_MEMBERS} members")));
                }
            }
            ParseEvent::End { .. } => break,
        }
    }
    Ok(index.members)
}

impl Tarball {
    /// Indexes an archive. One that is compressed as a whole is decompressed into a temporary file of the store.
    pub(crate) async fn open(path: &Path, store: &Store) -> Result<Self> {
        let what = format!("reading archive {}", path.display());
        Self::find(path, store).await.context(|| what)
    }

    async fn find(path: &Path, store: &Store) -> Result<Self> {
        let path = path.to_owned();
        let (file, path, compression) = bridge::run(move || {
            let file = files::open_regular(&path)?;
            let start = files::read_up_to(&file, 0, 10, &path)?;
            Ok((file, path, Compression::detect(&start)))
        })
        .await?;
        if compression == Compression::None {
            return bridge::run(move || Self::read(file, path)).await;
        }
        let size = file.metadata().at("looking at", &path)?.len();
        let whole = FileBlob::part(Arc::new(file), path.as_path().into(), 0, size);
        let spool = Spool::decompress(store, whole.reader()).await?;
        bridge::run(move || {
            let file = files::open_regular(spool.path())?;
            Self::read(file, path)
        })
        .await
    }

    fn read(file: File, path: PathBuf) -> Result<Self> {
        let size = file.metadata().at("looking at", &path)?.len();
        Ok(Self {
            members: Arc::new(index(&file, size, &path)?),
            file: Arc::new(file),
            path: path.into(),
        })
    }

    fn error(&self, kind: ErrorKind, name: &str, why: &str) -> Error {
        kind.err(format!("member {name:?} of archive {}{why}", self.path.display()))
    }

    /// Offset and size of a member's content.
    pub(crate) fn place(&self, name: &str) -> Result<(u64, u64)> {
        let mut key = clean(name);
        for _ in 0..=MAX_LINKS {
            match self.members.get(&key) {
                Some(Member::Content { offset, size }) => return Ok((*offset, *size)),
                Some(Member::Link(target)) => key.clone_from(target),
                Some(Member::Ambiguous) => {
                    return Err(self.error(ErrorKind::InvalidArchive, name, " is there more than once"));
                }
                None => return Err(self.error(ErrorKind::NotFound, name, "")),
            }
        }
        Err(self.error(ErrorKind::InvalidArchive, name, " is behind too many links"))
    }

    /// The content of a short member.
    pub(crate) async fn small(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let (offset, size) = self.place(name)?;
        if size > limit {
            return Err(files::too_long(Path::new(name), limit));
        }
        self.part(offset, size).await
    }

    /// Some bytes of the file.
    pub(crate) async fn part(&self, offset: u64, size: u64) -> Result<Vec<u8>> {
        let (file, path) = (Arc::clone(&self.file), Arc::clone(&self.path));
        bridge::run(move || files::read_part(&file, offset, size, &path)).await
    }

    /// A member's content as a blob.
    pub(crate) fn file(&self, name: &str) -> Result<FileBlob> {
        let (offset, size) = self.place(name)?;
        Ok(self.file_at(offset, size))
    }

    /// Some bytes of the file as a blob.
    pub(crate) fn file_at(&self, offset: u64, size: u64) -> FileBlob {
        FileBlob::part(Arc::clone(&self.file), Arc::clone(&self.path), offset, size)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::test_util::{TarBuilder, TarEntry as Item};

    /// Indexes these bytes.
    fn read(bytes: &[u8]) -> Result<Tarball> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let path = file.path().to_owned();
        Tarball::read(files::open_regular(&path)?, path)
    }

    #[test]
    fn names_are_cleaned() {
        assert_eq!(clean("./a//b/../c/"), "a/c");
        assert_eq!(clean("../../x"), "x");
        assert_eq!(clean("dir/layer.tar/../../x.tar"), "x.tar");
    }

    fn kind_of(tar: &Tarball, name: &str) -> ErrorKind {
        tar.place(name).unwrap_err().kind()
    }

    #[tokio::test]
    async fn members_are_found_by_name_and_through_links() {
        let bytes = TarBuilder::new()
            .entry(Item::dir("dir/"))
            .entry(Item::file("./dir/a", "first"))
            .entry(Item::file("n".repeat(300), "long").gnu())
            .entry(Item::file("b", "pax").pax("path", "p".repeat(200)))
            .entry(Item::symlink("dir/soft", "../dir/a"))
            .entry(Item::hard_link("hard", "dir/soft"))
            .entry(Item::symlink("loop", "loop"))
            .entry(Item::symlink("outside", "/etc/passwd"))
            .build();
        let tar = read(&bytes).unwrap();
        for (name, content) in [
            ("dir/a", "first"),
            ("/dir/./a", "first"),
            ("dir/soft", "first"),
            ("hard", "first"),
            (&*"n".repeat(300), "long"),
            (&*"p".repeat(200), "pax"),
        ] {
            assert_eq!(tar.small(name, 100).await.unwrap(), content.as_bytes(), "{name}");
        }
        assert_eq!(kind_of(&tar, "loop"), ErrorKind::InvalidArchive);
        for missing in ["dir", "outside", "b", ""] {
            assert_eq!(kind_of(&tar, missing), ErrorKind::NotFound, "{missing}");
        }
        assert!(tar.small("dir/a", 4).await.is_err(), "longer than the limit");
    }

    #[test]
    fn a_name_of_two_members_is_refused() {
        let bytes = TarBuilder::new()
            .entry(Item::file("index.json", "one"))
            .entry(Item::file("./index.json", "two"))
            .entry(Item::file("other", "three"))
            .build();
        let tar = read(&bytes).unwrap();
        assert_eq!(kind_of(&tar, "index.json"), ErrorKind::InvalidArchive);
        assert!(tar.place("other").is_ok());
    }

    #[test]
    fn archives_that_are_cut_off_or_damaged_are_refused() {
        let whole = TarBuilder::new()
            .entry(Item::file("a", vec![1; 600]))
            .entry(Item::file("b", "x").pax("path", "q".repeat(2000)))
            .build();
        assert!(read(&whole).is_ok());
        // Without the blocks that end it, too.
        assert!(read(&whole[..whole.len() - 1024]).is_ok());
        let content = 512 + 600;
        for length in [
            100,
            511,
            513,
            content - 1,
            content + 500,
            content + 1000,
            content + 3000,
        ] {
            let error = read(&whole[..length]).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArchive, "{length}: {error:?}");
        }
        let mut damaged = whole;
        damaged[3] ^= 1;
        assert_eq!(read(&damaged).unwrap_err().kind(), ErrorKind::InvalidArchive);
        let huge = TarBuilder::new()
            .entry(Item::file("a", "").size_field("77777777777\0"))
            .build();
        assert_eq!(read(&huge).unwrap_err().kind(), ErrorKind::InvalidArchive);
        let sparse = TarBuilder::new().entry(Item::new(b'S', "s").gnu()).build();
        assert!(read(&sparse).is_err());
    }

    #[test]
    fn members_and_their_names_are_bounded() {
        let one = TarBuilder::new().entry(Item::dir("d/")).unfinished();
        let error = read(&one.repeat(MAX_MEMBERS + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArchive);
        assert!(error.chain().contains("members"), "{error:?}");
        let long = |length| {
            let name = "n".repeat(length);
            TarBuilder::new().entry(Item::file(name, "").gnu()).unfinished()
        };
        assert!(read(&long(4096)).is_ok());
        assert!(read(&long(4097)).is_err());
        assert!(
            read(&long(4000).repeat(5000))
                .unwrap_err()
                .chain()
                .contains("names")
        );
        let global = TarBuilder::new()
            .entry(Item::new(b'g', "g").content("12 comment=x\n"))
            .unfinished();
        assert!(read(&global.repeat(MAX_MEMBERS + 1)).is_err());
        assert!(read(&global).is_ok());
    }
}
