//! The driver's methods.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::contract::{
    CreateOptions, DiskUsage, Driver, DriverCapabilities, Entry, EntryKind, FoundLayer, LayerTree, Leftover,
    MountOptions, MountState, Staged,
};
use crate::driver::layer_copy::{Copied, LayerCopy};
use crate::driver::tree_home::is_found;
use crate::driver::unpack_dir;
use crate::driver::zfs::mounting::{Access, Mounter, is_mounted};
use crate::driver::zfs::state::{NAME, TARGETS, TEMP_DIRS, Zfs};
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::TempDir;
use crate::sys::presence::is_dir;
use rustix::io::Errno;

impl Driver for Zfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn home(&self) -> &Path {
        &self.home
    }

    fn capabilities(&self) -> DriverCapabilities {
        DriverCapabilities {
            quota: true,
            ..DriverCapabilities::default()
        }
    }

    fn check_id(&self, id: &str) -> Result<()> {
        self.datasets.root.check_id(id)
    }

    fn create(&self, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        if let Some(owners) = parent.and(options.new_owners()) {
            owners.check_root()?;
        }
        self.create_layer(id, parent, options)
    }

    fn supports_shifting(&self, _mappings: &IdMappings) -> bool {
        false
    }

    fn stage(self: Arc<Self>, parent: Option<&str>, options: &CreateOptions) -> Result<Box<dyn Staged>> {
        self.begin_layer(parent, options)
    }

    fn names_to_sync(&self, id: &str) -> Result<Vec<PathBuf>> {
        // What makes or removes a layer is on disk when the command ends, with what was written before.
        self.find(id).map(|_dataset| Vec::new())
    }

    fn defer_remove(&self, id: &str) -> Result<Option<TempDir>> {
        self.remove_later(id)
    }

    fn remove_in_place(&self, id: &str) -> Result<()> {
        self.remove_now(id)
    }

    fn exists(&self, id: &str) -> Result<bool> {
        is_found(self.find(id))
    }

    fn check_works(&self) -> Result<()> {
        self.datasets.check_root()
    }

    fn found_layers(&self) -> Result<Vec<FoundLayer>> {
        let found = self.list_layers()?.into_iter().map(|id| FoundLayer {
            dir: self.target(&id),
            id,
            in_image_store: None,
            below: None,
        });
        Ok(found.collect())
    }

    fn list(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&self.home).at("listing", &self.home)? {
            let name = entry.at("listing", &self.home)?.file_name();
            let kind = match name.to_str() {
                Some(TARGETS | TEMP_DIRS) => EntryKind::Internal,
                _ => EntryKind::Unknown,
            };
            entries.push(Entry { name, kind });
        }
        for listed in self.datasets.list(false)? {
            let id = self.datasets.root.id_of(&listed.name);
            if let Some(id) = id.filter(|_| listed.is_ours && listed.removed.is_none()) {
                entries.push(Entry {
                    name: id.into(),
                    kind: EntryKind::Layer,
                });
            }
        }
        Ok(entries)
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        self.stale()
    }

    fn remove_strays(&self) -> Result<()> {
        self.recover_without_dir()
    }

    fn prune(&self) -> Result<()> {
        self.recover()
    }

    fn mount(&self, id: &str, options: &MountOptions) -> Result<PathBuf> {
        self.mount_layer(id, options)
    }

    fn unmount(&self, id: &str) -> Result<()> {
        self.unmount_layer(id)
    }

    fn unmount_all(&self, id: &str) -> Result<()> {
        self.unmount_whole(id)
    }

    fn mount_state(&self, target: &Path) -> Result<MountState> {
        let is_unused = || self.shared.unused().iter().any(|unused| unused == target);
        let mounted = match is_mounted(target) {
            // The daemon that served it is dead.
            Err(error) if error.has_errno(Errno::NOTCONN) => return Ok(MountState::Nowhere),
            mounted => mounted?,
        };
        Ok(match mounted && !is_unused() {
            true => MountState::Here,
            // Another mount namespace may have a mount, unless it is that of the daemon.
            false if self.mounter == Mounter::Kernel && is_dir(target)? => MountState::Elsewhere,
            false => MountState::Nowhere,
        })
    }

    fn mount_private(&self, id: &str) -> Result<OwnedFd> {
        self.open_layer(id, Access::Read)
    }

    fn layer_tree(&self, id: &str) -> Result<LayerTree> {
        Ok(unpack_dir::whole_tree(self.open_layer(id, Access::Write)?))
    }

    fn remove_half_moved(&self, id: &str) -> Result<()> {
        match self.open_layer(id, Access::Write) {
            Err(error) if error.kind() == ErrorKind::LayerUnknown => Ok(()),
            root => unpack_dir::remove_left(&root?),
        }
    }

    fn copy_layer(&self, id: &str, copied: Copied) -> Result<Option<LayerCopy>> {
        self.copy_of(id, copied).map(Some)
    }

    fn tree_number(&self, id: &str) -> Result<u64> {
        self.number_of_tree(id)
    }

    fn file_trees(&self, id: &str) -> Result<Vec<OwnedFd>> {
        Ok(vec![self.mount_private(id)?])
    }

    fn status(&self) -> Vec<(String, String)> {
        let health = match self.datasets.health() {
            Ok(health) => [self.datasets.root.pool().to_owned(), health],
            Err(error) => [
                format!("error while getting pool information {}", error.chain()),
                "not available".to_owned(),
            ],
        };
        let properties = self
            .datasets
            .properties("used,available,quota,compression", self.datasets.root.name());
        if let Err(error) = &properties {
            tracing::warn!(error = %error.chain(), "cannot read the properties of the dataset for layers");
        }
        let properties = properties.unwrap_or_default();
        let value = |name: &str| {
            let found = properties.iter().find(|(known, _value)| known == name);
            found.map(|(_name, value)| value.clone()).unwrap_or_default()
        };
        let [pool, health] = health;
        let quota = Some(value("quota")).filter(|quota| !matches!(quota.as_str(), "0" | "none"));
        [
            ("Zpool", pool),
            ("Zpool Health", health),
            ("Parent Dataset", self.datasets.root.name().to_owned()),
            ("Space Used By Parent", value("used")),
            ("Space Available", value("available")),
            ("Parent Quota", quota.unwrap_or_else(|| "no".to_owned())),
            ("Compression", value("compression")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn metadata(&self, id: &str) -> Result<BTreeMap<String, String>> {
        let dataset = self.find(id)?;
        let target = self.target(id).display().to_string();
        Ok([("Dataset", dataset), ("Mountpoint", target)]
            .map(|(name, value)| (name.to_owned(), value))
            .into())
    }

    fn disk_usage(&self, id: &str) -> Result<DiskUsage> {
        DiskUsage::of_tree(self.mount_private(id)?.as_fd(), id)
    }

    fn cleanup(&self) -> Result<()> {
        self.leave_all()
    }

    fn additional_image_stores(&self) -> &[PathBuf] {
        &[]
    }

    fn sync_filesystem(&self) -> bool {
        false
    }
}
