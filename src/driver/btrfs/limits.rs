//! Limits on the space that a container's layer refers to, in its subvolume's account and in a file of `quotas`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::driver::layer_id::check_id;
use crate::driver::options::BtrfsOptions;
use crate::driver::quota::Quota;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::sys::{at, atomic, btrfs, list_dir_if_there, make_private_subdir};

/// Longest number in a file.
const MAX_DIGITS: u64 = 32;

/// The limits of the layers of one home.
#[derive(Debug)]
pub(super) struct Limits {
    home: PathBuf,
    dir: PathBuf,
    /// 0 is none.
    least: u64,
    /// That of containers that ask for none; 0 is none.
    usual: u64,
    /// The file system counts the space of its subvolumes.
    counted: AtomicBool,
}

impl Limits {
    /// Has the file system count, if the options speak of limits.
    pub(super) fn new(home: &Path, options: &BtrfsOptions) -> Result<Self> {
        let limits = Self {
            home: home.to_owned(),
            dir: home.join(super::home::LIMITS),
            least: options.min_space.unwrap_or(0),
            usual: options.size.unwrap_or(0),
            counted: AtomicBool::new(false),
        };
        if options.min_space.is_some() || options.size.is_some() {
            limits.count()?;
        }
        Ok(limits)
    }

    /// The limit that a new layer gets, in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an unknown option or a limit that cannot be.
    pub(super) fn wanted(
        &self,
        storage_opt: &BTreeMap<String, String>,
        read_write: bool,
    ) -> Result<Option<u64>> {
        let asked = Quota::parse(storage_opt)?.unwrap_or_default();
        let usual = (read_write && self.usual > 0).then_some(self.usual);
        if asked.inodes.is_some() {
            return Err(ErrorKind::InvalidInput.err("unknown option inodes with the btrfs driver"));
        }
        let bytes = asked.size.or(usual);
        match bytes {
            Some(0) => Err(ErrorKind::InvalidInput.err("btrfs: invalid storage size: 0B")),
            Some(bytes) if bytes < self.least => {
                let least = human_size(self.least);
                Err(ErrorKind::InvalidInput.err(format!("btrfs: storage size cannot be less than {least}")))
            }
            _ => Ok(bytes),
        }
    }

    /// Limits the layer `id`, whose subvolume is `tree`, to so many bytes; or forgets what is known of an older one of this ID.
    pub(super) fn set(&self, id: &str, tree: BorrowedFd<'_>, bytes: Option<u64>) -> Result<()> {
        let Some(bytes) = bytes else {
            return self.forget(id);
        };
        self.apply(id, tree, bytes)?;
        make_private_subdir(&self.dir)?;
        let file = self.file(id)?;
        atomic::write_file(&file, bytes.to_string().as_bytes(), 0o644, false).map(drop)
    }

    /// Sets the limit of a layer once more: Go's programs do, and the subvolume may be another one by now.
    pub(super) fn renew(&self, id: &str, tree: BorrowedFd<'_>) -> Result<()> {
        let Some(bytes) = self.of(id)?.filter(|bytes| *bytes >= self.least) else {
            return Ok(());
        };
        match self.apply(id, tree, bytes) {
            Err(error) if error.has_errno(Errno::PERM) || error.kind() == ErrorKind::NotSupported => {
                tracing::warn!(
                    layer = id,
                    "the limit on the space of a layer cannot be set once more"
                );
                Ok(())
            }
            applied => applied,
        }
    }

    fn apply(&self, id: &str, tree: BorrowedFd<'_>, bytes: u64) -> Result<()> {
        self.count()?;
        btrfs::limit(tree, bytes)
            .map_err(|error| Error::io(format!("limiting the space of layer {id:?}"), error))
    }

    /// Has the file system count the space of its subvolumes.
    fn count(&self) -> Result<()> {
        if self.counted.load(Ordering::Relaxed) {
            return Ok(());
        }
        let home = at::open_dir(&self.home).at("opening", &self.home)?;
        let counted = btrfs::is_quota_enabled(home.as_fd());
        if !matches!(counted, Ok(true)) {
            btrfs::enable_quota(home.as_fd()).map_err(|error| match error {
                Errno::PERM => {
                    let what = "limits on space, which take CAP_SYS_ADMIN in the initial user namespace";
                    ErrorKind::NotSupported.err(what).with_source(error)
                }
                _ => Error::io_at("failed to enable btrfs quota for", &self.home, error),
            })?;
        }
        self.counted.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The limit in the file of a layer; `None` also for a file that no number is in.
    fn of(&self, id: &str) -> Result<Option<u64>> {
        let path = self.file(id)?;
        let text = match at::open_regular(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => {
                let mut text = String::new();
                use std::io::Read as _;
                let file = file.at("opening", &path)?;
                match file.take(MAX_DIGITS).read_to_string(&mut text) {
                    Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Ok(None),
                    read => read.at("reading", &path)?,
                };
                text
            }
        };
        Ok(text.parse().ok())
    }

    /// Removes the file of a layer.
    pub(super) fn forget(&self, id: &str) -> Result<()> {
        let path = self.file(id)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("removing", path),
            _ => Ok(()),
        }
    }

    /// Removes the files of layers that are not there.
    pub(super) fn remove_strays(&self, is_there: impl Fn(&str) -> Result<bool>) -> Result<()> {
        for entry in list_dir_if_there(&self.dir)? {
            let name = entry?.file_name();
            if let Some(id) = name.to_str().filter(|id| check_id(id).is_ok())
                && !is_there(id)?
            {
                self.forget(id)?;
            }
        }
        Ok(())
    }

    fn file(&self, id: &str) -> Result<PathBuf> {
        check_id(id)?;
        Ok(self.dir.join(id))
    }
}

/// Bytes as the Go library prints them: four digits at the most, in powers of 1000.
fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
    let mut size = bytes as f64;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"B");
    while size >= 1000.0
        && let Some(next) = units.next()
    {
        size /= 1000.0;
        unit = next;
    }
    // As C prints `%.4g`.
    let digits = match size {
        ..10.0 => 3,
        ..100.0 => 2,
        ..1000.0 => 1,
        _ => 0,
    };
    let text = format!("{size:.digits$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_printed_as_by_go() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1024, "1.024kB"),
            (1_000_000, "1MB"),
            (10 << 20, "10.49MB"),
            (1 << 30, "1.074GB"),
            (u64::MAX, "18.45EB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }
}
