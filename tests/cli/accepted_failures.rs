//! Where the two programs do not fail alike, and why. `src/bin/graphroot/differences.md` and `src/coming_from_go.md` tell
//! it to readers, in the same words; the test at the end looks for them there.

use crate::support::accepted::{ANY, Accepted};

/// The lines are those of `failing`: the command, then both messages, or what happens instead.
pub(crate) const ACCEPTED: &[Accepted] = &[
    // Refused here, accepted there.
    Accepted {
        key: "directories-of-images",
        why: "it makes a directory for whatever text is given, and leaves it in the store",
        lines: &[
            "get-image-dir *: accepted / refused: *",
            "get-image-run-dir *: accepted / refused: *",
        ],
        ..ANY
    },
    Accepted {
        key: "taken-ids-of-the-driver",
        why: "it replaces the files of the layer that there is",
        lines: &["create-storage-layer -i L1: accepted / refused: *"],
        ..ANY
    },
    Accepted {
        key: "configuration-files",
        why: "it shows the configuration without the file",
        lines: &["config nosuch: accepted / refused: *"],
        middle: false,
        ..ANY
    },
    Accepted {
        key: "odd-ids",
        why: "IDs are names of files and directories; such an ID leads outside of the store, or cannot be deleted",
        lines: &["* -i *: accepted / refused: ID *: unsafe path"],
        ..ANY
    },
    Accepted {
        key: "overlapping-mappings",
        why: "one owner would be two, and what is unpacked could not be packed again",
        lines: &["create-layer --uidmap 0:0:10:5:5:10: accepted / refused: *"],
        ..ANY
    },
    Accepted {
        key: "relative-stores-of-vfs",
        why: "what it means depends on the current directory",
        lines: &["layers --storage-opt vfs.imagestore=rel: accepted / refused: *"],
        ..ANY
    },
    Accepted {
        key: "mount-programs",
        why: "every mount would fail later",
        lines: &["* overlay.mount_program=/etc: accepted / refused: *"],
        ..ANY
    },
    Accepted {
        key: "names-of-parents",
        why: "peers before 1.64 look for users of the text as given",
        lines: &["delete-layer base: accepted / refused: *"],
        new: false,
        ..ANY
    },
    // Accepted here, refused there.
    Accepted {
        key: "forced-shutdown",
        why: "it unmounts them and fails all the same",
        lines: &["shutdown -f: refused: * / accepted"],
        ..ANY
    },
    Accepted {
        key: "records-not-needed",
        why: "it reads every record when it opens the store, graphroot those that the command needs",
        lines: &["layers: refused: error initializing: * / accepted"],
        ..ANY
    },
    Accepted {
        key: "relative-image-store",
        why: "it cannot make its links there",
        lines: &["* --image-store rel: refused: * / accepted"],
        ..ANY
    },
    Accepted {
        key: "read-only-layers",
        why: "it looks for the mounts of layers in its own store only",
        lines: &[
            "mount ONLY -r bbb1: refused: * / accepted",
            "unmount ONLY L1: refused: * / accepted",
            "layer-parent-owners ONLY L1: refused: * / accepted",
        ],
        ..ANY
    },
    Accepted {
        key: "full-devices",
        why: "it does not notice that what it writes with copy_file_range is lost",
        lines: &["get-layer-data -f /dev/full L1 k: accepted / refused: *no space left on device"],
        ..ANY
    },
    // Texts.
    Accepted {
        key: "layers-of-the-driver",
        why: "it gives the key to the driver unchecked and prints the system call that fails",
        lines: &[
            "diff L1 nosuch: * / locating layer with ID * layer not known",
            "changes L1 nosuch: * / locating layer with ID * layer not known",
            "diffsize L1 nosuch: * / locating layer with ID * layer not known",
            "create-storage-layer nosuch: * / locating the tree of layer * layer not known",
            "import-layer -f good.tar L1: * / locating * layer not known",
        ],
        ..ANY
    },
    Accepted {
        key: "empty-mappings",
        why: "it leaves ranges of no IDs out and then misses the ID 0",
        lines: &["create-layer --uidmap 0:0:0: * / user ID range 0:0:0 is empty*"],
        ..ANY
    },
    Accepted {
        key: "sha512",
        why: "it has no sha512, graphroot does and misses digits",
        lines: &["create-image -d sha512:00 L1: *unsupported digest algorithm / *"],
        ..ANY
    },
    Accepted {
        key: "keys-that-are-directories",
        why: "it tries to write or read the directory",
        lines: &[
            "set-*-data * ..: *file exists / *",
            "get-layer-data L1 ..: *is a directory / *",
        ],
        ..ANY
    },
    Accepted {
        key: "long-keys",
        why: "an item of such a name cannot exist, so it does not",
        lines: &["get-container-data C1 LONG: *file name too long / *file does not exist*"],
        ..ANY
    },
    Accepted {
        key: "words-of-the-json-decoder",
        why: "its decoder names Go types and offsets, graphroot's line and column",
        lines: &["* / *loading ROOT/*.json: *"],
        ..ANY
    },
    Accepted {
        key: "the-option-vfs.sync",
        why: "it reads the documented option only under another name",
        lines: &["layers --storage-opt vfs.sync=x: *"],
        ..ANY
    },
    Accepted {
        key: "advice",
        why: "its text goes on with advice after the reason",
        lines: &["* overlay.imagestore=rel: *is not absolute.  Can not be relative / *is not absolute*"],
        ..ANY
    },
    Accepted {
        key: "words-of-decoders",
        why: "each decoder has its own words for damage; a stream that is cut off says `unexpected EOF` in all of them",
        lines: &[
            "import-layer -f damaged.*: * / *decompressing *",
            "import-layer -f *trailer.*: * / *decompressing *",
            "import-layer -f *trailer.*: * / *data after the end of *",
        ],
        ..ANY
    },
    Accepted {
        key: "the-program-zstd",
        why: "it runs the program zstd where there is one and prints what that says",
        lines: &["import-layer -f cut*.zstd: *stdin* / *unexpected EOF*"],
        ..ANY
    },
    Accepted {
        key: "sizes-of-files",
        why: "it reads a file of another size to its end before it finds the checksum wrong",
        lines: &["diff *: file integrity checksum failed * / *: it has * bytes, * were recorded: *"],
        ..ANY
    },
    Accepted {
        key: "older-texts-of-options",
        why: "peers before 1.64 have other words for unknown options",
        lines: &[
            "layers *.nosuch=1: error initializing: * / *unknown option *",
            "layers --storage-opt =x: error initializing: * / *unknown option *",
        ],
        new: false,
        ..ANY
    },
    Accepted {
        key: "crashes-of-older-peers",
        why: "peers before 1.64 crash on a layer whose files are lost",
        lines: &["applydiff -f good.tar L1: exit code 2 / 1"],
        new: false,
        sometimes: true,
        ..ANY
    },
    Accepted {
        key: "mounting-images-with-vfs",
        why: "vfs of 1.57 refuses the option `ro`, which mounting an image implies",
        lines: &["mount -r bbb1: vfs driver does not support mount options* / *"],
        new: false,
        ..ANY
    },
    Accepted {
        key: "whiteouts-of-nothing",
        why: "it tries to remove the layer's root directory",
        lines: &["import-layer -f whiteout.tar: * / *whiteout of no name: unsafe path"],
        ..ANY
    },
    Accepted {
        key: "empty-targets",
        why: "it crashes for want of a file name",
        lines: &["copy L1:/e '': exit code 2 / 1"],
        ..ANY
    },
];

#[test]
fn every_accepted_failure_has_a_reason_that_readers_find() {
    crate::support::accepted::check(ACCEPTED);
    let pages = [
        include_str!("../../src/bin/graphroot/differences.md"),
        include_str!("../../src/coming_from_go.md"),
    ];
    for row in ACCEPTED.iter().filter(|row| row.new) {
        assert!(
            pages.iter().any(|page| page.contains(row.why)),
            "{}: {}",
            row.key,
            row.why
        );
    }
}
