//! Usage texts. Those of containers-storage's commands are its own; what is added comes after.

use std::io::IsTerminal as _;

use crate::call::{Failure, Out};
use crate::commands::{COMMANDS, EXTRAS};
use crate::mflag::Flags;
use crate::table::Command;

/// The name under which the general flags are parsed.
pub(crate) const OWN_NAME: &str = "graphroot";

/// Prints usage texts.
#[derive(Debug)]
pub(crate) struct Help<'a> {
    /// As the program was called.
    program: &'a str,
    /// As it calls itself.
    name: &'static str,
    home: String,
    bold: bool,
}

impl<'a> Help<'a> {
    pub(crate) fn new(program: &'a str) -> Self {
        // Under the name of what it stands in for it does not give itself away.
        let stands_in = program.rsplit('/').next() == Some("containers-storage");
        Self {
            program,
            name: if stands_in { "containers-storage" } else { OWN_NAME },
            home: std::env::var("HOME").unwrap_or_default(),
            bold: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// Where to look after a mistake.
    pub(crate) fn hint(&self, what: &str) -> String {
        let what = if what == OWN_NAME { self.name } else { what };
        if self.program == what {
            format!("See '{} --help'.", self.program)
        } else {
            format!("See '{} {what} --help'.", self.program)
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
    pub(crate) fn general(&self, out: &mut Out, flags: &Flags, asked: bool) -> Result<(), Failure> {
        let usage = self.heading("Usage:");
        out.line(format!("{usage} {} command [options [...]]\n", self.name))?;
        out.line(format!("{}\n", self.heading("Commands:")))?;
        for command in &COMMANDS {
            Self::row(out, command)?;
        }
        if self.name == OWN_NAME {
            out.line(format!("\n{}\n", self.heading("Commands for people:")))?;
            for command in EXTRAS {
                Self::row(out, command)?;
            }
        }
        out.line(format!("\n{}", self.heading("Options:")))?;
        self.table(out, flags, asked)
    }

    fn row(out: &mut Out, command: &Command) -> Result<(), Failure> {
        let name = command.names.first().copied().unwrap_or_default();
        out.line(format!("  {name:<30}{}", command.usage))
    }

    /// A command's usage, with examples if it was `asked` for.
    pub(crate) fn command(
        &self,
        out: &mut Out,
        name: &str,
        command: &Command,
        flags: &Flags,
        asked: bool,
    ) -> Result<(), Failure> {
        let usage = self.heading("Usage:");
        out.line(format!("{usage} {} {name} {}\n", self.name, command.arguments))?;
        out.line(command.usage)?;
        if asked && self.name == OWN_NAME && !command.examples.is_empty() {
            out.line(format!("\n{}\n", self.heading("Examples:")))?;
            for example in command.examples {
                let shown = if example.contains(OWN_NAME) {
                    (*example).to_owned()
                } else {
                    format!("{OWN_NAME} {example}")
                };
                out.line(format!("  {shown}"))?;
            }
        }
        out.line(format!("\n{}", self.heading("Options:")))?;
        self.table(out, flags, false)
    }

    fn table(&self, out: &mut Out, flags: &Flags, asked: bool) -> Result<(), Failure> {
        let table = flags.table(&self.home);
        if asked {
            out.raw(table.as_bytes())
        } else {
            out.complain(table.trim_end_matches('\n'))
        }
    }
}
