//! Completion scripts and manual pages, generated from the tables of commands and flags.
//!
//! A [`clap::Command`] describes the program to the generators. It parses nothing: see `mflag` for the reason.

use std::io::{self, Write as _};

use clap::{Arg, ArgAction};
use clap_mangen::Man;

use crate::command::{Command, PROGRAM_NAME};
use crate::flags::global;
use crate::mflag::{Flag, FlagKind};
use crate::outcome::CommandError;

fn argument(flag: &Flag) -> Arg {
    let id = flag.names.first().copied().unwrap_or_default();
    let mut argument = Arg::new(id).help(flag.usage).action(match flag.kind {
        FlagKind::Bool => ArgAction::SetTrue,
        FlagKind::Text => ArgAction::Set,
        FlagKind::List => ArgAction::Append,
    });
    if flag.kind != FlagKind::Bool {
        argument = argument.value_name("VALUE");
    }
    let mut first = true;
    for name in flag.spellings() {
        match (name.strip_prefix('-'), name.chars().next()) {
            (Some(long), _) if first => {
                argument = argument.long(long);
                first = false;
            }
            (Some(long), _) => argument = argument.visible_alias(long),
            (None, Some(short)) => argument = argument.short(short),
            (None, None) => {}
        }
    }
    argument
}

fn subcommand(command: &'static Command) -> clap::Command {
    let (name, others) = command.names.split_first().unwrap_or((&"", &[]));
    let mut model = clap::Command::new(*name)
        .about(command.usage)
        .bin_name(format!("{PROGRAM_NAME} {name}"))
        .display_name(format!("{PROGRAM_NAME}-{name}"))
        .disable_help_flag(true)
        .aliases(others);
    if !command.arguments.is_empty() {
        model = model.override_usage(format!("{PROGRAM_NAME} {name} {}", command.arguments));
    }
    command
        .flags
        .iter()
        .fold(model, |model, flag| model.arg(argument(flag)))
}

fn program(commands: impl Iterator<Item = &'static Command>) -> clap::Command {
    let mut model = clap::Command::new(PROGRAM_NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Manage layers, images and containers of a containers/storage store")
        .disable_help_subcommand(true)
        .disable_help_flag(true)
        .disable_version_flag(true);
    for flag in &global::ALL {
        model = model.arg(argument(flag));
    }
    for command in commands {
        let mut command_model = subcommand(command);
        if !command.arguments.is_empty() {
            // Shells complete file names where a command has arguments.
            command_model = command_model.arg(Arg::new("ARGUMENT").num_args(0..));
        }
        model = model.subcommand(command_model);
    }
    model
}

/// A completion script for every command.
pub(crate) fn completions(
    commands: impl Iterator<Item = &'static Command>,
    shell: &str,
) -> Result<Vec<u8>, CommandError> {
    let shell: clap_complete::Shell = shell
        .parse()
        .map_err(|_reason| format!("completions for {shell:?}: not bash, elvish, fish, powershell or zsh"))?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program(commands), PROGRAM_NAME, &mut script);
    Ok(script)
}

/// The manual page of the program.
pub(crate) fn program_page(
    commands: impl Iterator<Item = &'static Command>,
) -> Result<Vec<u8>, CommandError> {
    page(&Man::new(program(commands)), |man, text| man.render(text))
}

/// The manual page of one command.
pub(crate) fn command_page(command: &'static Command) -> Result<Vec<u8>, CommandError> {
    let source = format!("{PROGRAM_NAME} {}", env!("CARGO_PKG_VERSION"));
    page(&Man::new(subcommand(command)).source(source), |man, text| {
        man.render_title(text)?;
        man.render_name_section(text)?;
        man.render_synopsis_section(text)?;
        if !command.notes.is_empty() {
            writeln!(text, ".SH DESCRIPTION")?;
            for note in command.notes {
                writeln!(text, "{}", roff_text(note))?;
            }
        }
        man.render_options_section(text)?;
        if !command.examples.is_empty() {
            writeln!(text, ".SH EXAMPLES\n.nf")?;
            for example in command.examples {
                writeln!(text, "{}", roff_text(example))?;
            }
            writeln!(text, ".fi")?;
        }
        writeln!(text, ".SH SEE ALSO\n.BR {PROGRAM_NAME} (1)")
    })
}

fn page(
    man: &Man,
    render: impl FnOnce(&Man, &mut Vec<u8>) -> io::Result<()>,
) -> Result<Vec<u8>, CommandError> {
    let mut text = Vec::new();
    render(man, &mut text).map_err(|error| format!("rendering the manual page: {error}"))?;
    Ok(text)
}

/// A line of literal text in a manual page. A line that begins with `.` or `'` would be a request.
fn roff_text(line: &str) -> String {
    format!("\\&{}", line.replace('\\', "\\e").replace('-', "\\-"))
}
