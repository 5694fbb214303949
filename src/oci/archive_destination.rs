//! Image archives as destinations: a tar file of an OCI image layout, or one as `docker save` writes it.
//!
//! Layers are added one after the other, then the config, then what names them; then the archive gets its name. Until
//! then nothing of it is visible, and if the push fails, is dropped or killed, nothing is left.

use std::collections::HashSet;
use std::path::PathBuf;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::Mutex;
use tokio_util::io::StreamReader;

use super::archive_writer::ArchiveWriter;
use super::layout::blob_path;
use super::layout_writer::{MARKER, index_entry, index_of};
use super::meter::Meter;
use super::progress::Progress;
use super::reference::RegistryRef;
use super::spool::Spool;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::store::image_manifest::{Descriptor, ImageManifest};

/// How an archive is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// An OCI image layout.
    Oci,
    /// `manifest.json`, configs and uncompressed layers.
    Docker,
}

impl Form {
    /// The mode of a new archive before the umask, as Skopeo and Podman have it.
    fn mode(self) -> u32 {
        match self {
            Self::Oci => 0o666,
            Self::Docker => 0o644,
        }
    }

    /// Name of the member with a layer or config.
    fn member(self, digest: &Digest, extension: &str) -> String {
        match self {
            Self::Oci => blob_path(digest),
            Self::Docker => format!("{}.{extension}", digest.encoded()),
        }
    }
}

/// An archive that is written.
pub(crate) struct ArchiveDestination {
    pub(crate) form: Form,
    /// The name of the image in the archive.
    name: Option<String>,
    state: Mutex<State>,
}

struct State {
    /// `None` after a failure, which leaves an archive that nothing can be added to, and at the end.
    writer: Option<ArchiveWriter>,
    written: HashSet<Digest>,
}

impl State {
    /// Adds a member with this content once.
    async fn add(
        &mut self,
        name: &str,
        digest: &Digest,
        size: u64,
        content: impl tokio::io::AsyncRead + Unpin,
    ) -> Result<()> {
        if self.written.contains(digest) {
            return Ok(());
        }
        let mut writer = self.take()?;
        writer.file(name, size, content).await?;
        self.writer = Some(writer);
        self.written.insert(digest.clone());
        Ok(())
    }

    fn take(&mut self) -> Result<ArchiveWriter> {
        let broken = || ErrorKind::Cancelled.err("writing the archive failed before");
        self.writer.take().ok_or_else(broken)
    }
}

impl ArchiveDestination {
    pub(crate) async fn create(form: Form, file: PathBuf, name: Option<String>) -> Result<Self> {
        let name = match (form, name) {
            (Form::Docker, Some(name)) => {
                let full: RegistryRef = name.parse()?;
                if full.digest().is_some() {
                    let what = format!("{name:?} in an archive: a digest follows from the image, name a tag");
                    return Err(ErrorKind::InvalidInput.err(what));
                }
                Some(full.to_string())
            }
            (_, name) => name,
        };
        let mut writer = ArchiveWriter::create(file, form.mode()).await?;
        if form == Form::Oci {
            let (marker, content) = MARKER;
            writer.small(marker, &Bytes::from_static(content)).await?;
            writer.directory("blobs/").await?;
            writer.directory("blobs/sha256/").await?;
        }
        Ok(Self {
            form,
            name,
            state: Mutex::new(State {
                writer: Some(writer),
                written: HashSet::new(),
            }),
        })
    }

    pub(crate) async fn has(&self, digest: &Digest) -> bool {
        self.state.lock().await.written.contains(digest)
    }

    /// Adds a layer.
    pub(crate) async fn put_layer(&self, spool: &Spool, progress: &Progress) -> Result<()> {
        let mut state = self.state.lock().await;
        let meter = Meter::start(progress, &spool.digest, spool.size, 0);
        let content = StreamReader::new(Box::pin(
            spool.stream(0..spool.size, move |bytes| meter.add(bytes)),
        ));
        let name = self.form.member(&spool.digest, "tar");
        state.add(&name, &spool.digest, spool.size, content).await
    }

    /// Adds a config or manifest.
    pub(crate) async fn put_small(&self, bytes: &Bytes, digest: &Digest) -> Result<()> {
        let name = self.form.member(digest, "json");
        let mut state = self.state.lock().await;
        state.add(&name, digest, bytes.len() as u64, &bytes[..]).await
    }

    /// Adds the manifest, or what stands for it, and completes the archive.
    pub(crate) async fn finish(
        &self,
        manifest: &ImageManifest,
        config: &Digest,
        layers: &[Descriptor],
    ) -> Result<()> {
        let unwritable = |error: serde_json::Error| -> Error {
            ErrorKind::InvalidInput
                .err("making manifest.json")
                .with_source(error)
        };
        let (name, content) = match self.form {
            Form::Oci => {
                self.put_small(&manifest.bytes, &manifest.digest).await?;
                let entry = index_entry(manifest, self.name.as_deref());
                ("index.json", index_of(entry)?)
            }
            Form::Docker => {
                let layers = layers.iter().map(|layer| self.form.member(&layer.digest, "tar"));
                let item = json!([{
                    "Config": self.form.member(config, "json"),
                    "RepoTags": self.name.iter().collect::<Vec<_>>(),
                    "Layers": layers.collect::<Vec<_>>(),
                }]);
                ("manifest.json", serde_json::to_vec(&item).map_err(unwritable)?)
            }
        };
        let mut writer = self.state.lock().await.take()?;
        writer.small(name, &content.into()).await?;
        writer.commit().await
    }
}
