//! Records and rows for tests.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::bridge;
use crate::error::Result;
use crate::json;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record;
use crate::record::table::Table;
use crate::record::{Location, Records, RecordsConfig};
use crate::sys::name_sync::NameSync;

/// The records of layers in `dir`, in two locations.
pub(super) fn config(dir: &Path) -> RecordsConfig {
    RecordsConfig {
        lock_files: vec![dir.join("layers.lock")],
        locations: vec![
            Location {
                path: dir.join("layers.json"),
                sync: true,
                items: None,
            },
            Location {
                path: dir.join("volatile-layers.json"),
                sync: false,
                items: None,
            },
        ],
        check_mtimes: true,
        lock_timeout: Some(Duration::from_secs(60)),
        names: NameSync::Off,
    }
}

/// The records of layers in `dir`.
pub(super) fn open(dir: &Path) -> Records<LayerRow> {
    Records::open(config(dir)).unwrap()
}

/// A layer with this ID, and nothing else.
pub(super) fn layer(id: &str) -> LayerRow {
    LayerRow {
        id: id.into(),
        ..LayerRow::default()
    }
}

/// A layer with this ID and these names.
pub(super) fn named_layer(id: &str, names: &[&str]) -> LayerRow {
    LayerRow {
        names: strings(names),
        ..layer(id)
    }
}

/// Owned texts.
pub(super) fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// The IDs of all rows, in order.
pub(super) fn ids<R: Record>(table: &Table<R>) -> Vec<&str> {
    table.rows().map(|row| row.id()).collect()
}

/// Adds a layer and saves.
pub(super) async fn insert(records: &Records<LayerRow>, id: &str, location: usize) -> Result<()> {
    let mut guard = records.write().await?;
    guard.table_mut().insert(layer(id), location)?;
    bridge::run(move || guard.save()).await
}

/// The names of the files in `dir`, sorted.
pub(super) fn file_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with(crate::sys::reserve::PREFIX))
        .collect();
    names.sort();
    names
}

/// The rows of a file.
pub(super) fn open_file(path: &Path) -> Table<LayerRow> {
    let rows = json::parse_array_into(&fs::read(path).unwrap().into(), Arc::new).unwrap();
    Table::load(vec![rows], false).unwrap()
}

/// The table of these files.
pub(super) fn load<R: Record>(files: &[&str], read_only: bool) -> Result<Table<R>> {
    let parse = |text: &&str| json::parse_array_into(&Bytes::from(text.to_string()), Arc::new).unwrap();
    Table::load(files.iter().map(parse).collect(), read_only)
}

/// The content of a location's file.
pub(super) fn text<R: Record>(table: &Table<R>, location: usize) -> String {
    String::from_utf8(table.clone().serialise(location).unwrap()).unwrap()
}
