//! The conformance suite: cases that every driver must pass.
//!
//! A case gets a [`Setup`]: a driver on a directory of its own. Everything mounted there is unmounted when the setup is
//! dropped, also after a failure.

#[path = "../../../tests/support/btrfs.rs"]
pub(crate) mod btrfs;
mod content;
mod life;
mod mounts;
#[path = "../../../tests/support/scripted_fs.rs"]
pub(crate) mod scripted_fs;
mod stores;
#[path = "../../../tests/support/user.rs"]
mod user;
#[path = "../../../tests/support/zfs.rs"]
pub(crate) mod zfs;

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::driver::DriverConfig;
use crate::driver::contract::{CreateOptions, Driver, EntryKind, MountOptions, Staged};
use crate::driver::select::open_driver;
use crate::error::ErrorKind;
use crate::idmap::{IdMap, IdMappings};
use crate::lock::temp_dir::TempDir;
use crate::skip::skip;
use crate::sys::mount::{in_directory, is_mount_point, mounts_below, unmount_lazily};
use crate::sys::{at, privilege, xattr};
use crate::tree_driver::TreeDriver;
use crate::whiteout::{OPAQUE_VALUE, WhiteoutFormat};

/// Whether overlay mounts can be tested; prints the reason if not.
pub(crate) fn need_overlay() -> bool {
    if !privilege::is_root() {
        skip("overlay mounts need root");
    }
    privilege::is_root()
}

/// The mount program to test with.
const MOUNT_PROGRAM: &str = "/usr/bin/fuse-overlayfs";

/// Whether layers can be mounted by a program; prints the reason if not.
pub(crate) fn need_mount_program() -> bool {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    match device {
        _ if !need_overlay() => false,
        _ if !Path::new(MOUNT_PROGRAM).exists() => {
            skip("fuse-overlayfs is not installed");
            false
        }
        Err(error) => {
            skip(&format!("/dev/fuse cannot be opened: {error}"));
            false
        }
        Ok(_device) => true,
    }
}

/// A driver with options.
#[derive(Clone, Copy, Debug)]
struct Variant {
    driver: &'static str,
    /// Through [`MOUNT_PROGRAM`].
    program: bool,
    /// Layers with content are composefs layers.
    composefs: bool,
}

/// The name of [`Copied`].
const TREE: &str = "copied";

/// A driver of a program's own, which leaves copies to the library.
#[derive(Debug)]
struct Copied;

impl TreeDriver for Copied {
    fn name(&self) -> &'static str {
        TREE
    }

    fn clone_tree(&self, _source: &Path, _path: &Path) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// Unmounts everything below a directory when dropped.
pub(crate) struct MountGuard(PathBuf);

impl MountGuard {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Drop for MountGuard {
    fn drop(&mut self) {
        for mounted in mounts_below(&self.0).unwrap_or_default() {
            if !zfs::unmounts(&mounted)
                && let Err(error) = unmount_lazily(&mounted)
            {
                eprintln!("cannot unmount {}: {error}", mounted.display());
            }
        }
    }
}

/// A driver under test.
struct Setup {
    driver: Arc<dyn Driver>,
    config: DriverConfig,
    // In this order: the directory can only be removed when nothing is mounted in it.
    _guard: MountGuard,
    _tmp: tempfile::TempDir,
    _dataset: Option<zfs::Dataset>,
}

impl Setup {
    /// `None` if the driver cannot be tested here.
    fn new(variant: Variant, adjust: impl FnOnce(&mut DriverConfig, &Path)) -> Option<Self> {
        let possible = match variant {
            Variant { program: true, .. } => need_mount_program(),
            Variant {
                driver: "overlay", ..
            } => need_overlay(),
            _ => true,
        };
        if !possible {
            return None;
        }
        let mut dataset = None;
        let place = match variant.driver {
            "zfs" => match zfs::Dataset::new() {
                Ok(made) => dataset.insert(made).path().to_owned(),
                Err(why) => {
                    zfs::without(why, skip);
                    return None;
                }
            },
            "btrfs" => match btrfs::shared() {
                Ok(dir) => dir.to_owned(),
                Err(why) => {
                    skip(why);
                    return None;
                }
            },
            _ => std::env::temp_dir(),
        };
        let tmp = tempfile::tempdir_in(place).unwrap();
        let mut config = DriverConfig {
            name: Some(variant.driver.into()),
            root: tmp.path().join("graph"),
            run_root: tmp.path().join("run"),
            ..DriverConfig::default()
        };
        if variant.driver == TREE {
            config.tree_driver = Some(Arc::new(Copied));
        }
        if variant.driver == "vfs" && !privilege::is_root() {
            config.options.push("vfs.ignore_chown_errors=true".into());
        }
        if variant.program {
            config
                .options
                .push(format!("overlay.mount_program={MOUNT_PROGRAM}"));
        }
        if variant.composefs {
            config.options.push("overlay.use_composefs=true".into());
        }
        adjust(&mut config, tmp.path());
        let guard = MountGuard::new(tmp.path());
        let driver = open_driver(&config).unwrap();
        Some(Self {
            driver,
            config,
            _guard: guard,
            _tmp: tmp,
            _dataset: dataset,
        })
    }

    fn is_overlay(&self) -> bool {
        self.driver.name() == "overlay"
    }

    fn is_zfs(&self) -> bool {
        self.driver.name() == "zfs"
    }

    /// Whether a layer is seen through a mount.
    fn mounts(&self) -> bool {
        self.is_overlay() || self.is_zfs()
    }

    /// Whether mounts without a path are possible: zfs-fuse mounts a layer at one place only.
    fn mounts_privately(&self) -> bool {
        let known = fs::read_to_string("/proc/filesystems").unwrap();
        !self.is_zfs() || known.lines().any(|line| line.ends_with("\tzfs"))
    }

    /// Where a layer of this driver's own home is mounted.
    fn target(&self, id: &str) -> PathBuf {
        match self.is_zfs() {
            true => self.driver.home().join("graph").join(id),
            false => self.dir(id).join("merged"),
        }
    }

    /// Whether a layer's own directory holds its changes.
    fn has_native_diff(&self) -> bool {
        self.is_overlay() && !self.uses_program() && !self.has_images()
    }

    /// Whether layers with content are composefs layers.
    fn has_images(&self) -> bool {
        self.config
            .options
            .iter()
            .any(|option| option.contains("use_composefs"))
    }

    /// Options with which a layer with content can be mounted.
    fn own_options(&self) -> &'static [&'static str] {
        if self.has_images() { &["ro"] } else { &[] }
    }

    fn uses_program(&self) -> bool {
        self.config
            .options
            .iter()
            .any(|option| option.contains("mount_program"))
    }

    fn create(&self, id: &str, parent: Option<&str>) {
        self.driver.create(id, parent, &CreateOptions::default()).unwrap();
    }

    fn stage(&self, parent: Option<&str>) -> Box<dyn Staged> {
        Arc::clone(&self.driver)
            .stage(parent, &CreateOptions::default())
            .unwrap()
    }

    /// A layer with content.
    fn layer(&self, id: &str, parent: Option<&str>, fill: impl FnOnce(&Path)) {
        let mut staged = self.stage(parent);
        fill(&path_of(&*staged));
        assert_eq!(staged.store_by_digest(parent).unwrap(), self.has_images());
        staged.commit(id, parent, &CreateOptions::default()).unwrap();
    }

    fn mount(&self, id: &str, options: &[&str]) -> PathBuf {
        let options = options.iter().map(ToString::to_string).collect();
        self.driver
            .mount(
                id,
                &MountOptions {
                    options,
                    ..MountOptions::default()
                },
            )
            .unwrap()
    }

    /// Every path in a mounted layer, with the content of files.
    fn seen(&self, id: &str) -> Vec<(String, String)> {
        let root = self.mount(id, &["ro"]);
        let found = listing(&root);
        self.driver.unmount(id).unwrap();
        found
    }

    /// Deletes a name of the layers below in a layer's own tree.
    fn hide(&self, tree: &Path, name: &str) {
        let path = tree.join(name);
        match self.form() {
            WhiteoutFormat::Overlay(_) => {
                rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR, 0).unwrap();
            }
            WhiteoutFormat::Verbatim => write(tree, &format!(".wh.{name}"), ""),
            WhiteoutFormat::Apply if path.is_dir() => fs::remove_dir_all(path).unwrap(),
            WhiteoutFormat::Apply => fs::remove_file(path).unwrap(),
        }
    }

    /// Makes a directory of a layer's own tree opaque.
    fn make_opaque(&self, tree: &Path, name: &str) {
        match self.form() {
            WhiteoutFormat::Overlay(namespace) => {
                fs::create_dir(tree.join(name)).unwrap();
                let dir = at::open_dir(tree).unwrap();
                let attribute = namespace.opaque().as_bytes();
                xattr::set_at(dir.as_fd(), name.as_bytes(), attribute, OPAQUE_VALUE).unwrap();
            }
            WhiteoutFormat::Verbatim => {
                fs::create_dir(tree.join(name)).unwrap();
                write(&tree.join(name), ".wh..wh..opq", "");
            }
            WhiteoutFormat::Apply => {
                fs::remove_dir_all(tree.join(name)).unwrap();
                fs::create_dir(tree.join(name)).unwrap();
            }
        }
    }

    fn form(&self) -> WhiteoutFormat {
        self.stage(None).tree().whiteouts
    }

    /// The directory of a layer of this driver's own home.
    fn dir(&self, id: &str) -> PathBuf {
        let home = self.driver.home();
        match self.driver.name() {
            "overlay" => home.join(id),
            "btrfs" => home.join("subvolumes").join(id),
            "zfs" => self.target(id),
            _ => home.join("dir").join(id),
        }
    }

    fn nothing_temporary(&self) {
        for root in self.temp_dirs() {
            let left = fs::read_dir(&root).map_or(0, Iterator::count);
            assert_eq!(left, 0, "left in {}", root.display());
        }
    }

    /// The directories of temporary directories.
    fn temp_dirs(&self) -> Vec<PathBuf> {
        let config = &self.config;
        let roots = [&config.root, &config.run_root]
            .into_iter()
            .chain(&config.image_store);
        let homes = roots.map(|root| root.join(self.driver.name()));
        homes.map(|home| home.join("tempdirs")).collect()
    }

    /// How many link IDs there are, for checks that none of a removed layer is left.
    fn link_ids(&self) -> usize {
        fs::read_dir(self.driver.home().join("l")).map_or(0, Iterator::count)
    }

    fn second_driver(&self) -> Arc<dyn Driver> {
        open_driver(&self.config).unwrap()
    }
}

/// Runs a case, which a daemon that dies does not fail.
fn over(variant: Variant, case: impl Fn()) {
    match variant.driver {
        "zfs" => zfs::surviving(case),
        _ => case(),
    }
}

/// The path of the tree of staged content.
pub(super) fn path_of(staged: &dyn Staged) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{}", staged.tree().dir.as_raw_fd())).unwrap()
}

/// Whether something is mounted at a path that may not be there.
fn is_mounted(path: &Path) -> bool {
    path.exists() && is_mount_point(path).unwrap()
}

fn listing(root: &Path) -> Vec<(String, String)> {
    fn walk(root: &Path, below: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(root.join(below)).unwrap() {
            let path = below.join(entry.unwrap().file_name());
            let full = root.join(&path);
            let content = if full.is_dir() {
                "/".into()
            } else {
                fs::read_to_string(&full).unwrap()
            };
            found.push((path.to_str().unwrap().to_owned(), content));
            if full.is_dir() {
                walk(root, &path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(root, Path::new(""), &mut found);
    found.sort();
    found
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(path, content)| (path.to_string(), content.to_string()))
        .collect()
}

fn write(root: &Path, name: &str, content: &str) {
    fs::write(root.join(name), content).unwrap();
}

fn maps(uid: u32, gid: u32) -> IdMappings {
    IdMappings {
        uids: vec![IdMap::new(0, uid, 1000)],
        gids: vec![IdMap::new(0, gid, 1000)],
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = path.symlink_metadata().unwrap();
    (meta.uid(), meta.gid())
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

/// One test for each case, of one driver.
macro_rules! suite {
    ($module:ident, $driver:literal, $program:literal, $composefs:literal, $($group:ident: $($case:ident)*),*; $($own:ident)*) => {
        mod $module {
            $(mod $group {
                $(#[test]
                fn $case() {
                    let variant = crate::driver::conformance::$module::VARIANT;
                    crate::driver::conformance::over(variant, || {
                        if let Some(setup) = crate::driver::conformance::Setup::new(variant, |_config, _tmp| {}) {
                            crate::driver::conformance::$group::$case(&setup);
                        }
                    });
                })*
            })*
            $(#[test]
            fn $own() {
                crate::driver::conformance::over(VARIANT, || crate::driver::conformance::stores::$own(VARIANT));
            })*

            const VARIANT: crate::driver::conformance::Variant = crate::driver::conformance::Variant {
                driver: $driver,
                program: $program,
                composefs: $composefs,
            };
        }
    };
}

/// The suite for each driver.
macro_rules! suites {
    ($($module:ident: $driver:literal $program:literal $composefs:literal,)*) => {
        $(suite! {
            $module, $driver, $program, $composefs,
            content:
                empty_layer
                base_with_content
                snapshot_sees_and_hides
                deep_chain
                root_mode_is_inherited
                modes_do_not_depend_on_the_umask
                owners_can_be_mapped_by_a_copy
                space_is_measured
                files_are_found_through_all_trees,
            mounts:
                read_only_mount
                writes_land_in_the_layer_only
                mounts_are_counted
                a_mount_of_another_process_counts_once
                a_mount_ended_by_another_process_is_made_again
                a_mount_whose_program_died_is_made_again
                a_mounted_layer_can_be_removed
                owners_can_be_mapped_by_the_mount
                a_private_mount_has_no_path_and_no_other_user
                a_private_mount_shows_what_was_written_so_far
                private_mounts_of_a_killed_process_are_detached
                shutdown_leaves_no_mount
                unknown_mount_options_are_refused
                volatile_mounts_can_be_repeated,
            life:
                removal_is_immediate_and_deletion_deferred
                leftovers_are_replaced
                staged_content_is_nothing_until_committed
                a_vanished_parent_is_noticed
                content_can_be_staged_apart
                layers_are_listed_and_described
                entries_have_kinds
                names_of_a_layer_are_told
                limits_need_quotas
                bad_ids_are_refused;
            additional_stores_are_read
            images_can_lie_in_a_store_of_their_own
        })*
    };
}

suites! {
    vfs: "vfs" false false,
    tree: "copied" false false,
    btrfs_suite: "btrfs" false false,
    zfs_suite: "zfs" false false,
    overlay: "overlay" false false,
    mount_program: "overlay" true false,
    composefs: "overlay" false true,
}

/// The suite once more, as root of a user namespace.
#[test]
fn every_driver_works_in_a_user_namespace() {
    let installed = |program: &&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
    };
    if !privilege::is_root() || !user::PROGRAMS.iter().all(installed) {
        return skip("an ordinary user is made by root, with newuidmap, setpriv and unshare");
    }
    let suites = [
        "conformance::vfs::",
        "conformance::tree::",
        "conformance::overlay::",
        "conformance::mount_program::",
        "btrfs",
    ];
    let btrfs = btrfs::shared().unwrap();
    user::test_again(user::NAMESPACE, &suites, 120, &[(btrfs::VARIABLE, btrfs)]);
}
