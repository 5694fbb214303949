//! Runs the program in a user namespace in which the user is root and has the user's subordinate IDs.
//!
//! Only a process with a single thread can enter a user namespace, so the program replaces itself by `unshare` of
//! util-linux, which has `newuidmap` and `newgidmap` map the IDs and starts the program again.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::outcome::CommandError;
use crate::text::system_error;

/// Set by every program that uses containers/storage for the processes in its user namespace.
const CONFIGURED: &str = "_CONTAINERS_USERNS_CONFIGURED";
const ROOTLESS_UID: &str = "_CONTAINERS_ROOTLESS_UID";
const ROOTLESS_GID: &str = "_CONTAINERS_ROOTLESS_GID";

pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// Whether the user is not root in the initial user namespace.
pub(crate) fn is_rootless() -> bool {
    let uid = variable(ROOTLESS_UID);
    let foreign = !uid.is_empty() && uid != "0";
    foreign || !variable(CONFIGURED).is_empty() || !rustix::process::geteuid().is_root() || !has_all_ids()
}

/// Whether this user namespace has all IDs, as the initial one has. True if that cannot be read.
fn has_all_ids() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").map_or(true, |map| map.contains("4294967295"))
}

/// Whether the process runs in such a namespace already.
pub(crate) fn entered() -> bool {
    !variable(CONFIGURED).is_empty()
}

/// Whether a file such as `/etc/subuid` grants IDs to this user.
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

/// `unshare` with the namespaces, ID mappings and variables for a program, which the caller appends.
pub(crate) fn namespace() -> Command {
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

/// Starts the program again in a user namespace, in place of this process. Does nothing if it runs in one already.
pub(crate) fn enter() -> Result<(), CommandError> {
    if entered() {
        return Ok(());
    }
    let program = std::env::current_exe()
        .map_err(|error| format!("locating the running program: {}", system_error(&error)))?;
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
