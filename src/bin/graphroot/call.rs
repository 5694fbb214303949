//! What a command gets, and how it answers.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::pin::Pin;

use graphroot::{Error, ErrorKind, Store, StoreOptions};
use serde::Serialize;

use crate::mflag::{Flag, Flags};
use crate::table;
use crate::text::system_error;

/// The exit code of a command that did what it was asked to.
pub(crate) const DONE: Outcome = Ok(0);

/// The exit code of a command that has said itself what went wrong, or that found less than it was asked for.
pub(crate) const FAILED: Outcome = Ok(1);

/// How a command ends: with an exit code, or with one line for standard error and 1.
pub(crate) type Outcome = Result<u8, Failure>;

/// A command at work.
pub(crate) type Work<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// One line.
    Said(String),
    /// Whoever read our output has gone.
    Unread,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Said(told(&error))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Said(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self::Said(text.to_owned())
    }
}

/// An error in one line: what was being done to which item, and why. Where the Go library has a fixed text for the kind
/// of error, the line has it too, for scripts that look for it.
pub(crate) fn told(error: &Error) -> String {
    let text = error.chain();
    let kind = error.kind();
    let own = matches!(
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
    if own || text.contains(kind.as_str()) {
        text
    } else {
        format!("{text}: {kind}")
    }
}

/// A failed system call on a file that the user has named.
pub(crate) fn file_failure(action: &str, path: &str, error: &io::Error) -> Failure {
    Failure::Said(format!("{action} {path}: {}", system_error(error)))
}

/// The text of an error where programs read it: the fixed text of its kind if that says it all (the one that the Go
/// program prints), else everything.
pub(crate) fn plain_error(error: &Error) -> String {
    match error.kind() {
        kind @ (ErrorKind::LayerUnknown
        | ErrorKind::NotALayer
        | ErrorKind::NotAnImage
        | ErrorKind::NotAContainer
        | ErrorKind::NotAnId) => kind.as_str().to_owned(),
        _ => told(error),
    }
}

/// One run of a command.
#[derive(Debug)]
pub(crate) struct Call {
    /// The command as it was named.
    pub(crate) name: String,
    pub(crate) flags: Flags,
    /// What followed the flags.
    pub(crate) args: Vec<String>,
    /// Where the store is.
    pub(crate) options: StoreOptions,
    /// The open store; commands that the table marks so do without one.
    store: Option<Store>,
}

impl Call {
    pub(crate) fn new(name: String, flags: Flags, args: Vec<String>, options: StoreOptions) -> Self {
        Self {
            name,
            flags,
            args,
            options,
            store: None,
        }
    }

    /// Opens the store for the command.
    pub(crate) async fn open(&mut self) -> Result<(), Error> {
        let options = self.options.clone();
        self.store = Some(Store::open(options).await?);
        Ok(())
    }

    /// The open store.
    pub(crate) fn store(&self) -> Result<&Store, Failure> {
        self.store
            .as_ref()
            .ok_or_else(|| Failure::from("this command does not open the store"))
    }

    /// Whether JSON is wanted.
    pub(crate) fn json(&self) -> bool {
        self.flags.is_on(&table::JSON)
    }

    /// An argument, empty if there are fewer.
    pub(crate) fn arg(&self, index: usize) -> &str {
        self.args.get(index).map_or("", String::as_str)
    }

    /// An argument that may be left out or empty.
    pub(crate) fn optional(&self, index: usize) -> Option<&str> {
        Some(self.arg(index)).filter(|arg| !arg.is_empty())
    }

    /// Everything in the file that a flag names; `None` without the flag.
    pub(crate) fn read_file(&self, flag: &Flag) -> Result<Option<Vec<u8>>, Failure> {
        let path = self.flags.text(flag);
        if path.is_empty() {
            return Ok(None);
        }
        let mut file = File::open(path).map_err(|error| file_failure("open", path, &error))?;
        let mut data = Vec::new();
        file.read_to_end(&mut data)
            .map_err(|error| file_failure("read", path, &error))?;
        Ok(Some(data))
    }

    /// Everything in the file that a flag names, or on standard input.
    pub(crate) fn read_input(&self, flag: &Flag) -> Result<Vec<u8>, Failure> {
        if let Some(data) = self.read_file(flag)? {
            return Ok(data);
        }
        let mut data = Vec::new();
        io::stdin()
            .lock()
            .read_to_end(&mut data)
            .map_err(|error| file_failure("read", "/dev/stdin", &error))?;
        Ok(data)
    }
}

/// Standard output and standard error, in an order that makes sense on a terminal.
#[derive(Debug, Default)]
pub(crate) struct Out {
    text: Vec<u8>,
}

/// Text is written out when this much has come together.
const BUFFER: usize = 64 * 1024;

impl Out {
    /// A line on standard output.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) -> Result<(), Failure> {
        self.raw(line.as_ref().as_bytes())?;
        self.raw(b"\n")
    }

    /// Bytes on standard output.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.text.extend_from_slice(bytes);
        if self.text.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    /// One line of JSON on standard output.
    pub(crate) fn json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failure> {
        self.line(graphroot::go_json(value)?)
    }

    /// A list as JSON: `null` if it is empty, where the Go program does that.
    pub(crate) fn json_or_null<T: Serialize>(&mut self, list: &[T]) -> Result<(), Failure> {
        if list.is_empty() {
            self.line("null")
        } else {
            self.json(list)
        }
    }

    /// Writes out what has come together.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        let text = std::mem::take(&mut self.text);
        let mut out = io::stdout().lock();
        let written = out.write_all(&text).and_then(|()| out.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Unread,
            _ => file_failure("write", "/dev/stdout", &error),
        })
    }

    /// A line on standard error, after what is on standard output already.
    pub(crate) fn complain(&mut self, line: impl AsRef<str>) -> Result<(), Failure> {
        self.flush()?;
        complain(line.as_ref());
        Ok(())
    }
}

/// A line on standard error. If that cannot be written there is nobody left to tell.
pub(crate) fn complain(line: &str) {
    let _gone = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}
