//! How a command ends: an exit code, or an error with one line for standard error.

use std::error::Error as _;
use std::io;

use graphroot::{Error, ErrorKind};

use crate::text::system_error;

/// The outcome of a command that did everything it was asked to do.
pub(crate) const DONE: Outcome = Ok(0);

/// The outcome of a command that has printed its errors itself, or that did not find everything it was asked for.
pub(crate) const FAILED: Outcome = Ok(1);

/// An exit code, or an error: exit code 1 and one line on standard error.
pub(crate) type Outcome = Result<u8, CommandError>;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// One line for standard error.
    Message(String),
    /// The reader of standard output has closed the pipe.
    ClosedPipe,
}

#[cfg(feature = "pull")]
impl CommandError {
    /// The same error, with what was done when it happened.
    pub(crate) fn context(self, what: &str) -> Self {
        match self {
            Self::Message(line) => Self::Message(format!("{what}: {line}")),
            Self::ClosedPipe => Self::ClosedPipe,
        }
    }
}

impl From<Error> for CommandError {
    fn from(error: Error) -> Self {
        Self::Message(describe(&error))
    }
}

impl From<String> for CommandError {
    fn from(text: String) -> Self {
        Self::Message(text)
    }
}

impl From<&str> for CommandError {
    fn from(text: &str) -> Self {
        Self::Message(text.to_owned())
    }
}

/// An error in one line: what was done to which item, and why it failed. If the Go library has a fixed text for the kind
/// of error, the line contains it, because scripts match on it.
pub(crate) fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        match cause.downcast_ref::<io::Error>() {
            Some(failure) => text.push_str(&system_error(failure)),
            None => text.push_str(&cause.to_string()),
        }
        next = cause.source();
    }
    let kind = error.kind();
    let no_fixed_text = matches!(
        kind,
        ErrorKind::Io
            | ErrorKind::InvalidArchive
            | ErrorKind::DigestMismatch
            | ErrorKind::CorruptMetadata
            | ErrorKind::LockTimeout
            | ErrorKind::UnsafePath
            | ErrorKind::InvalidInput
            | ErrorKind::NotFound
            | ErrorKind::Cancelled
    );
    if no_fixed_text || text.contains(kind.as_str()) {
        text
    } else {
        format!("{text}: {kind}")
    }
}

/// A failure of a stream that the library gave.
pub(crate) fn stream_failure(error: io::Error) -> CommandError {
    match Error::try_from_io(error) {
        Ok(error) => error.into(),
        Err(error) => CommandError::Message(system_error(&error)),
    }
}

/// A failed system call on a file that the user names.
pub(crate) fn file_failure(action: &str, path: &str, error: &io::Error) -> CommandError {
    CommandError::Message(format!("{action} {path}: {}", system_error(error)))
}

/// An error in JSON and behind an argument: only the fixed text that the Go program prints, for kinds whose text is
/// complete without the item; else the whole line.
pub(crate) fn describe_briefly(error: &Error) -> String {
    match error.kind() {
        kind @ (ErrorKind::LayerUnknown
        | ErrorKind::NotALayer
        | ErrorKind::NotAnImage
        | ErrorKind::NotAContainer
        | ErrorKind::NotAnId) => kind.as_str().to_owned(),
        _ => describe(error),
    }
}
