//! Bodies of the type `multipart/byteranges`: several parts of a blob in one answer.
//!
//! A machine without I/O that is fed with what arrives. The length of a part is known from its `Content-Range`, so its
//! content is not searched for the delimiter: it is passed on as it comes, and the delimiter has to follow. What is not
//! content is bounded.

use bytes::{Buf as _, Bytes};

use super::super::content_range::ContentRange;
use crate::error::{ErrorKind, Result};

/// Bytes between two contents at the most: delimiter and headers.
const MAX_HEAD: usize = 8192;

/// The longest delimiter that the standard allows.
const MAX_BOUNDARY: usize = 70;

/// A piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A part begins.
    Part(ContentRange),
    /// Content of the part, not empty.
    Content(Bytes),
    /// All parts are over.
    End,
}

#[derive(Debug)]
enum State {
    /// What comes before the first delimiter is ignored.
    Preamble,
    /// The headers of a part, and what was found in them.
    Headers(Option<ContentRange>),
    /// So many bytes of content are left.
    Content(u64),
    /// The end of the line after the content.
    LineEnd,
    Delimiter,
    End,
}

/// Takes a body apart.
#[derive(Debug)]
pub(crate) struct Multipart {
    /// Two dashes and the boundary.
    delimiter: Vec<u8>,
    state: State,
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
    /// Bytes since the last content.
    head: usize,
}

fn malformed(why: &str) -> crate::error::Error {
    ErrorKind::Registry.err(format!("an answer of several parts {why}"))
}

/// The boundary in a `Content-Type`; `None` if that is not one of several parts.
pub(crate) fn boundary(content_type: &str) -> Option<&str> {
    let mut fields = content_type.split(';').map(str::trim);
    let is_multipart = fields
        .next()
        .is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/byteranges"));
    let boundary = fields.filter(|_| is_multipart).find_map(|field| {
        let (name, value) = field.split_once('=')?;
        name.trim_end()
            .eq_ignore_ascii_case("boundary")
            .then(|| value.trim_start())
    })?;
    let boundary = boundary
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(boundary);
    (1..=MAX_BOUNDARY).contains(&boundary.len()).then_some(boundary)
}

impl Multipart {
    pub(crate) fn new(boundary: &str) -> Self {
        Self {
            delimiter: format!("--{boundary}").into_bytes(),
            state: State::Preamble,
            line: Vec::new(),
            head: 0,
        }
    }

    /// The next piece. `None` once `input` is used up and more is needed.
    ///
    /// # Errors
    /// [`ErrorKind::Registry`] if the body is malformed.
    pub(crate) fn next(&mut self, input: &mut Bytes) -> Result<Option<Piece>> {
        loop {
            if let State::Content(left) = &mut self.state {
                if input.is_empty() {
                    return Ok(None);
                }
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= count as u64;
                if *left == 0 {
                    self.state = State::LineEnd;
                }
                return Ok(Some(Piece::Content(input.split_to(count))));
            }
            if let State::End = self.state {
                input.clear();
                return Ok(Some(Piece::End));
            }
            let Some(line) = self.line(input)? else {
                return Ok(None);
            };
            if let Some(part) = self.on_line(&line)? {
                return Ok(Some(Piece::Part(part)));
            }
        }
    }

    /// Whether the last delimiter has come.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Whether the body may end with what has come so far.
    pub(crate) fn may_end(&self) -> bool {
        match self.state {
            State::End => true,
            // The last line of a body needs no end.
            State::Preamble | State::Delimiter => self.delimited(&self.line) == Some(true),
            _ => false,
        }
    }

    /// The next whole line without its end.
    fn line(&mut self, input: &mut Bytes) -> Result<Option<Vec<u8>>> {
        let end = input.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(input.len(), |end| end + 1);
        self.head += count;
        if self.head > MAX_HEAD {
            return Err(malformed(&format!("has a header of more than {MAX_HEAD} bytes")));
        }
        self.line
            .extend_from_slice(input.get(..count).unwrap_or_default());
        input.advance(count);
        if end.is_none() {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.line);
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(line))
    }

    /// Whether a line is a delimiter, and if so, whether it is the last one.
    fn delimited(&self, line: &[u8]) -> Option<bool> {
        let rest = line.strip_prefix(&*self.delimiter)?.trim_ascii_end();
        match rest {
            b"" => Some(false),
            b"--" => Some(true),
            _ => None,
        }
    }

    /// Goes on by one line. Returns a part that begins after it.
    fn on_line(&mut self, line: &[u8]) -> Result<Option<ContentRange>> {
        match &mut self.state {
            State::Preamble | State::Delimiter => match self.delimited(line) {
                Some(true) => self.state = State::End,
                Some(false) => self.state = State::Headers(None),
                None if matches!(self.state, State::Preamble) => {}
                None => return Err(malformed("goes on where a part should end")),
            },
            State::LineEnd if line.is_empty() => self.state = State::Delimiter,
            State::LineEnd => return Err(malformed("has a part that is longer than it says")),
            State::Headers(range) if line.is_empty() => {
                let Some(range) = range.take() else {
                    return Err(malformed("has a part without a range"));
                };
                self.state = State::Content(range.len());
                self.head = 0;
                return Ok(Some(range));
            }
            State::Headers(range) => {
                let text = String::from_utf8_lossy(line);
                let Some((name, value)) = text.split_once(':') else {
                    return Err(malformed("has a header that is none"));
                };
                if name.trim().eq_ignore_ascii_case("content-range") {
                    let found = ContentRange::parse(value)
                        .ok_or_else(|| malformed("has a part with a range that cannot be read"))?;
                    if range.replace(found).is_some() {
                        return Err(malformed("has a part with two ranges"));
                    }
                }
            }
            // Not read by lines.
            State::Content(_) | State::End => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All pieces of a body that arrives in chunks which end at `cuts`, contents joined, and whether it may end.
    fn take_apart(body: &[u8], cuts: &[usize]) -> Result<(Vec<Piece>, bool)> {
        let mut parser = Multipart::new("b");
        let mut pieces: Vec<Piece> = Vec::new();
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (body.len() + 1)).collect();
        ends.sort_unstable();
        ends.push(body.len());
        let mut at = 0;
        for end in ends {
            let mut input = Bytes::copy_from_slice(&body[at..end]);
            at = end;
            while let Some(piece) = parser.next(&mut input)? {
                match (pieces.last_mut(), piece) {
                    (Some(Piece::Content(known)), Piece::Content(more)) => {
                        *known = [&known[..], &more].concat().into();
                    }
                    (_, Piece::End) => {
                        pieces.push(Piece::End);
                        break;
                    }
                    (_, piece) => pieces.push(piece),
                }
            }
            assert!(input.is_empty());
        }
        pieces.dedup_by(|a, b| *a == Piece::End && *b == Piece::End);
        Ok((pieces, parser.may_end()))
    }

    fn part(start: u64, content: &[u8]) -> [Piece; 2] {
        let end = start + content.len() as u64;
        let total = Some(1 << 40);
        [
            Piece::Part(ContentRange { start, end, total }),
            Piece::Content(content.to_vec().into()),
        ]
    }

    /// A body as a server writes it.
    fn write(parts: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (start, content) in parts {
            let range = format!("{start}-{}/{}", start + content.len() as u64 - 1, 1_u64 << 40);
            let head = format!(
                "\r\n--b\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {range}\r\n\r\n"
            );
            body.extend(head.into_bytes());
            body.extend(content);
        }
        body.extend(b"\r\n--b--\r\n");
        body
    }

    #[test]
    fn boundaries_are_found_in_content_types() {
        for (text, found) in [
            ("multipart/byteranges; boundary=abc", Some("abc")),
            ("Multipart/ByteRanges;Boundary=\"a:b\" ; charset=x", Some("a:b")),
            ("multipart/byteranges; charset=x;boundary = abc", Some("abc")),
            ("multipart/byteranges", None),
            ("multipart/byteranges; boundary=", None),
            ("multipart/mixed; boundary=abc", None),
            ("application/octet-stream", None),
        ] {
            assert_eq!(boundary(text), found, "{text}");
        }
        let long = |length| format!("multipart/byteranges; boundary={}", "x".repeat(length));
        assert!(boundary(&long(70)).is_some() && boundary(&long(71)).is_none());
    }

    #[test]
    fn bodies_as_servers_write_them() {
        let expected: Vec<Piece> = [part(0, b"first"), part(1000, b"\r\n--b--\r\n")]
            .concat()
            .into_iter()
            .chain([Piece::End])
            .collect();
        let head = "Content-Range: bytes 0-4/1099511627776";
        let other = "content-range:bytes 1000-1008/1099511627776";
        let content = "\r\n--b--\r\n";
        for body in [
            format!("--b\r\n{head}\r\n\r\nfirst\r\n--b\r\n{other}\r\n\r\n{content}\r\n--b--\r\n"),
            format!("\r\n--b\r\n{head}\r\nX: y\r\n\r\nfirst\r\n--b \t\r\n{other}\r\n\r\n{content}\r\n--b--"),
            format!("preamble\n--b\n{head}\n\nfirst\n--b\n{other}\n\n{content}\n--b--\nepilogue"),
        ] {
            let (mut pieces, may_end) = take_apart(body.as_bytes(), &[]).unwrap();
            assert!(may_end, "{body}");
            if pieces.last() != Some(&Piece::End) {
                // No more input comes after a last line without an end.
                pieces.push(Piece::End);
            }
            assert_eq!(pieces, expected, "{body}");
        }
        assert_eq!(take_apart(b"--b--\r\n", &[]).unwrap(), (vec![Piece::End], true));
    }

    #[test]
    fn malformed_bodies_are_refused() {
        let range = "Content-Range: bytes 0-4/9\r\n";
        for (body, why) in [
            ("--b\r\n\r\nfirst".to_owned(), "without a range"),
            (format!("--b\r\n{range}{range}\r\nfirst"), "two ranges"),
            (
                "--b\r\nContent-Range: bytes 0-9/5\r\n\r\n".into(),
                "cannot be read",
            ),
            (
                format!("--b\r\n{range}\r\nfirst and more\r\n--b--"),
                "longer than it says",
            ),
            (
                format!("--b\r\n{range}\r\nfirst\r\n--other\r\n"),
                "where a part should end",
            ),
            (
                format!("--b\r\n{range}nothing\r\n\r\nfirst"),
                "header that is none",
            ),
            (
                format!("--b\r\nX: {}\r\n{range}\r\n", "x".repeat(MAX_HEAD)),
                "more than",
            ),
            (format!("--b\r\n{}", "X: y\r\n".repeat(MAX_HEAD)), "more than"),
            ("no line ends here".repeat(MAX_HEAD), "more than"),
            ("\r\n".repeat(MAX_HEAD), "more than"),
        ] {
            let error = take_apart(body.as_bytes(), &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Registry);
            assert!(error.chain().contains(why), "{why}: {error:?}");
        }
    }

    #[test]
    fn bodies_that_are_cut_off_may_not_end_there() {
        let body = write(&[(0, b"first".to_vec()), (70, b"second".to_vec())]);
        // The line end after the last delimiter is not needed.
        for length in 0..body.len() - 2 {
            assert!(!take_apart(&body[..length], &[]).unwrap().1, "{length}");
        }
        assert!(take_apart(&body[..body.len() - 2], &[]).unwrap().1);
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(
            parts in proptest::collection::vec((0..1_u64 << 39, proptest::collection::vec(any::<u8>(), 1..40)), 0..6),
            cuts in proptest::collection::vec(any::<usize>(), 0..40),
        ) {
            let body = write(&parts);
            let mut expected: Vec<Piece> = parts.iter().flat_map(|(start, content)| part(*start, content)).collect();
            expected.push(Piece::End);
            prop_assert_eq!(take_apart(&body, &cuts).unwrap(), (expected, true));
        }

        #[test]
        fn anything_is_taken_apart_alike_or_refused(
            parts in proptest::collection::vec((0..1_u64 << 39, proptest::collection::vec(any::<u8>(), 1..10)), 0..4),
            changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
            cuts in proptest::collection::vec(any::<usize>(), 0..20),
        ) {
            let mut body = write(&parts);
            let length = body.len();
            for (at, byte) in changes {
                body[at % length] = byte;
            }
            let (whole, cut) = (take_apart(&body, &[]), take_apart(&body, &cuts));
            match (whole, cut) {
                (Ok(whole), Ok(cut)) => prop_assert_eq!(whole, cut),
                (Err(whole), Err(cut)) => prop_assert_eq!(whole.chain(), cut.chain()),
                (whole, cut) => prop_assert!(false, "{:?} {:?}", whole, cut),
            }
        }
    }
}
