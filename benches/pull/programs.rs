//! Podman and Skopeo of Debian testing, as the tests have them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::Res;
use crate::testing::testing_programs;

/// Where they are, and the home directory that they see.
pub(crate) struct Programs {
    bin: PathBuf,
    home: PathBuf,
}

impl Programs {
    /// `None` if they are not there.
    pub(crate) fn find(dir: &Path) -> Res<Option<Self>> {
        let Some(bin) = testing_programs() else {
            return Ok(None);
        };
        let home = dir.join("home");
        let policy = home.join(".config/containers");
        std::fs::create_dir_all(&policy)?;
        let accept = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        std::fs::write(policy.join("policy.json"), accept)?;
        let conf = format!(
            "[containers]\ncgroups = \"disabled\"\n[engine]\nhelper_binaries_dir = [{bin:?}]\nevents_logger = \"none\"\n\
             cgroup_manager = \"cgroupfs\"\ntmp_dir = {:?}\n",
            home.join("tmp")
        );
        std::fs::write(home.join("containers.conf"), conf)?;
        std::fs::write(
            home.join("registries.conf"),
            "unqualified-search-registries = []\n",
        )?;
        Ok(Some(Self { bin, home }))
    }

    /// One of them, on a store in `root` that is asked for partial pulls.
    pub(crate) fn command(&self, program: &str, root: &Path) -> Res<Command> {
        let storage = root.join("storage.conf");
        let text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = {:?}\nrunroot = {:?}\n\
             [storage.options.pull_options]\nenable_partial_images = \"true\"\n",
            root.join("graph"),
            root.join("run")
        );
        std::fs::write(&storage, text)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(self.bin.clone()).chain(std::env::split_paths(&path));
        let mut command = Command::new(self.bin.join(program));
        command
            .env("PATH", std::env::join_paths(path)?)
            .env("HOME", &self.home)
            .env("CONTAINERS_CONF", self.home.join("containers.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", self.home.join("registries.conf"))
            .env("CONTAINERS_STORAGE_CONF", storage);
        Ok(command)
    }
}
