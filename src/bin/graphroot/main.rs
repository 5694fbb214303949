//! `graphroot`, the command of the library: everything that `containers-storage` does, in its words, and a little more
//! for people. See `differences.md` for what is different on purpose.
//!
//! The program's frame: finds the command, reads the flags on both sides of its name, opens the store, runs the
//! command, and turns its outcome into an exit code.

#![doc = include_str!("differences.md")]

mod call;
mod commands;
mod copy;
mod create;
mod data;
mod defaults;
mod delete;
mod diff;
mod examine;
mod extra_commands;
mod help;
mod input;
mod layer_tree;
mod list;
mod logging;
mod mflag;
mod model;
mod mount;
mod names;
mod service;
mod table;
mod text;
#[cfg(feature = "pull")]
mod transfer;
mod unshare;

use std::process::ExitCode;

use crate::call::{Call, Failure, Out, complain};
use crate::defaults::GlobalArguments;
use crate::mflag::Flags;

/// What a shell shows for a program that wrote to a closed pipe.
const SIGPIPE_CODE: u8 = 141;

/// Bad flags after the command.
const BAD_FLAGS: u8 = 125;

fn main() -> ExitCode {
    let mut out = Out::default();
    let outcome = run(&mut out).and_then(|code| out.flush().map(|()| code));
    match outcome {
        Ok(code) => code.into(),
        Err(Failure::Unread) => SIGPIPE_CODE.into(),
        Err(Failure::Said(line)) => {
            // Whatever was said before comes first.
            let _unread = out.flush();
            complain(&line);
            ExitCode::FAILURE
        }
    }
}

/// The arguments, the program's own name first.
fn arguments() -> Result<(String, Vec<String>), Failure> {
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

fn run(out: &mut Out) -> Result<u8, Failure> {
    let (program, args) = arguments()?;
    let help = help::Help::new(&program);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("starting the runtime: {error}"))?;

    let mut flags = Flags::default();
    table::add_global(&mut flags, &GlobalArguments::default(), false);
    flags.add(table::HELP);
    if args.is_empty() {
        // The flag for help belongs to those that are parsed.
        let mut bare = Flags::default();
        table::add_global(&mut bare, &GlobalArguments::default(), false);
        help.general(out, &bare, false)?;
        return Ok(1);
    }
    let parsed = flags.parse(&args);
    for line in std::mem::take(&mut flags.messages) {
        out.complain(line)?;
    }
    let args = match parsed {
        Ok(args) => args,
        Err(stop) => {
            if stop.usage {
                help.general(out, &flags, false)?;
            }
            for said in &stop.said {
                out.complain(said)?;
                out.complain(help.hint(help::OWN_NAME))?;
            }
            let said = stop.said.last().map_or("flag: help requested", String::as_str);
            out.line(format!("{said} while parsing arguments (1)"))?;
            help.general(out, &flags, false)?;
            return Ok(1);
        }
    };
    if flags.is_on(&table::HELP) {
        help.general(out, &flags, true)?;
        return Ok(0);
    }
    let mut given = table::given(&flags);
    let mut configured = None;
    if given.says_nothing() {
        let options = runtime.block_on(graphroot::StoreOptions::default_for_user())?;
        given = GlobalArguments::from_options(&options);
        configured = Some(options);
    }
    let debug = flags.is_on(&table::DEBUG);
    let Some((name, args)) = args.split_first() else {
        help.general(out, &flags, false)?;
        return Ok(1);
    };
    let Some(command) = commands::find(name) else {
        out.line(format!("{name}: unrecognized command."))?;
        return Ok(1);
    };

    let mut flags = Flags::default();
    table::add_global(&mut flags, &given, debug);
    for flag in command.flags {
        flags.add(*flag);
    }
    let args = match flags.parse(args) {
        Ok(args) => args,
        Err(stop) => {
            if stop.usage {
                help.command(out, name, command, &flags, true)?;
            }
            for said in &stop.said {
                out.complain(said)?;
                out.complain(help.hint(name))?;
            }
            return Ok(BAD_FLAGS);
        }
    };
    if args.len() < command.min_args {
        out.line(format!("{name}: more arguments required."))?;
        help.command(out, name, command, &flags, false)?;
        return Ok(1);
    }
    if command.max_args.is_some_and(|most| args.len() > most) {
        out.line(format!("{name}: too many arguments ([{}]).", args.join(" ")))?;
        help.command(out, name, command, &flags, false)?;
        return Ok(1);
    }
    if flags.is_on(&table::UNSHARE) && command.opens_store {
        unshare::enter()?;
    }
    let given = table::given(&flags);
    logging::start(flags.is_on(&table::DEBUG));
    logging::say_options(&given);

    let code = runtime.block_on(async {
        let options = match given.complete(configured).await {
            Ok(options) => options,
            Err(failure) if command.opens_store => return not_open(out, failure),
            Err(_) => graphroot::StoreOptions::default(),
        };
        let mut call = Call::new(name.clone(), flags, args, options);
        if command.opens_store
            && let Err(error) = call.open().await
        {
            return not_open(out, error.into());
        }
        (command.run)(&call, out).await
    });
    // What still runs in the background is the cleaning up after a failure.
    drop(runtime);
    code
}

/// The store does not open: said on standard output, as ever.
fn not_open(out: &mut Out, failure: Failure) -> Result<u8, Failure> {
    match failure {
        Failure::Unread => return Err(Failure::Unread),
        Failure::Said(line) => out.line(format!("error initializing: {line}"))?,
    }
    Ok(1)
}
