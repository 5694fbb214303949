//! The keys of `storage.conf`: their types and their effects.

use crate::options::driver::{DRIVER_NAMES, parse_bool, ram_in_bytes};

/// The type of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any text.
    Text,
    /// The name of a driver.
    Driver,
    /// A directory in which variables are expanded.
    Path,
    /// A boolean of TOML.
    Switch,
    /// An integer of TOML that fits in 32 bits.
    Count,
    /// A list of texts that may say `{append = true}`.
    List,
    /// A list of directories that may say `{append = true}`; each may be a comma-separated list itself.
    Directories,
    /// A truth value as text.
    TextSwitch,
    /// A number of bytes with a unit, as text.
    Size,
    /// A number, as text.
    Number,
    /// When to sync, as text.
    Sync,
    /// A file mode, as text.
    Mask,
    /// ID ranges, as text.
    Ranges,
}

/// The effect of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It has a field of its own in the store's options.
    Field,
    /// It becomes driver options of this name, for this driver or (empty) for any.
    DriverOption(&'static str, &'static str),
    /// It has no effect, for this reason.
    Idle(&'static str),
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    /// With its tables, dotted.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) role: Role,
}

const fn key(name: &'static str, kind: Kind, role: Role) -> Key {
    Key { name, kind, role }
}

const fn any(name: &'static str, kind: Kind, option: &'static str) -> Key {
    key(name, kind, Role::DriverOption("", option))
}

const fn of(driver: &'static str, option: &'static str, kind: Kind, name: &'static str) -> Key {
    key(name, kind, Role::DriverOption(driver, option))
}

/// Why the mapping keys are carried only.
const REMAP: &str =
    "removed: today's versions apply no mapping to the whole store; carried in `StoreOptions::remap`";

/// The keys, those that become driver options in the order in which the options are listed.
pub(super) const KEYS: &[Key] = &[
    key("storage.driver", Kind::Driver, Role::Field),
    key("storage.driver_priority", Kind::List, Role::Field),
    key("storage.runroot", Kind::Path, Role::Field),
    key("storage.graphroot", Kind::Path, Role::Field),
    key("storage.imagestore", Kind::Text, Role::Field),
    key("storage.rootless_storage_path", Kind::Path, Role::Field),
    key("storage.transient_store", Kind::Switch, Role::Field),
    any(
        "storage.options.additionalimagestores",
        Kind::Directories,
        "imagestore",
    ),
    any(
        "storage.options.additionallayerstores",
        Kind::Directories,
        "additionallayerstore",
    ),
    any("storage.options.size", Kind::Size, "size"),
    any("storage.options.mount_program", Kind::Text, "mount_program"),
    any(
        "storage.options.skip_mount_home",
        Kind::TextSwitch,
        "skip_mount_home",
    ),
    any(
        "storage.options.ignore_chown_errors",
        Kind::TextSwitch,
        "ignore_chown_errors",
    ),
    any("storage.options.force_mask", Kind::Count, "force_mask"),
    any("storage.options.mountopt", Kind::Text, "mountopt"),
    key("storage.options.root-auto-userns-user", Kind::Text, Role::Field),
    key("storage.options.auto-userns-min-size", Kind::Count, Role::Field),
    key("storage.options.auto-userns-max-size", Kind::Count, Role::Field),
    key("storage.options.disable-volatile", Kind::Switch, Role::Field),
    key(
        "storage.options.imagestore",
        Kind::Text,
        Role::Idle("no effect in this table: the key is storage.imagestore"),
    ),
    key(
        "storage.options.use_composefs",
        Kind::Text,
        Role::Idle("no effect in this table: the key is storage.options.overlay.use_composefs"),
    ),
    key("storage.options.remap-uids", Kind::Ranges, Role::Idle(REMAP)),
    key("storage.options.remap-gids", Kind::Ranges, Role::Idle(REMAP)),
    key("storage.options.remap-user", Kind::Text, Role::Idle(REMAP)),
    key("storage.options.remap-group", Kind::Text, Role::Idle(REMAP)),
    of(
        "btrfs",
        "min_space",
        Kind::Size,
        "storage.options.btrfs.min_space",
    ),
    of("btrfs", "size", Kind::Size, "storage.options.btrfs.size"),
    of(
        "overlay",
        "ignore_chown_errors",
        Kind::TextSwitch,
        "storage.options.overlay.ignore_chown_errors",
    ),
    of(
        "overlay",
        "mount_program",
        Kind::Text,
        "storage.options.overlay.mount_program",
    ),
    of(
        "overlay",
        "mountopt",
        Kind::Text,
        "storage.options.overlay.mountopt",
    ),
    of("overlay", "size", Kind::Size, "storage.options.overlay.size"),
    of(
        "overlay",
        "inodes",
        Kind::Number,
        "storage.options.overlay.inodes",
    ),
    of(
        "overlay",
        "skip_mount_home",
        Kind::TextSwitch,
        "storage.options.overlay.skip_mount_home",
    ),
    of(
        "overlay",
        "force_mask",
        Kind::Mask,
        "storage.options.overlay.force_mask",
    ),
    of(
        "overlay",
        "use_composefs",
        Kind::TextSwitch,
        "storage.options.overlay.use_composefs",
    ),
    of("overlay", "sync", Kind::Sync, "storage.options.overlay.sync"),
    of(
        "vfs",
        "ignore_chown_errors",
        Kind::TextSwitch,
        "storage.options.vfs.ignore_chown_errors",
    ),
    of("vfs", "sync", Kind::Sync, "storage.options.vfs.sync"),
    of("zfs", "fsname", Kind::Text, "storage.options.zfs.fsname"),
    of("zfs", "mountopt", Kind::Text, "storage.options.zfs.mountopt"),
    of("zfs", "size", Kind::Text, "storage.options.zfs.size"),
];

/// The table of options for pulling, in which every key is allowed.
pub(super) const PULL_OPTIONS: &str = "storage.options.pull_options";

/// The tables with known keys.
pub(super) const TABLES: &[&str] = &[
    "storage",
    "storage.options",
    PULL_OPTIONS,
    "storage.options.btrfs",
    "storage.options.overlay",
    "storage.options.vfs",
    "storage.options.zfs",
];

/// Tables of drivers that were removed.
pub(super) const REMOVED_TABLES: &[&str] = &[
    "storage.options.aufs",
    "storage.options.devicemapper",
    "storage.options.thinpool",
];

impl Key {
    /// Finds the key `name` of `table`. As in the Go library the case of letters is ignored if nothing matches
    /// exactly.
    pub(super) fn find(table: &str, name: &str) -> Option<&'static Self> {
        let in_table = |key: &&'static Self| key.name.rsplit_once('.').is_some_and(|(of, _)| of == table);
        KEYS.iter()
            .filter(in_table)
            .find(|key| key.last() == name)
            .or_else(|| {
                KEYS.iter()
                    .filter(in_table)
                    .find(|key| key.last().eq_ignore_ascii_case(name))
            })
    }

    /// The key as it stands in its table.
    pub(super) fn last(&self) -> &'static str {
        self.name.rsplit_once('.').map_or(self.name, |(_, last)| last)
    }
}

impl Kind {
    /// What is expected in place of an invalid, non-empty text.
    pub(super) fn complaint(self, text: &str) -> Option<&'static str> {
        let (fine, expected) = match self {
            Self::Text | Self::Path | Self::Switch | Self::Count | Self::List | Self::Ranges => (true, ""),
            Self::Driver => (
                DRIVER_NAMES.contains(&text),
                "the name of a driver (overlay, vfs, btrfs or zfs)",
            ),
            Self::Directories => (
                text.split(',')
                    .all(|path| path.is_empty() || path.starts_with('/')),
                "absolute paths",
            ),
            Self::TextSwitch => (parse_bool(text).is_some(), "\"true\" or \"false\""),
            Self::Size => (
                ram_in_bytes(text).is_some(),
                "a size such as \"10G\" (a number and b, k, m, g, t or p)",
            ),
            Self::Number => (text.parse::<u64>().is_ok(), "a number in quotes"),
            Self::Sync => (
                ["none", "filesystem"].contains(&text.to_ascii_lowercase().as_str()),
                "\"none\" or \"filesystem\"",
            ),
            Self::Mask => (
                ["shared", "private"].contains(&text) || u32::from_str_radix(text, 8).is_ok(),
                "\"shared\", \"private\" or an octal mode",
            ),
        };
        (!fine).then_some(expected)
    }
}
