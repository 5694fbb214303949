//! Driver option strings, `[driver.]key=value`, as they come from `storage.conf` and the command line. Pure but for
//! the directories of additional stores, which must exist.

use std::path::{Path, PathBuf};

use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::clean_path;

/// Every driver name that may stand before the dot. Not all of them can be opened.
pub(crate) const DRIVER_NAMES: [&str; 5] = ["overlay", "overlay2", "btrfs", "zfs", "vfs"];

/// One parsed option string.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OptionString<'a> {
    /// The driver that it is for; empty: any.
    pub(crate) driver: String,
    pub(crate) key: String,
    pub(crate) value: &'a str,
    pub(crate) whole: &'a str,
}

/// An additional layer store: a directory in which another program offers layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerStore {
    /// Its directory.
    pub(crate) path: PathBuf,
    /// Layers are found by the reference of their image, too.
    pub(crate) with_reference: bool,
}

impl<'a> OptionString<'a> {
    pub(crate) fn parse(whole: &'a str) -> Result<Self> {
        let Some((key, value)) = whole.split_once('=') else {
            return Err(ErrorKind::InvalidInput.err(format!(
                "unable to parse key/value option: {whole:?} has no value"
            )));
        };
        let key = key.trim().to_lowercase();
        let (driver, key) = match key.split_once('.') {
            None => (String::new(), key),
            Some((driver, key)) => (driver.to_owned(), key.to_owned()),
        };
        if !driver.is_empty() && !DRIVER_NAMES.contains(&driver.as_str()) {
            return Err(ErrorKind::InvalidInput.err(format!("unknown driver {driver:?} in option {whole:?}")));
        }
        Ok(Self {
            driver,
            key,
            value: value.trim(),
            whole,
        })
    }

    /// The additional layer stores of a comma-separated list, each `PATH` or `PATH:ref`, which must exist.
    pub(crate) fn layer_stores(&self) -> Result<Vec<LayerStore>> {
        if self.value.is_empty() {
            return Ok(Vec::new());
        }
        self.value
            .split(',')
            .map(|entry| self.layer_store(entry))
            .collect()
    }

    fn layer_store(&self, entry: &str) -> Result<LayerStore> {
        let mut parts = entry.split(':');
        let path = Path::new(parts.next().unwrap_or_default());
        if !path.is_absolute() {
            let path = match path.as_os_str().is_empty() {
                true => Path::new("."),
                false => path,
            };
            let what = format!("additionallayerstore path {path:?} is not absolute.  Can not be relative");
            return Err(self.invalid(&what));
        }
        let path = clean_path(path).at("making absolute", path)?;
        let stat = std::fs::metadata(&path).at("can't stat additionallayerstore dir:", &path)?;
        if !stat.is_dir() {
            return Err(self.invalid(&format!("additionallayerstore path {path:?} must be a directory")));
        }
        let mut store = LayerStore {
            path,
            with_reference: false,
        };
        for suffix in parts {
            if suffix != "ref" {
                let path = &store.path;
                let what = format!("additionallayerstore config {path:?} contains unknown option {suffix:?}");
                return Err(self.invalid(&what));
            }
            if std::mem::replace(&mut store.with_reference, true) {
                let path = &store.path;
                let what =
                    format!("additionallayerstore config of {path:?} contains {suffix:?} option twice");
                return Err(self.invalid(&what));
            }
        }
        Ok(store)
    }

    pub(crate) fn invalid(&self, reason: &str) -> crate::error::Error {
        ErrorKind::InvalidInput.err(format!("driver option {:?}: {reason}", self.whole))
    }

    /// For a value that is not of the option's type.
    pub(crate) fn unparsed(&self, reason: &str) -> crate::error::Error {
        self.invalid(&format!("parsing {:?}: invalid syntax ({reason})", self.value))
    }

    pub(crate) fn unknown(&self) -> crate::error::Error {
        ErrorKind::InvalidInput.err(format!("unknown option {:?} ({:?})", self.key, self.whole))
    }

    pub(crate) fn boolean(&self) -> Result<bool> {
        parse_bool(self.value).ok_or_else(|| self.unparsed("neither true nor false"))
    }

    pub(crate) fn sync(&self) -> Result<bool> {
        match self.value.to_lowercase().as_str() {
            "" | "none" => Ok(false),
            "filesystem" => Ok(true),
            _ => {
                let text = format!(
                    "invalid sync mode: {:?} (neither \"none\" nor \"filesystem\")",
                    self.value
                );
                Err(self.invalid(&text))
            }
        }
    }

    /// The path of a program, which must exist; `None` if empty.
    pub(crate) fn program(&self) -> Result<Option<PathBuf>> {
        if self.value.is_empty() {
            return Ok(None);
        }
        let path = Path::new(self.value);
        // It is started in another directory.
        if !path.is_absolute() {
            return Err(self.invalid("path is not absolute"));
        }
        if !std::fs::metadata(path)
            .at("looking for mount program", path)?
            .is_file()
        {
            return Err(self.invalid("not a file"));
        }
        Ok(Some(path.to_owned()))
    }

    /// A mode by name or in octal; `None` if empty.
    pub(crate) fn mask(&self) -> Result<Option<u32>> {
        match self.value {
            "" => Ok(None),
            "shared" => Ok(Some(0o755)),
            "private" => Ok(Some(0o700)),
            octal => u32::from_str_radix(octal, 8)
                .ok()
                // Set-ID bits on every file would be dangerous, and the owner needs all permissions to work with a
                // store.
                .filter(|mode| mode & !0o777 == 0 && mode & 0o700 == 0o700)
                .map(Some)
                .ok_or_else(|| {
                    self.unparsed(
                        "neither \"shared\", \"private\" nor an octal mode that gives the owner everything",
                    )
                }),
        }
    }

    /// The directories of a comma-separated list, in normal form.
    pub(crate) fn directories(&self, check: bool) -> Result<Vec<PathBuf>> {
        let paths = self.value.split(',').filter(|path| !path.is_empty());
        paths.map(|path| self.directory(Path::new(path), check)).collect()
    }

    fn directory(&self, path: &Path, check: bool) -> Result<PathBuf> {
        if !path.is_absolute() {
            return Err(self.invalid(&format!("image path {path:?} is not absolute")));
        }
        let path = clean_path(path).at("making absolute", path)?;
        if check
            && !std::fs::metadata(&path)
                .at("looking for additional image store", &path)?
                .is_dir()
        {
            return Err(self.invalid("not a directory"));
        }
        Ok(path)
    }
}

/// The mount options that driver option strings set for a driver: the value of the first `mountopt` that is for this
/// driver or for any, split at its commas.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a string that is no driver option.
///
/// ```
/// let options = ["vfs.mountopt=ro".to_owned(), "overlay.mountopt=nodev,metacopy=on".to_owned()];
/// assert_eq!(graphroot::compat::mount_options("overlay", &options)?, ["nodev", "metacopy=on"]);
/// # Ok::<(), graphroot::Error>(())
/// ```
pub fn mount_options(driver: &str, driver_options: &[String]) -> Result<Vec<String>> {
    for option in driver_options {
        let option = OptionString::parse(option)?;
        if option.key == "mountopt" && (option.driver.is_empty() || option.driver == driver) {
            return Ok(option.value.split(',').map(str::to_owned).collect());
        }
    }
    Ok(Vec::new())
}

/// Reads a truth value, in the spellings that the Go library accepts.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Reads a size: a number, perhaps with a fraction, one optional space, and an optional suffix `b`, or one of `kmgtp`
/// with an optional `b` or `ib`; all are powers of 1024.
pub(crate) fn ram_in_bytes(text: &str) -> Option<u64> {
    let digits = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, suffix) = text.split_at(digits + 1);
    let number = number.strip_suffix(' ').unwrap_or(number);
    if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let suffix = suffix.to_ascii_lowercase();
    let (power, rest) = match suffix.as_bytes() {
        [] | [b'b'] => (0, &[][..]),
        [unit, rest @ ..] => (1 + b"kmgtp".iter().position(|known| known == unit)?, rest),
    };
    if !matches!(rest, b"" | b"b" | b"ib") {
        return None;
    }
    let scale = 1_u64.checked_shl(10 * u32::try_from(power).ok()?)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole = if whole.is_empty() {
        0
    } else {
        whole.parse::<u64>().ok()?
    };
    let part = fraction_of(scale, fraction);
    let total = whole.checked_mul(scale)?.checked_add(part)?;
    // The Go library's sizes are signed.
    i64::try_from(total).is_ok().then_some(total)
}

/// `scale` times `0.FRACTION`, rounded down.
fn fraction_of(scale: u64, fraction: &str) -> u64 {
    // More digits than these make no difference to a 64-bit result.
    let (mut numerator, mut denominator) = (0_u128, 1_u128);
    for digit in fraction.bytes().take(19) {
        numerator = numerator * 10 + u128::from(digit - b'0');
        denominator *= 10;
    }
    u64::try_from(u128::from(scale) * numerator / denominator).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        let cases = [
            ("32", Some(32)),
            ("32b", Some(32)),
            ("32 B", Some(32)),
            ("1k", Some(1024)),
            ("1 KiB", Some(1024)),
            ("1kb", Some(1024)),
            ("1.5G", Some(3 << 29)),
            (".5k", Some(512)),
            ("2.k", Some(2048)),
            ("0.0001k", Some(0)),
            ("3t", Some(3 << 40)),
            ("8191p", Some(8191 << 50)),
            ("8192p", None),
            ("99999999999999999999", None),
            ("", None),
            ("k", None),
            (".", None),
            ("-1", None),
            ("1.2.3", None),
            ("1x", None),
            ("1kib2", None),
            ("1bb", None),
            ("1kx", None),
            ("1  k", None),
        ];
        for (text, expected) in cases {
            assert_eq!(ram_in_bytes(text), expected, "{text:?}");
        }
    }
}
