//! The operations of a script.
//!
//! Text that begins with `@` is the name of a random ID: `@one` as the ID of something new leaves the choice to the
//! store and calls the result `@one` from then on. The layer of container `c` is always called `@c.layer`.

use std::borrow::Cow;

pub(super) type Text = Cow<'static, str>;

/// Which of the stores an item belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Layer,
    Image,
    Container,
}

impl Kind {
    /// As in the names of commands.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Image => "image",
            Self::Container => "container",
        }
    }
}

/// What a new layer, image or container shall be; each operation uses what concerns it.
#[derive(Clone, Debug, Default)]
pub(super) struct New {
    pub(super) id: &'static str,
    pub(super) names: Vec<&'static str>,
    /// Parent layer, top layer or image.
    pub(super) on: Option<&'static str>,
    pub(super) metadata: &'static str,
    pub(super) digest: Option<&'static str>,
    pub(super) read_only: bool,
    pub(super) volatile: bool,
    /// Host IDs of the container's user and group 0; 65536 of each.
    pub(super) maps: Option<(u32, u32)>,
}

impl New {
    pub(super) fn id(id: &'static str) -> Self {
        Self {
            id,
            ..Self::default()
        }
    }

    pub(super) fn name(mut self, name: &'static str) -> Self {
        self.names.push(name);
        self
    }

    pub(super) fn on(mut self, below: &'static str) -> Self {
        self.on = Some(below);
        self
    }

    pub(super) fn metadata(mut self, text: &'static str) -> Self {
        self.metadata = text;
        self
    }

    pub(super) fn digest(mut self, digest: &'static str) -> Self {
        self.digest = Some(digest);
        self
    }

    pub(super) fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    pub(super) fn volatile(mut self) -> Self {
        self.volatile = true;
        self
    }

    pub(super) fn maps(mut self, uid: u32, gid: u32) -> Self {
        self.maps = Some((uid, gid));
        self
    }
}

/// One operation on a store, as the library and the command both offer it.
#[derive(Clone, Debug)]
pub(super) enum Op {
    CreateLayer(New),
    /// With the archive of this name.
    ImportLayer(New, &'static str),
    ApplyDiff(&'static str, &'static str),
    CreateImage(New),
    CreateContainer(New),

    Names(&'static str),
    SetNames(&'static str, &'static [&'static str]),
    AddNames(&'static str, &'static [&'static str]),
    RemoveNames(&'static str, &'static [&'static str]),
    Metadata(&'static str),
    SetMetadata(&'static str, &'static str),

    Exists(&'static str),
    /// One record.
    Show(Kind, &'static str),
    /// All records.
    List(Kind),
    ImagesByDigest(Text),
    /// Bytes of an image or a container.
    Size(Kind, &'static str),
    ParentOwners(Kind, &'static str),
    Directory(&'static str),
    RunDirectory(&'static str),

    ListData(Kind, &'static str),
    GetData(Kind, &'static str, Text),
    SetData(Kind, &'static str, Text, &'static [u8]),
    DataSize(Kind, &'static str, Text),
    DataDigest(Kind, &'static str, Text),

    Mount(&'static str),
    MountImage(&'static str),
    Unmount(&'static str),
    UnmountForced(&'static str),
    UnmountImage(&'static str),
    Mounted(&'static str),
    /// Changes to a mounted tree.
    Edit(&'static str, &'static [Edit]),
    /// Gives what deletions left in a layer's own directory a fixed time; they cannot be reached by a mount.
    DateDeletions(&'static str),

    Changes(&'static str, Option<&'static str>),
    DiffSize(&'static str, Option<&'static str>),
    Diff(&'static str, Option<&'static str>, Packing),

    Delete(&'static str),
    DeleteLayer(&'static str),
    /// What would go with the image.
    TestDeleteImage(&'static str),
    DeleteImage(&'static str),
    DeleteContainer(&'static str),
    Shutdown,
    ShutdownForced,
    Wipe,

    /// Compares every file of both roots.
    Checkpoint(&'static str),
}

/// How a diff is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Uncompressed,
    Gzip,
    /// As the layer came in.
    Recorded,
}

/// One change to a mounted tree.
#[derive(Clone, Copy, Debug)]
pub(super) enum Edit {
    Write(&'static str, &'static [u8]),
    Append(&'static str, &'static [u8]),
    Mkdir(&'static str),
    Symlink(&'static str, &'static str),
    HardLink(&'static str, &'static str),
    Fifo(&'static str),
    /// Major and minor number.
    CharDevice(&'static str, u32, u32),
    Remove(&'static str),
    Rename(&'static str, &'static str),
    Mode(&'static str, u32),
    Owner(&'static str, u32, u32),
    Attribute(&'static str, &'static str, &'static [u8]),
    /// Seconds and nanoseconds; last, as every other change moves the clock of a directory.
    Time(&'static str, i64, i64),
}

/// One step of a script.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) op: Op,
    /// The accepted difference that this step shows.
    pub(super) differs: Option<&'static str>,
}
