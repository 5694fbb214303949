//! Whether the copy of a container or layer is what that is now, but for what it cannot have.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bridge;
use crate::driver::{Loss, Remaps, ShownTree, Trial, difference, remap};
use crate::error::{IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::record::container::ContainerRow;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::store::access::hit;
use crate::store::copy_to::layer::Job;
use crate::store::copy_to::layer_tree::Standing;
use crate::store::copy_to::plan::SourceContainer;
use crate::store::dirs::item_dir;
use crate::sys::at;

/// What the comparison of a container or layer with its copy has come to.
pub(super) enum Compared {
    /// They are the same, but for what the target cannot have.
    Same(Vec<Loss>),
    /// What tells them apart.
    Different(String),
}

impl Job {
    /// Compares a container with the copy that the target has of it.
    pub(super) async fn compare(&self, container: &SourceContainer) -> Result<Compared> {
        let id = container.row.id.to_string();
        let copy = self.to.read_container_store(|table| {
            let row = table.get(&id).map(Arc::clone);
            row.ok_or_else(|| ContainerRow::unknown(&id))
        });
        if let Some(what) = other_record(&container.row, &*copy.await?) {
            return Ok(Compared::Different(format!("other {what}")));
        }
        let dirs = [&self.from, &self.to].map(|store| item_dir(store.inner.dirs.containers(), &id));
        let [ours, theirs] = dirs;
        let (ours, theirs) = (ours?, theirs?);
        let data = bridge::run(move || other_data(&ours, &theirs)).await?;
        if let Some(path) = data {
            return Ok(Compared::Different(format!("other data: {}", path.display())));
        }
        self.compare_trees(&container.layer.row).await
    }

    /// Compares what a layer shows with what the copy shows that the target has of it.
    pub(super) async fn compare_trees(&self, row: &Arc<LayerRow>) -> Result<Compared> {
        let layer = &row.id;
        let found = self
            .to
            .read_all_layer_stores(|_, table| Ok(hit(table.get(layer).map(Arc::clone))));
        let found = found.await?.ok_or_else(|| LayerRow::unknown(layer))?;
        let ours = Standing::find(&self.from, row).await?;
        let theirs = Standing::find(&self.to, &found).await?;
        let (ours, theirs) = (ours.open(&self.from).await?, theirs.open(&self.to).await?);
        let inside = |mappings: IdMappings| remap(mappings, IdMappings::default());
        let remaps = Remaps {
            own: inside(ours.on_disk.own),
            below: inside(ours.on_disk.below),
            base: inside(theirs.on_disk.below),
            base_own: inside(theirs.on_disk.own),
        };
        let temporary = self.to.inner.dirs.layers_tmp();
        let home = self.to.inner.driver().home().to_owned();
        let (path, losses) = bridge::run(move || {
            let trial = Trial::new(temporary, &home);
            difference(&ours.shown, &theirs.shown, &remaps, trial.as_ref())
        })
        .await?;
        Ok(match path {
            Some(path) => Compared::Different(format!("another {}", path.display())),
            None => Compared::Same(losses),
        })
    }
}

/// What differs in the records of a container.
fn other_record(ours: &ContainerRow, theirs: &ContainerRow) -> Option<&'static str> {
    if ours.names != theirs.names {
        return Some("names");
    }
    if (&ours.metadata, &ours.flags) != (&theirs.metadata, &theirs.flags) {
        return Some("metadata");
    }
    if (&ours.uid_map, &ours.gid_map) != (&theirs.uid_map, &theirs.gid_map) {
        return Some("ID mappings");
    }
    (ours.big_data_names != theirs.big_data_names).then_some("items of data")
}

/// Where the directories of a container's data differ.
fn other_data(ours: &Path, theirs: &Path) -> Result<Option<PathBuf>> {
    let open = |path: &Path| match at::open_dir(path) {
        Err(rustix::io::Errno::NOENT) => Ok(None),
        opened => opened.at("opening", path).map(Some),
    };
    let shown = |root: OwnedFd| ShownTree {
        root,
        own: None,
        counts_names: true,
        one_mount: true,
        in_user_namespace: false,
    };
    match (open(ours)?, open(theirs)?) {
        (None, None) => Ok(None),
        (Some(ours), Some(theirs)) => {
            let found = difference(&shown(ours), &shown(theirs), &Remaps::default(), None);
            found.map(|(path, _losses)| path)
        }
        _ => Ok(Some(PathBuf::from("/"))),
    }
}
