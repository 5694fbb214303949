//! Answers of the fake registry to requests for ranges, right and wrong ones.

use std::ops::Range;

/// What is wrong about an answer with parts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Spoil {
    /// The header names another boundary than the body has.
    Boundary,
    /// Each part says that it begins some bytes later than it does; negative: earlier.
    Shifted(isize),
    /// Each part is of a blob of this size.
    Total(usize),
    /// The last part comes first.
    Reversed,
    /// So many parts only.
    First(usize),
    /// The first part is there twice.
    Twice,
    /// The last part is there twice.
    TwiceAtTheEnd,
    /// The header of the second part is longer than any.
    EndlessHeader,
    /// There is no range in the header of the second part.
    NoRange,
    /// A part has more content than its range says.
    Longer,
    /// One part covers everything from the first byte to the last.
    Joined,
    /// Each part has so many bytes at the most.
    Clipped(usize),
    /// No status of success, and no parts, but a page.
    Page,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

/// The ranges that a header asks for; none without one.
pub(crate) fn asked(header: Option<&str>, total: usize) -> Vec<Range<usize>> {
    let Some(list) = header.and_then(|header| header.strip_prefix("bytes=")) else {
        return Vec::new();
    };
    let range = |text: &str| {
        let (start, last) = text.split_once('-').unwrap();
        let end = last.parse().map_or(total, |last: usize| (last + 1).min(total));
        start.parse().unwrap()..end
    };
    list.split(',').map(range).collect()
}

/// Answers a request for ranges of `content`.
pub(crate) fn answer(content: &[u8], asked: &[Range<usize>], spoil: Option<Spoil>) -> Answer {
    let total = match spoil {
        Some(Spoil::Total(total)) => total,
        _ => content.len(),
    };
    let mut ranges = asked.to_vec();
    match spoil {
        Some(Spoil::Reversed) => ranges.reverse(),
        Some(Spoil::First(count)) => ranges.truncate(count),
        Some(Spoil::Twice) => ranges.insert(0, ranges[0].clone()),
        Some(Spoil::TwiceAtTheEnd) => ranges.push(ranges[ranges.len() - 1].clone()),
        Some(Spoil::Joined) => {
            ranges[0].end = ranges[ranges.len() - 1].end;
            ranges.truncate(1);
        }
        Some(Spoil::Clipped(length)) => {
            for range in &mut ranges {
                range.end = range.end.min(range.start + length);
            }
        }
        Some(Spoil::Page) => {
            return Answer {
                status: 206,
                headers: "Content-Type: text/html\r\n".into(),
                body: b"<html>".to_vec(),
            };
        }
        _ => {}
    }
    let content_range = |range: &Range<usize>| {
        let shift = |at: usize| match spoil {
            Some(Spoil::Shifted(by)) => at.saturating_add_signed(by),
            _ => at,
        };
        format!(
            "Content-Range: bytes {}-{}/{total}\r\n",
            shift(range.start),
            shift(range.end) - 1
        )
    };
    if let [range] = &ranges[..] {
        return Answer {
            status: 206,
            headers: content_range(range),
            body: content[range.clone()].to_vec(),
        };
    }
    let mut body = Vec::new();
    for (index, range) in ranges.iter().enumerate() {
        let more = match spoil {
            Some(Spoil::EndlessHeader) if index == 1 => format!("X-Padding: {}\r\n", "x".repeat(1 << 20)),
            _ => String::new(),
        };
        let head = match spoil {
            Some(Spoil::NoRange) if index == 1 => String::new(),
            _ => content_range(range),
        };
        body.extend(format!("\r\n--fake\r\n{head}Content-Type: x/y\r\n{more}\r\n").into_bytes());
        body.extend(&content[range.clone()]);
        if let Some(Spoil::Longer) = spoil {
            body.push(b'x');
        }
    }
    body.extend(b"\r\n--fake--\r\n");
    let boundary = match spoil {
        Some(Spoil::Boundary) => "other",
        _ => "fake",
    };
    Answer {
        status: 206,
        headers: format!("Content-Type: multipart/byteranges; boundary={boundary}\r\n"),
        body,
    }
}
