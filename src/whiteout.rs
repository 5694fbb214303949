//! Whiteouts: how a layer says that something of the layers below is deleted.
//!
//! In a tar stream (OCI image layer specification, "whiteouts") an entry `.wh.NAME` hides `NAME` and
//! `.wh..wh..opq` hides everything that its directory has below. On disk the format depends on the driver.

/// What a whiteout's base name begins with.
pub(crate) const PREFIX: &[u8] = b".wh.";

/// Base name of the marker that makes its directory opaque.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

/// The attribute in which owner, mode and type are kept where files cannot have them themselves:
/// `UID:GID:MODE:TYPE`, the mode in octal (overlay's `force_mask`; fuse-overlayfs reads and writes it too).
pub(crate) const OVERRIDE_STAT: &str = "user.containers.override_stat";

/// As [`OVERRIDE_STAT`], in the name that older versions of fuse-overlayfs write: `UID:GID:MODE`, the mode with its
/// type.
pub(crate) const FUSE_OVERRIDE_STAT: &str = "user.fuseoverlayfs.override_stat";

/// Whether an extended attribute belongs to overlayfs, fuse-overlayfs or a forced mode, and is no content of the layer.
pub(crate) fn is_driver_attribute(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.")
        || name.starts_with(b"user.overlay.")
        || name.starts_with(b"user.fuseoverlayfs.")
        || name == OVERRIDE_STAT.as_bytes()
}

/// The value of the overlay opaque attribute.
pub(crate) const OPAQUE_VALUE: &[u8] = b"y";

/// The attributes by which a mount program may have marked a directory opaque.
pub(crate) const PROGRAM_OPAQUE: [&str; 3] = [
    "user.fuseoverlayfs.opaque",
    "trusted.overlay.opaque",
    "user.overlay.opaque",
];

/// How deletions are stored in the tree of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhiteoutFormat {
    /// A complete tree: whiteouts are executed when a layer is applied, and not stored (vfs, btrfs).
    Apply,
    /// Kernel overlayfs: a character device 0:0, and an attribute on opaque directories.
    Overlay(Namespace),
    /// As in the tar: `.wh.` files stay as they are (overlay with a mount program).
    Verbatim,
}

/// The extended attributes that overlayfs reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// `trusted.overlay.*`: mounted by real root.
    Trusted,
    /// `user.overlay.*`: mounted with `userxattr` in a user namespace.
    User,
}

impl Namespace {
    /// The attribute of a file whose content the layers below have.
    pub(crate) const fn metacopy(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.metacopy",
            Self::User => "user.overlay.metacopy",
        }
    }

    /// The attribute of a directory that is in another place in the layers below.
    pub(crate) const fn redirect(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.redirect",
            Self::User => "user.overlay.redirect",
        }
    }

    /// The attribute that makes a directory opaque.
    pub(crate) const fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// The meaning of the base name of a tar entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhiteoutName<'a> {
    /// An ordinary name.
    None,
    /// The directory that contains it is opaque.
    Opaque,
    /// This sibling is deleted.
    Deleted(&'a [u8]),
    /// A whiteout of nothing, `.` or `..`: hostile or damaged.
    Invalid,
}

/// Reads a base name.
pub(crate) fn parse(base: &[u8]) -> WhiteoutName<'_> {
    if base == OPAQUE {
        return WhiteoutName::Opaque;
    }
    match base.strip_prefix(PREFIX) {
        None => WhiteoutName::None,
        Some(b"" | b"." | b"..") => WhiteoutName::Invalid,
        Some(name) => WhiteoutName::Deleted(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        assert_eq!(parse(b"file"), WhiteoutName::None);
        assert_eq!(parse(b".wh.file"), WhiteoutName::Deleted(b"file"));
        assert_eq!(parse(b".wh..wh..opq"), WhiteoutName::Opaque);
        assert_eq!(parse(b".wh..wh.x"), WhiteoutName::Deleted(b".wh.x"));
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert_eq!(parse(bad), WhiteoutName::Invalid);
        }
    }
}
