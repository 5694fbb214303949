//! Steps in common batches, and readers beside them.

mod batches;
mod on_each_other;
mod readers;
mod work;

use std::path::Path;

use crate::error::Result;
use crate::options::{ImageOptions, StoreOptions};
use crate::store::Store;
use crate::store::access::{Batch, Needs};

async fn open(root: &Path) -> Store {
    open_with(root, |options| options).await
}

async fn open_with(root: &Path, change: fn(StoreOptions) -> StoreOptions) -> Store {
    let options = StoreOptions::new(root.join("graph"), root.join("run")).driver("vfs");
    Store::open(change(options)).await.unwrap()
}

/// Creates images with these IDs.
async fn create_images(store: &Store, ids: &[String]) {
    for id in ids {
        let options = ImageOptions::default().id(id.as_str());
        drop(store.create_image(None, options).await.unwrap());
    }
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("image-{number}")).collect()
}

async fn metadata(store: &Store, id: &str) -> String {
    store.metadata(id).await.unwrap()
}

/// Appends `a`, saves, and appends `b`.
async fn append(store: Store, id: String) -> Result<()> {
    let step = async move |batch: Batch| {
        change(&batch, &id, "a")?;
        batch.save().await?;
        change(&batch, &id, "b")
    };
    store.in_batch(Needs::IMAGES, step).await
}

fn change(batch: &Batch, id: &str, text: &str) -> Result<()> {
    batch.with(|held| {
        let table = held.images()?.table_mut();
        table.update(id, |row| row.metadata.push_str(text)).map(drop)
    })
}

async fn until_waiting(store: &Store, count: usize) {
    while store.writers.waiting() < count {
        tokio::task::yield_now().await;
    }
}
