//! A blob of a registry as a source of ranges, which goes on at the next place where one fails.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::try_unfold;
use tokio::sync::OnceCell;
use tokio_util::io::StreamReader;

use super::super::meter::Meter;
use super::super::places::Places;
use super::request::RemoteBlob;
use super::transfer::RangeTransfer;
use super::wanted::Wanted;
use crate::chunked::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::options::BoxReader;
use crate::store::image_manifest::Descriptor;

/// A blob of a registry.
#[derive(Debug)]
pub(crate) struct RegistryBlob(Arc<Blob>);

#[derive(Debug)]
struct Blob {
    places: Arc<Places>,
    descriptor: Descriptor,
    meter: Meter,
    /// It at each place.
    remote: Vec<OnceCell<Arc<RemoteBlob>>>,
}

impl RegistryBlob {
    /// The blob with this descriptor; nothing is asked for yet. The bytes that are read are counted.
    pub(crate) fn new(places: Arc<Places>, descriptor: Descriptor, meter: Meter) -> Self {
        Self(Arc::new(Blob {
            remote: (0..places.count()).map(|_| OnceCell::new()).collect(),
            places,
            descriptor,
            meter,
        }))
    }
}

impl Blob {
    async fn at(&self, place: usize) -> Result<Arc<RemoteBlob>> {
        let nowhere = || ErrorKind::NotFound.err("nowhere to pull from");
        let remote = self.remote.get(place).ok_or_else(nowhere)?;
        let opened = remote.get_or_try_init(|| async {
            let repository = self.places.open(place).await?;
            Ok(Arc::new(RemoteBlob::new(repository, self.descriptor.clone())))
        });
        opened.await.map(Arc::clone)
    }
}

/// Ranges that are being read.
struct Reading {
    blob: Arc<Blob>,
    place: usize,
    transfer: RangeTransfer,
}

impl Reading {
    /// Asks one place after the other, until the first bytes are about to come.
    async fn begin(blob: Arc<Blob>, mut place: usize, wanted: Wanted) -> Result<Self> {
        loop {
            let begun = async {
                let remote = blob.at(place).await?;
                let mut transfer = RangeTransfer::new(remote, blob.meter.clone(), wanted.clone());
                transfer.begin().await?;
                Ok(transfer)
            };
            match begun.await {
                Ok(transfer) => {
                    return Ok(Self {
                        blob,
                        place,
                        transfer,
                    });
                }
                Err(error) => place = after(&blob, place, error)?,
            }
        }
    }

    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            let place = match self.transfer.next().await {
                Ok(chunk) => return Ok(chunk.map(|chunk| (chunk, self))),
                Err(error) => after(&self.blob, self.place, error)?,
            };
            let wanted = self.transfer.into_wanted();
            self = Self::begin(self.blob, place, wanted).await?;
        }
    }
}

/// The place to go on at, or the error of this one if no other would do better.
fn after(blob: &Blob, place: usize, error: Error) -> Result<usize> {
    // The whole blob can be had of one that serves no ranges.
    match error.kind() {
        ErrorKind::NotSupported => Err(error),
        _ => blob.places.after(place, error),
    }
}

impl BlobSource for RegistryBlob {
    fn read(&self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<BoxReader>> {
        Box::pin(async move {
            let wanted = Wanted::new(ranges, self.0.descriptor.size)?;
            let reading = Reading::begin(Arc::clone(&self.0), self.0.places.first(), wanted).await?;
            let stream = try_unfold(reading, |reading| async move {
                Ok::<_, io::Error>(reading.next().await?)
            });
            Ok(Box::pin(StreamReader::new(stream)) as BoxReader)
        })
    }
}
