//! ID ranges as text.

use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::idmap::IdMap;

impl FromStr for IdMap {
    type Err = Error;

    /// Reads `CONTAINER:HOST:SIZE`.
    fn from_str(text: &str) -> Result<Self> {
        match parse_ranges(text).as_deref() {
            Some([range]) => Ok(*range),
            _ => Err(ErrorKind::InvalidInput.err(format!("ID range {text:?} is not CONTAINER:HOST:SIZE"))),
        }
    }
}

/// Reads ranges `CONTAINER:HOST:SIZE`, several joined by `:`. `None` if the text is anything else.
pub(crate) fn parse_ranges(text: &str) -> Option<Vec<IdMap>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_: &u32| digits)
    };
    let numbers: Vec<u32> = text.split(':').map(number).collect::<Option<_>>()?;
    let (triples, rest) = numbers.as_chunks::<3>();
    rest.is_empty().then(|| {
        triples
            .iter()
            .map(|[container, host, size]| IdMap::new(*container, *host, *size))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_triples_of_plain_numbers() {
        assert_eq!(
            parse_ranges("0:1668442479:65536:65536:5:0"),
            Some(vec![IdMap::new(0, 1_668_442_479, 65536), IdMap::new(65536, 5, 0)])
        );
        assert_eq!(parse_ranges(""), Some(Vec::new()));
        for odd in [
            "0",
            "0:1",
            "0:1:",
            "0:1:2:3",
            "0:1:-2",
            "0:+1:2",
            "0:1: 2",
            "0:1:4294967296",
            "a:b:c",
        ] {
            assert_eq!(parse_ranges(odd), None, "{odd}");
        }
    }
}
