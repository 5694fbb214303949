//! The header `Content-Range` of a part of a blob.

/// Which bytes of a blob a part has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) start: u64,
    /// The byte after the last one.
    pub(crate) end: u64,
    /// Size of the whole blob, if the server says it.
    pub(crate) total: Option<u64>,
}

fn number(text: &str) -> Option<u64> {
    // `parse` takes a sign, too.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// `bytes REST`, with the unit in any case.
fn in_bytes(text: &str) -> Option<&str> {
    let (unit, rest) = text.trim().split_once(' ')?;
    unit.eq_ignore_ascii_case("bytes").then(|| rest.trim())
}

impl ContentRange {
    /// Reads `bytes 5-9/10` or `bytes 5-9/*`. `None` for anything else, and for a range that is empty or not within the
    /// blob.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (range, total) = in_bytes(text)?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = match total {
            "*" => None,
            total => Some(number(total)?),
        };
        let (start, end) = (number(first)?, number(last)?.checked_add(1)?);
        let fits = start < end && total.is_none_or(|total| end <= total);
        fits.then_some(Self { start, end, total })
    }

    /// Bytes of the part.
    pub(crate) fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// The size of a blob in the `Content-Range` of an answer that refuses a range, `bytes */10`.
pub(crate) fn size_of_refusal(text: &str) -> Option<u64> {
    number(in_bytes(text)?.strip_prefix("*/")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_strictly() {
        let range = |start, end, total| Some(ContentRange { start, end, total });
        assert_eq!(ContentRange::parse("bytes 5-9/10"), range(5, 10, Some(10)));
        assert_eq!(ContentRange::parse(" Bytes  0-0/* "), range(0, 1, None));
        assert_eq!(range(5, 10, None).unwrap().len(), 5);
        for bad in [
            "5-9/10",
            "bytes */10",
            "bytes 5/10",
            "bytes x-9/10",
            "bytes 5-/10",
            "bytes 5-9/x",
            "bytes 5-9",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "bytes +5-9/10",
            "bytes 5-18446744073709551615/*",
            "lines 5-9/10",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
        assert_eq!(size_of_refusal("bytes */10"), Some(10));
        assert_eq!(size_of_refusal("bytes */*"), None);
        assert_eq!(size_of_refusal("bytes 5-9/10"), None);
    }
}
