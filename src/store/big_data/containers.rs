//! Named data of containers.

use std::sync::Arc;

use bytes::Bytes;

use crate::bridge;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::record::big_data::{self, Items as _};
use crate::record::container::ContainerRow;
use crate::record::record_trait::Record as _;
use crate::record::table::Table;
use crate::store::Store;
use crate::store::big_data::item::{check_new, missing_item, named, not_known, set_item};
use crate::store::dirs::item_dir;
use crate::store::views::Container;

/// # Big data of containers
impl Store {
    /// Keys of a container's big data items.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn list_container_big_data(&self, id: &str) -> Result<Vec<String>> {
        Ok(self.container(id).await?.big_data_names().to_vec())
    }

    /// A big data item of a container.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::NotFound`] for an item that does not exist,
    /// [`ErrorKind::InvalidBigDataName`] for an empty key.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn container_big_data(&self, id: &str, key: &str) -> Result<Bytes> {
        self.read_container_item(&self.container(id).await?, key).await
    }

    pub(crate) async fn read_container_item(&self, container: &Container, key: &str) -> Result<Bytes> {
        let id = container.id().to_owned();
        let key = named(container.big_data_names(), key, "container", &id)?.to_owned();
        let dir = item_dir(self.inner.dirs.containers(), &id)?;
        let recorded = container.recorded_big_data(&key);
        let read = bridge::run(move || {
            let data = big_data::read(&dir, &key, recorded.as_ref())?;
            let data = data.ok_or_else(|| missing_item(&key, "container", &id))?;
            Ok(Bytes::from(data))
        });
        match read.await {
            Err(error) if error.is_not_found() => {
                let is_there = |table: &Table<ContainerRow>| Ok(table.get(container.id()).is_some());
                match self.read_container_store(is_there).await? {
                    true => Err(error),
                    false => Err(ContainerRow::unknown(container.id())),
                }
            }
            read => read,
        }
    }

    /// Size in bytes of a big data item of a container. If it is not recorded yet, the item is read, and its size and
    /// digest recorded, in one step under the exclusive container lock.
    ///
    /// Takes the container lock shared for a moment; exclusively for one step if the size has to be recorded.
    ///
    /// # Errors
    /// [`ErrorKind::SizeUnknown`].
    ///
    /// # Cancellation
    /// Nothing has changed, or what was computed is recorded in the background.
    pub async fn container_big_data_size(&self, id: &str, key: &str) -> Result<u64> {
        let unknown = |error| not_known(ErrorKind::SizeUnknown, key, "container", id).with_source(error);
        if let Some(size) = self.container(id).await.map_err(unknown)?.big_data_size(key) {
            return Ok(size);
        }
        Ok(self.measure_container_item(id, key).await.map_err(unknown)?.0)
    }

    /// Digest (SHA-256) of a big data item of a container. If it is not recorded yet, the item is read, and its size and
    /// digest recorded, in one step under the exclusive container lock.
    ///
    /// Takes the container lock shared for a moment; exclusively for one step if the digest has to be recorded.
    ///
    /// # Errors
    /// [`ErrorKind::DigestUnknown`].
    ///
    /// # Cancellation
    /// Nothing has changed, or what was computed is recorded in the background.
    pub async fn container_big_data_digest(&self, id: &str, key: &str) -> Result<Digest> {
        let unknown = |error| not_known(ErrorKind::DigestUnknown, key, "container", id).with_source(error);
        if let Some(digest) = self.container(id).await.map_err(unknown)?.big_data_digest(key) {
            return Ok(digest);
        }
        Ok(self.measure_container_item(id, key).await.map_err(unknown)?.1)
    }

    /// The size and digest of a big data item of a container, found out from the item and recorded unless a concurrent
    /// caller has done so. One step under the exclusive lock: what is recorded is of the content that is there.
    async fn measure_container_item(&self, id: &str, key: &str) -> Result<(u64, Digest)> {
        let (container, key) = (id.to_owned(), key.to_owned());
        let dirs = self.inner.dirs.containers();
        self.write_to_container_store(move |store| {
            let row = Arc::clone(store.require(&container)?);
            let key = named(&row.big_data_names, &key, "container", &row.id)?;
            let view = Container::new(&row);
            if let (Some(size), Some(digest)) = (view.big_data_size(key), view.big_data_digest(key)) {
                return Ok((size, digest));
            }
            let dir = item_dir(dirs, &row.id)?;
            let recorded = row.recorded(key);
            let data = big_data::read(&dir, key, recorded.as_ref())?
                .ok_or_else(|| missing_item(key, "container", &row.id))?;
            if let Some(recorded) = recorded {
                // It is found by what the record says, which changes now.
                big_data::settle(&dir, key, &recorded)?;
            }
            let digest = Digest::sha256(&data);
            store
                .table_mut()
                .update(&row.id, |row| row.record(key, data.len(), digest.clone()))?;
            Ok((data.len() as u64, digest))
        })
        .await
    }

    /// Stores a big data item with a container and records its size and SHA-256 digest.
    ///
    /// Takes the container lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::InvalidBigDataName`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn set_container_big_data(&self, id: &str, key: &str, data: impl Into<Bytes>) -> Result<()> {
        check_new(key, "container")?;
        let (container, key, data) = (id.to_owned(), key.to_owned(), data.into());
        let dirs = self.inner.dirs.containers();
        self.write_to_container_store(move |store| {
            let row = Arc::clone(store.require(&container)?);
            let digest = Digest::sha256(&data);
            set_item(store, &*row, &item_dir(dirs, &row.id)?, &key, &data, digest)
        })
        .await
    }
}
