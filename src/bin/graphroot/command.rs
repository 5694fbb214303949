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
    /// See [`Command::example_lines`].
    pub(crate) examples: &'static [&'static str],
    /// Whether the store is opened before it runs.
    pub(crate) opens_store: bool,
    pub(crate) run: for<'a> fn(&'a Call, &'a mut Output) -> CommandFuture<'a>,
}

impl Command {
    /// The examples as lines for a shell. In the table an example that does not name the program is a command's name
    /// and its arguments.
    pub(crate) fn example_lines(&self) -> impl Iterator<Item = String> {
        self.examples.iter().map(|example| {
            if example.contains(PROGRAM_NAME) {
                (*example).to_owned()
            } else {
                format!("{PROGRAM_NAME} {example}")
            }
        })
    }
}
