//! Processes that do a step over zfs, with a program before the real `zfs` that counts its commands.

use std::fmt::Display;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use graphroot::Store;

use crate::support::{Layout, TestStore, options};

/// A test of such processes.
pub(crate) struct ZfsProcess {
    /// Tells the process what to do: the step, a number of commands, and the directories of the program and the store.
    pub(crate) variable: &'static str,
    /// The test that is the entry of the process.
    pub(crate) entry: &'static str,
    /// The program. `$0.real` is the real one, and `$0.left` has the number of commands when the store is open.
    pub(crate) program: &'static str,
}

impl ZfsProcess {
    /// In the entry: the store, and the step that is to be done; `None` unless [`ZfsProcess::run`] has started it.
    pub(crate) async fn begin(&self) -> Option<(Store, String)> {
        let order = std::env::var(self.variable).ok()?;
        let [step, commands, programs, dir] = order.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{order}");
        };
        let store = Store::open(options(Path::new(dir), "zfs", Layout::Plain))
            .await
            .unwrap();
        std::fs::write(Path::new(programs).join("zfs.left"), commands).unwrap();
        Some((store, step.to_owned()))
    }

    /// Runs a process to its end. Also returns the directory of the program.
    pub(crate) fn run(
        &self,
        store: &TestStore,
        step: impl Display,
        commands: impl Display,
    ) -> (Output, tempfile::TempDir) {
        let programs = self.programs();
        let mut paths = vec![programs.path().to_owned()];
        paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", self.entry, "--nocapture"]);
        let (dir, root) = (programs.path().display(), store.path().display());
        child.env(self.variable, format!("{step} {commands} {dir} {root}"));
        child.env("PATH", std::env::join_paths(paths).unwrap());
        (child.output().unwrap(), programs)
    }

    /// A directory with the program.
    fn programs(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let mut found = std::env::split_paths(&path).map(|dir| dir.join("zfs"));
        let real = found.find(|program| program.is_file()).unwrap();
        std::os::unix::fs::symlink(real, dir.path().join("zfs.real")).unwrap();
        let program = dir.path().join("zfs");
        std::fs::write(&program, self.program).unwrap();
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }
}
