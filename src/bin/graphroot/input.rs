//! Streams into the store, with a progress bar for people.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::{AsyncRead, ReadBuf};

use crate::call::{Call, Failure, file_failure};
use crate::mflag::Flag;

/// Streams shorter than this need no bar.
const WORTH_A_BAR: u64 = 16 << 20;

/// Most bytes read at once.
const CHUNK: usize = 256 * 1024;

/// A file or standard input as a stream.
///
/// Reads block the only thread of the runtime. The command has no other task there, and what works on the stream does so
/// on threads of its own.
pub(crate) struct Input {
    source: Box<dyn Read + Send>,
    bar: ProgressBar,
}

impl Input {
    /// The file that a flag names, or else standard input.
    pub(crate) fn open(call: &Call, flag: &Flag, what: &'static str) -> Result<Self, Failure> {
        let path = call.flags.text(flag);
        if path.is_empty() {
            return Ok(Self {
                source: Box::new(io::stdin()),
                bar: bar(None, what),
            });
        }
        let file = File::open(path).map_err(|error| file_failure("open", path, &error))?;
        let size = file.metadata().ok().filter(std::fs::Metadata::is_file);
        Ok(Self {
            bar: bar(size.map(|meta| meta.len()), what),
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
                read => break read?,
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

/// A bar for `size` bytes, or for nobody knows how many. Hidden unless standard error is a terminal.
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

/// Shows that something takes its time; nothing unless standard error is a terminal.
pub(crate) fn spinner(what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
