//! Limits on the space that a layer takes, as `--storage-opt` of a container states them. Pure.

use std::collections::BTreeMap;

use crate::error::{ErrorKind, Result};
use crate::options::driver::ram_in_bytes;

/// Limits of one layer. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Bytes.
    pub(crate) size: Option<u64>,
    /// Inodes.
    pub(crate) inodes: Option<u64>,
}

impl Quota {
    /// Reads the storage options of a layer; `None` if there are none.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an unknown option or a value that is no number.
    pub(crate) fn parse(storage_opt: &BTreeMap<String, String>) -> Result<Option<Self>> {
        if storage_opt.is_empty() {
            return Ok(None);
        }
        let mut quota = Self::default();
        for (key, value) in storage_opt {
            let invalid =
                || ErrorKind::InvalidInput.err(format!("storage option {key:?} with the value {value:?}"));
            match key.to_ascii_lowercase().as_str() {
                "size" => quota.size = Some(ram_in_bytes(value).ok_or_else(invalid)?),
                "inodes" => quota.inodes = Some(value.parse().map_err(|_not_a_number| invalid())?),
                _ => return Err(ErrorKind::InvalidInput.err(format!("unknown option {key}"))),
            }
        }
        Ok(Some(quota))
    }

    /// These limits, and where there are none the default ones.
    pub(crate) fn or(self, default: Self) -> Self {
        Self {
            size: self.size.or(default.size),
            inodes: self.inodes.or(default.inodes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<Option<Quota>> {
        let options = options.iter();
        Quota::parse(
            &options
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
        )
    }

    #[test]
    fn storage_options_are_limits() {
        assert_eq!(parse(&[]).unwrap(), None);
        let both = Quota {
            size: Some(3 << 30),
            inodes: Some(7),
        };
        assert_eq!(parse(&[("size", "3g"), ("inodes", "7")]).unwrap(), Some(both));
        assert_eq!(parse(&[("SIZE", "1k")]).unwrap().unwrap().size, Some(1024));
        for bad in [("size", "x"), ("size", "-1"), ("inodes", "1k"), ("nonsense", "1")] {
            let error = parse(&[bad]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
            assert!(error.chain().contains(bad.0), "{}", error.chain());
        }
    }
}
