//! The origin of each value of the configuration, and warnings.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};

/// Where a value came from.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A default.
    Default,
    /// A line of a file.
    File {
        /// The file, as it was opened.
        path: PathBuf,
        /// The line of the key, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
}

impl Origin {
    pub(super) fn file(path: &Path, line: usize) -> Self {
        Self::File {
            path: path.to_owned(),
            line,
        }
    }

    pub(super) fn variable(name: &str) -> Self {
        Self::Environment {
            variable: name.to_owned(),
        }
    }

    /// An error for an invalid value from here.
    pub(super) fn error(&self, key: &str, expected: &str, found: &str) -> Error {
        let problem = format!("{key}: expected {expected}, found {found}");
        match self {
            Self::Default => ErrorKind::InvalidInput.err(problem),
            Self::File { path, line } => ErrorKind::InvalidInput
                .err(format!("line {line}: {problem}"))
                .context("reading storage configuration")
                .at(path),
            Self::Environment { variable } => ErrorKind::InvalidInput
                .err(problem)
                .context(format!("reading environment variable {variable}")),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
        }
    }
}

/// One effective value. A list has one for each element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The key of `storage.conf` with its tables, dotted, such as `storage.options.overlay.mountopt`; for a driver
    /// option that did not come from a file, `driver-options`.
    pub key: String,
    /// Paths are expanded.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?} ({})", self.key, self.value, self.origin)
    }
}

/// A problem of the configuration that does not stop loading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub origin: Origin,
    /// The key or table.
    pub key: String,
    /// The problem.
    pub message: String,
}

impl Warning {
    pub(super) fn new(origin: Origin, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            origin,
            key: key.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.origin, self.key, self.message)
    }
}

/// A text for a message: quoted, and not longer than a line.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    if text.chars().count() <= LONGEST {
        return format!("{text:?}");
    }
    let start: String = text.chars().take(LONGEST).collect();
    format!("{start:?}…")
}
