//! Directories and files that callers keep with images and containers.

use std::path::PathBuf;

use crate::bridge;
use crate::error::Result;
use crate::store::Store;
use crate::sys::make_private_dir;

impl Store {
    async fn user_data(&self, dir: PathBuf, id: &str) -> Result<PathBuf> {
        let path = dir.join(id).join("userdata");
        bridge::run(move || {
            make_private_dir(&path)?;
            Ok(path)
        })
        .await
    }

    /// A directory for the caller's data about an image (an ID, name or ID prefix), made if missing. It is deleted
    /// with the image.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`](crate::ErrorKind::ImageUnknown), [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub async fn image_directory(&self, id: &str) -> Result<PathBuf> {
        let image = self.image(id).await?;
        self.user_data(self.inner.dirs.graph_images(), image.id()).await
    }

    /// As [`Store::image_directory`], for data that shall not survive a reboot.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`](crate::ErrorKind::ImageUnknown), [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub async fn image_run_directory(&self, id: &str) -> Result<PathBuf> {
        let image = self.image(id).await?;
        self.user_data(self.inner.dirs.run_images(), image.id()).await
    }

    /// A directory for the caller's data about a container (an ID, name or ID prefix), made if missing. It is
    /// deleted with the container.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`](crate::ErrorKind::ContainerUnknown),
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub async fn container_directory(&self, id: &str) -> Result<PathBuf> {
        let container = self.container(id).await?;
        self.user_data(self.inner.dirs.containers(), container.id()).await
    }

    /// As [`Store::container_directory`], for data that shall not survive a reboot.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`](crate::ErrorKind::ContainerUnknown),
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub async fn container_run_directory(&self, id: &str) -> Result<PathBuf> {
        let container = self.container(id).await?;
        self.user_data(self.inner.dirs.run_containers(), container.id())
            .await
    }
}
