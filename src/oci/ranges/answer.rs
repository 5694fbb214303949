//! One answer to a request for ranges, and how the bytes that are wanted are taken out of it.
//!
//! A server may answer several ranges with several parts, with one that covers them, with the first one only, or with
//! the whole blob. Whatever comes is checked against what was asked for and against the size of the blob: each part has
//! to begin with the byte that is wanted next, and to have little that was not asked for.

use std::ops::Range;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING};
use reqwest::{Response, StatusCode};

use super::super::content_range::ContentRange;
use super::multipart::{self, Multipart, Piece};
use super::wanted::{self, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::store::image_manifest::Descriptor;

/// Why an answer brings no more.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The connection broke; another request may bring the rest.
    Broken(Error),
    /// The server does not do what it was asked for.
    Unfit(Error),
    /// The blob is another one.
    Wrong(Error),
}

/// What an answer consists of.
#[derive(Debug)]
enum Framing {
    /// One part, of which so many bytes have not come.
    Plain(u64),
    Multipart(Box<Multipart>),
}

/// An answer that is being read.
#[derive(Debug)]
pub(crate) struct Answer {
    blob: Descriptor,
    /// What was asked for.
    asked: Vec<Range<u64>>,
    body: Response,
    /// Whether the end of the body shows, so that a connection that breaks is told from it.
    is_delimited: bool,
    framing: Framing,
    /// What has come and was not looked at.
    input: Bytes,
    /// Content, and where in the blob it is.
    content: Bytes,
    position: u64,
}

fn header<'a>(headers: &'a HeaderMap, name: &reqwest::header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The error for a blob of another size than its descriptor says.
pub(crate) fn wrong_size(blob: &Descriptor, found: u64) -> Error {
    let what = format!("{} has {found} bytes, expected {}", blob.digest, blob.size);
    ErrorKind::DigestMismatch.err(what)
}

impl Answer {
    /// An answer to the request for `asked`: 206, or 200 with the whole blob.
    pub(crate) fn new(body: Response, blob: &Descriptor, asked: Vec<Range<u64>>) -> Result<Self, Fault> {
        let mut answer = Self {
            blob: blob.clone(),
            asked,
            framing: Framing::Plain(blob.size),
            input: Bytes::new(),
            content: Bytes::new(),
            position: 0,
            is_delimited: body.content_length().is_some() || body.headers().contains_key(TRANSFER_ENCODING),
            body,
        };
        if answer.is_whole() {
            return match answer.body.content_length() {
                Some(length) if length != blob.size => Err(Fault::Wrong(wrong_size(blob, length))),
                _ => Ok(answer),
            };
        }
        let headers = answer.body.headers();
        if let Some(boundary) = header(headers, &CONTENT_TYPE).and_then(multipart::boundary) {
            answer.framing = Framing::Multipart(Box::new(Multipart::new(boundary)));
            return Ok(answer);
        }
        let Some(range) = header(headers, &CONTENT_RANGE).and_then(ContentRange::parse) else {
            return Err(answer.unfit("a part without a range"));
        };
        answer.framing = Framing::Plain(range.len());
        let first = answer.asked.first().map_or(0, |span| span.start);
        answer.begin(&range, first)?;
        Ok(answer)
    }

    /// Whether it is the whole blob.
    pub(crate) fn is_whole(&self) -> bool {
        self.body.status() == StatusCode::OK
    }

    /// How many ranges were asked for.
    pub(crate) fn asked(&self) -> usize {
        self.asked.len()
    }

    /// The next bytes that are wanted. `None` at the end of the answer; it may end before all of them have come.
    pub(crate) async fn next(&mut self, wanted: &mut Wanted) -> Result<Option<Bytes>, Fault> {
        loop {
            if let Some(bytes) = wanted.pick(&mut self.position, &mut self.content) {
                return Ok(Some(bytes));
            }
            let Some(next) = wanted.start() else {
                return Ok(None);
            };
            if self.advance(next)? {
                continue;
            }
            if self.is_over() {
                return Ok(None);
            }
            match self.body.chunk().await {
                Ok(Some(chunk)) => self.input = chunk,
                Ok(None) if self.may_end() => return Ok(None),
                Ok(None) if self.is_delimited && matches!(self.framing, Framing::Multipart(_)) => {
                    return Err(self.unfit("several parts without an end"));
                }
                Ok(None) => {
                    let what = format!("receiving {}: the answer ends early", self.blob.digest);
                    return Err(Fault::Broken(ErrorKind::Registry.err(what)));
                }
                Err(error) => {
                    let what = format!("receiving {}", self.blob.digest);
                    return Err(Fault::Broken(ErrorKind::Registry.err(what).with_source(error)));
                }
            }
        }
    }

    /// Reads the end of an answer of which nothing more is wanted, if it is there already: then its connection serves
    /// the next request.
    pub(crate) fn finish(mut self) {
        use futures::FutureExt as _;
        while let Some(Ok(Some(chunk))) = self.body.chunk().now_or_never() {
            if chunk.len() > 1024 {
                return;
            }
        }
    }

    /// Looks at what has come. Returns `false` if more has to come first.
    fn advance(&mut self, next: u64) -> Result<bool, Fault> {
        match &mut self.framing {
            Framing::Plain(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(self.input.len());
                self.content = self.input.split_to(count);
                *left -= count as u64;
                // Nothing belongs behind it.
                self.input.clear();
                Ok(count > 0)
            }
            Framing::Multipart(parser) => match parser.next(&mut self.input) {
                Ok(Some(Piece::Part(range))) => self.begin(&range, next).map(|()| true),
                Ok(Some(Piece::Content(content))) => {
                    self.content = content;
                    Ok(true)
                }
                Ok(Some(Piece::End) | None) => Ok(false),
                Err(error) => Err(Fault::Unfit(
                    error.context(format!("receiving {}", self.blob.digest)),
                )),
            },
        }
    }

    /// Whether all of its parts have come.
    fn is_over(&self) -> bool {
        match &self.framing {
            Framing::Plain(left) => *left == 0,
            Framing::Multipart(parser) => parser.is_over(),
        }
    }

    /// Whether it may end with what has come.
    fn may_end(&self) -> bool {
        match &self.framing {
            Framing::Plain(_) => false,
            Framing::Multipart(parser) => parser.may_end(),
        }
    }

    fn unfit(&self, why: &str) -> Fault {
        Fault::Unfit(ErrorKind::Registry.err(format!("receiving {}: {why}", self.blob.digest)))
    }

    /// Checks a part that begins; the byte at `next` is wanted next.
    fn begin(&mut self, part: &ContentRange, next: u64) -> Result<(), Fault> {
        if let Some(total) = part.total
            && total != self.blob.size
        {
            return Err(Fault::Wrong(wrong_size(&self.blob, total)));
        }
        if part.start != next || part.end > self.blob.size {
            let why = format!(
                "a part with bytes {}-{}, expected one from byte {next} of {} on",
                part.start,
                part.end - 1,
                self.blob.size
            );
            return Err(self.unfit(&why));
        }
        // What comes after the last byte that is wanted is not read.
        let last = self.asked.last().map_or(part.end, |span| span.end);
        let read = part.start..part.end.min(last);
        let needed = wanted::bytes_within(&self.asked, &read);
        if wanted::is_wasteful(read.end.saturating_sub(read.start), needed) {
            let why = format!(
                "a part with bytes {}-{}, of which few were asked for",
                part.start,
                part.end - 1
            );
            return Err(self.unfit(&why));
        }
        self.position = part.start;
        Ok(())
    }
}
