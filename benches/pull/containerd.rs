//! containerd, with a daemon of its own.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::peak;
use crate::support::Res;

/// Where `containerd` and `ctr` are: in the directory that `GRAPHROOT_BENCH_CONTAINERD` names, or on the search path. `None` and
/// a line if they are not.
pub(crate) fn find() -> Option<PathBuf> {
    let named = std::env::var_os("GRAPHROOT_BENCH_CONTAINERD").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = named.into_iter().chain(std::env::split_paths(&path));
    let found = all.find(|dir| dir.join("containerd").is_file() && dir.join("ctr").is_file());
    if found.is_none() {
        println!("SKIPPED containerd: it is not installed");
    }
    found
}

/// The running daemon. Ends when it is dropped.
struct Daemon {
    child: Child,
    state: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has nothing to lose.
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

impl Daemon {
    /// One that is empty, with all that it has in `root`.
    fn start(bin: &Path, root: &Path) -> Res<Self> {
        let config = root.join("config.toml");
        let text = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
                    \"io.containerd.cri.v1.runtime\", \"io.containerd.internal.v1.opt\", \"io.containerd.nri.v1.nri\"]\n";
        std::fs::write(&config, text)?;
        let state = root.join("state");
        let child = Command::new(bin.join("containerd"))
            .arg("--config")
            .arg(config)
            .arg("--root")
            .arg(root.join("root"))
            .arg("--state")
            .arg(&state)
            .arg("--address")
            .arg(state.join("socket"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(root.join("log"))?)
            .spawn()?;
        let daemon = Self { child, state };
        for _ in 0..1000 {
            if UnixStream::connect(daemon.state.join("socket")).is_ok() {
                return Ok(daemon);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("containerd does not listen".into())
    }
}

/// Pulls images into an empty containerd that runs already. Returns the time, and the most memory of the daemon and the clients
/// in KiB.
pub(crate) fn pull(bin: &Path, dir: &Path, images: &[String]) -> Res<(Duration, u64)> {
    let root = tempfile::tempdir_in(dir)?;
    let daemon = Daemon::start(bin, root.path())?;
    let started = Instant::now();
    let mut clients = Vec::new();
    for image in images {
        let mut command = Command::new(bin.join("ctr"));
        command.arg("--address").arg(daemon.state.join("socket"));
        command.args(["images", "pull", "--plain-http", image]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        clients.push(command.spawn()?);
    }
    let (is_done, memory) = peak::wait(clients)?;
    let time = started.elapsed();
    if !is_done {
        return Err("ctr images pull failed".into());
    }
    let own = peak::of(&daemon.child.id().to_string()).unwrap_or(0);
    drop(daemon);
    Ok((time, memory + own))
}
