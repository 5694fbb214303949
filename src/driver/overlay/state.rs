//! The state of an open overlay driver.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::driver::contract::LayerTree;
use crate::driver::home_state::HomeState;
use crate::driver::options::OverlayOptions;
use crate::driver::overlay::id_mapped::UserNamespaces;
use crate::driver::overlay::probe::Probe;
use crate::driver::overlay::program;
use crate::driver::overlay::stores::Stores;
use crate::driver::project_quotas::ProjectQuotas;
use crate::idmap::IdMappings;
use crate::whiteout::{Namespace, WhiteoutFormat};

/// The driver.
#[derive(Debug)]
pub(crate) struct Overlay {
    pub(super) stores: Stores,
    /// `<run root>/overlay`.
    pub(super) run_home: PathBuf,
    pub(super) options: OverlayOptions,
    /// Name of the type of the file system that the home is on.
    pub(super) filesystem_type: &'static str,
    /// Which extended attributes overlayfs reads its marks from.
    pub(super) namespace: Namespace,
    /// Changes of owners and modes copy no content.
    pub(super) metacopy: bool,
    /// Limits on containers' layers, where the file system has them.
    pub(super) quotas: Option<ProjectQuotas>,
    /// The program that mounts in place of the kernel.
    pub(super) program: Option<PathBuf>,
    pub(super) shared: Arc<HomeState>,
    /// The home has been made a private mount.
    pub(super) is_private: AtomicBool,
    /// User namespaces of recent mounts.
    pub(super) namespaces: UserNamespaces,
}

impl Overlay {
    /// The probes of this home.
    pub(super) fn probe(&self) -> Probe<'_> {
        Probe {
            home: &self.stores.home,
            run_home: &self.run_home,
            mount_options: &self.options.mount_options,
            namespace: self.namespace,
            shared: &self.shared,
        }
    }

    /// Whether a layer's own directory holds all of its changes. Not with a mount program, which may keep changes in
    /// a form of its own.
    pub(super) fn native_diff(&self) -> bool {
        self.program.is_none() && self.probe().native_diff()
    }

    /// Whether mounts can skip syncing.
    pub(super) fn volatile(&self) -> bool {
        self.program.is_some() || self.probe().volatile()
    }

    /// Whether a mount can show other owners: by ID-mapped lowers, or because a mount program maps them.
    pub(super) fn can_shift(&self, mappings: &IdMappings) -> bool {
        // Compat: the Go library looks for exactly this value.
        if std::env::var_os("_CONTAINERS_OVERLAY_DISABLE_IDMAP").is_some_and(|value| value == "yes") {
            return false;
        }
        match self.program {
            Some(_) => program::can_map(mappings),
            None => self.probe().id_mapped_lowers(),
        }
    }

    /// An open directory of layer files, with what has to be known for writing into it.
    pub(super) fn tree_of(&self, dir: OwnedFd) -> LayerTree {
        LayerTree {
            dir,
            whiteouts: match self.program {
                Some(_) => WhiteoutFormat::Verbatim,
                None => WhiteoutFormat::Overlay(self.namespace),
            },
            root_entry: false,
            ignore_chown_errors: self.options.ignore_chown_errors,
            force_mask: self.options.force_mask,
            in_user_namespace: self.namespace == Namespace::User,
        }
    }
}
