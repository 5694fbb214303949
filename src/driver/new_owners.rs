//! The owners that the files of a layer get when it is made of another one whose mapping differs.

use std::sync::OnceLock;

use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::idmap::{IdMappings, Owner};

/// The kernel's overflow IDs, which stand for IDs without a mapping.
fn overflow() -> Owner {
    static OVERFLOW: OnceLock<Owner> = OnceLock::new();
    *OVERFLOW.get_or_init(|| {
        let read = |file| {
            std::fs::read_to_string(file)
                .ok()
                .and_then(|id| id.trim().parse().ok())
                .unwrap_or(65534)
        };
        Owner {
            uid: read("/proc/sys/kernel/overflowuid"),
            gid: read("/proc/sys/kernel/overflowgid"),
        }
    })
}

/// From one mapping to another: `from` maps the host's ID to the container's, and `to` maps that to the host's again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewOwners<'a> {
    pub(crate) from: &'a IdMappings,
    pub(crate) to: &'a IdMappings,
}

impl NewOwners<'_> {
    /// The owner inside the container. The host's root counts as container root if it is not mapped: a layer below may
    /// have been made without its mapping.
    fn inside(&self, old: Owner) -> Result<Owner> {
        match self.from.to_container(old) {
            Err(_unmapped) if old == Owner::default() => Ok(old),
            inside => inside.context(|| "finding the owner inside the container".into()),
        }
    }

    /// Refuses owners of whom none is container root: a layer whose root directory nobody in the container owns is of no use.
    pub(crate) fn check_root(&self) -> Result<()> {
        let root = self.to.to_host(Owner::default());
        root.map(drop).map_err(|_not_mapped| {
            ErrorKind::InvalidMappings.err("container ID 0 cannot be mapped to a host ID")
        })
    }

    /// The new owner of a file that `old` owns. Container IDs that are not mapped become the overflow ID.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMappings`] if `old` is no owner in the container.
    pub(crate) fn of(&self, old: Owner) -> Result<Owner> {
        Ok(self.to.to_host_or(self.inside(old)?, overflow()))
    }

    /// The new owner of a layer's root directory that `old` owns. What is container root's becomes that of
    /// [`IdMappings::root`], which is there also if the mapping has a single ID that is not 0.
    ///
    /// # Errors
    /// As [`NewOwners::of`], and if there is no container root.
    pub(crate) fn of_root(&self, old: Owner) -> Result<Owner> {
        let (inside, root) = (self.inside(old)?, self.to.root()?);
        let new = self.to.to_host_or(inside, overflow());
        Ok(Owner {
            uid: if inside.uid == 0 { root.uid } else { new.uid },
            gid: if inside.gid == 0 { root.gid } else { new.gid },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idmap::IdMap;

    fn maps(container: u32, host: u32, size: u32) -> IdMappings {
        IdMappings {
            uids: vec![IdMap::new(container, host, size)],
            gids: vec![IdMap::new(container, host, size)],
        }
    }

    fn owner(id: u32) -> Owner {
        Owner { uid: id, gid: id }
    }

    #[test]
    fn owners_go_through_the_container() {
        let (from, to) = (maps(0, 1000, 10), maps(0, 2000, 5));
        let new = NewOwners { from: &from, to: &to };
        assert_eq!(new.of(owner(1003)).unwrap(), owner(2003));
        assert_eq!(new.of(owner(1007)).unwrap(), overflow(), "not mapped again");
        assert_eq!(
            new.of(owner(0)).unwrap(),
            owner(2000),
            "a layer without its mapping"
        );
        let error = new.of(owner(7)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidMappings);
        assert!(error.chain().contains("user ID 7"), "{}", error.chain());
    }

    #[test]
    fn a_root_directory_keeps_an_owner_that_is_not_root() {
        let (from, to) = (IdMappings::default(), maps(0, 2000, 10));
        let new = NewOwners { from: &from, to: &to };
        assert_eq!(new.of_root(owner(0)).unwrap(), owner(2000));
        assert_eq!(new.of_root(owner(5)).unwrap(), owner(2005));
        let single = maps(5, 2000, 1);
        let new = NewOwners {
            from: &from,
            to: &single,
        };
        assert_eq!(new.of(owner(0)).unwrap(), overflow());
        assert_eq!(new.of_root(owner(0)).unwrap(), owner(2000));
        let without_root = maps(1, 2000, 10);
        let new = NewOwners {
            from: &from,
            to: &without_root,
        };
        assert!(new.of_root(owner(0)).is_err());
    }
}
