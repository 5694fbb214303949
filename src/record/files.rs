//! Reading the files of rows.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::fstat;

use crate::error::{ErrorKind, IoContext as _, Result};
use crate::json;
use crate::sys::at;
use crate::sys::atomic::Mtime;
use crate::sys::boot::changed_before_boot;

/// Bytes of a file of records that is read: a store with ten thousand layers has a hundredth of it.
const MAX_SIZE: u64 = 1 << 30;

pub(super) type Rows<T> = Vec<(T, Bytes)>;

/// The content of a file of rows.
pub(super) struct Content<'a> {
    path: &'a Path,
    synced: bool,
    text: Bytes,
    /// The file's time; `None` if there is no file, or one that does not say that there are no rows.
    pub(super) mtime: Option<Mtime>,
}

/// The rows in one file, each put `into` something, and the file's time, as in [`Content`].
pub(super) fn read_rows<T: serde::de::DeserializeOwned, U>(
    path: &Path,
    synced: bool,
    into: fn(T) -> U,
) -> Result<(Rows<U>, Option<Mtime>)> {
    Content::read(path, synced)?.rows(into)
}

impl<'a> Content<'a> {
    /// Reads a file.
    ///
    /// No file is no rows, and so is `null`; then there is no time either, for the file does not say that there are none. An
    /// empty file is an error: what is saved never is, so that its rows have been lost. Of a file that is not `synced` a power
    /// cut may have left nothing or a part: then it has no rows.
    pub(super) fn read(path: &'a Path, synced: bool) -> Result<Self> {
        let content = |text: Vec<u8>, mtime| Self {
            path,
            synced,
            text: text.into(),
            mtime,
        };
        let file = match at::open_regular(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(content(b"null".to_vec(), None));
            }
            Err(error) => return Err(error).at("opening", path),
        };
        let mtime = Mtime::of(&fstat(&file).at("reading the status of", path)?);
        let text = read_whole(file, path)?;
        if text.is_empty() {
            if !synced {
                return Ok(content(b"null".to_vec(), None));
            }
            let what = "an empty file, which no writer leaves; restore it. Loading";
            return Err(ErrorKind::CorruptMetadata.err(what).at(path));
        }
        let says_nothing = text.trim_ascii() == b"null";
        Ok(content(text, (!says_nothing).then_some(mtime)))
    }

    /// The list in the file, as text.
    pub(super) fn list(&self) -> Bytes {
        match self.mtime {
            Some(_) => self.text.clone(),
            None => Bytes::from_static(b"[]"),
        }
    }

    /// The rows, each put `into` something, and the file's time.
    pub(super) fn rows<T: serde::de::DeserializeOwned, U>(
        self,
        into: fn(T) -> U,
    ) -> Result<(Rows<U>, Option<Mtime>)> {
        match json::parse_array_into(&self.text, into) {
            Ok(rows) => Ok((rows, self.mtime)),
            Err(error) if !self.synced && changed_before_boot(self.path) => {
                tracing::warn!(path = %self.path.display(), %error, "records that a power cut has left in part are ignored");
                Ok((Vec::new(), None))
            }
            Err(error) => Err(ErrorKind::CorruptMetadata
                .err("loading")
                .at(self.path)
                .with_source(error)),
        }
    }
}

/// Reads a file of records, whose size is looked at first.
pub(super) fn read_whole(file: File, path: &Path) -> Result<Vec<u8>> {
    let too_large = || {
        let what = format!("a file of records of more than {MAX_SIZE} bytes");
        Err(ErrorKind::CorruptMetadata.err(what).at(path))
    };
    if file.metadata().at("reading the status of", path)?.len() > MAX_SIZE {
        return too_large();
    }
    let mut content = Vec::new();
    // It may be growing.
    let mut limited = file.take(MAX_SIZE.saturating_add(1));
    limited.read_to_end(&mut content).at("reading", path)?;
    match limited.limit() {
        0 => too_large(),
        _ => Ok(content),
    }
}

/// The rows in one file that is not synced, and not locked: as they were at some moment during this call.
pub(crate) fn rows_in_file<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let (rows, _time) = read_rows(path, false, |row| row)?;
    Ok(rows.into_iter().map(|(row, _text)| row).collect())
}
