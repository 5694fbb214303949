//! Directories and files of callers that belong to images and containers.

use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use crate::bridge;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::options::Durability;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::record_trait::Record as _;
use crate::store::Store;
use crate::store::dirs::item_dir;
use crate::sys::{at, atomic, make_private_dir, name_sync};

/// # Directories
impl Store {
    /// Runs a step on the directory of an image below `dir`, made where it is missing. The image is not deleted meanwhile.
    async fn in_image_dir<T: Send + 'static>(
        &self,
        id: &str,
        dir: PathBuf,
        step: impl FnOnce(PathBuf) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (row, held) = self.hold_image(id).await?.ok_or_else(|| ImageRow::unknown(id))?;
        self.in_item_dir(dir, row.id.to_string(), held, step).await
    }

    /// As [`Store::in_image_dir`], of a container.
    async fn in_container_dir<T: Send + 'static>(
        &self,
        id: &str,
        dir: PathBuf,
        step: impl FnOnce(PathBuf) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (row, held) = self
            .hold_container(id)
            .await?
            .ok_or_else(|| ContainerRow::unknown(id))?;
        self.in_item_dir(dir, row.id.to_string(), held, step).await
    }

    /// Runs a step on the directory of the item `id` below `dir`. While it runs `held` keeps the item from being deleted.
    async fn in_item_dir<T: Send + 'static>(
        &self,
        dir: PathBuf,
        id: String,
        held: impl Send + 'static,
        step: impl FnOnce(PathBuf) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let full = self.syncs_everything();
        bridge::run(move || {
            let done = user_data(dir, &id, full).and_then(step);
            drop(held);
            done
        })
        .await
    }

    fn syncs_everything(&self) -> bool {
        self.inner.options.durability == Durability::Full
    }

    /// The directory for the caller's data about an image (an ID, name or ID prefix), created if missing. It is
    /// deleted with the image. No lock is held when this returns.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect, except that the directory may have been created.
    pub async fn image_directory(&self, id: &str) -> Result<PathBuf> {
        self.in_image_dir(id, self.inner.dirs.graph_images(), Ok).await
    }

    /// As [`Store::image_directory`], for data that does not survive a reboot.
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect, except that the directory may have been created.
    pub async fn image_run_directory(&self, id: &str) -> Result<PathBuf> {
        self.in_image_dir(id, self.inner.dirs.run_images(), Ok).await
    }

    /// The directory for the caller's data about a container (an ID, name or ID prefix), created if missing. It is
    /// deleted with the container. No lock is held when this returns.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect, except that the directory may have been created.
    pub async fn container_directory(&self, id: &str) -> Result<PathBuf> {
        self.in_container_dir(id, self.inner.dirs.containers(), Ok).await
    }

    /// As [`Store::container_directory`], for data that does not survive a reboot.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect, except that the directory may have been created.
    pub async fn container_run_directory(&self, id: &str) -> Result<PathBuf> {
        self.in_container_dir(id, self.inner.dirs.run_containers(), Ok)
            .await
    }

    /// Stores a file in the directory of a container (an ID, name or ID prefix), atomically replacing an existing one.
    /// `file` is a relative path; missing directories of it are created.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::UnsafePath`] for a path that leaves the directory,
    /// [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Either nothing has changed, or the file is written in the background.
    pub async fn set_container_directory_file(
        &self,
        id: &str,
        file: &str,
        data: impl Into<Bytes>,
    ) -> Result<()> {
        let (file, data, full) = (file.to_owned(), data.into(), self.syncs_everything());
        self.in_container_dir(id, self.inner.dirs.containers(), move |dir| {
            write_below(&dir, &file, &data, full)
        })
        .await
    }

    /// Reads a file of the directory of a container (an ID, name or ID prefix).
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::UnsafePath`], [`ErrorKind::Io`] (also for a missing file, see
    /// [`Error::io_kind`](crate::Error::io_kind)).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn from_container_directory(&self, id: &str, file: &str) -> Result<Bytes> {
        let file = file.to_owned();
        self.in_container_dir(id, self.inner.dirs.containers(), move |dir| {
            read_below(&dir, &file)
        })
        .await
    }

    /// As [`Store::set_container_directory_file`], for data that does not survive a reboot.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// As [`Store::set_container_directory_file`].
    ///
    /// # Cancellation
    /// Either nothing has changed, or the file is written in the background.
    pub async fn set_container_run_directory_file(
        &self,
        id: &str,
        file: &str,
        data: impl Into<Bytes>,
    ) -> Result<()> {
        let (file, data) = (file.to_owned(), data.into());
        self.in_container_dir(id, self.inner.dirs.run_containers(), move |dir| {
            write_below(&dir, &file, &data, false)
        })
        .await
    }

    /// As [`Store::from_container_directory`], for data that does not survive a reboot.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// As [`Store::from_container_directory`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn from_container_run_directory(&self, id: &str, file: &str) -> Result<Bytes> {
        let file = file.to_owned();
        self.in_container_dir(id, self.inner.dirs.run_containers(), move |dir| {
            read_below(&dir, &file)
        })
        .await
    }
}

/// The path of a caller's file in `dir`. It must be relative and without `..`.
fn below(dir: &Path, file: &str) -> Result<PathBuf> {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    let path = Path::new(file);
    if path.file_name().is_none() || !path.components().all(plain) {
        return Err(ErrorKind::UnsafePath.err(format!("file {file:?} of a container's directory")));
    }
    Ok(dir.join(path))
}

fn write_below(dir: &Path, file: &str, data: &[u8], full: bool) -> Result<()> {
    let path = below(dir, file)?;
    let parent = path.parent().unwrap_or(dir);
    let new = !parent.is_dir();
    make_private_dir(parent)?;
    atomic::write_file(&path, data, 0o600, true)?;
    match (full, new) {
        (false, _) => Ok(()),
        (true, false) => name_sync::sync_dir(parent),
        (true, true) => sync_above(&path, dir),
    }
}

/// Waits until the names of something in an item's directory `userdata`, and of the directories above it, are on disk, up
/// to the one of all items.
fn sync_above(path: &Path, userdata: &Path) -> Result<()> {
    let items = userdata.ancestors().nth(2).unwrap_or(userdata);
    let mut above = path.ancestors().skip(1).take_while(|dir| dir.starts_with(items));
    above.try_for_each(name_sync::sync_dir)
}

/// The largest file that is read into memory.
const MAX_FILE: u64 = 1 << 30;

fn read_below(dir: &Path, file: &str) -> Result<Bytes> {
    let path = below(dir, file)?;
    at::read_regular(&path, MAX_FILE)
        .map(Bytes::from)
        .at("reading", path)
}

/// The directory for a caller's data of an item whose directory lies in `dir`, made where it is missing.
fn user_data(dir: PathBuf, id: &str, full: bool) -> Result<PathBuf> {
    let path = item_dir(dir, id)?.join("userdata");
    if !path.is_dir() {
        make_private_dir(&path)?;
        if full {
            sync_above(&path, &path)?;
        }
    }
    Ok(path)
}
