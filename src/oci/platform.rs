//! Choosing an image of an index by platform.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// What an image runs on, in the words of OCI (and of Go): `OS/ARCHITECTURE[/VARIANT]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub architecture: String,
    /// Variant of the architecture, such as `v7`.
    pub variant: Option<String>,
}

impl Default for Platform {
    /// This machine's.
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: None,
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let whole = parts.iter().all(|part| !part.is_empty());
        match parts[..] {
            [os, architecture] if whole => Ok(Self {
                os: os.into(),
                architecture: architecture.into(),
                variant: None,
            }),
            [os, architecture, variant] if whole => Ok(Self {
                os: os.into(),
                architecture: architecture.into(),
                variant: Some(variant.into()),
            }),
            _ => {
                Err(ErrorKind::InvalidInput
                    .err(format!("platform {text:?}, expected OS/ARCHITECTURE[/VARIANT]")))
            }
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Platform {
    /// How well an image for `offered` runs here: 0 is best, `None` not at all.
    pub(crate) fn rank(&self, offered: &Self) -> Option<usize> {
        if (&self.os, &self.architecture) != (&offered.os, &offered.architecture) {
            return None;
        }
        // Without a variant the usual one is meant; a variant runs images for older ones.
        let (wanted, usual): (&str, &[&str]) = match self.architecture.as_str() {
            "arm" => (self.variant.as_deref().unwrap_or("v7"), &["v8", "v7", "v6", "v5"]),
            "arm64" => (self.variant.as_deref().unwrap_or("v8"), &["v8"]),
            "amd64" => (self.variant.as_deref().unwrap_or("v1"), &["v4", "v3", "v2", "v1"]),
            _ => (self.variant.as_deref().unwrap_or(""), &[]),
        };
        let Some(offered) = offered.variant.as_deref().filter(|variant| !variant.is_empty()) else {
            // An image without a variant runs on all, but one for exactly this variant is better.
            return Some(usual.len() + 1);
        };
        if offered == wanted {
            return Some(0);
        }
        let position = |variant: &str| usual.iter().position(|known| *known == variant);
        let (wanted, offered) = (position(wanted)?, position(offered)?);
        offered.checked_sub(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(wanted: &str, offered: &str) -> Option<usize> {
        let parse = |text: &str| text.parse::<Platform>().unwrap();
        parse(wanted).rank(&parse(offered))
    }

    #[test]
    fn the_best_variant_wins_and_newer_ones_do_not_run() {
        assert_eq!(rank("linux/amd64", "linux/arm64"), None);
        assert_eq!(rank("linux/amd64", "windows/amd64"), None);
        assert!(rank("linux/amd64", "linux/amd64").is_some());
        assert_eq!(rank("linux/amd64", "linux/amd64/v3"), None);
        assert!(rank("linux/amd64/v3", "linux/amd64/v2") < rank("linux/amd64/v3", "linux/amd64"));
        assert_eq!(rank("linux/arm64", "linux/arm64/v8"), Some(0));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), None);
        assert!(rank("linux/arm/v7", "linux/arm/v6").is_some());
        assert_eq!(rank("linux/riscv64", "linux/riscv64/odd"), None);
        assert!("linux".parse::<Platform>().is_err() && "linux//x".parse::<Platform>().is_err());
    }
}
