//! What is asked of an automatic user namespace.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::idmap::IdMap;

/// A user namespace whose IDs the library chooses: ranges that no other container has, of those that `/etc/subuid` and
/// `/etc/subgid` grant. See [`ContainerOptions::auto_userns`](crate::ContainerOptions::auto_userns).
///
/// ```
/// use graphroot::{AutoUserNs, ContainerOptions};
///
/// let options = ContainerOptions::default().auto_userns(AutoUserNs::default().size(4096));
/// assert_eq!(options.auto_userns.unwrap().size, 4096);
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoUserNs {
    /// How many IDs. 0: as many as the image needs, by the owners in its layers and by its users and groups, but at least
    /// [`AutoUserNs::initial_size`] and
    /// [`StoreOptions::auto_userns_min_size`](crate::StoreOptions::auto_userns_min_size), and at most
    /// [`StoreOptions::auto_userns_max_size`](crate::StoreOptions::auto_userns_max_size).
    pub size: u32,
    /// The fewest IDs, where no size is asked for.
    pub initial_size: u32,
    /// A file on the host that is read in place of the image's `/etc/passwd`.
    pub passwd_file: Option<PathBuf>,
    /// A file on the host that is read in place of the image's `/etc/group`.
    pub group_file: Option<PathBuf>,
    /// User ID ranges that the container has besides, as they are here.
    pub additional_uid_mappings: Vec<IdMap>,
    /// Group ID ranges that the container has besides, as they are here.
    pub additional_gid_mappings: Vec<IdMap>,
}

impl AutoUserNs {
    /// Sets [`AutoUserNs::size`].
    #[must_use]
    pub fn size(mut self, size: u32) -> Self {
        self.size = size;
        self
    }

    /// Sets [`AutoUserNs::initial_size`].
    #[must_use]
    pub fn initial_size(mut self, initial_size: u32) -> Self {
        self.initial_size = initial_size;
        self
    }

    /// Sets [`AutoUserNs::passwd_file`].
    #[must_use]
    pub fn passwd_file(mut self, passwd_file: impl Into<PathBuf>) -> Self {
        self.passwd_file = Some(passwd_file.into());
        self
    }

    /// Sets [`AutoUserNs::group_file`].
    #[must_use]
    pub fn group_file(mut self, group_file: impl Into<PathBuf>) -> Self {
        self.group_file = Some(group_file.into());
        self
    }

    /// Adds one to [`AutoUserNs::additional_uid_mappings`].
    #[must_use]
    pub fn additional_uid_mapping(mut self, mapping: IdMap) -> Self {
        self.additional_uid_mappings.push(mapping);
        self
    }

    /// Adds to [`AutoUserNs::additional_uid_mappings`].
    #[must_use]
    pub fn additional_uid_mappings(mut self, mappings: impl IntoIterator<Item = IdMap>) -> Self {
        self.additional_uid_mappings.extend(mappings);
        self
    }

    /// Adds one to [`AutoUserNs::additional_gid_mappings`].
    #[must_use]
    pub fn additional_gid_mapping(mut self, mapping: IdMap) -> Self {
        self.additional_gid_mappings.push(mapping);
        self
    }

    /// Adds to [`AutoUserNs::additional_gid_mappings`].
    #[must_use]
    pub fn additional_gid_mappings(mut self, mappings: impl IntoIterator<Item = IdMap>) -> Self {
        self.additional_gid_mappings.extend(mappings);
        self
    }
}
