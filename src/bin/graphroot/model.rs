//! Completion scripts and manual pages, generated from the tables of commands and flags.
//!
//! A [`clap::Command`] describes the program to the generators. It parses nothing: see `mflag` for the reason.

use clap::{Arg, ArgAction};

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
        .disable_help_flag(true)
        .aliases(others);
    if !command.arguments.is_empty() {
        model = model
            .override_usage(format!("{PROGRAM_NAME} {name} {}", command.arguments))
            .arg(
                Arg::new("ARGUMENT")
                    .num_args(0..)
                    .help("Names, IDs or ID prefixes"),
            );
    }
    if !command.examples.is_empty() {
        let examples: Vec<String> = command.examples.iter().map(|line| format!("  {line}")).collect();
        model = model.after_help(format!("Examples:\n{}", examples.join("\n")));
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
        model = model.subcommand(subcommand(command));
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
    page(program(commands))
}

/// The manual page of one command.
pub(crate) fn command_page(command: &'static Command) -> Result<Vec<u8>, CommandError> {
    page(subcommand(command))
}

fn page(model: clap::Command) -> Result<Vec<u8>, CommandError> {
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(model).render(&mut text);
    rendered.map_err(|error| format!("rendering the manual page: {error}"))?;
    Ok(text)
}
