//! User and group ID mappings: what a container calls 0 is another ID on the host.
//!
//! Everything here is arithmetic; nothing touches the system.

pub(crate) mod text;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorKind, Result};

/// One range of a mapping: `size` container IDs from `container_id` are the host IDs from `host_id`.
///
/// Serialised as the Go library does, with all three fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMap {
    /// First ID inside the container.
    pub container_id: i64,
    /// First ID on the host.
    pub host_id: i64,
    /// How many IDs.
    pub size: i64,
}

impl IdMap {
    /// A range of `size` IDs.
    pub const fn new(container_id: u32, host_id: u32, size: u32) -> Self {
        Self {
            container_id: container_id as i64,
            host_id: host_id as i64,
            size: size as i64,
        }
    }
}

/// The user and the group ranges of one layer or container. Empty lists are the identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMappings {
    /// Ranges of user IDs.
    pub uids: Vec<IdMap>,
    /// Ranges of group IDs.
    pub gids: Vec<IdMap>,
}

/// Owner of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

fn map(ranges: &[IdMap], id: u32, to_host: bool) -> Option<u32> {
    if ranges.is_empty() {
        return Some(id);
    }
    let id = i64::from(id);
    ranges.iter().find_map(|range| {
        let (from, to) = if to_host {
            (range.container_id, range.host_id)
        } else {
            (range.host_id, range.container_id)
        };
        let offset = id.checked_sub(from)?;
        if offset < 0 || offset >= range.size {
            return None;
        }
        u32::try_from(to.checked_add(offset)?).ok()
    })
}

impl IdMappings {
    /// Whether nothing is mapped.
    pub fn is_identity(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }

    /// The host's owner for a container's owner.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMappings`] if an ID is in no range.
    pub fn to_host(&self, owner: Owner) -> Result<Owner> {
        let uid = map(&self.uids, owner.uid, true).ok_or_else(|| {
            ErrorKind::InvalidMappings.err(format!(
                "container user ID {} cannot be mapped to a host ID",
                owner.uid
            ))
        })?;
        let gid = map(&self.gids, owner.gid, true).ok_or_else(|| {
            ErrorKind::InvalidMappings.err(format!(
                "container group ID {} cannot be mapped to a host ID",
                owner.gid
            ))
        })?;
        Ok(Owner { uid, gid })
    }

    /// The host's owner for a container's owner, with an ID of `overflow` for each that is in no range.
    pub(crate) fn to_host_or(&self, owner: Owner, overflow: Owner) -> Owner {
        Owner {
            uid: map(&self.uids, owner.uid, true).unwrap_or(overflow.uid),
            gid: map(&self.gids, owner.gid, true).unwrap_or(overflow.gid),
        }
    }

    /// The container's owner for a host's owner.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMappings`] if an ID is in no range.
    pub fn to_container(&self, owner: Owner) -> Result<Owner> {
        let uid = map(&self.uids, owner.uid, false).ok_or_else(|| {
            ErrorKind::InvalidMappings.err(format!(
                "host user ID {} cannot be mapped to a container ID",
                owner.uid
            ))
        })?;
        let gid = map(&self.gids, owner.gid, false).ok_or_else(|| {
            ErrorKind::InvalidMappings.err(format!(
                "host group ID {} cannot be mapped to a container ID",
                owner.gid
            ))
        })?;
        Ok(Owner { uid, gid })
    }

    /// The host's owner of container root. A list of one single ID stands for root whatever its container ID.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMappings`] if 0 is in no range.
    pub fn root(&self) -> Result<Owner> {
        let one = |ranges: &[IdMap]| match ranges {
            [range] if range.size == 1 => u32::try_from(range.host_id).ok(),
            ranges => map(ranges, 0, true),
        };
        match (one(&self.uids), one(&self.gids)) {
            (Some(uid), Some(gid)) => Ok(Owner { uid, gid }),
            _ => Err(ErrorKind::InvalidMappings.err("container root (0:0) cannot be mapped to a host ID")),
        }
    }

    /// Checks that no two ranges of one list overlap, on either side, and that none is empty or negative.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMappings`] naming the range.
    pub fn validate(&self) -> Result<()> {
        for (what, ranges) in [("user", &self.uids), ("group", &self.gids)] {
            for (index, range) in ranges.iter().enumerate() {
                let end = |start: i64| start.checked_add(range.size).filter(|end| *end <= 1 << 32);
                let in_bounds = range.size > 0
                    && range.container_id >= 0
                    && range.host_id >= 0
                    && end(range.container_id).is_some()
                    && end(range.host_id).is_some();
                let overlaps = |a: i64, a_size: i64, b: i64, b_size: i64| a < b + b_size && b < a + a_size;
                let clash = ranges[..index].iter().any(|other| {
                    overlaps(range.container_id, range.size, other.container_id, other.size)
                        || overlaps(range.host_id, range.size, other.host_id, other.size)
                });
                if !in_bounds || clash {
                    return Err(ErrorKind::InvalidMappings.err(format!(
                        "{what} ID range {}:{}:{}",
                        range.container_id, range.host_id, range.size
                    )));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_goes_both_ways_and_names_what_does_not_fit() {
        let maps = IdMappings {
            uids: vec![IdMap::new(0, 100_000, 10)],
            gids: vec![IdMap::new(0, 200_000, 5)],
        };
        let host = maps.to_host(Owner { uid: 3, gid: 4 }).unwrap();
        assert_eq!(
            host,
            Owner {
                uid: 100_003,
                gid: 200_004
            }
        );
        assert_eq!(maps.to_container(host).unwrap(), Owner { uid: 3, gid: 4 });
        assert_eq!(
            maps.root().unwrap(),
            Owner {
                uid: 100_000,
                gid: 200_000
            }
        );
        let error = maps.to_host(Owner { uid: 3, gid: 5 }).unwrap_err();
        assert!(error.chain().contains("group ID 5"), "{error}");
        assert_eq!(
            IdMappings::default().to_host(Owner { uid: 7, gid: 8 }).unwrap(),
            Owner { uid: 7, gid: 8 }
        );
    }

    #[test]
    fn overlapping_and_odd_ranges_are_refused() {
        let with = |uids: Vec<IdMap>| {
            IdMappings {
                uids,
                gids: Vec::new(),
            }
            .validate()
        };
        assert!(with(vec![IdMap::new(0, 1000, 10), IdMap::new(10, 2000, 10)]).is_ok());
        assert!(with(vec![IdMap::new(0, 1000, 10), IdMap::new(9, 2000, 10)]).is_err());
        assert!(with(vec![IdMap::new(0, 1000, 10), IdMap::new(20, 1005, 10)]).is_err());
        assert!(with(vec![IdMap::new(0, 1000, 0)]).is_err());
        assert!(
            with(vec![IdMap {
                container_id: -1,
                host_id: 0,
                size: 1
            }])
            .is_err()
        );
        assert!(
            with(vec![IdMap {
                container_id: i64::MAX,
                host_id: 0,
                size: 2
            }])
            .is_err()
        );
    }
}
