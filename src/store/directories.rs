//! Directories and files of callers that belong to images and containers.

use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use crate::bridge;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::options::Durability;
use crate::store::Store;
use crate::store::dirs::item_dir;
use crate::sys::{atomic, make_private_dir, name_sync};

/// # Directories
impl Store {
    async fn user_data(&self, dir: PathBuf, id: &str) -> Result<PathBuf> {
        let (path, full) = (item_dir(dir, id)?.join("userdata"), self.syncs_everything());
        bridge::run(move || {
            if !path.is_dir() {
                make_private_dir(&path)?;
                if full {
                    sync_above(&path, &path)?;
                }
            }
            Ok(path)
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
        let image = self.image(id).await?;
        self.user_data(self.inner.dirs.graph_images(), image.id()).await
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
        let image = self.image(id).await?;
        self.user_data(self.inner.dirs.run_images(), image.id()).await
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
        let container = self.container(id).await?;
        self.user_data(self.inner.dirs.containers(), container.id()).await
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
        let container = self.container(id).await?;
        self.user_data(self.inner.dirs.run_containers(), container.id())
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
        let dir = self.container_directory(id).await?;
        write_below(dir, file, data.into(), self.syncs_everything()).await
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
        read_below(self.container_directory(id).await?, file).await
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
        write_below(self.container_run_directory(id).await?, file, data.into(), false).await
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
        read_below(self.container_run_directory(id).await?, file).await
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

async fn write_below(dir: PathBuf, file: &str, data: Bytes, full: bool) -> Result<()> {
    let path = below(&dir, file)?;
    bridge::run(move || {
        let parent = path.parent().unwrap_or(&dir);
        let new = !parent.is_dir();
        make_private_dir(parent)?;
        atomic::write_file(&path, &data, 0o600, true)?;
        match (full, new) {
            (false, _) => Ok(()),
            (true, false) => name_sync::sync_dir(parent),
            (true, true) => sync_above(&path, &dir),
        }
    })
    .await
}

/// Waits until the names of something in an item's directory `userdata`, and of the directories above it, are on disk, up
/// to the one of all items.
fn sync_above(path: &Path, userdata: &Path) -> Result<()> {
    let items = userdata.ancestors().nth(2).unwrap_or(userdata);
    let mut above = path.ancestors().skip(1).take_while(|dir| dir.starts_with(items));
    above.try_for_each(name_sync::sync_dir)
}

async fn read_below(dir: PathBuf, file: &str) -> Result<Bytes> {
    let path = below(&dir, file)?;
    bridge::run(move || std::fs::read(&path).map(Bytes::from).at("reading", path)).await
}
