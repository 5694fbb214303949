//! Layers whose files are in an additional layer store.
//!
//! Such a layer has a symbolic link in the place of the directory of its files, and a file with the directory of the layer in
//! the store. The store is told that the layer is in use before that file is written, and of the end of the use after the
//! file is gone: a process that is killed in between may leave the store with a use too many, never with one too few, with
//! which it could remove what others use.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{AtFlags, CWD, Mode};

use crate::digest::Digest;
use crate::driver::contract::CreateOptions;
use crate::driver::layer_use::{LayerUse, check_layer_dir};
use crate::driver::overlay::build::write_new;
use crate::driver::overlay::layout::ADDITIONAL_LAYER;
use crate::driver::overlay::state::Overlay;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::options::driver::LayerStore;
use crate::sys::tree;

/// The directory of a layer in the first store that has it. What cannot be used is passed over.
pub(super) fn find(stores: &[LayerStore], toc_digest: &Digest, reference: &str) -> Option<PathBuf> {
    stores.iter().find_map(|store| {
        let dir = layer_dir(store, toc_digest, reference);
        match check_layer_dir(&dir) {
            Ok(()) => Some(dir),
            Err(error) => {
                tracing::debug!(error = %error.chain(), "not in this additional layer store");
                None
            }
        }
    })
}

/// Where a store has a layer.
fn layer_dir(store: &LayerStore, toc_digest: &Digest, reference: &str) -> PathBuf {
    let mut dir = store.path.clone();
    if store.with_reference {
        // Base 64 has slashes: the name is then one of several directories.
        let name = STANDARD.encode(reference);
        dir.extend(name.split('/').filter(|part| !part.is_empty()));
    }
    dir.join(toc_digest.as_str())
}

impl Overlay {
    /// Makes a layer whose files are those of `layer`.
    pub(super) fn create_additional_layer(
        &self,
        id: &str,
        parent: Option<&str>,
        layer: LayerUse,
        options: &CreateOptions,
    ) -> Result<()> {
        let Some(text) = layer.dir().to_str() else {
            let what = "a path that is not UTF-8, of a layer in an additional layer store,";
            return Err(ErrorKind::UnsafePath.err(what).at(layer.dir()));
        };
        check_layer_dir(layer.dir())?;
        self.create_with(id, parent, options, |dir| {
            replace_tree(dir, text, options.durable).at("filling layer directory", dir)
        })?;
        layer.keep();
        Ok(())
    }
}

/// Puts a link to the files of `layer` in the place of the empty directory of a new layer.
fn replace_tree(dir: &Path, layer: &str, durable: bool) -> rustix::io::Result<()> {
    let own = rustix::fs::openat(CWD, dir, tree::DIR_FLAGS, Mode::empty())?;
    rustix::fs::unlinkat(&own, "diff", AtFlags::REMOVEDIR)?;
    write_new(&own, ADDITIONAL_LAYER, layer, durable)?;
    rustix::fs::symlinkat(Path::new(layer).join("diff"), &own, "diff")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_directories() {
        let digest = Digest::sha256("toc");
        let dir = |with_reference, reference: &str| {
            let store = LayerStore {
                path: "/store".into(),
                with_reference,
            };
            layer_dir(&store, &digest, reference)
        };
        let plain = Path::new("/store").join(digest.as_str());
        assert_eq!(dir(false, "docker.io/library/a:1"), plain);
        assert_eq!(dir(true, ""), plain);
        for (reference, name) in [
            ("docker.io/library/a:1", "ZG9ja2VyLmlvL2xpYnJhcnkvYTox"),
            ("??????", "Pz8/Pz8/"),
            ("\u{7f}\u{ff}", "f8O/"),
        ] {
            let expected = Path::new("/store").join(name).join(digest.as_str());
            assert_eq!(dir(true, reference), expected, "{reference:?}");
        }
    }
}
