//! The digests of a stream, and the sums of contents that lie in it.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::digest::Hasher;
use crate::error::{Error, ErrorKind, Result};

/// A content in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Which byte of the stream it begins at.
    pub(crate) start: u64,
    /// Its bytes; not 0.
    pub(crate) size: u64,
    /// Which one it is, for [`CheckContents::check`].
    pub(crate) number: usize,
}

/// Knows the sums of contents.
pub(crate) trait CheckContents: Send + fmt::Debug {
    /// The next content of the stream that begins before byte `end`. They ascend and do not overlap.
    fn next(&mut self, end: u64) -> Option<Content>;

    /// Compares the sum of a content.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`] for another one than it should have.
    fn check(&mut self, number: usize, sum: &[u8; 32]) -> Result<()>;
}

/// One of the sums of a stream. Each is computed on its own, so that several processors can work on them.
pub(crate) enum StreamHash {
    /// A digest of the whole stream.
    Digest(Hasher),
    /// The sums of contents in it.
    Contents(ContentSums),
}

impl StreamHash {
    /// Takes in the next bytes of the stream.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Digest(hasher) => hasher.update(bytes),
            Self::Contents(sums) => sums.update(bytes),
        }
    }

    /// What was found to be wrong so far; once.
    pub(crate) fn take_failure(&mut self) -> Option<Error> {
        match self {
            Self::Digest(_) => None,
            Self::Contents(sums) => sums.failure.take(),
        }
    }
}

/// Compares the sums of contents with those that they should have.
pub(crate) struct ContentSums {
    contents: Box<dyn CheckContents>,
    /// Bytes of the stream so far.
    offset: u64,
    current: Option<Current>,
    /// Why the stream is not what it should be.
    failure: Option<Error>,
}

/// The content that has begun, or begins soon.
struct Current {
    content: Content,
    /// Bytes that are still to come.
    rest: u64,
    hash: Sha256,
}

impl ContentSums {
    /// The sums of `contents`, of a stream at its start.
    pub(crate) fn new(contents: Box<dyn CheckContents>) -> Self {
        Self {
            contents,
            offset: 0,
            current: None,
            failure: None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = self.update_next(rest);
        }
    }

    /// Takes in bytes up to the end of a content, or the start of one; what is left of them.
    fn update_next<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.current.is_none() {
            let end = self.offset.saturating_add(bytes.len() as u64);
            self.current = self.contents.next(end).map(|content| Current {
                content,
                rest: content.size,
                hash: Sha256::new(),
            });
        }
        let (gap, size) = self.current.as_ref().map_or((u64::MAX, 0), |current| {
            (current.content.start.saturating_sub(self.offset), current.rest)
        });
        let limit = if gap > 0 { gap } else { size };
        let count = usize::try_from(limit).map_or(bytes.len(), |limit| limit.min(bytes.len()));
        let (part, rest) = bytes.split_at_checked(count).unwrap_or((bytes, &[]));
        self.offset = self.offset.saturating_add(part.len() as u64);
        if gap == 0
            && let Some(mut current) = self.current.take()
        {
            current.hash.update(part);
            current.rest -= part.len() as u64;
            match current.rest {
                0 => self.check(current),
                _ => self.current = Some(current),
            }
        }
        rest
    }

    fn check(&mut self, current: Current) {
        let sum = current.hash.finalize().into();
        if let Err(error) = self.contents.check(current.content.number, &sum) {
            // The first one tells.
            self.failure.get_or_insert(error);
        }
    }

    /// To be called after the last bytes.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`] for a content that has another sum than it should; [`ErrorKind::InvalidArchive`] for one
    /// that is not all there.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        match self.current {
            Some(_) => Err(ErrorKind::InvalidArchive.err("a stream that ends within a file")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[derive(Debug)]
    struct Sums {
        contents: Vec<(Content, Vec<u8>)>,
        next: usize,
        checked: std::sync::Arc<std::sync::Mutex<usize>>,
    }

    impl CheckContents for Sums {
        fn next(&mut self, end: u64) -> Option<Content> {
            let (content, _) = self.contents.get(self.next)?;
            (content.start < end).then(|| {
                self.next += 1;
                *content
            })
        }

        fn check(&mut self, number: usize, sum: &[u8; 32]) -> Result<()> {
            *self.checked.lock().unwrap() += 1;
            match Digest::of_sum(sum) == Digest::sha256(&self.contents[number].1) {
                true => Ok(()),
                false => Err(ErrorKind::DigestMismatch.err(format!("content {number}"))),
            }
        }
    }

    fn stream() -> (Vec<u8>, Vec<(Content, Vec<u8>)>) {
        let (mut stream, mut contents) = (Vec::new(), Vec::new());
        for (number, size) in [5usize, 1000, 64, 4096, 1].into_iter().enumerate() {
            stream.extend_from_slice(&[1; 512]);
            let content: Vec<u8> = (0..size).map(|at| (at * 3 + number).to_le_bytes()[0]).collect();
            let start = stream.len() as u64;
            contents.push((
                Content {
                    start,
                    size: size as u64,
                    number,
                },
                content.clone(),
            ));
            stream.extend_from_slice(&content);
            stream.resize(stream.len().next_multiple_of(512), 0);
        }
        (stream, contents)
    }

    fn sums(piece: usize, wrong: Option<usize>) -> Result<()> {
        let (stream, mut contents) = stream();
        if let Some(wrong) = wrong {
            contents[wrong].1[0] ^= 1;
        }
        let checked = std::sync::Arc::default();
        let mut sums = ContentSums::new(Box::new(Sums {
            contents,
            next: 0,
            checked: std::sync::Arc::clone(&checked),
        }));
        for piece in stream.chunks(piece) {
            sums.update(piece);
        }
        assert_eq!(*checked.lock().unwrap(), 5);
        sums.finish()
    }

    #[test]
    fn contents_are_checked_wherever_pieces_are_cut() {
        for piece in [1, 7, 64, 500, 512, 5000, 1 << 20] {
            sums(piece, None).unwrap();
            for wrong in 0..5 {
                let error = sums(piece, Some(wrong)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::DigestMismatch);
                assert_eq!(error.to_string(), format!("content {wrong}: digest mismatch"));
            }
        }
    }

    #[test]
    fn a_stream_that_ends_within_a_content_is_none() {
        let (stream, contents) = stream();
        let mut sums = ContentSums::new(Box::new(Sums {
            contents,
            next: 0,
            checked: std::sync::Arc::default(),
        }));
        sums.update(&stream[..514]);
        assert_eq!(sums.finish().unwrap_err().kind(), ErrorKind::InvalidArchive);
    }
}
