//! The privileges of this process.

use std::sync::OnceLock;

use rustix::thread::CapabilitySet;

use crate::idmap::Owner;

/// Whether this process is not privileged in the initial user namespace: it is not root, lacks `CAP_SYS_ADMIN`, or is
/// root of another user namespace. Looked up once.
pub(crate) fn is_rootless() -> bool {
    static ROOTLESS: OnceLock<bool> = OnceLock::new();
    *ROOTLESS.get_or_init(|| {
        // Compat: the variables tell programs of the Go library that they run in a namespace set up for them.
        let user = std::env::var("_CONTAINERS_ROOTLESS_UID").ok();
        !is_root()
            || user
                .and_then(|uid| uid.parse::<u32>().ok())
                .is_some_and(|uid| uid != 0)
            || std::env::var_os("_CONTAINERS_USERNS_CONFIGURED").is_some_and(|value| !value.is_empty())
            || !has_admin_capability()
            || !maps_everything()
    })
}

/// Whether the effective user is 0, of whatever namespace.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The owner of new files.
pub(crate) fn effective_owner() -> Owner {
    Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

fn has_admin_capability() -> bool {
    has(CapabilitySet::SYS_ADMIN)
}

/// Whether this process ignores the permissions of files and directories (`CAP_DAC_OVERRIDE`).
pub(crate) fn overrides_modes() -> bool {
    has(CapabilitySet::DAC_OVERRIDE)
}

fn has(capability: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// The initial namespace is the only one that maps every ID in one range.
fn maps_everything() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"))
}
