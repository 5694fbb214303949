//! User and group ID mappings between a container and the host. Pure.

pub(crate) mod id_set;
pub(crate) mod text;
pub(crate) mod users;

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorKind, Result};

/// One range of a mapping: `size` container IDs from `container_id` are the host IDs from `host_id`.
///
/// Serialised as the Go library does, with all three fields. A value with an ID that does not fit into 32 bits is
/// refused: the kernel has no such IDs.
///
/// ```
/// use graphroot::IdMap;
///
/// let range = IdMap::new(0, 100_000, 65_536);
/// assert_eq!(range.to_string(), "0:100000:65536");
/// assert_eq!(range.host_ids(), 100_000..165_536);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IdMap {
    /// First ID inside the container.
    pub container_id: u32,
    /// First ID on the host.
    pub host_id: u32,
    /// How many IDs.
    pub size: u32,
}

impl IdMap {
    /// A range of `size` IDs.
    pub const fn new(container_id: u32, host_id: u32, size: u32) -> Self {
        Self {
            container_id,
            host_id,
            size,
        }
    }

    /// The IDs inside the container.
    pub fn container_ids(&self) -> Range<u64> {
        ids(self.container_id, self.size)
    }

    /// The IDs on the host.
    pub fn host_ids(&self) -> Range<u64> {
        ids(self.host_id, self.size)
    }
}

/// In 64 bits, because the end may lie beyond the last ID.
fn ids(first: u32, size: u32) -> Range<u64> {
    let first = u64::from(first);
    first..first + u64::from(size)
}

impl fmt::Display for IdMap {
    /// `CONTAINER:HOST:SIZE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.container_id, self.host_id, self.size)
    }
}

/// The user and the group ranges of one layer or container. Empty lists are the identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMappings {
    /// Ranges of user IDs.
    #[serde(default)]
    pub uids: Vec<IdMap>,
    /// Ranges of group IDs.
    #[serde(default)]
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
    ranges.iter().find_map(|range| {
        let (from, to) = if to_host {
            (range.container_id, range.host_id)
        } else {
            (range.host_id, range.container_id)
        };
        let offset = id.checked_sub(from).filter(|offset| *offset < range.size)?;
        to.checked_add(offset)
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

    /// The host's user and group with the IDs that those with this ID have in `to`; `None` for what is in no range.
    pub(crate) fn moved_to(&self, to: &Self, id: u32) -> (Option<u32>, Option<u32>) {
        let moved = |from: &[IdMap], to: &[IdMap]| map(to, map(from, id, false)?, true);
        (moved(&self.uids, &to.uids), moved(&self.gids, &to.gids))
    }

    /// The host's owner of container root. A list of one single ID stands for root whatever its container ID.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMappings`] if 0 is in no range.
    pub fn root(&self) -> Result<Owner> {
        let one = |ranges: &[IdMap]| match ranges {
            [range] if range.size == 1 => Some(range.host_id),
            ranges => map(ranges, 0, true),
        };
        match (one(&self.uids), one(&self.gids)) {
            (Some(uid), Some(gid)) => Ok(Owner { uid, gid }),
            _ => Err(ErrorKind::InvalidMappings.err("container ID 0 cannot be mapped to a host ID")),
        }
    }

    /// Checks that no two ranges of one list overlap, on either side, that none is empty, and that none ends beyond the
    /// last ID.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMappings`] naming the range.
    pub fn validate(&self) -> Result<()> {
        const END: u64 = 1 << 32;
        let overlap = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        for (what, ranges) in [("user", &self.uids), ("group", &self.gids)] {
            for (index, range) in ranges.iter().enumerate() {
                let (container, host) = (range.container_ids(), range.host_ids());
                let in_bounds = range.size > 0 && container.end <= END && host.end <= END;
                let overlaps = ranges.iter().take(index).any(|other| {
                    overlap(&container, &other.container_ids()) || overlap(&host, &other.host_ids())
                });
                let reason = if !in_bounds {
                    format!("{what} ID range {range} is empty or ends beyond the last ID")
                } else if overlaps {
                    format!("the specified UID and/or GID mapping {range} conflicts with other mappings")
                } else {
                    continue;
                };
                return Err(ErrorKind::InvalidMappings.err(reason));
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
        let last = u32::MAX;
        assert!(with(vec![IdMap::new(last, last, 1)]).is_ok());
        assert!(with(vec![IdMap::new(last, 0, 2)]).is_err());
        assert!(with(vec![IdMap::new(0, last, 2)]).is_err());
        let error = with(vec![IdMap::new(1, 2, last), IdMap::new(1, 2, last)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidMappings);
        assert!(
            error.to_string().contains("user ID range 1:2:4294967295"),
            "{error}"
        );
    }

    #[test]
    fn the_last_id_is_mapped_and_nothing_overflows() {
        let last = u32::MAX;
        let maps = IdMappings {
            uids: vec![IdMap::new(0, last - 1, last)],
            gids: vec![IdMap::new(last - 1, 7, 2)],
        };
        let owner = |uid, gid| Owner { uid, gid };
        assert_eq!(maps.to_host(owner(1, last)).unwrap(), owner(last, 8));
        assert!(maps.to_host(owner(2, last)).is_err(), "there is no such host ID");
        assert_eq!(maps.to_container(owner(last, 8)).unwrap(), owner(1, last));
    }

    #[test]
    fn ranges_are_text_and_json() {
        let range = IdMap::new(1, 2, 3);
        assert_eq!(range.to_string().parse::<IdMap>().unwrap(), range);
        for bad in ["", "1:2", "1:2:3:4:5:6", "1:2:-3", "1:2:4294967296"] {
            let error = bad.parse::<IdMap>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
        let json = r#"{"container_id":1,"host_id":2,"size":3}"#;
        assert_eq!(serde_json::to_string(&range).unwrap(), json);
        assert_eq!(serde_json::from_str::<IdMap>(json).unwrap(), range);
        for bad in ["-1", "4294967296", "1.5", "\"1\""] {
            let json = json.replace('3', bad);
            assert!(serde_json::from_str::<IdMap>(&json).is_err(), "{json}");
        }
        let mappings = IdMappings {
            uids: vec![range],
            gids: Vec::new(),
        };
        let json = serde_json::to_string(&mappings).unwrap();
        assert_eq!(serde_json::from_str::<IdMappings>(&json).unwrap(), mappings);
        assert_eq!(
            serde_json::from_str::<IdMappings>("{}").unwrap(),
            IdMappings::default()
        );
    }
}
