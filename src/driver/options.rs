//! Driver option strings: `[driver.]key=value`.

use crate::error::{ErrorKind, Result};

/// One option, taken apart: which driver it is for (empty: any), its key in lower case, its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DriverOption<'a> {
    pub(crate) driver: String,
    pub(crate) key: String,
    pub(crate) value: &'a str,
}

/// Drivers that an option may be prefixed with.
const KNOWN: &[&str] = &["overlay", "overlay2", "btrfs", "zfs", "vfs"];

/// Takes an option apart.
pub(crate) fn parse(option: &str) -> Result<DriverOption<'_>> {
    let bad = |why: &str| ErrorKind::InvalidInput.err(format!("driver option {option:?} ({why})"));
    let (key, value) = option.split_once('=').ok_or_else(|| bad("expected key=value"))?;
    let key = key.trim().to_ascii_lowercase();
    let (driver, key) = match key.split_once('.') {
        None => (String::new(), key),
        // The Go library understands `vfs..sync` and, by accident, only that for vfs.
        Some((driver, key)) => (driver.to_owned(), key.trim_start_matches('.').to_owned()),
    };
    if !driver.is_empty() && !KNOWN.contains(&driver.as_str()) {
        return Err(bad("unknown driver"));
    }
    let key = match key.split_once('.') {
        Some((again, rest)) if again == driver => rest.to_owned(),
        _ => key,
    };
    Ok(DriverOption { driver, key, value: value.trim() })
}

/// The options that a driver with one of these names has to read.
pub(crate) fn for_driver<'a>(options: &'a [String], names: &[&str]) -> Result<Vec<DriverOption<'a>>> {
    let mut own = Vec::new();
    for option in options {
        let parsed = parse(option)?;
        if parsed.driver.is_empty() || names.contains(&parsed.driver.as_str()) {
            own.push(parsed);
        }
    }
    Ok(own)
}

/// The error for a key that a driver does not know.
pub(crate) fn unknown(driver: &str, option: &DriverOption<'_>) -> crate::error::Error {
    ErrorKind::InvalidInput.err(format!("{driver} driver: unknown option {:?} (value {:?})", option.key, option.value))
}

impl DriverOption<'_> {
    fn bad(&self, expected: &str) -> crate::error::Error {
        ErrorKind::InvalidInput.err(format!("driver option {}={:?} ({expected} expected)", self.key, self.value))
    }

    /// A truth value in Go's spellings.
    pub(crate) fn bool(&self) -> Result<bool> {
        match self.value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(self.bad("true or false")),
        }
    }

    /// `none` or `filesystem`: whether saves sync the whole file system.
    pub(crate) fn sync_filesystem(&self) -> Result<bool> {
        match self.value.to_ascii_lowercase().as_str() {
            "" | "none" => Ok(false),
            "filesystem" => Ok(true),
            _ => Err(self.bad("none or filesystem")),
        }
    }

    /// A number of bytes with an optional binary unit: `10`, `10k`, `1.5 GiB`.
    pub(crate) fn bytes(&self) -> Result<u64> {
        let bad = || self.bad("a size such as 10G");
        let digits = self.value.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
        let unit = self.value[self.value.len() - self.value.trim_start_matches(digits).len()..].trim();
        let unit = unit.to_ascii_lowercase();
        let prefix = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
        let shift = match prefix {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            "p" => 50,
            _ => return Err(bad()),
        };
        let factor = 1u64 << shift;
        if let Ok(whole) = digits.parse::<u64>() {
            return whole.checked_mul(factor).ok_or_else(bad);
        }
        let (whole, fraction) = digits.split_once('.').ok_or_else(bad)?;
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_not_a_number| bad())? };
        let mut bytes = whole.checked_mul(factor).ok_or_else(bad)?;
        let mut place = factor;
        for digit in fraction.chars() {
            place /= 10;
            let digit = u64::from(digit.to_digit(10).ok_or_else(bad)?);
            bytes = bytes.checked_add(digit * place).ok_or_else(bad)?;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_apart() {
        let case = |text: &str| parse(text).map(|option| (option.driver, option.key, option.value.to_owned()));
        let ok = |driver: &str, key: &str, value: &str| Some((driver.to_owned(), key.to_owned(), value.to_owned()));
        assert_eq!(case("overlay.mountopt=nodev,metacopy=on").ok(), ok("overlay", "mountopt", "nodev,metacopy=on"));
        assert_eq!(case(" OVERLAY.Sync = x ").ok(), ok("overlay", "sync", "x"));
        assert_eq!(case("size=10G").ok(), ok("", "size", "10G"));
        assert_eq!(case(".size=10G").ok(), ok("", "size", "10G"));
        assert_eq!(case("vfs.vfs.sync=filesystem").ok(), ok("vfs", "sync", "filesystem"));
        assert_eq!(case("vfs..sync=filesystem").ok(), ok("vfs", "sync", "filesystem"));
        assert!(case("nonsense").is_err() && case("aufs.x=1").is_err());
    }

    #[test]
    fn sizes_are_read_in_binary_units() {
        let size = |value| DriverOption { driver: String::new(), key: "size".into(), value }.bytes();
        for (text, bytes) in [("10", 10), ("1k", 1024), ("2 MiB", 2 << 20), ("1.5g", 3 << 29), ("3TB", 3 << 40)] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "x", "-1", "1q", "99999999999P"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
