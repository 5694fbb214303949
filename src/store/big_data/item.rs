//! Keys of items, and how an item of an image or container is set.

use std::path::Path;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::record::big_data::{Items, Recorded};
use crate::record::{WriteGuard, big_data, intent};
use crate::store::images;

pub(super) fn missing_item(key: &str, kind: &str, id: &str) -> Error {
    let (advice, reason) = match kind {
        "image" => (
            " (consider removing the image to resolve the issue)",
            "file does not exist",
        ),
        "container" => ("", "file does not exist (no such file or directory)"),
        _ => ("", "file does not exist"),
    };
    let what = format!("locating item named {key:?} for {kind} with ID {id:?}{advice}");
    ErrorKind::NotFound.err(what).with_source(reason)
}

/// The error `kind` for what is not known of an item, such as its size.
pub(super) fn not_known(kind: ErrorKind, key: &str, noun: &str, id: &str) -> Error {
    kind.err(format!("item {key:?} of {noun} {id:?}"))
}

/// Refuses a key under which nothing can be stored.
pub(super) fn check_new(key: &str, kind: &str) -> Result<()> {
    if key.is_empty() {
        let what = format!("can't set empty name for {kind} big data item");
        return Err(ErrorKind::InvalidBigDataName.err(what));
    }
    big_data::file_name(key).map(drop)
}

/// The item `key` of a record with these keys. A file that no record names is none: a writer that was killed leaves
/// one, and so does the Go library.
pub(super) fn named<'a>(names: &'a [String], key: &str, kind: &str, id: &str) -> Result<&'a str> {
    if key.is_empty() {
        let what = match kind {
            "container" => "can't retrieve container big data value for empty name".to_owned(),
            _ => format!("locating item named \"\" for {kind} with ID {id:?}: file does not exist"),
        };
        return Err(ErrorKind::InvalidBigDataName.err(what));
    }
    let found = names.iter().find(|name| *name == key);
    found
        .map(String::as_str)
        .ok_or_else(|| missing_item(key, kind, id))
}

/// Sets an item of an image or container whose files are in `dir`, and records it where the record does not say the same
/// already; which is to be saved.
pub(super) fn set_item<R: Items>(
    store: &mut WriteGuard<R>,
    row: &R,
    dir: &Path,
    key: &str,
    data: &[u8],
    digest: Digest,
) -> Result<()> {
    let new = Recorded {
        size: i64::try_from(data.len()).unwrap_or(i64::MAX),
        digest: digest.to_string(),
    };
    let record = |store: &mut WriteGuard<R>, intent: &str| {
        for dir in [Some(dir), dir.parent()].into_iter().flatten() {
            store.rely_on(dir.to_owned());
        }
        let updated = store.table_mut().update(row.id(), |row| {
            row.record(key, data.len(), digest.clone());
            row.set_intent(intent);
        });
        updated.map(drop)
    };
    let exists = row.items().0.iter().any(|name| name == key);
    let same = exists && row.recorded(key).as_ref() == Some(&new);
    if same || !exists {
        if same {
            // Left waiting by a killed writer, it would be found before what is written now.
            big_data::settle(dir, key, &new)?;
        }
        images::write_items(dir, std::iter::once((key, data)))?;
        return if same { Ok(()) } else { record(store, "") };
    }
    big_data::make_dir(dir)?;
    big_data::write_waiting(dir, key, data, &new, true)?;
    record(store, intent::DATA)?;
    store.save()?;
    // Whatever fails from here on: the item is set, and the next user of the store completes this.
    big_data::settle(dir, key, &new)?;
    record(store, "")
}
