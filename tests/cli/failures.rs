//! Commands that fail, by what is wrong, and what is done to the store before.

use Given::{Do, Remove, Write};

/// What is done to the prepared store before the lines of a group run. `DRIVER` is the driver's name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Given {
    /// A command that succeeds.
    Do(&'static str),
    /// A file written.
    Write(&'static str, &'static str),
    /// A file or directory removed.
    Remove(&'static str),
    /// The graph root becomes an additional, read-only store.
    ReadOnly,
}

/// Lines that fail on the same store.
#[derive(Debug)]
pub(crate) struct Group {
    /// What is wrong.
    pub(crate) what: &'static str,
    pub(crate) given: &'static [Given],
    /// With overlay too; the others are the same with each driver.
    pub(crate) overlay: bool,
    /// `DRIVER`, `ROOT` (the directory of the graph and run roots) and `CLAYER` (the layer of a container) are replaced, as
    /// is `LONG`, a name of 300 letters.
    pub(crate) lines: &'static [&'static str],
}

/// What makes the store on which all of them run.
pub(crate) const PREPARED: &[&str] = &[
    "import-layer -i L1 -n base -f good.tar",
    "create-layer -i L2 -n mid L1",
    "import-layer -i L3 -n alone -f good.gzip",
    "create-layer -i aaa1",
    "create-layer -i aaa2",
    "create-image -i I1 -n img -m meta L2",
    "create-image -i I2 -n bare",
    "create-image -i bbb1 L1",
    "create-image -i bbb2 L1",
    "set-image-data -f text I1 k",
    "set-layer-data -f text L1 k",
    "create-container -i C1 -n web img",
    "create-container -i ccc1 bare",
    "create-container -i ccc2 bare",
    "set-container-data -f text C1 k",
];

const fn group(what: &'static str, lines: &'static [&'static str]) -> Group {
    Group {
        what,
        given: &[],
        overlay: false,
        lines,
    }
}

const fn on(what: &'static str, given: &'static [Given], lines: &'static [&'static str]) -> Group {
    Group {
        what,
        given,
        overlay: false,
        lines,
    }
}

impl Group {
    const fn also_overlay(mut self) -> Self {
        self.overlay = true;
        self
    }
}

#[rustfmt::skip]
pub(crate) const GROUPS: &[Group] = &[
    group("no such item", &[
        "get-names nosuch", "add-names -n a nosuch", "remove-names -n a nosuch", "set-names -n a nosuch",
        "set-metadata -m a nosuch", "create-layer nosuch", "create-image nosuch", "create-container nosuch",
        "import-layer -f good.tar nosuch", "applydiff -f good.tar nosuch", "diff nosuch", "diff L1 nosuch",
        "changes nosuch", "changes L1 nosuch", "diffsize nosuch", "diffsize L1 nosuch", "delete nosuch",
        "delete-layer nosuch", "delete-image nosuch", "delete-image -t nosuch", "delete-container nosuch",
        "delete -j nosuch", "delete-layer -j nosuch", "delete-image -j nosuch", "delete-container -j nosuch",
        "mount nosuch", "mount -j nosuch", "mount -r nosuch", "unmount nosuch", "unmount -j nosuch", "unmount -f nosuch",
        "mounted nosuch", "mounted -j nosuch", "get-image-dir nosuch", "get-image-run-dir nosuch",
        "get-container-dir nosuch", "get-container-run-dir nosuch", "list-layer-data nosuch", "list-image-data nosuch",
        "list-container-data nosuch", "get-layer-data nosuch k", "get-image-data nosuch k",
        "get-container-data nosuch k", "set-layer-data -f text nosuch k", "set-image-data -f text nosuch k",
        "set-container-data -f text nosuch k", "get-image-data-size nosuch k", "get-image-data-digest nosuch k",
        "get-container-data-size nosuch k", "get-container-data-digest nosuch k", "copy text nosuch:/x",
        "copy nosuch:/x L1:/x", "create-storage-layer nosuch", "layer nosuch", "image nosuch", "container nosuch",
        "metadata nosuch", "exists nosuch", "layer-parent-owners nosuch", "container-parent-owners nosuch",
        "config nosuch",
    ]),
    group("no such file", &[
        "import-layer -f nosuch", "applydiff -f nosuch L3", "set-layer-data -f nosuch L1 k",
        "set-image-data -f nosuch I1 k", "set-container-data -f nosuch C1 k", "create-image -f nosuch L1",
        "create-container -f nosuch I1", "set-metadata -f nosuch L1", "diff -f nosuch/x L1",
        "get-layer-data -f nosuch/x L1 k", "get-image-data -f nosuch/x I1 k", "get-container-data -f nosuch/x C1 k",
        "copy /nosuch/file L1:/x", "copy L1:/nosuch L1:/x",
    ]),
    group("not a file", &[
        "import-layer -f /etc", "applydiff -f /etc L3", "set-layer-data -f /etc L1 k", "set-image-data -f /etc I1 k",
        "set-container-data -f /etc C1 k", "create-image -f /etc L1", "create-container -f /etc I1",
        "set-metadata -f /etc L1", "diff -f /etc L1", "get-layer-data -f /etc L1 k", "get-image-data -f /etc I1 k",
        "get-container-data -f /etc C1 k", "diff -u -f /dev/full L1", "get-image-data -f /dev/full I1 k",
        "get-layer-data -f /dev/full L1 k", "get-container-data -f /dev/full C1 k",
    ]),
    group("no such data item", &[
        "get-layer-data L1 nosuch", "get-image-data I1 nosuch", "get-container-data C1 nosuch",
        "get-image-data-size I1 nosuch", "get-image-data-digest I1 nosuch", "get-container-data-size C1 nosuch",
        "get-container-data-digest C1 nosuch", "get-container-data C1 userdata", "get-image-data I1 userdata",
        "get-image-data I1 ..", "get-layer-data L1 LONG", "get-image-data I1 LONG", "get-container-data C1 LONG",
    ]),
    group("empty arguments", &[
        "get-layer-data L1 ''", "set-layer-data -f text L1 ''", "get-layer-data '' k", "get-image-data I1 ''",
        "set-image-data -f text I1 ''", "get-image-data '' k", "get-container-data C1 ''",
        "set-container-data -f text C1 ''", "get-container-data '' k", "list-layer-data ''", "list-image-data ''",
        "list-container-data ''", "layer ''", "image ''", "container ''", "delete ''", "delete-layer ''",
        "delete-image ''", "delete-container ''", "get-container-data-size C1 ''", "get-container-data-digest C1 ''",
        "get-image-data-size I1 ''", "get-image-data-digest I1 ''", "get-container-dir ''", "applydiff -f good.tar ''",
        "diff ''", "changes ''", "diffsize ''", "mount ''", "unmount ''", "mounted ''", "get-names ''",
        "add-names -n a ''", "set-metadata -m x ''", "set-metadata -m '' L1", "set-metadata L1", "metadata ''",
        "exists ''", "images-by-digest ''", "copy '' L1:/x", "copy : L1:/x", "copy L1:/e ''", "dedup --hash-method ''",
    ]),
    group("taken IDs and names", &[
        "create-layer -i L1", "create-layer -n base", "import-layer -i L1 -f good.tar", "import-layer -n base -f good.tar",
        "create-image -i I1 L1", "create-image -n img L1", "create-container -i C1 I1", "create-container -n web I1",
        "create-storage-layer -i L1",
    ]),
    group("items in use", &[
        "delete-layer L1", "delete-layer base", "delete-layer -j L1", "delete-layer L2", "delete-layer CLAYER",
        "delete-image I1", "delete-image img", "delete-image -t I1", "delete-image -j I1", "create-layer CLAYER",
        "import-layer -f good.tar CLAYER",
    ]),
    on("mounted layers", &[Do("mount L3")], &["shutdown", "shutdown -j", "shutdown -f"]).also_overlay(),
    group("ambiguous prefixes", &[
        "layer aaa", "get-names aaa", "list-layer-data aaa", "delete-layer aaa", "delete aaa", "mount aaa", "unmount aaa",
        "mounted aaa", "diff aaa", "changes aaa", "applydiff -f good.tar aaa", "create-layer aaa", "create-image aaa",
        "add-names -n z aaa", "set-metadata -m z aaa", "image bbb", "list-image-data bbb", "get-image-data bbb k",
        "delete-image bbb", "create-container bbb", "mount -r bbb", "container ccc", "list-container-data ccc",
        "delete-container ccc", "get-container-dir ccc", "mount ccc", "copy text aaa:/x",
    ]),
    group("items of another kind", &[
        "layer I1", "image L1", "container L1", "delete-layer I1", "delete-layer C1", "delete-image L1",
        "delete-image C1", "delete-container L1", "delete-container img", "mount I1", "mount -r L1", "mount -r C1",
        "mounted I1", "diff I1", "changes C1", "diffsize I1", "applydiff -f good.tar I1", "create-layer I1",
        "create-image I1", "create-container L1", "import-layer -f good.tar I1", "list-layer-data I1",
        "list-image-data L1", "list-container-data I1", "get-layer-data I1 k", "get-image-data L1 k",
        "get-container-data I1 k", "set-layer-data -f text I1 k", "set-image-data -f text L1 k",
        "set-container-data -f text L1 k", "get-container-dir I1", "copy text I1:/x", "copy L1:/d rel",
        "exists -i L1", "exists -c L1", "exists -l C1",
    ]),
    group("malformed ID mappings", &[
        "create-layer --uidmap 0:1000", "create-layer --uidmap 0:1000:x", "create-layer --uidmap x",
        "create-layer --uidmap -1:0:1", "create-layer --uidmap 0:0:4294967296", "create-layer --gidmap 0:1000",
        "create-layer --uidmap ::", "create-layer --hostuidmap --uidmap 0:0:1", "create-layer --hostgidmap --gidmap 0:0:1",
        "create-layer --hostuidmap --subuidmap x", "create-layer --subuidmap nosuch", "create-layer --uidmap 0:0:0",
        "create-layer --uidmap 0:0:10:5:5:10", "import-layer -f good.tar --uidmap 5:5:5",
        "create-storage-layer --uidmap 5:5:5", "create-container --uidmap 5:5:5 I1",
        "create-container --uidmap 0:0:10:5:5:10 I1", "create-container --uidmap 0:1000 I1",
    ]),
    group("malformed digests", &[
        "create-image -d bogus L1", "create-image -d sha256:x L1", "create-image -d :x L1",
        "create-image -d md5:d41d8cd98f00b204e9800998ecf8427e L1", "create-image -d sha256: L1",
        "create-image -d sha512:00 L1", "images-by-digest zzz", "images-by-digest sha256:x", "images-by-digest md5:0",
        "images-by-digest :",
    ]),
    group("malformed arguments", &[
        "copy --chown x text L1:/x", "copy --chown 1:x text L1:/x", "copy --chown 4294967296 text L1:/x", "diff -b L1",
        "diff -x L1", "dedup --hash-method md5", "create-layer -i a/b", "create-layer -i ..", "create-image -i ../x",
        "create-container -i a/b I1", "import-layer -f good.tar -i a/b", "create-storage-layer -i ..",
        "create-layer -i LONG", "create-image -i LONG", "create-container -i LONG I1", "set-layer-data -f text L1 ..",
        "set-image-data -f text I1 ..", "set-container-data -f text C1 ..", "set-layer-data -f text L1 LONG",
        "set-image-data -f text I1 LONG", "set-container-data -f text C1 LONG", "get-layer-data L1 ..",
    ]),
    group("wrong flags", &[
        "layers --bogus", "layers -zz", "layers -j=maybe", "import-layer -f", "layer", "get-image-data img", "layers a b",
        "nosuch", "layers -", "layers --json=", "layers --graph", "diff", "diff a b c", "status x", "applydiff-using-staging-dir a",
    ]),
    group("wrong drivers and options", &[
        "layers --storage-driver nosuch", "layers --storage-driver btrfs", "layers --storage-driver zfs",
        "layers --storage-driver aufs", "layers --storage-opt vfs.nosuch=1", "layers --storage-opt nosuch",
        "layers --storage-opt vfs.ignore_chown_errors=x", "layers --storage-opt vfs.mountopt=x",
        "layers --storage-opt vfs.sync=x", "layers --storage-opt =x", "layers --storage-opt vfs.imagestore=rel",
        "layers --storage-driver overlay --storage-opt overlay.nosuch=1",
        "layers --storage-driver overlay --storage-opt overlay.size=x",
        "layers --storage-driver overlay --storage-opt overlay.inodes=x",
        "layers --storage-driver overlay --storage-opt overlay.skip_mount_home=x",
        "layers --storage-driver overlay --storage-opt overlay.force_mask=x",
        "layers --storage-driver overlay --storage-opt overlay.imagestore=rel",
        "layers --storage-driver overlay --storage-opt overlay.size=1G",
        "layers --storage-driver overlay --storage-opt overlay.mount_program=/etc",
        "layers --storage-driver overlay --storage-opt overlay.additionallayerstore=rel",
        "layers --storage-driver overlay --storage-opt overlay.additionallayerstore=/etc,",
        "layers --storage-driver overlay --storage-opt overlay.additionallayerstore=/nosuch",
        "layers --storage-driver overlay --storage-opt overlay.additionallayerstore=/dev/null",
        "layers --storage-driver overlay --storage-opt overlay.additionallayerstore=/etc:ref:ref",
        "layers --storage-driver overlay --storage-opt overlay.additionallayerstore=/etc:x",
        "layers --storage-driver overlay --image-store rel",
        "mount --storage-driver overlay --storage-opt overlay.mountopt=bogus aaa1",
        "layers --graph /dev/null", "layers --graph /dev/null/x", "layers --run /dev/null", "layers --graph /proc/x",
    ]),
    group("layers that cannot be unpacked", &[
        "import-layer -f junk", "import-layer -f short-junk", "import-layer -f zeros", "import-layer -f cut-header.tar",
        "import-layer -f cut-content.tar", "import-layer -f cut-end.tar", "import-layer -f junk-behind.tar",
        "import-layer -f checksum.tar", "import-layer -f size.tar", "import-layer -f on-a-file.tar",
        "import-layer -f hard-link.tar", "import-layer -f odd-type.tar", "import-layer -f whiteout.tar",
        "import-layer -f long-name.tar", "import-layer -f long-device.tar", "import-layer -f attribute.tar",
        "applydiff -f junk L3", "applydiff -f cut-content.tar L3",
        "import-layer -i new -n newname -f cut.gzip L1", "applydiff -f cut.gzip L3",
    ]).also_overlay(),
    group("damaged compression", &[
        "import-layer -f junk.gzip", "import-layer -f text.gzip", "import-layer -f cut-inside.gzip",
        "import-layer -f cut.gzip", "import-layer -f cut-at-8.gzip", "import-layer -f cut-trailer.gzip",
        "import-layer -f damaged.gzip", "import-layer -f short-trailer.gzip", "import-layer -f trailer.gzip",
        "import-layer -f junk.bzip2", "import-layer -f text.bzip2", "import-layer -f cut-inside.bzip2",
        "import-layer -f cut.bzip2", "import-layer -f cut-at-8.bzip2", "import-layer -f cut-trailer.bzip2",
        "import-layer -f damaged.bzip2", "import-layer -f short-trailer.bzip2", "import-layer -f trailer.bzip2",
        "import-layer -f junk.xz", "import-layer -f text.xz", "import-layer -f cut-inside.xz", "import-layer -f cut.xz",
        "import-layer -f cut-at-8.xz", "import-layer -f cut-trailer.xz", "import-layer -f damaged.xz",
        "import-layer -f short-trailer.xz", "import-layer -f trailer.xz", "import-layer -f junk.zstd",
        "import-layer -f text.zstd", "import-layer -f cut-inside.zstd", "import-layer -f cut.zstd",
        "import-layer -f cut-at-8.zstd", "import-layer -f cut-trailer.zstd", "import-layer -f damaged.zstd",
        "import-layer -f short-trailer.zstd", "import-layer -f trailer.zstd",
    ]),
    on("damaged layer records", &[Write("graph/DRIVER-layers/layers.json", "junk")], &[
        "layers", "layers -j", "layer L1", "create-layer", "create-image L1", "delete-layer L1", "mount L1", "wipe", "gc",
        "exists L1",
    ]),
    on("cut layer records", &[Write("graph/DRIVER-layers/layers.json", "[{\"id\": \"x\", ")], &["layers"]),
    on("layer records of another form", &[Write("graph/DRIVER-layers/layers.json", "{}")], &["layers"]),
    on("damaged image records", &[Write("graph/DRIVER-images/images.json", "junk")], &[
        "images", "image I1", "create-image L1", "delete-image I1", "create-container I1", "mount -r I1", "layers",
    ]),
    on("damaged container records", &[Write("graph/DRIVER-containers/containers.json", "junk")], &[
        "containers", "container C1", "create-container I1", "delete-container C1", "mount C1", "delete-image bbb1",
    ]),
    on("damaged mount records", &[Write("run/DRIVER-layers/mountpoints.json", "junk")], &["layers -j", "mounted L1"]),
    on("lost data", &[Remove("graph/DRIVER-images/I1/k"), Remove("graph/DRIVER-containers/C1/k")], &[
        "get-image-data I1 k", "get-container-data C1 k",
    ]),
    on("a lost tree", &[Remove("TREE/L1")], &[
        "mount L1", "diff L1", "changes L1", "diffsize L1", "applydiff -f good.tar L1", "create-layer L1",
        "copy text L1:/x", "import-layer -f good.tar L1", "mount -r bbb1",
    ]).also_overlay(),
    on("a lost file", &[Remove("CONTENT/d/f")], &["diff -u -f /dev/null L1"]).also_overlay(),
    on("a changed file", &[Write("CONTENT/d/f", "changed")], &["diff -u -f /dev/null L1"]).also_overlay(),
    on("a shortened file", &[Write("CONTENT/d/f", "short")], &["diff -u -f /dev/null L1"]),
    on("damaged tar-split data", &[Write("graph/DRIVER-layers/L1.tar-split.gz", "junk")], &["diff -u -f /dev/null L1"]),
    on("a file as graph root", &[Remove("graph"), Write("graph", "")], &["layers"]),
    on("a file as run root", &[Remove("run"), Write("run", "")], &["layers"]),
    on("a file as directory of images", &[Remove("graph/DRIVER-images"), Write("graph/DRIVER-images", "")], &["images"]),
    on("a file as directory of a container", &[Remove("graph/DRIVER-containers/C1"), Write("graph/DRIVER-containers/C1", "")],
        &["get-container-dir C1"]),
    on("a read-only store", &[Given::ReadOnly], &[
        "delete-layer ONLY L3", "delete-image ONLY I1", "delete ONLY L1", "mount ONLY L1", "set-metadata ONLY -m x L1",
        "set-metadata ONLY -m x I1", "set-layer-data ONLY -f text L1 k", "set-image-data ONLY -f text I1 k",
        "add-names ONLY -n z L1", "set-names ONLY -n z L1", "remove-names ONLY -n base L1", "applydiff ONLY -f good.tar L3",
        "copy ONLY text L1:/x", "get-layer-data ONLY L1 nosuch", "get-image-data ONLY I1 nosuch", "mount ONLY -r bbb1",
        "unmount ONLY L1", "layer-parent-owners ONLY L1",
    ]),
];
