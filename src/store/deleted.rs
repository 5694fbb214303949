//! Errors of reading what is deleted meanwhile.
//!
//! Content is read outside the locks. When it is deleted meanwhile, files are missing, which looks like damage: so
//! after a failure the records are asked whether the item is still there.

use std::io;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::access::hit;

/// The layers whose content is being read.
#[derive(Clone)]
pub(crate) struct ReadLayers {
    store: Store,
    to: Arc<LayerRow>,
    /// What it is compared with.
    from: Option<Arc<LayerRow>>,
}

impl ReadLayers {
    /// The layer `to`, perhaps compared with `from`.
    pub(crate) fn new(store: Store, to: Arc<LayerRow>, from: Option<Arc<LayerRow>>) -> Self {
        Self { store, to, from }
    }

    /// The ID of the layer that is read.
    pub(crate) fn first(&self) -> &str {
        &self.to.id
    }

    /// What the failure `error` comes from: the deletion of a layer, or what it says.
    pub(crate) async fn explain(self, error: Error) -> Error {
        if matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::LayerUnknown) {
            return error;
        }
        match self.deletion().await {
            Some(deletion) => {
                tracing::debug!(error = %error.chain(), "reading a layer that was deleted");
                deletion
            }
            None => error,
        }
    }

    /// The error for a layer that was deleted since. A tree that is being removed is read without a failure: its files are
    /// missing, as those that a container deletes.
    pub(crate) async fn deletion(self) -> Option<Error> {
        for row in [Some(&self.to), self.from.as_ref()].into_iter().flatten() {
            if matches!(self.is_there(row).await, Ok(false)) {
                let what = format!("layer {:?}, which was deleted while it was read", row.id);
                return Some(ErrorKind::LayerUnknown.err(what));
            }
        }
        None
    }

    /// As [`ReadLayers::explain`], for the error of a stream.
    pub(crate) async fn explain_io(self, error: io::Error) -> io::Error {
        match Error::try_from_io(error) {
            Ok(error) => self.explain(error).await.into(),
            Err(other) => other,
        }
    }

    /// Whether this very layer is in the store: another one with the same ID was made at another time.
    async fn is_there(&self, row: &LayerRow) -> Result<bool> {
        let found = self.store.read_all_layer_stores(|_, table| {
            Ok(hit(table.get(&row.id).map(|found| found.created == row.created)))
        });
        Ok(found.await?.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{ContainerOptions, ImageOptions, LayerOptions, StoreOptions};
    use crate::store::inner::StoreOrigin;

    #[tokio::test]
    async fn a_failure_is_a_deletion_if_that_very_layer_is_gone() {
        let tmp = tempfile::tempdir().unwrap();
        let options = StoreOptions::new(tmp.path().join("graph"), tmp.path().join("run")).driver("vfs");
        let store = Store::open(options).await.unwrap();
        let options = || LayerOptions::default().id("one");
        drop(store.create_layer(None, options()).await.unwrap());
        let row = store
            .read_layers()
            .await
            .unwrap()
            .get("one")
            .map(Arc::clone)
            .unwrap();
        let explained = async |from: Option<Arc<LayerRow>>, kind: ErrorKind| {
            let layers = ReadLayers::new(store.clone(), Arc::clone(&row), from);
            layers.explain(kind.err("what was found")).await
        };
        let error = explained(None, ErrorKind::LayerContentModified).await;
        assert_eq!(error.kind(), ErrorKind::LayerContentModified);
        store.delete_layer("one").await.unwrap();
        let error = explained(None, ErrorKind::LayerContentModified).await;
        assert!(error.is_not_found(), "{error:?}");
        assert_eq!(
            error.to_string(),
            "layer \"one\", which was deleted while it was read: layer not known"
        );
        // A runtime that ends says nothing about layers.
        assert_eq!(
            explained(None, ErrorKind::Cancelled).await.kind(),
            ErrorKind::Cancelled
        );

        drop(store.create_layer(None, options()).await.unwrap());
        let error = explained(None, ErrorKind::LayerContentModified).await;
        assert_eq!(error.kind(), ErrorKind::LayerUnknown);
        let row = store
            .read_layers()
            .await
            .unwrap()
            .get("one")
            .map(Arc::clone)
            .unwrap();
        let gone = Arc::new(LayerRow {
            id: "two".into(),
            ..LayerRow::clone(&row)
        });
        let layers = ReadLayers::new(store.clone(), row, Some(gone));
        let error = layers.explain(ErrorKind::Io.err("opening")).await;
        assert!(
            error.is_not_found() && error.to_string().contains("two"),
            "{error:?}"
        );
    }

    /// Readers look the record up, then open the file: between the two both may go.
    #[tokio::test]
    async fn an_item_of_what_was_deleted_belongs_to_something_unknown() {
        let tmp = tempfile::tempdir().unwrap();
        let options = StoreOptions::new(tmp.path().join("graph"), tmp.path().join("run")).driver("vfs");
        let store = Store::open(options).await.unwrap();
        let layer = LayerOptions::default().id("layer").big_data("item", "data");
        drop(store.create_layer(None, layer).await.unwrap());
        let image = ImageOptions::default().id("image").big_data("item", "data");
        drop(store.create_image(None, image).await.unwrap());
        let container = ContainerOptions::default()
            .id("container")
            .big_data("item", "data");
        let container = store.create_container(None, container).await.unwrap();
        let layer = store
            .read_layers()
            .await
            .unwrap()
            .get("layer")
            .map(Arc::clone)
            .unwrap();
        let image = store
            .read_images()
            .await
            .unwrap()
            .get("image")
            .map(Arc::clone)
            .unwrap();
        let read = async || {
            let layer = store.open_layer_item(Arc::clone(&layer), StoreOrigin::Primary, "item");
            let image = store.read_image_item(&image, StoreOrigin::Primary, "item");
            [
                layer.await.err().map(|error| error.kind()),
                image.await.err().map(|error| error.kind()),
                store
                    .read_container_item(&container, "item")
                    .await
                    .err()
                    .map(|error| error.kind()),
            ]
        };
        assert_eq!(read().await, [None; 3]);
        for path in ["vfs-layers/layer", "vfs-images/image", "vfs-containers/container"] {
            std::fs::rename(tmp.path().join("graph").join(path), tmp.path().join("away")).unwrap();
            std::fs::remove_dir_all(tmp.path().join("away")).unwrap();
        }
        assert_eq!(read().await, [Some(ErrorKind::NotFound); 3]);
        store.delete_layer("layer").await.unwrap();
        store.delete_image("image").await.unwrap();
        store.delete_container("container").await.unwrap();
        let unknown = [
            ErrorKind::LayerUnknown,
            ErrorKind::ImageUnknown,
            ErrorKind::ContainerUnknown,
        ];
        assert_eq!(read().await, unknown.map(Some));
    }
}
