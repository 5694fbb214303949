//! Mount options as in `mount -o`, sorted into flags and data. Pure.

use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};

use crate::error::{ErrorKind, Result};

/// Options, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sorted {
    /// Flags of the mount.
    pub(super) flags: MountFlags,
    /// How mounts below it propagate to other mount namespaces; `None` keeps what is inherited.
    pub(super) propagation: Option<MountPropagationFlags>,
    /// Options of the file system: `key` or `key=value`.
    pub(super) data: Vec<String>,
}

impl Default for Sorted {
    fn default() -> Self {
        Self {
            flags: MountFlags::empty(),
            propagation: None,
            data: Vec::new(),
        }
    }
}

/// The options that are flags: the name, whether it sets or clears, the flag.
const FLAGS: [(&str, bool, MountFlags); 24] = [
    ("ro", true, MountFlags::RDONLY),
    ("rw", false, MountFlags::RDONLY),
    ("nosuid", true, MountFlags::NOSUID),
    ("suid", false, MountFlags::NOSUID),
    ("nodev", true, MountFlags::NODEV),
    ("dev", false, MountFlags::NODEV),
    ("noexec", true, MountFlags::NOEXEC),
    ("exec", false, MountFlags::NOEXEC),
    ("sync", true, MountFlags::SYNCHRONOUS),
    ("async", false, MountFlags::SYNCHRONOUS),
    ("dirsync", true, MountFlags::DIRSYNC),
    ("mand", true, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
    ("nomand", false, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
    ("noatime", true, MountFlags::NOATIME),
    ("atime", false, MountFlags::NOATIME),
    ("nodiratime", true, MountFlags::NODIRATIME),
    ("diratime", false, MountFlags::NODIRATIME),
    ("relatime", true, MountFlags::RELATIME),
    ("norelatime", false, MountFlags::RELATIME),
    ("strictatime", true, MountFlags::STRICTATIME),
    ("nostrictatime", false, MountFlags::STRICTATIME),
    ("nosymfollow", true, MountFlags::NOSYMFOLLOW),
    ("symfollow", false, MountFlags::NOSYMFOLLOW),
    ("defaults", true, MountFlags::empty()),
];

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (flag, recursive) = match option.strip_prefix('r') {
        Some(flag @ ("shared" | "private" | "slave" | "unbindable")) => (flag, true),
        _ => (option, false),
    };
    let flags = match flag {
        "shared" => MountPropagationFlags::SHARED,
        "private" => MountPropagationFlags::PRIVATE,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(if recursive {
        flags | MountPropagationFlags::REC
    } else {
        flags
    })
}

/// Sorts options; the last of contradicting ones counts. An option may hold several, joined by commas.
pub(super) fn sort<'a>(options: impl IntoIterator<Item = &'a str>) -> Result<Sorted> {
    let mut sorted = Sorted::default();
    for option in options
        .into_iter()
        .flat_map(|option| option.split(','))
        .filter(|option| !option.is_empty())
    {
        if let Some((_name, set, flag)) = FLAGS.iter().find(|(name, ..)| *name == option) {
            sorted.flags.set(*flag, *set);
        } else if let Some(flags) = propagation(option) {
            sorted.propagation = Some(flags);
        } else {
            let key = option.split_once('=').map_or(option, |(key, _value)| key);
            // These would replace the layers of the mount, or the mount itself.
            if matches!(
                key.trim_end_matches('+'),
                "bind" | "rbind" | "remount" | "lowerdir" | "upperdir" | "workdir" | "datadir" | "context"
            ) {
                return Err(ErrorKind::InvalidInput.err(format!("mount option {option:?} of a layer")));
            }
            sorted.data.push(option.to_owned());
        }
    }
    Ok(sorted)
}

/// The flags in the form that `fsmount` takes; the others belong to the file system ([`super_flags`]).
pub(super) fn attributes(flags: MountFlags) -> MountAttrFlags {
    let pairs = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        (MountFlags::NOSYMFOLLOW, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
    ];
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in pairs {
        attributes.set(attribute, flags.contains(flag));
    }
    // Here the kinds of access time exclude each other.
    if flags.contains(MountFlags::STRICTATIME) {
        attributes |= MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    } else if flags.contains(MountFlags::NOATIME) {
        attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME;
    }
    attributes
}

/// The flags of the file system itself, as parameters.
pub(super) fn super_flags(flags: MountFlags) -> impl Iterator<Item = &'static str> {
    let names = [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
        (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, "mand"),
    ];
    names
        .into_iter()
        .filter(move |(flag, _name)| flags.contains(*flag))
        .map(|(_flag, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_or_data_and_the_last_counts() {
        let sorted = sort([
            "nodev",
            "ro,metacopy=on",
            "dev",
            "volatile",
            "",
            "rslave",
            "defaults",
        ])
        .unwrap();
        assert_eq!(sorted.flags, MountFlags::RDONLY);
        assert_eq!(sorted.data, ["metacopy=on", "volatile"]);
        assert_eq!(
            sorted.propagation,
            Some(MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        );
        assert_eq!(sort(["rw", "ro"]).unwrap().flags, MountFlags::RDONLY);
        assert_eq!(sort(["ro", "rw"]).unwrap(), Sorted::default());
        for (name, set, flag) in FLAGS {
            let start = if set { MountFlags::empty() } else { flag };
            let names: Vec<&str> = FLAGS
                .iter()
                .filter(|(_, s, f)| !set && *s && *f == flag)
                .map(|(n, ..)| *n)
                .collect();
            let sorted = sort(names.into_iter().chain([name])).unwrap();
            assert_eq!(sorted.flags, if set { flag } else { start - flag }, "{name}");
        }
    }

    #[test]
    fn options_cannot_replace_the_layers() {
        for bad in [
            "bind",
            "remount",
            "lowerdir=/",
            "lowerdir+=/",
            "upperdir=/x",
            "ro,workdir=/",
            "datadir+=/etc",
        ] {
            assert_eq!(sort([bad]).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn flags_have_their_twins_in_the_newer_interface() {
        let flags = MountFlags::RDONLY | MountFlags::NOATIME | MountFlags::SYNCHRONOUS;
        assert_eq!(
            attributes(flags),
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOATIME
        );
        assert_eq!(super_flags(flags).collect::<Vec<_>>(), ["ro", "sync"]);
        let both = MountFlags::STRICTATIME | MountFlags::NOATIME;
        assert_eq!(attributes(both), MountAttrFlags::MOUNT_ATTR_STRICTATIME);
    }
}
