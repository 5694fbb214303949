//! Running in a user namespace in which the user is root, with the user's subordinate IDs.
//!
//! A namespace can be entered only by a process with one thread that is willing to be replaced, so the program hands
//! over to `unshare` of util-linux, which asks `newuidmap` and `newgidmap` for the IDs, and is started by it again.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::call::{Call, DONE, Failure, Out, Outcome};
use crate::text::system_error;

/// Set by every program of the family for what runs in its namespace.
const CONFIGURED: &str = "_CONTAINERS_USERNS_CONFIGURED";
const ROOTLESS_UID: &str = "_CONTAINERS_ROOTLESS_UID";
const ROOTLESS_GID: &str = "_CONTAINERS_ROOTLESS_GID";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// Whether the user is not the machine's root, or is root only in a namespace.
pub(crate) fn is_rootless() -> bool {
    let uid = variable(ROOTLESS_UID);
    let foreign = !uid.is_empty() && uid != "0";
    foreign || !variable(CONFIGURED).is_empty() || !rustix::process::geteuid().is_root() || !all_ids_here()
}

/// Whether this is a namespace with all IDs: the machine's own. Unreadable: it is.
fn all_ids_here() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").map_or(true, |map| map.contains("4294967295"))
}

/// Whether the namespace was entered already.
fn entered() -> bool {
    !variable(CONFIGURED).is_empty()
}

/// Whether a file of subordinate IDs names this user.
fn has_sub_ids(path: &str, id: u32) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let number = id.to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users
        .lines()
        .find(|line| line.split(':').nth(2) == Some(&number))
        .and_then(|line| line.split(':').next());
    text.lines().any(|line| {
        let owner = line.split(':').next();
        owner == Some(&number) || (name.is_some() && owner == name)
    })
}

/// `unshare` with the namespaces, mappings and variables that the program expects; the command is still missing.
fn namespace() -> Command {
    let (uid, gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let mut command = Command::new("unshare");
    command.args(["--user", "--mount", "--map-root-user"]);
    if has_sub_ids("/etc/subuid", uid) && has_sub_ids("/etc/subgid", uid) {
        command.arg("--map-auto");
    }
    command.arg("--").env(CONFIGURED, "done");
    if uid != 0 {
        command.env(ROOTLESS_UID, uid.to_string());
        command.env(ROOTLESS_GID, gid.to_string());
    }
    if std::env::var_os("BUILDAH_ISOLATION").is_none() {
        command.env("BUILDAH_ISOLATION", "rootless");
    }
    command
}

/// Replaces the program by itself in a user namespace. Returns at once if it is in one already.
pub(crate) fn enter() -> Result<(), Failure> {
    if entered() {
        return Ok(());
    }
    let program = std::env::current_exe()
        .map_err(|error| format!("looking for the program itself: {}", system_error(&error)))?;
    let mut command = namespace();
    command.arg(program).args(std::env::args_os().skip(1));
    // Returns only if it fails.
    let error = command.exec();
    Err(format!(
        "running in a user namespace with unshare (util-linux): {}",
        system_error(&error)
    )
    .into())
}

pub(crate) async fn run_command(call: &Call, out: &mut Out) -> Outcome {
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
