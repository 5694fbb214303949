//! Completion scripts and manual pages, made from the tables of commands and flags.
//!
//! clap serves as a description here; it parses nothing.

use clap::{Arg, ArgAction};

use crate::call::{Call, DONE, Failure, Out, Outcome};
use crate::commands::{COMMANDS, EXTRAS};
use crate::help::OWN_NAME;
use crate::mflag::{Flag, Kind};
use crate::table::{Command, GLOBAL};

fn argument(flag: &Flag) -> Arg {
    let id = flag.names.first().copied().unwrap_or_default();
    let mut argument = Arg::new(id).help(flag.usage).action(match flag.kind {
        Kind::Bool => ArgAction::SetTrue,
        Kind::Text => ArgAction::Set,
        Kind::List => ArgAction::Append,
    });
    if flag.kind != Kind::Bool {
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
            .override_usage(format!("{OWN_NAME} {name} {}", command.arguments))
            .arg(
                Arg::new("ARGUMENT")
                    .num_args(0..)
                    .help("Names, IDs or ID prefixes"),
            );
    }
    if !command.examples.is_empty() {
        let examples: Vec<String> = command
            .examples
            .iter()
            .map(|line| format!("  {OWN_NAME} {line}"))
            .collect();
        model = model.after_help(format!("Examples:\n{}", examples.join("\n")));
    }
    command
        .flags
        .iter()
        .fold(model, |model, flag| model.arg(argument(flag)))
}

fn model() -> clap::Command {
    let mut model = clap::Command::new(OWN_NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Manage layers, images and containers of a containers/storage store")
        .disable_help_subcommand(true)
        .disable_help_flag(true)
        .disable_version_flag(true);
    for flag in &GLOBAL {
        model = model.arg(argument(flag));
    }
    for command in COMMANDS.iter().chain(EXTRAS) {
        model = model.subcommand(subcommand(command));
    }
    model
}

pub(crate) async fn completions(call: &Call, out: &mut Out) -> Outcome {
    let shell = call.arg(0);
    let shell: clap_complete::Shell = shell
        .parse()
        .map_err(|_reason| format!("completions for {shell:?}: not bash, elvish, fish, powershell or zsh"))?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut model(), OWN_NAME, &mut script);
    out.raw(&script)?;
    DONE
}

pub(crate) async fn man(call: &Call, out: &mut Out) -> Outcome {
    let page = match call.optional(0) {
        None => model(),
        Some(name) => {
            let command =
                crate::commands::find(name).ok_or_else(|| format!("{name}: unrecognized command"))?;
            subcommand(command)
        }
    };
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(page).render(&mut text);
    rendered.map_err(|error| Failure::from(format!("rendering the manual page: {error}")))?;
    out.raw(&text)?;
    DONE
}
