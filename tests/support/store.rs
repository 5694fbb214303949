//! Opening the library's store on a [`TestRoot`] and looking into it.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::Path;

use graphroot::{CheckOptions, DiffOptions, Digest, Layer, LayerOptions, Store, StoreOptions};
use tokio::io::AsyncReadExt as _;

use super::root::TestRoot;

impl TestRoot {
    /// The options with which the tests open this store.
    pub(crate) fn options(&self) -> StoreOptions {
        StoreOptions::new(self.graph(), self.run()).driver(self.driver())
    }

    /// Opens this store.
    pub(crate) async fn open(&self) -> Store {
        Store::open(self.options())
            .await
            .unwrap_or_else(|error| panic!("opening the store: {error:?}"))
    }

    /// What lies in the driver's home besides what belongs to no layer.
    pub(crate) fn layer_directories(&self) -> BTreeSet<String> {
        let home = self.graph().join(self.driver());
        match self.driver() {
            "vfs" => return names_in(&home.join("dir")),
            "btrfs" => return names_in(&home.join("subvolumes")),
            _ => {}
        }
        // The driver's own, none of which is a layer.
        const OWN: &[&str] = &["backingFsBlockDev", "l", "staging", "tempdirs"];
        names_in(&home)
            .into_iter()
            .filter(|name| !OWN.contains(&name.as_str()) && !name.starts_with('.'))
            .collect()
    }

    /// Short links of the overlay driver.
    pub(crate) fn short_links(&self) -> BTreeSet<String> {
        names_in(&self.graph().join(self.driver()).join("l"))
    }

    /// Records that were being written when their writer was killed; garbage collection removes them.
    pub(crate) fn half_written_records(&self) -> Vec<String> {
        let kinds = ["layers", "images", "containers"];
        let names = kinds.iter().flat_map(|what| names_in(&self.metadata_dir(what)));
        names.filter(|name| name.starts_with(".tmp-")).collect()
    }

    /// Staging directories and their locks, relative to the graph root.
    pub(crate) fn temporary_files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let driver = self.driver();
        for dir in [
            format!("{driver}/staging"),
            format!("{driver}/tempdirs"),
            format!("{driver}-layers/tmp"),
        ] {
            found.extend(
                names_in(&self.graph().join(&dir))
                    .iter()
                    .map(|name| format!("{dir}/{name}")),
            );
        }
        found
    }
}

/// The names in a directory; none if it does not exist.
pub(crate) fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return BTreeSet::new(),
        Err(error) => panic!("{}: {error}", dir.display()),
    };
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// Puts a layer from bytes.
pub(crate) async fn put_bytes(
    store: &Store,
    parent: Option<&str>,
    options: LayerOptions,
    tar: Vec<u8>,
) -> graphroot::Result<Layer> {
    Ok(store.put_layer(parent, options, Cursor::new(tar)).await?.layer)
}

/// Puts a layer from a file.
pub(crate) async fn put_file(
    store: &Store,
    parent: Option<&str>,
    options: LayerOptions,
    file: &Path,
) -> graphroot::Result<Layer> {
    let reader = tokio::fs::File::open(file).await.unwrap();
    Ok(store.put_layer(parent, options, reader).await?.layer)
}

/// Digest and size of a layer's diff against its parent, as exported without compression.
pub(crate) async fn exported(store: &Store, layer: &str) -> (Digest, u64) {
    use sha2::Digest as _;
    let mut diff = store
        .diff(None, layer, DiffOptions::uncompressed())
        .await
        .unwrap();
    let (mut hash, mut size, mut buffer) = (sha2::Sha256::new(), 0, vec![0; 256 * 1024]);
    loop {
        let count = diff.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        size += u64::try_from(count).unwrap();
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    (format!("sha256:{hex}").parse().unwrap(), size)
}

/// Asserts that nothing is wrong with a store, and that it has nothing that belongs to nobody.
pub(crate) async fn assert_clean(store: &Store, moment: &str) {
    let report = store.check(CheckOptions::everything()).await.unwrap();
    assert!(
        report.is_clean() && report.strays.is_empty(),
        "{moment}: {report:#?}"
    );
}

/// The IDs of all layers.
pub(crate) async fn layer_ids(store: &Store) -> BTreeSet<String> {
    store
        .layers()
        .await
        .unwrap()
        .iter()
        .map(|layer| layer.id().to_owned())
        .collect()
}
