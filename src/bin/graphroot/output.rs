//! What a command writes: standard output, standard error, and files of data.

use std::fs::File;
use std::io::{self, Write as _};

use serde::Serialize;

use crate::outcome::{CommandError, file_failure};

/// Buffered standard output, and standard error. A line on standard error comes after everything written to standard
/// output before it.
#[derive(Debug, Default)]
pub(crate) struct Output {
    text: Vec<u8>,
}

/// Buffered output is flushed from this many bytes on.
const BUFFER: usize = 64 * 1024;

impl Output {
    /// A line on standard output.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) -> Result<(), CommandError> {
        self.raw(line.as_ref().as_bytes())?;
        self.raw(b"\n")
    }

    /// Bytes on standard output.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        self.text.extend_from_slice(bytes);
        if self.text.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    /// One line of JSON on standard output.
    pub(crate) fn json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CommandError> {
        self.line(graphroot::compat::go_json(value)?)
    }

    /// A list as one line of JSON, `null` if it is empty: the Go program prints a nil slice for some empty lists.
    pub(crate) fn json_or_null<T: Serialize>(&mut self, list: &[T]) -> Result<(), CommandError> {
        if list.is_empty() {
            self.line("null")
        } else {
            self.json(list)
        }
    }

    /// Writes the buffered output.
    pub(crate) fn flush(&mut self) -> Result<(), CommandError> {
        let text = std::mem::take(&mut self.text);
        let mut out = io::stdout().lock();
        let written = out.write_all(&text).and_then(|()| out.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => CommandError::ClosedPipe,
            _ => file_failure("write", "/dev/stdout", &error),
        })
    }

    /// A line on standard error, after the buffered output.
    pub(crate) fn stderr_line(&mut self, line: impl AsRef<str>) -> Result<(), CommandError> {
        self.flush()?;
        stderr_line(line.as_ref());
        Ok(())
    }
}

/// Where a command writes data: the file that a flag names, or standard output.
pub(crate) enum DataOutput<'a> {
    File(File, &'a str),
    Stdout(&'a mut Output),
}

impl<'a> DataOutput<'a> {
    /// Creates or truncates the file at `path`; an empty path stands for standard output.
    pub(crate) fn new(path: &'a str, out: &'a mut Output) -> Result<Self, CommandError> {
        if path.is_empty() {
            return Ok(Self::Stdout(out));
        }
        let file = File::create(path).map_err(|error| file_failure("open", path, &error))?;
        Ok(Self::File(file, path))
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), CommandError> {
        match self {
            Self::File(file, path) => file
                .write_all(data)
                .map_err(|error| file_failure("write", path, &error)),
            Self::Stdout(out) => out.raw(data),
        }
    }
}

/// A line on standard error. A failure is ignored: there is nowhere to report it.
pub(crate) fn stderr_line(line: &str) {
    let _not_written = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}
