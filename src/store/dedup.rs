//! Files of image layers that have the same content are made to share it.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::try_join_all;

use crate::archive::same_files::{Candidate, Files, Groups, Key, Shared, Work};
use crate::bridge::{self, run_to_completion};
use crate::error::{ErrorKind, Result};
use crate::options::{DedupHashMethod, DedupOptions};
use crate::store::Store;
use crate::sys::processors;

/// Trees, and groups of files, that are worked on at the same time at the most.
const MAX_PARALLEL: usize = 8;

/// What [`Store::dedup`] has done.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DedupResult {
    /// Bytes of files that share their content with that of another one. As in the Go library these are all files that do
    /// so, those included that have done so before.
    pub deduped: u64,
    /// How many files that are.
    pub files: u64,
    /// Why files cannot share their content, if the file system does not support it; then nothing was done.
    pub unsupported: Option<String>,
}

/// # Deduplication
impl Store {
    /// Makes files of the layers of images that have the same content share it on disk, where the file system can do that
    /// (xfs, btrfs and others with reflinks). Contents, times and digests stay as they are; writing to one file
    /// changes no other one. Layers of containers, and those of additional stores, are left alone.
    ///
    /// Memory grows with the number of files. The layer lock is taken shared for the moment in which a layer is opened.
    /// Layers that are deleted meanwhile are passed over.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] and others if records or files cannot be read. A file system that cannot do it is no error: see
    /// [`DedupResult::unsupported`].
    ///
    /// # Cancellation
    /// The files that were not reached stay as they are.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// let result = store.dedup(graphroot::DedupOptions::default()).await?;
    /// println!("{} files share {} bytes", result.files, result.deduped);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn dedup(&self, options: DedupOptions) -> Result<DedupResult> {
        let key = match options.hash_method {
            DedupHashMethod::Crc => Key::Crc,
            DedupHashMethod::FileSize => Key::Size,
            DedupHashMethod::Sha256 => Key::Sha256,
        };
        let parallel = processors().min(MAX_PARALLEL);
        let layers = self.layers_of_images().await?;
        let walks = layers.into_iter().map(|id| self.files_of_layer(id));
        let mut walks = futures::stream::iter(walks).buffer_unordered(parallel);
        let mut candidates = Vec::new();
        while let Some(found) = walks.next().await {
            candidates.extend(found?);
        }
        let groups = Arc::new(bridge::run(move || Ok(Groups::of_one_size(candidates))).await?);
        let works = (0..parallel).map(|_| run_to_completion(Work::new(Arc::clone(&groups), key), Work::step));
        let mut total = Shared::default();
        for work in try_join_all(works).await? {
            total.add(work.into_shared());
        }
        Ok(DedupResult {
            deduped: total.bytes,
            files: total.files,
            unsupported: total.unsupported,
        })
    }

    /// The layers of the primary store that images of any store are made of.
    async fn layers_of_images(&self) -> Result<Vec<String>> {
        let mut todo = Vec::new();
        let _none: Option<()> = self
            .read_all_image_stores(|_, table| {
                let tops = table.rows().flat_map(|row| row.top_layers().map(str::to_owned));
                todo.extend(tops.collect::<Vec<_>>());
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        let layers = self.read_layers().await?;
        let mut found = HashSet::new();
        while let Some(id) = todo.pop() {
            if let Some(row) = layers.get(&id)
                && found.insert(id)
            {
                todo.push(row.parent.to_string());
            }
        }
        Ok(found.into_iter().collect())
    }

    /// The files of a layer; none if it is gone.
    async fn files_of_layer(&self, id: String) -> Result<Vec<Candidate>> {
        let held = self.read_layers().await?;
        let driver = self.inner.driver();
        let opened = bridge::run(move || {
            let files = driver.layer_tree(&id).and_then(|tree| Files::new(tree.dir));
            match files {
                Err(error) if error.kind() == ErrorKind::LayerUnknown || error.is_not_found() => Ok(None),
                files => files.map(Some),
            }
        })
        .await;
        drop(held);
        match opened? {
            Some(files) => Ok(run_to_completion(files, Files::step).await?.into_found()),
            None => Ok(Vec::new()),
        }
    }
}
