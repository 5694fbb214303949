//! A source of ranges whose bytes are counted.

use std::ops::Range;

use futures::future::BoxFuture;
use tokio_util::io::InspectReader;

use super::super::meter::Meter;
use crate::chunked::BlobSource;
use crate::error::Result;
use crate::options::BoxReader;

/// A source that counts the bytes that are read.
#[derive(Debug)]
pub(crate) struct MeteredBlob<S> {
    inner: S,
    meter: Meter,
}

impl<S: BlobSource> MeteredBlob<S> {
    pub(crate) fn new(inner: S, meter: Meter) -> Self {
        Self { inner, meter }
    }
}

impl<S: BlobSource> BlobSource for MeteredBlob<S> {
    fn read(&self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<BoxReader>> {
        Box::pin(async move {
            let (reader, meter) = (self.inner.read(ranges).await?, self.meter.clone());
            let counted = InspectReader::new(reader, move |bytes: &[u8]| meter.add(bytes.len() as u64));
            Ok(Box::pin(counted) as BoxReader)
        })
    }
}
