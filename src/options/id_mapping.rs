//! Owner mappings of new layers and containers.

use serde::{Deserialize, Serialize};

use crate::idmap::IdMap;

/// Owner mapping wanted for a layer or container.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdMappingOptions {
    /// User IDs are those of the host: no mapping, whatever the parent has.
    pub host_uid_mapping: bool,
    /// Group IDs are those of the host: no mapping, whatever the parent has.
    pub host_gid_mapping: bool,
    /// User ID ranges; empty: inherit.
    pub uid_map: Vec<IdMap>,
    /// Group ID ranges; empty: inherit.
    pub gid_map: Vec<IdMap>,
}

impl IdMappingOptions {
    /// Asks for exactly these ranges.
    pub fn mapped(uid_map: impl Into<Vec<IdMap>>, gid_map: impl Into<Vec<IdMap>>) -> Self {
        Self {
            uid_map: uid_map.into(),
            gid_map: gid_map.into(),
            ..Self::default()
        }
    }

    /// Sets [`IdMappingOptions::host_uid_mapping`].
    #[must_use]
    pub fn host_uid_mapping(mut self, host_uid_mapping: bool) -> Self {
        self.host_uid_mapping = host_uid_mapping;
        self
    }

    /// Sets [`IdMappingOptions::host_gid_mapping`].
    #[must_use]
    pub fn host_gid_mapping(mut self, host_gid_mapping: bool) -> Self {
        self.host_gid_mapping = host_gid_mapping;
        self
    }

    /// Sets [`IdMappingOptions::uid_map`].
    #[must_use]
    pub fn uid_map(mut self, uid_map: impl Into<Vec<IdMap>>) -> Self {
        self.uid_map = uid_map.into();
        self
    }

    /// Sets [`IdMappingOptions::gid_map`].
    #[must_use]
    pub fn gid_map(mut self, gid_map: impl Into<Vec<IdMap>>) -> Self {
        self.gid_map = gid_map.into();
        self
    }
}
