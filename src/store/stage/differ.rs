//! The contract between a store and what puts the content of a layer together.

use std::path::Path;

use tokio::io::AsyncRead;

use crate::error::{Error, Result};
use crate::store::stage::area::{Area, StagedContent};
use crate::store::stage::differ_output::DifferOutput;

/// Puts the content of a layer together, outside of every store lock: for
/// [`Store::prepare_staged_layer`](crate::Store::prepare_staged_layer).
///
/// What comes as one stream needs none of this ([`Store::put_layer`](crate::Store::put_layer)). A differ is for content
/// that comes from several places: the library's own is [`ChunkedDiffer`](crate::ChunkedDiffer), which fetches of a blob
/// only what the store does not have.
///
/// ```no_run
/// use graphroot::{Differ, Error, ErrorKind, Result, StagedContent, StagingArea};
///
/// /// Takes a tar stream out of a cache of its own.
/// struct Cached(std::path::PathBuf);
///
/// impl Differ for Cached {
///     async fn apply(&mut self, area: StagingArea) -> Result<StagedContent> {
///         let failed = |error| Error::new(ErrorKind::Io, "opening a cached layer").with_source(error);
///         let tar = tokio::fs::File::open(&self.0).await.map_err(failed)?;
///         area.unpack(tar).await
///     }
/// }
///
/// # async fn demo(store: graphroot::Store) -> Result<()> {
/// use graphroot::{LayerOptions, StagingOptions};
/// let staged = store.prepare_staged_layer(StagingOptions::default(), Cached("layer.tar".into())).await?;
/// println!("{:?} waits in {}", staged.uncompressed_digest(), staged.target().display());
/// let layer = store.apply_staged_layer(None, LayerOptions::default().name("base"), staged).await?;
/// # drop(layer);
/// # Ok(())
/// # }
/// ```
pub trait Differ: Send {
    /// Fills the area, by [`StagingArea::unpack`] or by writing below [`StagingArea::path`] and
    /// [`StagingArea::finish`].
    ///
    /// # Errors
    /// Whatever keeps it from doing so. The area is removed then.
    ///
    /// # Cancellation
    /// Dropped with the future of its caller; the area is removed.
    fn apply(&mut self, area: StagingArea) -> impl Future<Output = Result<StagedContent>> + Send;

    /// Whether it is worth an attempt in a new area after [`Differ::apply`] has failed with `error`: with less that is
    /// taken on trust, for instance.
    fn retry(&mut self, error: &Error) -> bool {
        let _ = error;
        false
    }
}

/// An empty directory for the content of a layer that does not exist yet. Dropped, it is removed.
#[derive(Debug)]
pub struct StagingArea(pub(crate) Area);

impl StagingArea {
    /// The directory that becomes the layer's own: a differ that does not unpack a tar stream writes below it, in the
    /// driver's form. What the layer deletes of those below is marked as overlayfs marks it.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Unpacks a tar stream, compressed or not, into the area, as
    /// [`Store::put_layer`](crate::Store::put_layer) does: it is polled here and unpacked on a thread of its own. Its
    /// digests and sizes are computed, and tar-split data is kept. Takes no lock.
    ///
    /// # Errors
    /// As [`Store::put_layer`](crate::Store::put_layer).
    ///
    /// # Cancellation
    /// The area is removed.
    pub async fn unpack(self, tar: impl AsyncRead + Send) -> Result<StagedContent> {
        self.0.unpack(Box::pin(tar)).await
    }

    /// Ends the work of a differ that has written below [`StagingArea::path`] itself. There is no tar-split data then: the
    /// layer can be exported, but not bit for bit. Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a diff ID without a size;
    /// [`ErrorKind::InvalidBigDataName`](crate::ErrorKind::InvalidBigDataName);
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// The area is removed.
    pub async fn finish(self, output: DifferOutput) -> Result<StagedContent> {
        self.0.finish(output).await
    }
}
