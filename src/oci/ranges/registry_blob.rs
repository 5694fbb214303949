//! A blob of a registry as a source of ranges.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::try_unfold;
use tokio_util::io::StreamReader;

use super::super::meter::Meter;
use super::super::repository::Repository;
use super::request::RemoteBlob;
use super::transfer::RangeTransfer;
use super::wanted::Wanted;
use crate::chunked::BlobSource;
use crate::error::Result;
use crate::options::BoxReader;
use crate::store::image_manifest::Descriptor;

/// A blob of a registry.
#[derive(Debug)]
pub(crate) struct RegistryBlob {
    blob: Arc<RemoteBlob>,
    meter: Meter,
}

impl RegistryBlob {
    /// The blob with this descriptor; nothing is asked for yet. The bytes that are read are counted.
    pub(crate) fn new(repository: Arc<Repository>, descriptor: Descriptor, meter: Meter) -> Self {
        Self {
            blob: Arc::new(RemoteBlob::new(repository, descriptor)),
            meter,
        }
    }
}

impl BlobSource for RegistryBlob {
    fn read(&self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<BoxReader>> {
        Box::pin(async move {
            let wanted = Wanted::new(ranges, self.blob.descriptor.size)?;
            let mut transfer = RangeTransfer::new(Arc::clone(&self.blob), self.meter.clone(), wanted);
            transfer.begin().await?;
            let stream = try_unfold(transfer, |mut transfer| async move {
                let chunk = transfer.next().await.map_err(io::Error::from)?;
                Ok::<_, io::Error>(chunk.map(|chunk| (chunk, transfer)))
            });
            Ok(Box::pin(StreamReader::new(stream)) as BoxReader)
        })
    }
}
