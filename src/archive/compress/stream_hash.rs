//! The digests of a stream, and the sums of contents that lie in it.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::digest::{Digest, Hasher};
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

/// See the module's head.
pub(crate) struct StreamHash {
    hashers: Vec<Hasher>,
    contents: Option<Box<dyn CheckContents>>,
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

impl StreamHash {
    /// The digests that `hashers` compute.
    pub(crate) fn new(hashers: Vec<Hasher>) -> Self {
        Self {
            hashers,
            contents: None,
            offset: 0,
            current: None,
            failure: None,
        }
    }

    /// Also checks `contents`.
    pub(crate) fn with_contents(mut self, contents: Box<dyn CheckContents>) -> Self {
        self.contents = Some(contents);
        self
    }

    /// Takes in the next bytes of the stream.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        for hasher in &mut self.hashers {
            hasher.update(bytes);
        }
        let mut rest = bytes;
        while !rest.is_empty() && self.contents.is_some() {
            rest = self.update_contents(rest);
        }
    }

    /// Takes in bytes up to the end of a content, or the start of one; what is left of them.
    fn update_contents<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.current.is_none()
            && let Some(contents) = &mut self.contents
        {
            let end = self.offset.saturating_add(bytes.len() as u64);
            self.current = contents.next(end).map(|content| Current {
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
        if let Some(contents) = &mut self.contents
            && let Err(error) = contents.check(current.content.number, &sum)
        {
            // The first one tells.
            self.failure.get_or_insert(error);
        }
    }

    /// What was found to be wrong so far; once.
    pub(crate) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// The digests, after the last bytes.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`] for a content that has another sum than it should; [`ErrorKind::InvalidArchive`] for one
    /// that is not all there.
    pub(crate) fn finish(&mut self) -> Result<Vec<Digest>> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if self.current.is_some() {
            return Err(ErrorKind::InvalidArchive.err("a stream that ends within a file"));
        }
        Ok(self.hashers.drain(..).map(Hasher::finish).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn hash(hashers: Vec<Hasher>, piece: usize, wrong: Option<usize>) -> Result<Vec<Digest>> {
        let (stream, mut contents) = stream();
        if let Some(wrong) = wrong {
            contents[wrong].1[0] ^= 1;
        }
        let checked = std::sync::Arc::default();
        let sums = Sums {
            contents,
            next: 0,
            checked: std::sync::Arc::clone(&checked),
        };
        let mut hash = StreamHash::new(hashers).with_contents(Box::new(sums));
        for piece in stream.chunks(piece) {
            hash.update(piece);
        }
        assert_eq!(*checked.lock().unwrap(), 5);
        hash.finish()
    }

    #[test]
    fn contents_are_checked_wherever_pieces_are_cut() {
        let expected = Digest::sha256(stream().0);
        for piece in [1, 7, 64, 500, 512, 5000, 1 << 20] {
            assert_eq!(
                hash(vec![Hasher::sha256()], piece, None).unwrap(),
                std::slice::from_ref(&expected)
            );
            assert_eq!(hash(Vec::new(), piece, None).unwrap(), []);
            for wrong in 0..5 {
                let error = hash(vec![Hasher::sha256()], piece, Some(wrong)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::DigestMismatch);
                assert_eq!(error.to_string(), format!("content {wrong}: digest mismatch"));
            }
        }
        let sha512: Digest = format!("sha512:{}", "a".repeat(128)).parse().unwrap();
        let both = hash(vec![Hasher::sha256(), Hasher::like(&sha512)], 999, None).unwrap();
        assert_eq!(both.len(), 2);
        assert_eq!((&both[0], both[1].algorithm()), (&expected, "sha512"));
    }

    #[test]
    fn a_stream_that_ends_within_a_content_is_none() {
        let (stream, contents) = stream();
        let sums = Sums {
            contents,
            next: 0,
            checked: std::sync::Arc::default(),
        };
        let mut hash = StreamHash::new(Vec::new()).with_contents(Box::new(sums));
        hash.update(&stream[..514]);
        assert_eq!(hash.finish().unwrap_err().kind(), ErrorKind::InvalidArchive);
    }
}
