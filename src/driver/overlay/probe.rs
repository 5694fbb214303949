//! Probes: trial mounts that show what the kernel's overlayfs can do on the home's file system.
//!
//! Results are kept in files `<run root>/overlay/<feature>-true` and `-false`, with the Go library's names, and read by
//! both libraries; the run root is emptied at boot. The content of a `-false` file is the reason, if there is one.
//! Probes work in a locked temporary directory of the home: that of a killed process is removed by the next open, its
//! mounts included.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;

use rustix::fs::{AtFlags, CWD, FileType, Mode, RawDir};
use rustix::io::Errno;

use crate::driver::home_state::HomeState;
use crate::driver::mount_flags::{self, Sorted};
use crate::driver::overlay::layout::TEMP_DIRS;
use crate::driver::overlay::link_files::read_mark;
use crate::driver::overlay::mount::{Contents, OverlayMount, is_invalid};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::idmap::{IdMap, IdMappings};
use crate::lock::temp_dir::TempDir;
use crate::sys::mount::{attach, clone_id_mapped, unmount_lazily};
use crate::sys::{at, atomic, selinux, tree, userns, xattr};
use crate::whiteout::{Namespace, OPAQUE_VALUE};

/// Prefix of the reason why overlay does not work, as the Go library writes it.
const NO_OVERLAY: &str = "kernel does not support overlay fs: ";
/// Prefix of the reason why changes have to be found by comparing trees, as the Go library writes it.
const NO_NATIVE_DIFF: &str =
    "Not using native diff for overlay, this may cause degraded performance for building images: ";

/// The probes of one home.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe<'a> {
    pub(super) home: &'a Path,
    pub(super) run_home: &'a Path,
    /// The driver's mount options: results are kept for each set of them.
    pub(super) mount_options: &'a str,
    pub(super) namespace: Namespace,
    pub(super) shared: &'a HomeState,
}

/// A probe's directory with one mount in it.
struct Trial<'a> {
    dir: PathBuf,
    /// If the home became a mount of its own now, the trial's mount would be hidden below it, and stay. Released at the end.
    _home: MutexGuard<'a, ()>,
    /// Removed after [`Trial::drop`] has unmounted.
    _temp: TempDir,
}

impl<'a> Trial<'a> {
    fn new(probe: &Probe<'a>, dirs: &[&str]) -> Result<Self> {
        let held = probe.shared.lock_private();
        let home = probe.home;
        let mut temp = TempDir::create(&home.join(TEMP_DIRS))?;
        let dir = temp.addition();
        std::fs::create_dir(&dir).at("creating", &dir)?;
        for name in dirs.iter().chain(&["upper", "work", "merged"]) {
            let path = dir.join(name);
            std::fs::create_dir_all(&path).at("creating", path)?;
        }
        Ok(Self {
            dir,
            _home: held,
            _temp: temp,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        std::fs::write(self.path(name), content).at("writing", self.path(name))
    }

    fn mount(&self, lowers: &[&str], namespace: Namespace, options: Sorted) -> Result<()> {
        self.mount_labelled(lowers, namespace, options, "")
    }

    fn mount_labelled(
        &self,
        lowers: &[&str],
        namespace: Namespace,
        options: Sorted,
        label: &str,
    ) -> Result<()> {
        let mut options = options;
        if namespace == Namespace::User {
            options.data.push("userxattr".into());
        }
        let mount = OverlayMount {
            lowers: lowers.iter().map(|name| self.path(name)).collect(),
            contents: Contents::default(),
            upper: Some((self.path("upper"), self.path("work"))),
            options,
            label,
        };
        mount.mount_at(&self.path("merged"))
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        for mounted in ["merged", "mapped"] {
            if let Err(error) = unmount_lazily(&self.path(mounted)) {
                tracing::warn!(%error, "cannot unmount a trial mount of the overlay driver");
            }
        }
    }
}

impl Probe<'_> {
    fn cache_file(&self, feature: &str, works: bool) -> PathBuf {
        self.run_home.join(format!("{feature}-{works}"))
    }

    /// A result that this process or another has recorded, with its text.
    fn cached(&self, feature: &str) -> Option<(bool, String)> {
        for works in [true, false] {
            if let Some(text) = read_mark(&self.cache_file(feature, works)) {
                return Some((works, text));
            }
        }
        None
    }

    /// Records a result. If the file cannot be written the next process probes again.
    fn record(&self, feature: &str, works: bool, text: &str) {
        let path = self.cache_file(feature, works);
        if let Err(error) = atomic::write_file(&path, text.as_bytes(), 0o644, false) {
            tracing::debug!(path = %path.display(), error = %error.chain(), "cannot keep the result of a probe");
        }
    }

    /// The result of a feature from memory, from its file, or from `probe`. An error of `probe` is not kept.
    fn decide(&self, feature: &str, probe: impl FnOnce() -> Result<(bool, String)>) -> Result<bool> {
        if let Some(works) = self.shared.feature(feature) {
            return Ok(works);
        }
        let works = match self.cached(feature) {
            Some((works, _text)) => works,
            None => {
                let (works, text) = probe()?;
                tracing::debug!(feature, works, text, "probed overlay");
                self.record(feature, works, &text);
                works
            }
        };
        self.shared.set_feature(feature, works);
        Ok(works)
    }

    /// Fails with [`ErrorKind::NotSupported`] and the reason if overlay does not work on the home's file system.
    pub(super) fn overlay(&self) -> Result<()> {
        if self.shared.feature("overlay") == Some(true) {
            return Ok(());
        }
        match self.cached("overlay") {
            Some((true, _text)) => {}
            Some((false, text)) => return Err(ErrorKind::NotSupported.err(text)),
            None => {
                // An error while the trial is prepared is no result.
                let trial = Trial::new(self, &["lower1", "lower2/subdir"])?;
                trial.write("lower2/subdir/file", b"")?;
                if let Err(error) = self.try_overlay(&trial) {
                    if !is_result(&error) {
                        return Err(error);
                    }
                    let reason = format!("{NO_OVERLAY}{}", error.chain());
                    self.record("overlay", false, &reason);
                    return Err(ErrorKind::NotSupported.err(reason).with_source(error));
                }
                self.record("overlay", true, "");
            }
        }
        self.shared.set_feature("overlay", true);
        Ok(())
    }

    fn try_overlay(&self, trial: &Trial<'_>) -> Result<()> {
        if !has_file_types(&trial.dir)? {
            return Err(ErrorKind::NotSupported.err(
                "file system without d_type support, which leads to incorrect behavior (xfs: reformat with ftype=1)",
            ));
        }
        rustix::fs::mknodat(
            CWD,
            trial.path("upper/whiteout"),
            FileType::CharacterDevice,
            Mode::RUSR,
            0,
        )
        .during("unable to create kernel-style whiteout")?;
        // Kernels that refuse labels, in user namespaces for example, refuse the mounts of containers.
        let label = selinux::policy().map_or_else(String::new, |policy| policy.private_files());
        let label = if selinux::is_valid(&label) { &*label } else { "" };
        trial.mount_labelled(&["lower1", "lower2"], self.namespace, Sorted::default(), label)?;
        let subdir = trial.path("merged/subdir");
        tree::remove_tree(&subdir).at("deleting an item in the merged directory", subdir)
    }

    /// Whether changes of owners and modes copy no content with the driver's mount options.
    pub(super) fn metacopy(&self) -> Result<bool> {
        self.decide(&format!("metacopy({})", self.mount_options), || {
            Ok((self.try_metacopy()?, String::new()))
        })
    }

    fn try_metacopy(&self) -> Result<bool> {
        let trial = Trial::new(self, &["lower"])?;
        trial.write("lower/f", &[0xff])?;
        let options = mount_flags::sort([self.mount_options])?;
        match trial.mount(&["lower"], self.namespace, options) {
            Err(error) if is_invalid(&error) => return Ok(false),
            // Another driver may work where these options do not.
            Err(error) if is_result(&error) => {
                let what = format!("overlay with mount options {:?}", self.mount_options);
                return Err(ErrorKind::NotSupported.err(what).with_source(error));
            }
            result => result?,
        }
        let file = trial.path("merged/f");
        rustix::fs::chmodat(CWD, &file, Mode::RUSR | Mode::WUSR, AtFlags::empty())
            .at("changing the mode of", file)?;
        let upper = at::open_dir(&trial.path("upper")).at("opening", trial.path("upper"))?;
        let attribute = format!("{}metacopy", self.prefix());
        match xattr::get_at(upper.as_fd(), b"f", &attribute) {
            Err(Errno::OPNOTSUPP) => Ok(false),
            found => Ok(found.during("reading an overlay attribute")?.is_some()),
        }
    }

    fn prefix(&self) -> &'static str {
        match self.namespace {
            Namespace::Trusted => "trusted.overlay.",
            Namespace::User => "user.overlay.",
        }
    }

    /// Whether a layer's own directory holds its changes: not where directories may be redirected.
    pub(super) fn native_diff(&self) -> bool {
        let probe = || match self.try_native_diff() {
            Ok(()) => Ok((true, String::new())),
            Err(error) if !is_result(&error) => Err(error),
            Err(error) => Ok((false, format!("{NO_NATIVE_DIFF}{}", error.chain()))),
        };
        self.decide(&format!("native-diff({})", self.mount_options), probe)
            .unwrap_or(false)
    }

    fn try_native_diff(&self) -> Result<()> {
        let trial = Trial::new(self, &["l1/d", "l1/d1", "l2/d"])?;
        let middle = at::open_dir(&trial.path("l2")).at("opening", trial.path("l2"))?;
        let opaque = self.namespace.opaque();
        xattr::set_at(middle.as_fd(), b"d", opaque.as_bytes(), OPAQUE_VALUE)
            .during("failed to set opaque flag on middle layer")?;
        trial.mount(
            &["l2", "l1"],
            self.namespace,
            mount_flags::sort([self.mount_options])?,
        )?;
        trial.write("merged/d/f", b"")?;
        let upper = at::open_dir(&trial.path("upper")).at("opening", trial.path("upper"))?;
        let copied =
            xattr::get_at(upper.as_fd(), b"d", opaque).during("failed to read opaque flag on upper layer")?;
        if copied.as_deref() == Some(OPAQUE_VALUE) {
            return Err(ErrorKind::NotSupported.err("opaque flag erroneously copied up"));
        }
        match rustix::fs::rename(trial.path("merged/d1"), trial.path("merged/d2")) {
            Err(Errno::XDEV) => return Ok(()),
            result => result.during("failed to rename dir in merged directory")?,
        }
        let attribute = format!("{}redirect", self.prefix());
        let redirect = xattr::get_at(upper.as_fd(), b"d2", &attribute)
            .during("failed to read redirect flag on upper layer")?;
        match redirect.as_deref() {
            Some(b"d1") => {
                Err(ErrorKind::NotSupported.err("kernel has CONFIG_OVERLAY_FS_REDIRECT_DIR enabled"))
            }
            _ => Ok(()),
        }
    }

    /// Whether mounts can skip syncing.
    pub(super) fn volatile(&self) -> bool {
        let probe = || {
            let trial = Trial::new(self, &["lower"])?;
            trial.mount(&["lower"], self.namespace, mount_flags::sort(["volatile"])?)?;
            Ok((true, String::new()))
        };
        self.decide("volatile", probe).unwrap_or_else(|error| {
            tracing::debug!(reason = %error.chain(), "no volatile overlay mounts");
            self.shared.set_feature("volatile", false);
            false
        })
    }

    /// Whether layers may hold nothing but contents.
    pub(super) fn data_only_layers(&self) -> bool {
        let probe = || {
            let trial = Trial::new(self, &["lower", "contents"])?;
            let mount = OverlayMount {
                lowers: vec![trial.path("lower")],
                contents: Contents {
                    dirs: vec![trial.path("contents")],
                },
                upper: None,
                options: mount_flags::sort(["ro,metacopy=on"])?,
                label: "",
            };
            match mount.mount_at(&trial.path("merged")) {
                Err(error) if !is_result(&error) => Err(error),
                made => Ok((made.is_ok(), String::new())),
            }
        };
        self.decide("dataonly-layers", probe).unwrap_or(false)
    }

    /// Whether lowers can be mounted with other owners.
    pub(super) fn id_mapped_lowers(&self) -> bool {
        self.decide("idmapped-lower-dir", || {
            Ok((self.try_id_mapped_lowers()?, String::new()))
        })
        .unwrap_or(false)
    }

    fn try_id_mapped_lowers(&self) -> Result<bool> {
        let attempt = || -> Result<()> {
            let trial = Trial::new(self, &["lower", "mapped"])?;
            let root = vec![IdMap::new(0, 0, 1)];
            let namespace = userns::create(&IdMappings {
                uids: root.clone(),
                gids: root,
            })
            .during("making a user namespace")?;
            let mapped = clone_id_mapped(&trial.path("lower"), namespace.as_fd())
                .during("mapping owners of a mount")?;
            attach(mapped.as_fd(), &trial.path("mapped")).during("attaching a mount")?;
            trial.mount(&["mapped"], self.namespace, Sorted::default())
        };
        match attempt() {
            Ok(()) => Ok(true),
            Err(error) if !is_result(&error) => Err(error),
            Err(error) => {
                tracing::debug!(reason = %error.chain(), "no ID-mapped lowers");
                Ok(false)
            }
        }
    }
}

/// Whether the failure of a trial says something of the kernel and the file system, and not only of this moment: then it is
/// kept, and all programs go by it until the machine is started anew.
fn is_result(error: &Error) -> bool {
    !error.is_passing() && !error.is_full() && !error.has_errno(Errno::IO)
}

/// Whether listings of a directory, which must not be empty, have the types of the entries.
fn has_file_types(dir: &Path) -> Result<bool> {
    let open = at::open_dir(dir).at("opening", dir)?;
    let mut buffer = tree::listing_buffer();
    let mut entries = RawDir::new(open, &mut buffer);
    while let Some(entry) = entries.next() {
        if entry.at("listing", dir)?.file_type() == FileType::Unknown {
            return Ok(false);
        }
    }
    Ok(true)
}
