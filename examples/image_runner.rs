//! Runs an image's command in a new container, as the image's config says, and shows what it changed.
//!
//! ```text
//! cargo run --release --example image_runner -- GRAPH_ROOT RUN_ROOT IMAGE [--commit NAME] [COMMAND …]
//! ```
//!
//! Root only. The command runs through `unshare(1)` of util-linux, with mounts and processes of its own and the
//! container as its root directory. It has the host's network and no other limits: a container engine does more.

#![expect(clippy::print_stdout, reason = "it is a program")]

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitStatus;

use graphroot::{CommitOptions, ContainerOptions, MountOptions, RunConfig, Store, StoreOptions};

type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Res<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || {
        arguments
            .next()
            .ok_or("usage: GRAPH_ROOT RUN_ROOT IMAGE [--commit NAME] [COMMAND …]")
    };
    let (graph_root, run_root, image) = (next()?, next()?, next()?);
    let mut command: Vec<String> = arguments.collect();
    let mut name = None;
    if command.first().is_some_and(|word| word == "--commit") && command.len() > 1 {
        name = Some(command.remove(1));
        command.remove(0);
    }
    let store = Store::open(StoreOptions::new(graph_root, run_root)).await?;
    let status = run(&store, &image, command, name).await?;
    std::process::exit(status.code().unwrap_or(1));
}

/// Runs a command, by default the image's own, and makes an image of the container if that is to get a name.
pub(crate) async fn run(
    store: &Store,
    image: &str,
    command: Vec<String>,
    commit: Option<String>,
) -> Res<ExitStatus> {
    let mut config = store.image_config(image).await?.run;
    if !command.is_empty() {
        config.cmd = command;
    }
    let container = store
        .create_container(Some(image), ContainerOptions::default())
        .await?;
    let result = run_in(store, container.id(), &config, commit).await;
    store.delete_container(container.id()).await?;
    result
}

async fn run_in(
    store: &Store,
    container: &str,
    config: &RunConfig,
    commit: Option<String>,
) -> Res<ExitStatus> {
    let root = store.mount_guard(container, MountOptions::default()).await?;
    let status = spawn(&root, config)?.wait().await?;
    root.unmount().await?;
    let layer = store.container(container).await?.layer_id().to_owned();
    for change in store.changes(None, &layer).await? {
        println!("{change}");
    }
    if let Some(name) = commit {
        let options = CommitOptions::new()
            .name(name)
            .created_by(config.command().join(" "));
        println!("committed {}", store.commit(container, options).await?.id());
    }
    Ok(status)
}

fn spawn(root: &Path, config: &RunConfig) -> Res<tokio::process::Child> {
    let command = config.command();
    if command.is_empty() {
        return Err("the image has no command: give one".into());
    }
    let working_dir = match config.working_dir.as_str() {
        "" => "/",
        directory => directory,
    };
    let mut root_option = OsString::from("--root=");
    root_option.push(root);
    let mut unshare = tokio::process::Command::new("unshare");
    unshare.args(["--fork", "--kill-child", "--pid", "--mount", "--ipc", "--uts"]);
    unshare.arg(root_option).arg(format!("--wd={working_dir}"));
    if let Some((user, group)) = numeric_user(&config.user)? {
        unshare.args([format!("--setgid={group}"), format!("--setuid={user}")]);
    }
    unshare.arg("--").args(command);
    // The command is looked for in the image's PATH, below its root directory; `unshare` itself in this process's.
    unshare.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    unshare.envs(config.environment());
    unshare.kill_on_drop(true);
    Ok(unshare.spawn()?)
}

/// User and group ID. Names are those of the image's `/etc/passwd`, which a program has to read without following
/// links out of the container; this one does not.
fn numeric_user(text: &str) -> Res<Option<(u32, u32)>> {
    if text.is_empty() {
        return Ok(None);
    }
    let (user, group) = text.split_once(':').unwrap_or((text, "0"));
    match (user.parse(), group.parse()) {
        (Ok(user), Ok(group)) => Ok(Some((user, group))),
        _ => Err(format!("user {text:?} of the image: only numbers are supported").into()),
    }
}
