//! The command `graphroot`: every command of `containers-storage` with the same flags, output and exit codes, and a few
//! extra commands. `differences.md` lists what differs on purpose.
//!
//! `main` finds the command, parses the flags before and after its name, opens the store, runs the command, and turns
//! the outcome into an exit code.

#![doc = include_str!("differences.md")]

mod call;
mod command;
mod commands;
mod flags;
mod global_arguments;
mod help;
mod input;
mod logging;
mod mflag;
mod model;
mod other_store;
mod outcome;
mod output;
#[cfg(feature = "pull")]
mod prompt;
mod text;
mod user_namespace;

use std::process::ExitCode;

use graphroot::StoreOptions;
use tokio::runtime::Runtime;

use crate::call::Call;
use crate::command::{Command, PROGRAM_NAME};
use crate::flags::{DEBUG, HELP, UNSHARE};
use crate::global_arguments::GlobalArguments;
use crate::help::{Help, Occasion};
use crate::mflag::Flags;
use crate::outcome::CommandError;
use crate::output::{Output, stderr_line};

/// Written to a closed pipe: the exit code that a shell shows for a process that SIGPIPE ended.
const CLOSED_PIPE: u8 = 141;

/// Wrong flags after the command's name.
const WRONG_FLAGS: u8 = 125;

/// Every other failure.
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    graphroot::compat::return_memory_early();
    let mut out = Output::default();
    let outcome = run(&mut out).and_then(|code| out.flush().map(|()| code));
    match outcome {
        Ok(code) => code.into(),
        Err(CommandError::ClosedPipe) => CLOSED_PIPE.into(),
        Err(CommandError::Message(line)) => {
            // Buffered output comes before the error. If it cannot be written, the error still can.
            let _not_written = out.flush();
            stderr_line(&line);
            FAILURE.into()
        }
    }
}

/// The name by which the program was called, and its arguments.
fn arguments() -> Result<(String, Vec<String>), CommandError> {
    let mut all = std::env::args_os();
    let program = all.next().unwrap_or_default().to_string_lossy().into_owned();
    let mut args = Vec::new();
    for arg in all {
        let arg = arg
            .into_string()
            .map_err(|arg| format!("argument {arg:?}: not UTF-8"))?;
        args.push(arg);
    }
    Ok((program, args))
}

fn run(out: &mut Output) -> Result<u8, CommandError> {
    let (program, args) = arguments()?;
    let help = Help::new(&program, &commands::COMMANDS, commands::EXTRA_COMMANDS);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("starting the runtime: {error}"))?;
    match Invocation::parse(&help, &runtime, &args, out)? {
        Parsed::Exit(code) => Ok(code),
        Parsed::Run(invocation) => invocation.run(runtime, out),
    }
}

/// What the arguments ask for.
enum Parsed {
    /// Nothing more: the help or a message is already printed.
    Exit(u8),
    Run(Box<Invocation>),
}

/// A command with its flags and arguments.
struct Invocation {
    command: &'static Command,
    /// The spelling of the command's name that was used.
    name: String,
    /// The path or name by which the program was called.
    program: String,
    /// The global arguments and the command's own flags.
    flags: Flags,
    args: Vec<String>,
    /// The configuration of the system and the user, if the arguments before the command's name leave it in force.
    configured: Option<StoreOptions>,
}

impl Invocation {
    /// Parses the flags before the command's name, the name, and the flags and arguments after it.
    fn parse(
        help: &Help<'_>,
        runtime: &Runtime,
        args: &[String],
        out: &mut Output,
    ) -> Result<Parsed, CommandError> {
        let mut flags = Flags::default();
        GlobalArguments::default().add_to(&mut flags, false);
        if args.is_empty() {
            help.program(out, &flags, Occasion::Mistake)?;
            return Ok(Parsed::Exit(FAILURE));
        }
        flags.add(HELP);
        let parsed = flags.parse(args);
        for line in std::mem::take(&mut flags.messages) {
            out.stderr_line(line)?;
        }
        let args = match parsed {
            Ok(args) => args,
            Err(stop) => {
                if stop.usage {
                    help.program(out, &flags, Occasion::Mistake)?;
                }
                for message in &stop.messages {
                    out.stderr_line(message)?;
                    out.stderr_line(help.hint(PROGRAM_NAME))?;
                }
                let reason = stop
                    .messages
                    .last()
                    .map_or("flag: help requested", String::as_str);
                out.line(format!("{reason} while parsing arguments (1)"))?;
                help.program(out, &flags, Occasion::Mistake)?;
                return Ok(Parsed::Exit(FAILURE));
            }
        };
        if flags.is_on(&HELP) {
            help.program(out, &flags, Occasion::HelpFlag)?;
            return Ok(Parsed::Exit(0));
        }
        let mut given = GlobalArguments::from_flags(&flags);
        let mut configured = None;
        if given.use_configuration() {
            let options = runtime.block_on(StoreOptions::default_for_user())?;
            given = GlobalArguments::from_options(&options);
            configured = Some(options);
        }
        let debug = flags.is_on(&DEBUG);
        let Some((name, args)) = args.split_first() else {
            help.program(out, &flags, Occasion::Mistake)?;
            return Ok(Parsed::Exit(FAILURE));
        };
        let Some(command) = commands::find(name) else {
            out.line(format!("{name}: unrecognized command."))?;
            if help.has_additions()
                && let Some(similar) = commands::similar(name)
            {
                out.stderr_line(format!("Did you mean '{similar}'?"))?;
            }
            return Ok(Parsed::Exit(FAILURE));
        };

        let mut flags = Flags::default();
        given.add_to(&mut flags, debug);
        for flag in command.flags {
            flags.add(*flag);
        }
        let args = match flags.parse(args) {
            Ok(args) => args,
            Err(stop) => {
                if stop.usage {
                    help.command(out, name, command, &flags, Occasion::HelpFlag)?;
                }
                for message in &stop.messages {
                    out.stderr_line(message)?;
                    out.stderr_line(help.hint(name))?;
                }
                return Ok(Parsed::Exit(WRONG_FLAGS));
            }
        };
        if args.len() < command.min_args {
            out.line(format!("{name}: more arguments required."))?;
            help.command(out, name, command, &flags, Occasion::Mistake)?;
            return Ok(Parsed::Exit(FAILURE));
        }
        if command.max_args.is_some_and(|most| args.len() > most) {
            out.line(format!("{name}: too many arguments ([{}]).", args.join(" ")))?;
            help.command(out, name, command, &flags, Occasion::Mistake)?;
            if help.has_additions() && args.iter().any(|arg| arg.starts_with('-')) {
                out.stderr_line(format!(
                    "Flags must come before the arguments: {name} [options] ARGUMENT..."
                ))?;
            }
            return Ok(Parsed::Exit(FAILURE));
        }
        Ok(Parsed::Run(Box::new(Self {
            command,
            name: name.clone(),
            program: help.called_as().to_owned(),
            flags,
            args,
            configured,
        })))
    }

    /// Opens the store and runs the command.
    fn run(self, runtime: Runtime, out: &mut Output) -> Result<u8, CommandError> {
        let Self {
            command,
            name,
            program,
            flags,
            args,
            configured,
        } = self;
        if flags.is_on(&UNSHARE) && command.opens_store {
            user_namespace::enter()?;
        }
        let given = GlobalArguments::from_flags(&flags);
        logging::start(flags.is_on(&DEBUG));
        logging::log_options(&given);
        let code = runtime.block_on(async {
            let options = match given.complete(configured).await {
                Ok(options) => options,
                Err(error) if command.opens_store => return not_open(out, error),
                Err(_) => StoreOptions::default(),
            };
            let mut call = Call::new(program, name, flags, args, options);
            if command.opens_store
                && let Err(error) = call.open().await
            {
                return not_open(out, error.into());
            }
            (command.run)(&call, out).await
        });
        // Waits for the library's background tasks, which clean up after a failure.
        drop(runtime);
        code
    }
}

/// Reports on standard output, as `containers-storage` does, that the store does not open.
fn not_open(out: &mut Output, error: CommandError) -> Result<u8, CommandError> {
    match error {
        CommandError::ClosedPipe => return Err(CommandError::ClosedPipe),
        CommandError::Message(line) => out.line(format!("error initializing: {line}"))?,
    }
    Ok(FAILURE)
}
