//! The configuration of this machine: `storage.conf`, its drop-in files, environment variables, and the directories
//! of unprivileged users. The result is what the newest Go library, and so the newest Podman, uses.
//!
//! [`StoreOptions::default_for_user`] is all that most programs need; [`Loader`] does the same with an environment
//! of the caller's making, and tells where each value came from:
//!
//! ```
//! # async fn demo() -> graphroot::Result<()> {
//! # let dir = std::env::temp_dir().join(format!("graphroot-config-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir).unwrap();
//! let file = dir.join("storage.conf");
//! std::fs::write(&file, "[storage]\ndriver = \"overlay\"\n[storage.options.overlay]\nmountopt = \"nodev\"\n").unwrap();
//!
//! let loader = graphroot::config::Loader::new().variable("CONTAINERS_STORAGE_CONF", &file);
//! let effective = loader.load().await?;
//! assert_eq!(effective.options.driver_options, ["overlay.mountopt=nodev"]);
//! let driver = effective.values.iter().find(|value| value.key == "storage.driver").unwrap();
//! assert_eq!(driver.to_string(), format!("storage.driver = \"overlay\" ({}:2)", file.display()));
//! # std::fs::remove_dir_all(&dir).unwrap();
//! # Ok(())
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(demo()).unwrap();
//! ```
//!
//! # Places
//!
//! All files that count are read one after the other, and for each key the last one that sets it wins:
//!
//! 1. **Main file**: the first that exists of `$XDG_CONFIG_HOME/containers/storage.conf` (without that variable
//!    `$HOME/.config/containers/storage.conf`, for root as well), `/etc/containers/storage.conf` and
//!    `/usr/share/containers/storage.conf`. The others are not read.
//! 2. **Drop-in files**, all whose names end in `.conf`, in the order of their names whatever their directory. Of
//!    several with one name only that of the last directory is read. The directories are
//!    `/usr/share/containers/storage.conf.d`; there also `storage.rootful.conf.d` for root, or
//!    `storage.rootless.conf.d` and `storage.rootless.conf.d/UID` for others; the same in `/etc/containers`; and
//!    `storage.conf.d` beside the user's main file. Links count: one to `/dev/null` hides the file of that name in a
//!    less important directory.
//! 3. The file that **`CONTAINERS_STORAGE_CONF_OVERRIDE`** names.
//!
//! If **`CONTAINERS_STORAGE_CONF`** names a file, it takes the place of 1 and 2. A file that a variable names must
//! exist. Variables that are set to nothing count as unset, except for `STORAGE_OPTS`.
//!
//! At last come **`STORAGE_DRIVER`**, which names the driver, and **`STORAGE_OPTS`**, whose comma-separated options
//! replace *all* driver options, also if it is set to nothing.
//!
//! # Keys
//!
//! Types are strict: truth values of which the table says "text" have to be written in quotes. Lists replace what
//! earlier files say unless they have an element `{ append = true }`, which then also holds for later files until
//! one says `{ append = false }`. An empty text is as good as none.
//!
//! | Key | Type | What it does here |
//! |---|---|---|
//! | `[storage]` | | |
//! | `driver` | text | [`StoreOptions::driver`]: `overlay`, `btrfs`, `zfs`, `vfs`. Without it: what is on disk, else the first that works |
//! | `driver_priority` | list | [`StoreOptions::driver_priority`] |
//! | `graphroot` | path | [`StoreOptions::graph_root`]; see below |
//! | `runroot` | path | [`StoreOptions::run_root`]; see below |
//! | `imagestore` | text | [`StoreOptions::image_store`]; variables are not expanded; must not be the graph root |
//! | `rootless_storage_path` | path | deprecated: the graph root of users without root's powers where `graphroot` is not set |
//! | `transient_store` | boolean | [`StoreOptions::transient`] |
//! | `[storage.options]` | | |
//! | `additionalimagestores` | list | driver option `imagestore` for each: read-only stores whose images can be used |
//! | `additionallayerstores` | list | driver option `additionallayerstore` for each: directories in which other programs offer layers |
//! | `size`, `mount_program`, `skip_mount_home`, `ignore_chown_errors`, `mountopt` | text | driver option of that name for *every* driver; one that does not know it refuses to start |
//! | `force_mask` | integer | the same |
//! | `disable-volatile` | boolean | [`StoreOptions::disable_volatile`] |
//! | `root-auto-userns-user` | text | [`StoreOptions::root_auto_userns_user`] |
//! | `auto-userns-min-size`, `auto-userns-max-size` | integer | [`StoreOptions::auto_userns_min_size`], [`StoreOptions::auto_userns_max_size`] |
//! | `imagestore`, `use_composefs` | text | nothing in this table; a warning says where they belong |
//! | `remap-uids`, `remap-gids`, `remap-user`, `remap-group` | text | removed: a warning, and [`StoreOptions::remap`] |
//! | `[storage.options.pull_options]` | | |
//! | any | text | [`StoreOptions::pull_options`] |
//! | `[storage.options.overlay]` | | driver options `overlay.KEY`: |
//! | `ignore_chown_errors`, `skip_mount_home` | text | `"true"` or `"false"` |
//! | `use_composefs` | text | the same: layers that are pulled in part have their contents by digest, below an EROFS image |
//! | `mount_program`, `mountopt` | text | |
//! | `size` | text | a size with a unit, such as `"10G"` |
//! | `inodes` | text | a number |
//! | `force_mask` | text | `"shared"`, `"private"` or an octal mode |
//! | `sync` | text | `"none"` or `"filesystem"` |
//! | `[storage.options.vfs]` | | driver options `vfs.KEY`: `ignore_chown_errors`, `sync` |
//! | `[storage.options.btrfs]` | | driver options `btrfs.KEY`: `min_space`, `size` |
//! | `[storage.options.zfs]` | | driver options `zfs.KEY`: `fsname`, `mountopt`, `size` |
//! | `[storage.options.aufs]`, `…devicemapper]`, `…thinpool]` | | removed; a warning unless empty |
//!
//! Options of the tables reach the driver of that name only, whichever is opened. Which of them it carries out, and
//! which it refuses, [`Store::open`](crate::Store::open) says when it starts the driver.
//!
//! # Mistakes
//!
//! A file that is not TOML, a value of the wrong type, or one that the driver to be opened would refuse is an error
//! that names file, line, key, what was expected and what was found. Unknown keys and tables, removed and deprecated
//! ones, odd values for drivers that are not opened and relative roots are [`Warning`]s;
//! [`StoreOptions::default_for_user`] logs them by `tracing`.
//!
//! # Directories
//!
//! In `graphroot`, `runroot` and `rootless_storage_path` `$UID` becomes the number of the user, `$NAME` and
//! `${NAME}` become environment variables (`${UID}` is one of these, and rarely set); then links are resolved if the
//! path exists. Where the keys are not set:
//!
//! | | root | other users |
//! |---|---|---|
//! | graph root | `/var/lib/containers/storage` | `$XDG_DATA_HOME/containers/storage`, else `$HOME/.local/share/containers/storage` |
//! | run root | `/run/containers/storage` | `$XDG_RUNTIME_DIR/containers`, else `/run/user/UID/containers`, else `$TMPDIR/storage-run-UID/containers` (`/tmp` without that variable) |
//!
//! The last two must be directories that only the user can write to, and are made if they are missing. The user is
//! that of the process or, inside a namespace that Podman or Buildah made, the one who started it
//! (`_CONTAINERS_ROOTLESS_UID`). Root of another user namespace uses root's directories.
//!
//! Versions of the Go library before 1.61 read one file only, and let other users than root have `graphroot` and
//! `runroot` from their own file alone. Where such a program shares a store with this one, give the roots explicitly.

mod effective;
mod environment;
mod files;
mod json;
mod keys;
mod merge;
mod parse;
mod paths;
#[cfg(test)]
mod tests;
mod value;

use std::ffi::OsString;
use std::path::PathBuf;

pub use effective::Effective;
pub use value::{Origin, Value, Warning};

use crate::config::merge::Settings;
use crate::error::Result;
use crate::options::StoreOptions;
use crate::options::driver::mount_options;
pub(crate) use environment::Environment;
#[cfg(feature = "pull")]
pub(crate) use files::{ConfigFile, POLICY, REGISTRIES, read, read_all, read_existing, read_one, user_dir};
#[cfg(feature = "signatures")]
pub(crate) use files::{REGISTRIES_D, read_directory, read_drop_ins};

/// Reads the configuration, for this process or for given variables and a given user.
#[derive(Clone, Debug)]
pub struct Loader {
    pub(crate) environment: Environment,
}

impl Default for Loader {
    fn default() -> Self {
        Self::new()
    }
}

impl Loader {
    /// For root without any environment variable. The files of the system still count, see [`Loader::root`].
    pub fn new() -> Self {
        Self {
            environment: Environment::empty(),
        }
    }

    /// For this process as it is now.
    pub fn for_process() -> Self {
        Self {
            environment: Environment::of_process(),
        }
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.variables.insert(name.into(), value.into());
        self
    }

    /// Removes an environment variable.
    #[must_use]
    pub fn without_variable(mut self, name: impl Into<OsString>) -> Self {
        self.environment.variables.remove(&name.into());
        self
    }

    /// Sets the user, real and effective. Any other than 0 is unprivileged.
    #[must_use]
    pub fn user(mut self, uid: u32) -> Self {
        self.environment.real_uid = uid;
        self.environment.effective_uid = uid;
        self
    }

    /// Looks below this directory for everything that has a fixed place: `/etc/containers`, `/usr/share/containers`,
    /// `/etc/passwd`, `/run/user` and `/tmp`. Paths from variables and files are taken as they are, and paths in the
    /// result are as seen from inside.
    #[must_use]
    pub fn root(mut self, root: impl Into<PathBuf>) -> Self {
        self.environment.root = root.into();
        self
    }

    /// Reads the files and computes the options.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) naming file, line and key of a mistake, or the
    /// directory that a user lacks; [`ErrorKind::Io`](crate::ErrorKind::Io) for a file that a variable names and
    /// that does not exist, and for every file that exists and cannot be read.
    ///
    /// # Cancellation
    /// No effect, except that a runtime directory may have been created.
    pub async fn load(self) -> Result<Effective> {
        crate::bridge::run(move || self.load_now()).await
    }

    fn load_now(&self) -> Result<Effective> {
        let (mut settings, mut read) = (Settings::default(), Vec::new());
        for source in files::read_all(&self.environment, &files::STORAGE)? {
            settings.add(parse::parse(&source.path, &source.text)?);
            read.push(source.path);
        }
        effective::effective(&self.environment, settings, read)
    }
}

impl StoreOptions {
    /// The options that the newest Podman would use for this user on this machine: what programs start with. Root gets
    /// root's directories, every other user the own ones, with driver and driver options as configured, see
    /// [`config`](crate::config). Where nothing is configured, the driver is what the store has, else the first that works
    /// here; an ordinary user needs a user namespace for `overlay` ([`drivers`](crate::drivers)).
    ///
    /// Podman on containers-storage before 1.61 may use other roots for an ordinary user: give those that `podman info`
    /// prints to [`StoreOptions::new`]. Warnings are logged.
    ///
    /// Everything is read anew at each call.
    ///
    /// # Errors
    /// As [`Loader::load`].
    ///
    /// # Cancellation
    /// As [`Loader::load`].
    ///
    /// ```no_run
    /// # async fn demo() -> graphroot::Result<()> {
    /// use graphroot::{Store, StoreOptions};
    /// let store = Store::open(StoreOptions::default_for_user().await?).await?;
    /// for image in store.images().await? {
    ///     println!("{} {:?}", image.short_id(), image.names());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn default_for_user() -> Result<Self> {
        load(Loader::for_process()).await
    }
}

/// The mount options that the configuration of this user sets for the driver it names, as [`mount_options`].
///
/// # Errors
/// As [`Loader::load`] and [`mount_options`].
///
/// # Cancellation
/// As [`Loader::load`].
pub async fn default_mount_options() -> Result<Vec<String>> {
    let options = StoreOptions::default_for_user().await?;
    mount_options(
        options.driver.as_deref().unwrap_or_default(),
        &options.driver_options,
    )
}

/// The options; warnings are logged.
pub(crate) async fn load(loader: Loader) -> Result<StoreOptions> {
    let effective = loader.load().await?;
    for warning in &effective.warnings {
        tracing::warn!("{warning}");
    }
    Ok(effective.options)
}
