//! What the configuration depends on besides files: environment variables and the user.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::privilege;

/// The variables and the user that the configuration is read for.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    pub(super) variables: BTreeMap<OsString, OsString>,
    /// The user of the process, real and effective.
    pub(super) real_uid: u32,
    pub(super) effective_uid: u32,
    /// The process is not privileged in the initial user namespace, for another reason than its user IDs.
    pub(super) confined: bool,
    /// The root of the system's directories.
    pub(super) root: PathBuf,
}

impl Environment {
    /// An empty environment of the system's root user.
    pub(crate) fn empty() -> Self {
        Self {
            variables: BTreeMap::new(),
            real_uid: 0,
            effective_uid: 0,
            confined: false,
            root: PathBuf::from("/"),
        }
    }

    /// That of this process.
    pub(crate) fn of_process() -> Self {
        Self {
            variables: std::env::vars_os().collect(),
            real_uid: rustix::process::getuid().as_raw(),
            effective_uid: rustix::process::geteuid().as_raw(),
            confined: privilege::is_rootless(),
            root: PathBuf::from("/"),
        }
    }

    /// A variable that is set and not empty.
    pub(crate) fn var(&self, name: &str) -> Option<&OsStr> {
        self.set_var(name).filter(|value| !value.is_empty())
    }

    /// A variable that is set, perhaps to the empty string.
    pub(crate) fn set_var(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// The user outside of the namespace in which Podman or Buildah may have started this process. Not a number
    /// counts as 0, as in the Go library.
    fn outer_uid(&self) -> Option<u32> {
        let value = self.var("_CONTAINERS_ROOTLESS_UID")?;
        Some(value.to_str().and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// The user whose configuration and directories count.
    pub(crate) fn uid(&self) -> u32 {
        self.outer_uid().unwrap_or(self.real_uid)
    }

    /// Whether the store is the user's own rather than the system's. Root of a user namespace that no container
    /// engine made uses the system's directories.
    pub(crate) fn is_per_user(&self) -> bool {
        let rootless = self.outer_uid().unwrap_or(self.effective_uid) != 0
            || self.var("_CONTAINERS_USERNS_CONFIGURED").is_some()
            || self.confined;
        rootless && self.uid() != 0
    }

    /// A directory of the system, given without the leading slash.
    pub(crate) fn system(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The user's home directory, by `$HOME` or the user database.
    pub(crate) fn home(&self) -> Result<Option<PathBuf>> {
        if let Some(home) = self.var("HOME") {
            return Ok(Some(home.into()));
        }
        let file = self.system("etc/passwd");
        let users = match std::fs::read(&file) {
            Ok(users) => users,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).at("looking for the home directory in", &file),
        };
        let wanted = self.uid().to_string();
        let home = users.split(|byte| *byte == b'\n').find_map(|line| {
            let mut fields = line.split(|byte| *byte == b':').skip(2);
            let is_user = fields.next() == Some(wanted.as_bytes());
            fields.nth(2).filter(|home| is_user && !home.is_empty())
        });
        Ok(home.map(|home| Path::new(OsStr::from_bytes(home)).to_owned()))
    }

    /// The user's home directory, or an error.
    pub(crate) fn need_home(&self, what_for: &str) -> Result<PathBuf> {
        self.home()?.ok_or_else(|| {
            let uid = self.uid();
            ErrorKind::InvalidInput.err(format!(
                "looking for {what_for}: HOME is not set and user {uid} has no home directory"
            ))
        })
    }
}
