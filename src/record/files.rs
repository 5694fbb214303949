//! Reading the files of rows.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::fstat;

use crate::error::{ErrorKind, IoContext as _, Result};
use crate::json;
use crate::sys::atomic::Mtime;
use crate::sys::boot::changed_before_boot;

pub(super) type Rows<T> = Vec<(T, Bytes)>;

/// The rows in one file, each put `into` something, and the file's time.
///
/// No file is no rows, and so is `null`; then there is no time either, for the file does not say that there are none. An
/// empty file is an error: what is saved never is, so that its rows have been lost. Of a file that is not `synced` a power
/// cut may have left nothing or a part: then it has no rows.
pub(super) fn read_rows<T: serde::de::DeserializeOwned, U>(
    path: &Path,
    synced: bool,
    into: fn(T) -> U,
) -> Result<(Rows<U>, Option<Mtime>)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), None)),
        Err(error) => return Err(error).at("opening", path),
    };
    let mtime = Mtime::of(&fstat(&file).at("reading the status of", path)?);
    let mut content = Vec::new();
    file.read_to_end(&mut content).at("reading", path)?;
    if content.is_empty() {
        if !synced {
            return Ok((Vec::new(), None));
        }
        let what = "an empty file, which no writer leaves; restore it. Loading";
        return Err(ErrorKind::CorruptMetadata.err(what).at(path));
    }
    let says_nothing = content.trim_ascii() == b"null";
    match json::parse_array_into(&Bytes::from(content), into) {
        Ok(rows) => Ok((rows, (!says_nothing).then_some(mtime))),
        Err(error) if !synced && changed_before_boot(path) => {
            tracing::warn!(path = %path.display(), %error, "records that a power cut has left in part are ignored");
            Ok((Vec::new(), None))
        }
        Err(error) => Err(ErrorKind::CorruptMetadata
            .err("loading")
            .at(path)
            .with_source(error)),
    }
}

/// The rows in one file that is not synced, and not locked: as they were at some moment during this call.
pub(crate) fn rows_in_file<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let (rows, _time) = read_rows(path, false, |row| row)?;
    Ok(rows.into_iter().map(|(row, _text)| row).collect())
}
