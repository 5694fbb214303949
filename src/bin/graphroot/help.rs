//! Usage texts: those of containers-storage, then what graphroot adds (examples, extra commands).

use std::io::IsTerminal as _;

use crate::command::{Command, PROGRAM_NAME};
use crate::commands::{COMMANDS, EXTRA_COMMANDS};
use crate::mflag::Flags;
use crate::outcome::CommandError;
use crate::output::Output;

/// Prints usage texts.
#[derive(Debug)]
pub(crate) struct Help<'a> {
    /// The path or name by which the program was called.
    called_as: &'a str,
    /// The name in usage texts.
    name: &'static str,
    home: String,
    bold: bool,
}

impl<'a> Help<'a> {
    pub(crate) fn new(program: &'a str) -> Self {
        // Called as `containers-storage`, the program prints the usage of that one, without additions.
        let replaces = program.rsplit('/').next() == Some("containers-storage");
        Self {
            called_as: program,
            name: if replaces {
                "containers-storage"
            } else {
                PROGRAM_NAME
            },
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

    /// The program's usage. The table of flags goes to standard error unless the usage was `asked` for.
    pub(crate) fn program(&self, out: &mut Output, flags: &Flags, asked: bool) -> Result<(), CommandError> {
        let usage = self.heading("Usage:");
        out.line(format!("{usage} {} command [options [...]]\n", self.name))?;
        out.line(format!("{}\n", self.heading("Commands:")))?;
        for command in &COMMANDS {
            Self::row(out, command)?;
        }
        if self.name == PROGRAM_NAME {
            out.line(format!("\n{}\n", self.heading("Extra commands:")))?;
            for command in EXTRA_COMMANDS {
                Self::row(out, command)?;
            }
        }
        out.line(format!("\n{}", self.heading("Options:")))?;
        self.table(out, flags, asked)
    }

    fn row(out: &mut Output, command: &Command) -> Result<(), CommandError> {
        let name = command.names.first().copied().unwrap_or_default();
        out.line(format!("  {name:<30}{}", command.usage))
    }

    /// A command's usage, with examples if it was `asked` for.
    pub(crate) fn command(
        &self,
        out: &mut Output,
        name: &str,
        command: &Command,
        flags: &Flags,
        asked: bool,
    ) -> Result<(), CommandError> {
        let usage = self.heading("Usage:");
        out.line(format!("{usage} {} {name} {}\n", self.name, command.arguments))?;
        out.line(command.usage)?;
        if asked && self.name == PROGRAM_NAME && !command.examples.is_empty() {
            out.line(format!("\n{}\n", self.heading("Examples:")))?;
            for example in command.example_lines() {
                out.line(format!("  {example}"))?;
            }
        }
        out.line(format!("\n{}", self.heading("Options:")))?;
        self.table(out, flags, false)
    }

    fn table(&self, out: &mut Output, flags: &Flags, asked: bool) -> Result<(), CommandError> {
        let table = flags.table(&self.home);
        if asked {
            out.raw(table.as_bytes())
        } else {
            out.stderr_line(table.trim_end_matches('\n'))
        }
    }
}
