//! Pax extended header records: lines of `LENGTH KEY=VALUE\n`. Pure.

use std::ops::Range;

use crate::archive::tar::header::Timestamp;

/// Prefix of the keys that carry extended attributes; the values are raw bytes.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// Records of one extended header. Of records with one key the last counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    /// The whole header's data.
    data: Vec<u8>,
    /// Key and value ranges in `data`, sorted by key, each key once.
    list: Vec<(Range<usize>, Range<usize>)>,
    /// Numbers of a sparse map in form 0.0, where keys repeat and order counts.
    sparse: Vec<Range<usize>>,
}

impl Records {
    /// No records; keeps the allocations.
    pub(crate) fn clear(&mut self) {
        self.data.clear();
        self.list.clear();
        self.sparse.clear();
    }

    /// Where the header's data goes before [`Records::parse`].
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        self.clear();
        &mut self.data
    }

    /// Splits the data into records; `None` if they are malformed.
    pub(crate) fn parse(&mut self) -> Option<()> {
        self.list.clear();
        self.sparse.clear();
        let data = &self.data;
        let mut start = 0;
        while start < data.len() {
            let rest = data.get(start..)?;
            let space = rest.iter().take(21).position(|byte| *byte == b' ')?;
            let length = usize::try_from(decimal(rest.get(..space)?)?).ok()?;
            if length < 5 {
                return None;
            }
            let record = rest.get(..length)?;
            let (last, record) = record.split_last()?;
            let pair = record.get(space + 1..)?;
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (pair.get(..equals)?, pair.get(equals + 1..)?);
            let value_matters = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
            if *last != b'\n' || key.is_empty() || (if value_matters { value } else { key }).contains(&0) {
                return None;
            }
            let key_start = start + space + 1;
            let key_range = key_start..key_start + equals;
            let value_range = key_range.end + 1..start + length - 1;
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let offset_expected = self.sparse.len().is_multiple_of(2);
                    if offset_expected != (key == b"GNU.sparse.offset") || value.contains(&b',') {
                        return None;
                    }
                    self.sparse.push(value_range);
                }
                _ => self.list.push((key_range, value_range)),
            }
            start += length;
        }
        if self.list.len() > 1 {
            // Later records first, so that they survive the removal of equal keys.
            self.list.reverse();
            self.list
                .sort_by(|a, b| data.get(a.0.clone()).cmp(&data.get(b.0.clone())));
            self.list
                .dedup_by(|later, kept| data.get(later.0.clone()) == data.get(kept.0.clone()));
        }
        Some(())
    }

    fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.data.get(range.clone()).unwrap_or_default()
    }

    /// Every record but those of a sparse map in form 0.0.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list
            .iter()
            .map(|(key, value)| (self.bytes(key), self.bytes(value)))
    }

    /// The value of `key`, empty if there is none (an empty value means the same).
    pub(crate) fn get(&self, key: &[u8]) -> &[u8] {
        match self
            .list
            .binary_search_by(|(range, _)| self.bytes(range).cmp(key))
        {
            Ok(index) => self
                .list
                .get(index)
                .map(|(_, value)| self.bytes(value))
                .unwrap_or_default(),
            Err(_absent) => &[],
        }
    }

    /// Names and values of the extended attributes.
    pub(crate) fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?, value)))
    }

    /// The records of extended attributes alone.
    pub(crate) fn xattrs_only(&self) -> Self {
        let mut kept = Self::default();
        for (key, value) in self.iter().filter(|(key, _)| key.starts_with(XATTR)) {
            let start = kept.data.len();
            kept.data.extend_from_slice(key);
            let middle = kept.data.len();
            kept.data.extend_from_slice(value);
            kept.list.push((start..middle, middle..kept.data.len()));
        }
        kept
    }

    /// How many bytes keys and values take.
    pub(crate) fn size(&self) -> usize {
        self.data.len() + self.list.len() * size_of::<(Range<usize>, Range<usize>)>()
    }

    /// The numbers of a sparse map in form 0.0, offsets and lengths in turn.
    pub(crate) fn sparse(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.sparse.iter().map(|range| self.bytes(range))
    }
}

/// A decimal number with an optional sign.
pub(crate) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Decimal seconds with an optional sign and fraction; more than nine digits are cut off.
pub(crate) fn time(text: &[u8]) -> Option<Timestamp> {
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let whole = parts.next()?;
    let fraction = parts.next().unwrap_or_default();
    let secs = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction
        .iter()
        .map(|byte| u32::from(byte - b'0'))
        .chain(std::iter::repeat(0));
    let nanos = digits.take(9).fold(0, |sum, digit| sum * 10 + digit);
    // The fraction of a negative number leads away from zero, nanoseconds always forward.
    if whole.first() == Some(&b'-') && nanos > 0 {
        return Some(Timestamp {
            secs: secs.saturating_sub(1),
            nanos: 1_000_000_000 - nanos,
        });
    }
    Some(Timestamp { secs, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(data: &[u8]) -> Option<Records> {
        let mut records = Records::default();
        records.buffer().extend_from_slice(data);
        records.parse().map(|()| records)
    }

    #[test]
    fn the_last_record_of_a_key_counts() {
        let records =
            parsed(b"8 path=a\n10 path=a\n8 a=bcd\n8 path=\n26 SCHILY.xattr.user.x=\0\xff\n9 path=b\n")
                .is_none();
        assert!(records, "a wrong length is refused");
        let data = b"9 path=a\n8 a=bcd\n8 path=\n26 SCHILY.xattr.user.x=\0\xff\n9 path=b\n7 a==d\n";
        let records = parsed(data).unwrap();
        assert_eq!(records.get(b"path"), b"b");
        assert_eq!(records.get(b"a"), b"=d");
        assert_eq!(records.get(b"nothing"), b"");
        assert_eq!(
            records.xattrs().collect::<Vec<_>>(),
            [(&b"user.x"[..], &b"\0\xff"[..])]
        );
    }

    #[test]
    fn malformed_records_are_refused() {
        let bad: [&[u8]; 14] = [
            b"5",
            b"x a=b\n",
            b"4 a=\n",
            b"-6 a=b\n",
            b"6 a=b ",
            b"7 a=b\n",
            b"6 abc\n",
            b"6 =bc\n",
            b"9 path=\0\n",
            b"6 \0=b\n",
            b"99999999999999999999 a=b\n",
            b"30 GNU.sparse.numbytes=1234567\n",
            b"23 GNU.sparse.offset=1\n23 GNU.sparse.offset=1\n",
            b"25 GNU.sparse.offset=1,2\n",
        ];
        for data in bad {
            assert!(parsed(data).is_none(), "{:?}", String::from_utf8_lossy(data));
        }
        assert!(parsed(b"").is_some());
        assert!(parsed(b"6 a=\0\n").is_some(), "other values may hold NUL");
        assert!(parsed(b"5 a=\n").is_some());
    }

    #[test]
    fn times_with_sign_and_fraction() {
        type Case = (&'static [u8], Option<(i64, u32)>);
        let cases: [Case; 12] = [
            (b"0", Some((0, 0))),
            (b"1.5", Some((1, 500_000_000))),
            (b"1.", Some((1, 0))),
            (b"1.1234567899", Some((1, 123_456_789))),
            (b"-1.5", Some((-2, 500_000_000))),
            (b"-0.25", Some((-1, 750_000_000))),
            (b"-3", Some((-3, 0))),
            (b"", None),
            (b".5", None),
            (b"1.x", None),
            (b"1.-5", None),
            (b"9223372036854775808", None),
        ];
        for (text, value) in cases {
            let value = value.map(|(secs, nanos)| Timestamp { secs, nanos });
            assert_eq!(time(text), value, "{}", String::from_utf8_lossy(text));
        }
    }

    proptest! {
        #[test]
        fn well_formed_records_come_back(pairs in proptest::collection::btree_map("[a-z.]{1,8}", any::<Vec<u8>>(), 0..8)) {
            let mut data = Vec::new();
            for (key, value) in &pairs {
                if matches!(key.as_str(), "path" | "linkpath" | "uname" | "gname") && value.contains(&0) {
                    return Ok(());
                }
                data.extend(crate::test_util::pax_record(key.as_bytes(), value));
            }
            let records = parsed(&data).unwrap();
            let back: Vec<_> = records.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            let expected: Vec<_> = pairs.into_iter().map(|(key, value)| (key.into_bytes(), value)).collect();
            prop_assert_eq!(back, expected);
        }

        #[test]
        fn junk_never_panics(data in any::<Vec<u8>>(), text in "[0-9]{1,3} [a-zA-Z.=\\n]{0,20}") {
            drop(parsed(&data));
            drop(parsed(text.as_bytes()));
            time(&data);
        }
    }
}
