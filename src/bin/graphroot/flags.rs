//! The flags of all commands.

use crate::mflag::Flag;

/// Global arguments, which every command takes. [`DEBUG`] and [`UNSHARE`] are global too.
pub(crate) mod global {
    use super::{DEBUG, Flag, UNSHARE};
    pub(crate) const GRAPH: Flag = Flag::text(&["-graph", "g"], "Root of the storage tree");
    pub(crate) const RUN: Flag = Flag::text(&["-run", "R"], "Root of the runtime state tree");
    pub(crate) const IMAGE_STORE: Flag = Flag::text(&["-image-store"], "Root of the separate image store");
    pub(crate) const TRANSIENT: Flag = Flag::bool(&["-transient-store"], "Transient store");
    pub(crate) const DRIVER: Flag = Flag::text(
        &["-storage-driver", "s"],
        "Storage driver to use ($STORAGE_DRIVER)",
    );
    pub(crate) const DRIVER_OPTION: Flag =
        Flag::list(&["-storage-opt"], "Set storage driver options ($STORAGE_OPTS)");
    /// [`UNSHARE`] where it is on by default.
    pub(crate) const UNSHARE_ROOTLESS: Flag =
        Flag::bool(&["-unshare", "U"], "Run in a user namespace (default true)");

    pub(crate) const ALL: [Flag; 8] = [
        RUN,
        GRAPH,
        IMAGE_STORE,
        TRANSIENT,
        DRIVER,
        DRIVER_OPTION,
        DEBUG,
        UNSHARE,
    ];
}

pub(crate) const DEBUG: Flag = Flag::bool(&["-debug", "D"], "Print debugging information");
pub(crate) const UNSHARE: Flag = Flag::bool(&["-unshare", "U"], "Run in a user namespace (default false)");
/// Before the command's name only; `--help` after it is part of the grammar.
pub(crate) const HELP: Flag = Flag::bool(&["#help", "-help"], "Print usage");

pub(crate) const JSON: Flag = Flag::bool(&["-json", "j"], "Prefer JSON output");
pub(crate) const QUIET_IDS: Flag = Flag::bool(&["-quiet", "q"], "Only print IDs");
pub(crate) const TREE: Flag = Flag::bool(&["-tree", "t"], "Use a tree");
pub(crate) const QUICK: Flag = Flag::bool(&["-quick", "q"], "Just the IDs");

/// Flags of `check`.
pub(crate) mod check {
    use super::Flag;
    pub(crate) const MAX: Flag =
        Flag::text(&["-max", "m"], "Maximum allowed age for unreferenced layers").or("24h");
    pub(crate) const REPAIR: Flag = Flag::bool(&["-repair", "r"], "Remove damaged images and layers");
    pub(crate) const FORCE: Flag = Flag::bool(&["-force", "f"], "Remove damaged containers");
    pub(crate) const QUICK: Flag = Flag::bool(&["-quick", "q"], "Perform only quick checks");
    pub(crate) const DRY_RUN: Flag = Flag::bool(&["-dry-run"], "Only tell what a repair would do, and why");
}

/// Flags of `heal`.
pub(crate) mod heal {
    use super::Flag;
    pub(crate) const FROM_STORE: Flag = Flag::list(
        &["-from-store"],
        "Root of another storage tree to take content from",
    );
    #[cfg(feature = "pull")]
    pub(crate) const FROM: Flag = Flag::list(
        &["-from"],
        "Image to take content from (instead of those in registries that have the names)",
    );
}

/// Flags of `convert`.
pub(crate) mod convert {
    use super::Flag;
    pub(crate) const TO: Flag = Flag::text(&["-to"], "Storage driver of the new storage tree");
    pub(crate) const OPTION: Flag =
        Flag::list(&["-to-opt"], "Set storage driver options of the new storage tree");
    pub(crate) const RUN: Flag = Flag::text(
        &["-to-run"],
        "Root of the runtime state tree of the new storage tree, which tells what is mounted there (default a temporary one: \
         give it if the tree is in use)",
    );
    pub(crate) const IMAGE: Flag = Flag::list(&["-image"], "Copy this image only, and others that are named");
    pub(crate) const CONTAINER: Flag = Flag::list(
        &["-container"],
        "Copy this container with its image only, and others that are named",
    );
    pub(crate) const NO_CONTAINERS: Flag = Flag::bool(&["-no-containers"], "Copy no containers");
    pub(crate) const REFRESH: Flag = Flag::bool(
        &["-refresh"],
        "Replace containers that were copied before and have changed since, unless they are mounted (see --to-run)",
    );
    pub(crate) const DRY_RUN: Flag = Flag::bool(&["-dry-run"], "Only print what would be copied");
}

/// Flags of commands that create something.
pub(crate) mod new {
    use super::Flag;
    pub(crate) const LABEL: Flag = Flag::text(&["-label", "l"], "Mount Label");
    pub(crate) const LAYER_NAME: Flag = Flag::list(&["-name", "n"], "Layer name");
    pub(crate) const IMAGE_NAME: Flag = Flag::list(&["-name", "n"], "Image name");
    pub(crate) const CONTAINER_NAME: Flag = Flag::list(&["-name", "n"], "Container name");
    pub(crate) const LAYER_ID: Flag = Flag::text(&["-id", "i"], "Layer ID");
    pub(crate) const IMAGE_ID: Flag = Flag::text(&["-id", "i"], "Image ID");
    pub(crate) const CONTAINER_ID: Flag = Flag::text(&["-id", "i"], "Container ID");
    pub(crate) const READ_ONLY: Flag = Flag::bool(&["-readonly", "r"], "Mark as read-only");
    pub(crate) const VOLATILE: Flag = Flag::bool(&["-volatile"], "Mark as volatile");
    pub(crate) const DIGEST: Flag = Flag::text(&["-digest", "d"], "Image Digest");
    pub(crate) const METADATA: Flag = Flag::text(&["-metadata", "m"], "Metadata");
    pub(crate) const METADATA_FILE: Flag = Flag::text(&["-metadata-file", "f"], "Metadata File");
    pub(crate) const HOST_UIDS: Flag = Flag::bool(&["-hostuidmap"], "Force host UID map");
    pub(crate) const HOST_GIDS: Flag = Flag::bool(&["-hostgidmap"], "Force host GID map");
    pub(crate) const UIDS: Flag = Flag::text(&["-uidmap"], "UID map");
    pub(crate) const GIDS: Flag = Flag::text(&["-gidmap"], "GID map");
    pub(crate) const SUB_UIDS: Flag = Flag::text(&["-subuidmap"], "subuid UID map for a user");
    pub(crate) const SUB_GIDS: Flag = Flag::text(&["-subgidmap"], "subgid GID map for a group");
}

/// Files to read from and write to.
pub(crate) mod file {
    use super::Flag;
    pub(crate) const INSTEAD_OF_STDIN: Flag = Flag::text(&["-file", "f"], "Read from file instead of stdin");
    pub(crate) const INSTEAD_OF_STDOUT: Flag = Flag::text(&["-file", "f"], "Write to file instead of stdout");
    pub(crate) const READ: Flag = Flag::text(&["-file", "f"], "Read data from file");
    pub(crate) const WRITE: Flag = Flag::text(&["-file", "f"], "Write data to file");
}

pub(crate) const CHOWN: Flag = Flag::text(&["-chown", "o"], "Set owner on new copies");
pub(crate) const HASH_METHOD: Flag = Flag::text(
    &["-hash-method"],
    "Specify the hash function to use to detect identical files",
)
.or("crc");
pub(crate) const TEST: Flag = Flag::bool(&["-test", "t"], "Only test removal");
pub(crate) const UNCOMPRESSED: Flag = Flag::bool(&["-uncompressed", "u"], "Use no compression");
pub(crate) const GZIP: Flag = Flag::bool(&["-gzip", "c"], "Compress using gzip");
pub(crate) const BZIP2: Flag = Flag::bool(
    &["-bzip2", "-bz2", "b"],
    "Compress using bzip2 (not currently supported)",
);
pub(crate) const XZ: Flag = Flag::bool(&["-xz", "x"], "Compress using xz (not currently supported)");
pub(crate) const NO_NAMES: Flag = Flag::bool(&["-quiet", "q"], "Don't print names");
pub(crate) const IS_LAYER: Flag = Flag::bool(&["-layer", "l"], "Only succeed if the match is a layer");
pub(crate) const IS_IMAGE: Flag = Flag::bool(&["-image", "i"], "Only succeed if the match is an image");
pub(crate) const IS_CONTAINER: Flag =
    Flag::bool(&["-container", "c"], "Only succeed if the match is a container");
pub(crate) const OMIT_NAMES: Flag = Flag::bool(&["-quiet", "q"], "Omit names and IDs");
pub(crate) const MOUNT_OPTIONS: Flag = Flag::text(&["-opt", "o"], "Mount Options");
pub(crate) const MOUNT_READ_ONLY: Flag = Flag::bool(&["-read-only", "-ro", "r"], "Mount image readonly");
pub(crate) const FORCE_UNMOUNT: Flag = Flag::bool(&["-force", "f"], "Force the umount");
pub(crate) const FORCE_SHUTDOWN: Flag = Flag::bool(&["-force", "f"], "Unmount mounted layers first");
pub(crate) const ADD_NAME: Flag = Flag::list(&["-name", "n"], "Name to add");
pub(crate) const REMOVE_NAME: Flag = Flag::list(&["-name", "n"], "Name to remove");
pub(crate) const NEW_NAME: Flag = Flag::list(&["-name", "n"], "New name");

#[cfg(feature = "pull")]
pub(crate) const QUIET_TRANSFER: Flag = Flag::bool(&["-quiet", "q"], "Don't print progress");

/// Flags of `pull` and `push`.
#[cfg(feature = "pull")]
pub(crate) mod transfer {
    use super::Flag;
    pub(crate) const NAME: Flag = Flag::list(
        &["-name", "n"],
        "Name of the image in the store (instead of its own name)",
    );
    pub(crate) const PLATFORM: Flag =
        Flag::text(&["-platform"], "Platform OS/ARCH[/VARIANT] to take from an index");
    pub(crate) const AUTH_FILE: Flag = Flag::text(&["-authfile"], "File of registry credentials");
    pub(crate) const PLAIN_HTTP: Flag =
        Flag::list(&["-plain-http"], "Registry HOST[:PORT] to access without TLS");
    pub(crate) const TLS_VERIFY: Flag = Flag::bool(
        &["-tls-verify"],
        "Require HTTPS and verified certificates; =false: accept any certificate, and HTTP",
    );
    pub(crate) const CERT_DIR: Flag = Flag::text(
        &["-cert-dir"],
        "Directory of certificates (*.crt, *.cert, *.key) for all registries",
    );
    pub(crate) const POLICY: Flag = Flag::text(
        &["-signature-policy"],
        "File that says which images may be pulled (instead of policy.json)",
    );
    pub(crate) const COMPRESSION: Flag = Flag::text(
        &["-compression"],
        "Compression of layers: gzip, zstd, zstd:chunked or none",
    )
    .or("gzip");
    pub(crate) const LEVEL: Flag = Flag::text(
        &["-compression-level"],
        "Compression level: 1 (fast) to 9 for gzip, to 22 for zstd and zstd:chunked",
    );
    pub(crate) const KEEP_PARTIAL: Flag = Flag::bool(
        &["-keep-partial"],
        "Keep interrupted downloads and resume them at the next pull",
    );
    pub(crate) const DOWNLOADS: Flag =
        Flag::text(&["-downloads"], "Number of blobs to download at the same time");
}

/// Flags of `login` and `logout`.
#[cfg(feature = "pull")]
pub(crate) mod login {
    use super::Flag;
    pub(crate) const COMPAT_AUTH_FILE: Flag = Flag::text(
        &["-compat-auth-file"],
        "Docker-compatible file of registry credentials to update instead",
    );
    pub(crate) const GET_LOGIN: Flag =
        Flag::bool(&["-get-login"], "Print the current login user for the registry");
    pub(crate) const USERNAME: Flag = Flag::text(&["-username", "u"], "Username for registry");
    pub(crate) const PASSWORD: Flag = Flag::text(&["-password", "p"], "Password for registry");
    pub(crate) const PASSWORD_STDIN: Flag =
        Flag::bool(&["-password-stdin"], "Take the password from standard input");
    pub(crate) const VERBOSE: Flag = Flag::bool(&["-verbose", "v"], "Print where the credentials are kept");
    pub(crate) const ALL: Flag = Flag::bool(&["-all", "a"], "Remove the credentials for all registries");
}
