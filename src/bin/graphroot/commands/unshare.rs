//! `unshare`: a program in a user namespace.

use std::process::Command;

use crate::call::Call;
use crate::outcome::{DONE, Outcome};
use crate::output::Output;
use crate::text::system_error;
use crate::user_namespace::{entered, namespace, variable};

pub(crate) async fn unshare(call: &Call, out: &mut Output) -> Outcome {
    let shell = Some(variable("SHELL"))
        .filter(|shell| !shell.is_empty())
        .unwrap_or_else(|| "/bin/sh".to_owned());
    let (program, args) = match call.args.split_first() {
        Some((program, args)) => (program.clone(), args),
        None => (shell, &[][..]),
    };
    out.flush()?;
    let mut command = if entered() {
        Command::new(&program)
    } else {
        let mut command = namespace();
        command.arg(&program);
        command
    };
    let status = command.args(args).status();
    let status = status.map_err(|error| format!("running {program:?}: {}", system_error(&error)))?;
    match status.code() {
        Some(0) => DONE,
        Some(code) => Err(format!("exit status {code}").into()),
        None => Err(format!("{program}: {status}").into()),
    }
}
