//! The commands that a store has.

use std::path::Path;
use std::process::Command;

/// A command of `containers-storage`, or of a program with the same commands, on a store in `root`.
pub(crate) fn command(program: &Path, root: &Path, driver: &str, verb: &str) -> Command {
    let mut command = Command::new(program);
    command.arg("--graph").arg(root.join("graph"));
    command.arg("--run").arg(root.join("run"));
    command.args(["--storage-driver", driver, verb]);
    command
}
