//! Running the program `zfs`.

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::driver::program::{Printed, limit_files};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::sys::child;

/// How long a command may take. It holds up everybody who waits for the lock of the layers; a busy pool takes its time.
const LIMIT: Duration = Duration::from_secs(120);

/// What part of that time a command has after one that did not end: to undo what was begun takes several commands, and nobody may
/// answer any of them.
const SHORTER: u32 = 12;

/// Most bytes that a command may print: a list of some 300,000 datasets.
const MAX_OUTPUT: u64 = 64 * 1024 * 1024;

/// A program, which each call starts anew.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
    limit: Duration,
    /// The last command has not ended.
    is_silent: Arc<AtomicBool>,
}

/// A command that has failed, and what the program says.
#[derive(Debug)]
pub(super) struct Refusal {
    what: String,
    status: ExitStatus,
    said: String,
}

impl Refusal {
    fn says(&self, text: &str) -> bool {
        self.said.contains(text)
    }

    /// There is no such dataset, or not any more.
    pub(super) fn is_missing(&self) -> bool {
        self.says("dataset does not exist") || self.says("could not find any snapshots to destroy")
    }

    /// The dataset that was to be made is there.
    pub(super) fn is_there(&self) -> bool {
        self.says("dataset already exists")
    }

    /// The dataset is mounted, or a file in it is open.
    pub(super) fn is_busy(&self) -> bool {
        self.says("is busy")
    }

    /// Other datasets are clones of the dataset.
    pub(super) fn has_clones(&self) -> bool {
        self.says("dependent clones")
    }

    /// The dataset that was to be promoted depends on no other one.
    pub(super) fn is_no_clone(&self) -> bool {
        self.says("not a cloned filesystem")
    }

    /// The property `mountpoint` keeps the program from mounting the dataset.
    pub(super) fn has_no_mountpoint(&self) -> bool {
        self.says("legacy mountpoint") || self.says("no mountpoint set")
    }

    /// It is mounted already.
    pub(super) fn is_mounted(&self) -> bool {
        self.says("already mounted")
    }
}

impl Refusal {
    /// The error, for a caller who can do nothing about it.
    pub(super) fn into_error(self) -> Error {
        let Self { what, status, said } = &self;
        let text = format!("{what} failed ({status}): {said}");
        let kind = match () {
            () if self.says("out of space") => io::ErrorKind::StorageFull,
            () if self.says("quota exceeded") => io::ErrorKind::QuotaExceeded,
            () if self.is_busy() => io::ErrorKind::ResourceBusy,
            () if self.is_missing() => io::ErrorKind::NotFound,
            () if self.says("permission denied") => io::ErrorKind::PermissionDenied,
            () => return ErrorKind::Io.err(text),
        };
        Error::io("asking zfs", io::Error::new(kind, text))
    }
}

impl Program {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            limit: LIMIT,
            is_silent: Arc::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The program `name` in the same directory.
    pub(super) fn beside(&self, name: &str) -> Self {
        Self {
            path: self.path.with_file_name(name),
            limit: self.limit,
            is_silent: Arc::clone(&self.is_silent),
        }
    }

    /// Runs a command, and returns what it prints.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String> {
        self.ask(arguments)?.map_err(Refusal::into_error)
    }

    /// As [`Program::run`], for a caller who looks at why the program refuses.
    pub(super) fn ask(&self, arguments: &[&str]) -> Result<Result<String, Refusal>> {
        let what = || format!("{} {}", self.path.display(), arguments.join(" "));
        tracing::debug!(program = %self.path.display(), ?arguments, "running");
        let (printed, mut messages) = (Printed::new()?, Printed::new()?);
        let mut child = Command::new(&self.path)
            .args(arguments)
            // Messages are looked at.
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(printed.end()?)
            .stderr(messages.end()?)
            .spawn()
            .at("starting", &self.path)?;
        limit_files(&mut child, MAX_OUTPUT)?;
        let limit = match self.is_silent.load(Ordering::Relaxed) {
            true => self.limit / SHORTER,
            false => self.limit,
        };
        let ended = child::wait(&mut child, limit);
        let is_late = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
        self.is_silent
            .store(ended.as_ref().is_err_and(is_late), Ordering::Relaxed);
        let status = ended
            .map_err(|error| Error::io(format!("waiting for {} ({})", what(), messages.messages()), error))?;
        if !status.success() && printed.is_shorter(MAX_OUTPUT) {
            return Ok(Err(Refusal {
                what: what(),
                status,
                said: messages.messages(),
            }));
        }
        let printed = printed.read(MAX_OUTPUT).during("reading what zfs has printed")?;
        let Some(printed) = printed else {
            return Err(ErrorKind::Io.err(format!("{} prints more than {MAX_OUTPUT} bytes", what())));
        };
        match String::from_utf8(printed) {
            Ok(text) => Ok(Ok(text)),
            Err(_not_text) => Err(self.garbage(arguments, "bytes that are no text")),
        }
    }

    /// The error for a command that prints something else than what was asked for.
    pub(super) fn garbage(&self, arguments: &[&str], printed: &str) -> Error {
        let printed: String = printed.chars().take(200).collect();
        let command = arguments.join(" ");
        ErrorKind::Io.err(format!(
            "{} {command} prints something that was not asked for: {printed:?}",
            self.path.display()
        ))
    }
}
