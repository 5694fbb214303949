//! Driver option strings, `[driver.]key=value`, as they come from `storage.conf` and the command line. Pure but for
//! the directories of additional stores, which must exist.

use std::path::{Path, PathBuf};

use crate::error::{ErrorKind, IoContext as _, Result};

/// Every driver name that may stand before the dot. Not all of them can be opened.
pub(crate) const DRIVER_NAMES: [&str; 5] = ["overlay", "overlay2", "btrfs", "zfs", "vfs"];

/// One option string, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct OptionString<'a> {
    /// Which driver it is for; empty: whichever is opened.
    driver: String,
    key: String,
    value: &'a str,
    whole: &'a str,
}

impl<'a> OptionString<'a> {
    fn parse(whole: &'a str) -> Result<Self> {
        let Some((key, value)) = whole.split_once('=') else {
            return Err(ErrorKind::InvalidInput.err(format!("driver option {whole:?} without a value")));
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

    fn invalid(&self, reason: &str) -> crate::error::Error {
        ErrorKind::InvalidInput.err(format!("driver option {:?}: {reason}", self.whole))
    }

    fn unknown(&self) -> crate::error::Error {
        ErrorKind::InvalidInput.err(format!("unknown driver option {:?} ({:?})", self.key, self.whole))
    }

    /// For options that exist but that this library does not carry out.
    fn unsupported(&self) -> crate::error::Error {
        ErrorKind::NotSupported.err(format!("driver option {:?}", self.whole))
    }

    fn boolean(&self) -> Result<bool> {
        parse_bool(self.value).ok_or_else(|| self.invalid("neither true nor false"))
    }

    fn sync(&self) -> Result<bool> {
        match self.value.to_lowercase().as_str() {
            "" | "none" => Ok(false),
            "filesystem" => Ok(true),
            _ => Err(self.invalid("neither \"none\" nor \"filesystem\"")),
        }
    }

    /// The path of a program, which must exist; `None` if empty.
    fn program(&self) -> Result<Option<PathBuf>> {
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
    fn mask(&self) -> Result<Option<u32>> {
        match self.value {
            "" => Ok(None),
            "shared" => Ok(Some(0o755)),
            "private" => Ok(Some(0o700)),
            octal => u32::from_str_radix(octal, 8)
                .ok()
                // Set-ID bits for everything would be dangerous, and without its own permissions nobody could work
                // with a store.
                .filter(|mode| mode & !0o777 == 0 && mode & 0o700 == 0o700)
                .map(Some)
                .ok_or_else(|| {
                    self.invalid(
                        "neither \"shared\", \"private\" nor an octal mode that gives the owner everything",
                    )
                }),
        }
    }

    /// The directories of a comma-separated list, in normal form.
    fn directories(&self, check: bool) -> Result<Vec<PathBuf>> {
        let paths = self.value.split(',').filter(|path| !path.is_empty());
        paths.map(|path| self.directory(Path::new(path), check)).collect()
    }

    fn directory(&self, path: &Path, check: bool) -> Result<PathBuf> {
        if !path.is_absolute() {
            return Err(self.invalid("path is not absolute"));
        }
        if check
            && !std::fs::metadata(path)
                .at("looking for additional image store", path)?
                .is_dir()
        {
            return Err(self.invalid("not a directory"));
        }
        // Rebuilt from its components: without doubled or trailing slashes and `.`.
        Ok(path.components().collect())
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
/// assert_eq!(graphroot::mount_options("overlay", &options)?, ["nodev", "metacopy=on"]);
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

/// What the overlay driver can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OverlayOptions {
    /// Mount options, joined by commas, used where the caller has none.
    pub(super) mount_options: String,
    /// Leave the driver's directory as it is instead of making it a private mount.
    pub(super) skip_mount_home: bool,
    /// Default quota of containers' layers, in bytes; 0 is none.
    pub(super) size: u64,
    /// Default quota of containers' layers, in inodes; 0 is none.
    pub(super) inodes: u64,
    /// Roots of additional image stores.
    pub(super) image_stores: Vec<PathBuf>,
    /// Go on when an owner cannot be set.
    pub(super) ignore_chown_errors: bool,
    /// Sync the whole file system before records are saved.
    pub(super) sync_filesystem: bool,
    /// Mounts layers in place of the kernel (fuse-overlayfs).
    pub(super) mount_program: Option<PathBuf>,
    /// Mode of every file; owners, types and real modes are kept in an attribute.
    pub(super) force_mask: Option<u32>,
}

impl OverlayOptions {
    /// Reads the options that are for this driver.
    pub(super) fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            let option = OptionString::parse(option)?;
            if !matches!(option.driver.as_str(), "" | "overlay" | "overlay2") {
                continue;
            }
            match option.key.as_str() {
                "override_kernel_check" => tracing::debug!("driver option {:?} has no effect", option.whole),
                "mountopt" => option.value.clone_into(&mut parsed.mount_options),
                "size" => {
                    parsed.size = ram_in_bytes(option.value).ok_or_else(|| option.invalid("not a size"))?;
                }
                "inodes" => {
                    let not_a_number =
                        |error: std::num::ParseIntError| option.invalid("not a number").with_source(error);
                    parsed.inodes = option.value.parse().map_err(not_a_number)?;
                }
                "imagestore" | "additionalimagestore" => {
                    parsed.image_stores.extend(option.directories(true)?);
                }
                "skip_mount_home" => parsed.skip_mount_home = option.boolean()?,
                "ignore_chown_errors" => parsed.ignore_chown_errors = option.boolean()?,
                "sync" => parsed.sync_filesystem = option.sync()?,
                "use_composefs" if !option.boolean()? => {}
                "mount_program" => parsed.mount_program = option.program()?,
                "force_mask" => parsed.force_mask = option.mask()?,
                "additionallayerstore" if option.value.is_empty() => {}
                "use_composefs" | "additionallayerstore" => return Err(option.unsupported()),
                _ => return Err(option.unknown()),
            }
        }
        Ok(parsed)
    }
}

/// What the vfs driver can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VfsOptions {
    /// Roots of additional image stores.
    pub(super) image_stores: Vec<PathBuf>,
    /// Go on when an owner cannot be set.
    pub(super) ignore_chown_errors: bool,
    /// Sync the whole file system before records are saved.
    pub(super) sync_filesystem: bool,
}

impl VfsOptions {
    /// Reads the options that are for this driver.
    pub(super) fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            let option = OptionString::parse(option)?;
            if !matches!(option.driver.as_str(), "" | "vfs") {
                continue;
            }
            match option.key.as_str() {
                "imagestore" | "additionalimagestore" => {
                    parsed.image_stores.extend(option.directories(false)?);
                }
                "ignore_chown_errors" => parsed.ignore_chown_errors = option.boolean()?,
                // Compat: the Go library reads this option only with its prefix twice, `vfs.vfs.sync` or `vfs..sync`.
                "sync" | ".sync" | "vfs.sync" => parsed.sync_filesystem = option.sync()?,
                "mountopt" => return Err(option.invalid("the vfs driver has no mount options")),
                _ => return Err(option.unknown()),
            }
        }
        Ok(parsed)
    }
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

    fn overlay(options: &[&str]) -> Result<OverlayOptions> {
        OverlayOptions::parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn vfs(options: &[&str]) -> Result<VfsOptions> {
        VfsOptions::parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn options_reach_the_driver_that_they_are_for() {
        let parsed = overlay(&[
            "mountopt = nodev,metacopy=on ",
            "OVERLAY.SYNC=FileSystem",
            "overlay2.skip_mount_home=T",
        ]);
        let parsed = parsed.unwrap();
        assert_eq!(parsed.mount_options, "nodev,metacopy=on");
        assert!(parsed.sync_filesystem && parsed.skip_mount_home && !parsed.ignore_chown_errors);
        assert_eq!(
            overlay(&["vfs.nonsense=1", "btrfs.min_space=1"]).unwrap(),
            OverlayOptions::default()
        );
        assert!(overlay(&[".ignore_chown_errors=1"]).unwrap().ignore_chown_errors);
        for spelling in ["vfs.sync", "sync", "vfs..sync", "vfs.vfs.sync"] {
            assert!(
                vfs(&[&format!("{spelling}=filesystem")]).unwrap().sync_filesystem,
                "{spelling}"
            );
        }
    }

    #[test]
    fn what_is_unknown_or_cannot_be_done_is_refused_by_name() {
        let cases = [
            ("overlay.nonsense=1", ErrorKind::InvalidInput),
            ("nonsense=1", ErrorKind::InvalidInput),
            ("aufs.x=1", ErrorKind::InvalidInput),
            ("overlay.mountopt", ErrorKind::InvalidInput),
            ("overlay.sync=always", ErrorKind::InvalidInput),
            ("overlay.skip_mount_home=yes", ErrorKind::InvalidInput),
            ("overlay.size=-1", ErrorKind::InvalidInput),
            ("overlay.inodes=x", ErrorKind::InvalidInput),
            ("overlay.imagestore=relative", ErrorKind::InvalidInput),
            ("overlay.imagestore=/proc/version", ErrorKind::InvalidInput),
            ("overlay.imagestore=/does/not/exist", ErrorKind::Io),
            ("overlay.mount_program=/does/not/exist", ErrorKind::Io),
            ("overlay.mount_program=fuse-overlayfs", ErrorKind::InvalidInput),
            ("overlay.mount_program=/", ErrorKind::InvalidInput),
            ("overlay.force_mask=rwx", ErrorKind::InvalidInput),
            ("overlay.force_mask=4755", ErrorKind::InvalidInput),
            ("overlay.force_mask=0444", ErrorKind::InvalidInput),
            ("overlay.use_composefs=true", ErrorKind::NotSupported),
            ("overlay.additionallayerstore=/x", ErrorKind::NotSupported),
        ];
        for (option, kind) in cases {
            let error = overlay(&[option]).unwrap_err();
            assert_eq!(error.kind(), kind, "{option}");
            let named = option.split('=').next().unwrap().trim_start_matches("overlay.");
            assert!(
                error.chain().contains(named) || kind == ErrorKind::Io,
                "{}",
                error.chain()
            );
        }
        assert!(overlay(&["mount_program=", "use_composefs=false", "force_mask="]).is_ok());
        assert!(
            vfs(&["mountopt=nodev"])
                .unwrap_err()
                .chain()
                .contains("mount options")
        );
        assert_eq!(vfs(&["size=1g"]).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_mount_program_is_a_file_and_a_mask_has_names() {
        let parsed = overlay(&["overlay.mount_program=/proc/version", "overlay.force_mask=shared"]).unwrap();
        assert_eq!(parsed.mount_program, Some(PathBuf::from("/proc/version")));
        assert_eq!(parsed.force_mask, Some(0o755));
        for (text, mask) in [("private", 0o700), ("0711", 0o711), ("750", 0o750)] {
            let parsed = overlay(&[&format!("force_mask={text}")]).unwrap();
            assert_eq!(parsed.force_mask, Some(mask), "{text}");
        }
    }

    #[test]
    fn image_stores_add_up_in_normal_form() {
        let parsed = overlay(&[
            "imagestore=/usr//,/etc/.",
            "overlay.imagestore=",
            "additionalimagestore=/var",
        ])
        .unwrap();
        assert_eq!(parsed.image_stores, ["/usr", "/etc", "/var"].map(PathBuf::from));
    }

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
