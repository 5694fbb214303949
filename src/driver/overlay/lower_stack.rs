//! The lower layers of a mount as the mount takes them: directories, ID-mapped mounts of them, attached images.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::driver::mount_flags::Sorted;
use crate::driver::overlay::composefs::Images;
use crate::driver::overlay::id_mapped::MappedLowers;
use crate::driver::overlay::mount::{Contents, verifies_contents};
use crate::driver::overlay::state::Overlay;
use crate::driver::overlay::stores::Lower;
use crate::error::{ErrorKind, Result};
use crate::whiteout::Namespace;

/// The trees of a mount.
pub(super) struct Trees {
    /// The layer's own; perhaps a symbolic link, as a [`Lower`].
    pub(super) own: PathBuf,
    /// The layer's directory, if its tree is in an image there.
    pub(super) own_image: Option<PathBuf>,
    /// Whether that may be changed: it is the driver's, not that of an additional layer store.
    pub(super) changes: bool,
    /// Those below, topmost first.
    pub(super) lowers: Vec<Lower>,
}

impl Trees {
    /// Whether one of them is in an image.
    pub(super) fn has_image(&self) -> bool {
        self.own_image.is_some() || self.lowers.iter().any(|lower| lower.image().is_some())
    }
}

/// Directories where lowers are attached while a mount is made.
pub(super) struct AttachDirs {
    pub(super) images: PathBuf,
    pub(super) mapped: PathBuf,
}

impl AttachDirs {
    /// Those in a directory.
    pub(super) fn in_dir(dir: &Path) -> Self {
        Self {
            images: dir.join("composefs-layers"),
            mapped: dir.join("mapped"),
        }
    }
}

/// Lower layers; what is attached for them is unmounted when it is dropped: the mount keeps references of its own.
#[derive(Debug)]
pub(super) struct LowerStack {
    _images: Images,
    _mapped: Option<MappedLowers>,
}

impl Overlay {
    /// Attaches what a mount of `trees` needs. Returns the paths of the lowers, topmost first, and the directories of contents,
    /// with what has to be kept until the mount is made. With `is_lower` the layer's own tree is the topmost lower.
    /// `owners` is a user namespace whose mappings the layers below show. Adds options to `options` that the layers cannot be read
    /// without.
    pub(super) fn stack(
        &self,
        trees: &Trees,
        is_lower: bool,
        dirs: AttachDirs,
        owners: Option<&OwnedFd>,
        options: &mut Sorted,
    ) -> Result<(Vec<PathBuf>, Contents, LowerStack)> {
        let mut images = Images::new(dirs.images);
        let mut contents = Vec::new();
        let mapped = match owners {
            Some(owners) => Some(MappedLowers::make(&dirs.mapped, &trees.lowers, owners)?),
            None => None,
        };
        let below = match &mapped {
            Some(mapped) => mapped.paths.clone(),
            None => trees.lowers.iter().map(Lower::full).collect(),
        };
        let own = is_lower.then(|| (trees.own.clone(), trees.own_image.as_deref(), None));
        let images_below = trees.lowers.iter().map(Lower::image);
        let below = below
            .into_iter()
            .zip(images_below)
            .map(|(path, image)| (path, image, owners));
        let data_only = !trees.has_image() || self.probe().data_only_layers();
        let mut has_images = false;
        let mut paths = Vec::new();
        for (path, image, owners) in own.into_iter().chain(below) {
            match image {
                Some(layer) => {
                    self.check_images()?;
                    has_images = true;
                    paths.push(images.add(layer, owners)?);
                    // Else right below their image: it hides their directories, and the next one would hide them from it.
                    let group = if data_only { &mut contents } else { &mut paths };
                    group.push(path);
                }
                None => paths.push(path),
            }
        }
        if has_images {
            options
                .data
                .extend(["metacopy=on", "redirect_dir=on"].map(str::to_owned));
            // The digests of an image that anybody can change prove nothing; and a copy of a store has lost fs-verity.
            if images.are_verified && verifies_contents() {
                options.data.push("verity=on".into());
            }
        }
        let contents = Contents { dirs: contents };
        let attached = LowerStack {
            _images: images,
            _mapped: mapped,
        };
        Ok((paths, contents, attached))
    }

    /// Whether images can be mounted.
    fn check_images(&self) -> Result<()> {
        if self.namespace == Namespace::User {
            return Err(ErrorKind::NotSupported.err("composefs is not supported in user namespaces"));
        }
        match &self.program {
            None => Ok(()),
            Some(program) => {
                let what = format!("mounting a composefs layer through {}", program.display());
                Err(ErrorKind::NotSupported.err(what))
            }
        }
    }
}
