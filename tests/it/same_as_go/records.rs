//! The JSON files of a root.

use std::path::Path;

use serde_json::Value;

use crate::support::json;
use crate::support::root::TestRoot;

/// What the record files of a root say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Records {
    pub(super) layers: Vec<Value>,
    pub(super) images: Vec<Value>,
    pub(super) containers: Vec<Value>,
    pub(super) mount_points: Vec<Value>,
}

/// The rows of a file; none if there is no file.
fn rows(file: &Path) -> Vec<Value> {
    match file.metadata() {
        Ok(meta) if meta.len() > 0 => json::rows(file),
        _ => Vec::new(),
    }
}

fn volatile_last(mut rows: Vec<Value>, is_volatile: impl Fn(&Value) -> bool) -> Vec<Value> {
    rows.sort_by_key(|row| is_volatile(row));
    rows
}

impl Records {
    /// Reads all files. Accepted: `volatile-files`.
    pub(super) fn read(root: &TestRoot) -> Self {
        let joined = |what: &str| {
            let dir = root.metadata_dir(what);
            let mut all = rows(&dir.join(format!("{what}.json")));
            all.extend(rows(&dir.join(format!("volatile-{what}.json"))));
            all
        };
        let containers = volatile_last(joined("containers"), |row| row["flags"]["Volatile"] == true);
        let volatile: Vec<Value> = containers
            .iter()
            .filter(|row| row["flags"]["Volatile"] == true)
            .map(|row| row["layer"].clone())
            .collect();
        let run_layers = root.run().join(format!("{}-layers", root.driver()));
        Self {
            layers: volatile_last(joined("layers"), |row| volatile.contains(&row["id"])),
            images: joined("images"),
            containers,
            mount_points: rows(&run_layers.join("mountpoints.json")),
        }
    }

    /// Which file, which rows.
    pub(super) fn files(&self) -> [(&'static str, &Vec<Value>); 4] {
        [
            ("layers", &self.layers),
            ("images", &self.images),
            ("containers", &self.containers),
            ("mountpoints", &self.mount_points),
        ]
    }

    /// The ID of the layer that a key means when it is mounted or looked into.
    pub(super) fn layer_of(&self, key: &str) -> String {
        let found = self.containers.iter().find(|row| {
            row["id"] == key
                || row["names"]
                    .as_array()
                    .is_some_and(|names| names.contains(&key.into()))
        });
        match found {
            Some(row) => row["layer"].as_str().unwrap().to_owned(),
            None => key.to_owned(),
        }
    }

    /// Where a layer is mounted.
    pub(super) fn mount_point(&self, layer: &str) -> Option<&str> {
        let row = self.mount_points.iter().find(|row| row["id"] == layer)?;
        row["path"].as_str()
    }
}
