//! Unpacking a stream outside every store lock.

use std::sync::Arc;

use crate::archive::apply::pipeline::{self, ApplyOptions, Content, Source, Target};
use crate::bridge::{self, Detached};
use crate::driver::{CreateOptions, LayerTree};
use crate::error::{Error, IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::TempDir;
use crate::options::LayerOptions;
use crate::store::Store;
use crate::store::layer_store::new_layer::{StagedTarSplit, Unpacked};
use crate::whiteout::WhiteoutFormat;

impl Store {
    /// Unpacks a stream into a staging directory of the driver, for a layer on `below`. Takes no store lock.
    pub(crate) async fn unpack(
        &self,
        below: Option<String>,
        mappings: &IdMappings,
        options: &LayerOptions,
        diff: Source<'_>,
    ) -> Result<Detached<Unpacked>> {
        let permit = self.inner.unpack_permit().await?;
        let create = CreateOptions {
            read_write: options.writeable,
            mappings: mappings.clone(),
            mount_label: options.mount_label.clone().unwrap_or_default(),
            storage_opt: options.storage_opt.clone(),
            durable: self.inner.sync_content() && !options.volatile,
        };
        let inner = Arc::clone(&self.inner);
        let owners = mappings.clone();
        let (staged, tar_split, file, target) = bridge::run(move || {
            let mut temp = TempDir::create(&inner.dirs.layers_tmp())?;
            let path = temp.addition();
            let staged = inner.driver().stage(below.as_deref(), &create)?;
            let (file, mut target) = (create_tar_split(&path)?, target_of(staged.tree(), owners)?);
            if let Some(dir) = staged.unpack_dir() {
                target.dir = dir.try_clone().during("duplicating a directory handle")?;
            }
            Ok((staged, StagedTarSplit { path, temp }, file, target))
        })
        .await?;
        let apply_options = ApplyOptions {
            tar_split: Some(file),
            original_digest: options.original_digest.clone(),
            original_size: options.original_size,
            uncompressed_digest: options.uncompressed_digest.clone(),
            verify: options.verify,
            sync: self.inner.sync_content() && !options.volatile,
        };
        // The permit goes with what is unpacked: the thread may be busy for a moment after this future was dropped.
        let guard = (staged, tar_split, permit);
        let (applied, (staged, tar_split, _permit)) =
            pipeline::apply(diff, target, apply_options, guard).await?;
        Ok(Detached::new(Unpacked {
            staged,
            tar_split,
            applied,
            fitted_to: None,
        }))
    }
}

/// The file that the tar-split recorder writes to.
pub(crate) fn create_tar_split(path: &std::path::Path) -> Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut open = std::fs::OpenOptions::new();
    open.read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .at("creating tar-split", path)
}

/// Describes a layer tree to the unpacker.
pub(crate) fn target_of(tree: &LayerTree, mappings: IdMappings) -> Result<Target> {
    let dir = tree
        .dir
        .try_clone()
        .map_err(|error| Error::io("duplicating a directory handle", error))?;
    let content = if tree.whiteouts == WhiteoutFormat::Apply {
        Content::TreeLayer
    } else {
        Content::Layer
    };
    Ok(Target {
        dir,
        content,
        root_entry: tree.root_entry,
        mappings,
        owner: None,
        ignore_chown_errors: tree.ignore_chown_errors,
        force_mask: tree.force_mask,
        in_user_namespace: tree.in_user_namespace,
        present: None,
    })
}
