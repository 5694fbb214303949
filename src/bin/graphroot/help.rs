//! Usage texts: those of containers-storage, then what graphroot adds (examples, extra commands).

use std::io::IsTerminal as _;

use crate::command::{Command, PROGRAM_NAME};
use crate::mflag::Flags;
use crate::outcome::CommandError;
use crate::output::Output;

/// Why a usage text is printed, which decides where its parts go. The first two are as in containers-storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// A mistake in the arguments: the table of flags goes to standard error.
    Mistake,
    /// A flag such as `--help`: with examples. The table of a command's flags goes to standard error.
    HelpFlag,
    /// The command `help`: with examples, everything on standard output.
    HelpCommand,
}

/// Prints usage texts.
#[derive(Debug)]
pub(crate) struct Help<'a> {
    /// The path or name by which the program was called.
    called_as: &'a str,
    /// The name in usage texts.
    name: &'static str,
    commands: &'static [Command],
    extra_commands: &'static [Command],
    home: String,
    bold: bool,
}

impl<'a> Help<'a> {
    pub(crate) fn new(
        program: &'a str,
        commands: &'static [Command],
        extra_commands: &'static [Command],
    ) -> Self {
        // Called as `containers-storage`, the program prints the usage of that one, without additions.
        let replaces = program.rsplit('/').next() == Some("containers-storage");
        Self {
            called_as: program,
            name: if replaces {
                "containers-storage"
            } else {
                PROGRAM_NAME
            },
            commands,
            extra_commands,
            home: std::env::var("HOME").unwrap_or_default(),
            bold: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// The line that refers to the help after a wrong flag.
    pub(crate) fn hint(&self, what: &str) -> String {
        let what = if what == PROGRAM_NAME { self.name } else { what };
        if self.called_as == what {
            format!("See '{} --help'.", self.called_as)
        } else {
            format!("See '{} {what} --help'.", self.called_as)
        }
    }

    fn heading(&self, text: &str) -> String {
        if self.bold {
            format!("\u{1b}[1m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn called_as(&self) -> &str {
        self.called_as
    }

    /// Whether the usage has examples, extra commands and hints that containers-storage does not have.
    pub(crate) fn has_additions(&self) -> bool {
        self.name == PROGRAM_NAME
    }

    /// The program's usage.
    pub(crate) fn program(
        &self,
        out: &mut Output,
        flags: &Flags,
        occasion: Occasion,
    ) -> Result<(), CommandError> {
        let usage = self.heading("Usage:");
        out.line(format!("{usage} {} command [options [...]]\n", self.name))?;
        out.line(format!("{}\n", self.heading("Commands:")))?;
        for command in self.commands {
            Self::row(out, command)?;
        }
        if self.has_additions() {
            out.line(format!("\n{}\n", self.heading("Extra commands:")))?;
            for command in self.extra_commands {
                Self::row(out, command)?;
            }
        }
        out.line(format!("\n{}", self.heading("Options:")))?;
        self.table(out, flags, occasion != Occasion::Mistake)
    }

    fn row(out: &mut Output, command: &Command) -> Result<(), CommandError> {
        let name = command.names.first().copied().unwrap_or_default();
        out.line(format!("  {name:<30}{}", command.usage))
    }

    /// A command's usage.
    pub(crate) fn command(
        &self,
        out: &mut Output,
        name: &str,
        command: &Command,
        flags: &Flags,
        occasion: Occasion,
    ) -> Result<(), CommandError> {
        let usage = self.heading("Usage:");
        out.line(format!("{usage} {} {name} {}\n", self.name, command.arguments))?;
        out.line(command.usage)?;
        if occasion != Occasion::Mistake && self.has_additions() {
            for (number, note) in command.notes.iter().enumerate() {
                let gap = if number == 0 { "\n" } else { "" };
                out.line(format!("{gap}{note}"))?;
            }
            if !command.examples.is_empty() {
                out.line(format!("\n{}\n", self.heading("Examples:")))?;
            }
            for example in command.examples {
                out.line(format!("  {example}"))?;
            }
        }
        out.line(format!("\n{}", self.heading("Options:")))?;
        self.table(out, flags, occasion == Occasion::HelpCommand)
    }

    fn table(&self, out: &mut Output, flags: &Flags, on_stdout: bool) -> Result<(), CommandError> {
        let table = flags.table(&self.home);
        if on_stdout {
            out.raw(table.as_bytes())
        } else {
            out.stderr_line(table.trim_end_matches('\n'))
        }
    }
}
