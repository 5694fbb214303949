//! Streams into the store, and progress bars on a terminal.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::{AsyncRead, ReadBuf};

use crate::call::Call;
use crate::mflag::Flag;
use crate::outcome::{CommandError, file_failure};
use crate::text::system_error;

/// Shorter streams get no progress bar.
const WORTH_A_BAR: u64 = 16 << 20;

/// Most bytes of one read.
const CHUNK: usize = 256 * 1024;

/// A file or standard input as a stream.
///
/// A read blocks the thread of the runtime. The command runs no other task on it, and the library unpacks on threads of
/// its own.
pub(crate) struct Input {
    /// In errors.
    path: String,
    source: Box<dyn Read + Send>,
    bar: ProgressBar,
}

impl Input {
    /// The file that a flag names, or else standard input.
    pub(crate) fn open(call: &Call, flag: &Flag, what: &'static str) -> Result<Self, CommandError> {
        let path = call.flags.text(flag);
        if path.is_empty() {
            return Ok(Self {
                path: "/dev/stdin".into(),
                source: Box::new(io::stdin()),
                bar: bar(None, what),
            });
        }
        let file = File::open(path).map_err(|error| file_failure("open", path, &error))?;
        let size = file.metadata().ok().filter(std::fs::Metadata::is_file);
        Ok(Self {
            bar: bar(size.map(|meta| meta.len()), what),
            path: path.into(),
            source: Box::new(file),
        })
    }
}

impl AsyncRead for Input {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining().min(CHUNK);
        let unfilled = buffer.initialize_unfilled_to(room);
        let count = loop {
            match self.source.read(unfilled) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => break count,
                Err(error) => {
                    let text = format!("read {}: {}", self.path, system_error(&error));
                    return Poll::Ready(Err(io::Error::new(error.kind(), text)));
                }
            }
        };
        buffer.advance(count);
        self.bar.inc(count as u64);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A progress bar for `size` bytes, or for an unknown number. Hidden unless standard error is a terminal.
pub(crate) fn bar(size: Option<u64>, what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() || size.is_some_and(|size| size < WORTH_A_BAR) {
        return ProgressBar::hidden();
    }
    let template = match size {
        Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {eta}",
        None => "{msg} {spinner} {bytes} {bytes_per_sec}",
    };
    let bar = size.map_or_else(ProgressBar::no_length, ProgressBar::new);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

/// A spinner for a step of unknown length. Hidden unless standard error is a terminal.
pub(crate) fn spinner(what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
