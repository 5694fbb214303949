//! What a command is made of. The table of all commands is in `commands`.

use std::pin::Pin;

use crate::call::Call;
use crate::mflag::Flag;
use crate::outcome::Outcome;
use crate::output::Output;

/// The name of the program in usage texts, completion scripts and manual pages.
pub(crate) const PROGRAM_NAME: &str = "graphroot";

/// The future of a running command.
pub(crate) type CommandFuture<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// A command.
#[derive(Debug)]
pub(crate) struct Command {
    /// The name, then the aliases.
    pub(crate) names: &'static [&'static str],
    /// The arguments as the usage shows them.
    pub(crate) arguments: &'static str,
    /// What it does, in one line.
    pub(crate) usage: &'static str,
    pub(crate) min_args: usize,
    /// `None`: no limit.
    pub(crate) max_args: Option<usize>,
    /// The flags besides the global arguments.
    pub(crate) flags: &'static [Flag],
    /// Lines for a shell.
    pub(crate) examples: &'static [&'static str],
    /// What else a user has to know, in lines.
    pub(crate) notes: &'static [&'static str],
    /// Whether the store is opened before it runs.
    pub(crate) opens_store: bool,
    pub(crate) run: for<'a> fn(&'a Call, &'a mut Output) -> CommandFuture<'a>,
}
