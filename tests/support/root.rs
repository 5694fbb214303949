//! A store in a temporary directory, with configuration of its own for every program that opens it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Resource, getrlimit};

use super::peers::PeerSet;

/// A graph root and a run root that vanish with everything mounted below them.
#[derive(Debug)]
pub(crate) struct TestRoot {
    dir: tempfile::TempDir,
    driver: &'static str,
    peers: PeerSet,
}

impl TestRoot {
    /// A store of the overlay driver below `$TMPDIR`.
    pub(crate) fn new() -> Self {
        Self::in_dir(&std::env::temp_dir(), "overlay")
    }

    /// A store of the overlay driver in memory.
    pub(crate) fn in_memory() -> Self {
        Self::in_dir(Path::new("/dev/shm"), "overlay")
    }

    /// A store of `driver` in memory, where [`require_driver`](super::require_driver) says that there can be one.
    pub(crate) fn of_driver(driver: &'static str) -> Self {
        match driver {
            "btrfs" => Self::in_dir(super::btrfs::shared().unwrap(), driver),
            _ => Self::in_dir(Path::new("/dev/shm"), driver),
        }
    }

    /// A store of `driver` below `parent`.
    pub(crate) fn in_dir(parent: &Path, driver: &'static str) -> Self {
        let parent = parent.to_path_buf();
        let dir = tempfile::Builder::new()
            .prefix("graphroot-test-")
            .tempdir_in(parent)
            .unwrap();
        let root = Self {
            dir,
            driver,
            peers: PeerSet::Installed,
        };
        for sub in ["etc/cni", "home/.config/containers", "tmp"] {
            fs::create_dir_all(root.path().join(sub)).unwrap();
        }
        root.configure();
        root
    }

    /// The same, for the programs of this set.
    pub(crate) fn of(mut self, peers: PeerSet) -> Self {
        self.peers = peers;
        self.configure();
        self
    }

    /// Whose programs run on it.
    pub(crate) fn peers(&self) -> PeerSet {
        self.peers
    }

    /// The directory that holds everything.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The graph root.
    pub(crate) fn graph(&self) -> PathBuf {
        self.path().join("graph")
    }

    /// The run root.
    pub(crate) fn run(&self) -> PathBuf {
        self.path().join("run")
    }

    /// The driver's name.
    pub(crate) fn driver(&self) -> &'static str {
        self.driver
    }

    /// A directory of the store, such as `layers`, `images` or `containers`, without the driver's prefix.
    pub(crate) fn metadata_dir(&self, what: &str) -> PathBuf {
        self.graph().join(format!("{}-{what}", self.driver))
    }

    /// The lock file of the layer store.
    pub(crate) fn layers_lock(&self) -> PathBuf {
        self.metadata_dir("layers").join("layers.lock")
    }

    /// A new directory for the test's own files, below [`TestRoot::path`].
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        let dir = self.path().join("scratch").join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// How image programs name an image in this store: `containers-storage:[DRIVER@GRAPH+RUN]NAME`.
    pub(crate) fn image_reference(&self, name: &str) -> String {
        let (graph, run) = (self.graph(), self.run());
        format!(
            "containers-storage:[{}@{}+{}]{name}",
            self.driver,
            graph.display(),
            run.display()
        )
    }

    /// The environment in which other programs run: nothing of the host's configuration reaches them.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let at = |name: &str| self.path().join(name).into_os_string();
        vec![
            ("PATH", self.peers.search_path()),
            ("LC_ALL", "C.UTF-8".into()),
            ("HOME", at("home")),
            ("TMPDIR", at("tmp")),
            ("PODMAN_IGNORE_CGROUPSV1_WARNING", "1".into()),
            ("CONTAINERS_CONF", at("etc/containers.conf")),
            ("CONTAINERS_STORAGE_CONF", at("etc/storage.conf")),
            ("CONTAINERS_REGISTRIES_CONF", at("etc/registries.conf")),
        ]
    }

    fn configure(&self) {
        let (dir, graph, run) = (self.path().display(), self.graph(), self.run());
        let (graph, run, driver) = (graph.display(), run.display(), self.driver);
        let helpers = match self.peers.bin() {
            Some(bin) => format!("helper_binaries_dir = [\"{}\"]\n", bin.display()),
            None => String::new(),
        };
        // Newer programs want to raise these, which not every machine allows.
        let limits = [("nofile", Resource::Nofile), ("nproc", Resource::Nproc)].map(|(name, resource)| {
            let limit = getrlimit(resource);
            let text = |limit: Option<u64>| limit.map_or("-1".to_owned(), |limit| limit.to_string());
            format!("\"{name}={}:{}\"", text(limit.current), text(limit.maximum))
        });
        // The programs of Debian 12 leave them alone, unless they are told something.
        let limits = match self.peers {
            PeerSet::Installed => String::new(),
            PeerSet::Trixie | PeerSet::Forky => format!("default_ulimits = [{}]\n", limits.join(", ")),
        };
        // No systemd, no event log, no network: only the store matters here.
        let containers = format!(
            "[containers]\ncgroups = \"disabled\"\n{limits}\n\
             [engine]\n{helpers}events_logger = \"none\"\ncgroup_manager = \"cgroupfs\"\n\
             tmp_dir = \"{run}/libpod\"\nstatic_dir = \"{graph}/libpod\"\nvolume_path = \"{graph}/volumes\"\n\n\
             [network]\nnetwork_config_dir = \"{dir}/etc/cni\"\n"
        );
        let storage =
            format!("[storage]\ndriver = \"{driver}\"\ngraphroot = \"{graph}\"\nrunroot = \"{run}\"\n");
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        for (file, text) in [
            ("etc/containers.conf", containers.as_str()),
            ("etc/storage.conf", storage.as_str()),
            ("etc/registries.conf", "unqualified-search-registries = []\n"),
            ("home/.config/containers/policy.json", policy),
        ] {
            fs::write(self.path().join(file), text).unwrap();
        }
    }
}

impl Drop for TestRoot {
    fn drop(&mut self) {
        unmount_below(self.path());
        // `rm` copes with any depth of directories, which a recursive function does not.
        // Subvolumes are not of one file system, as far as that goes.
        let options = match self.driver {
            "btrfs" => "-rf",
            _ => "-rf --one-file-system",
        };
        let removed = Command::new("rm")
            .args(options.split(' '))
            .arg(self.path())
            .status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("cannot remove {}", self.path().display());
        }
    }
}

/// The directories mounted below `dir`, topmost mount last.
pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|escaped| PathBuf::from(escaped.replace("\\040", " ")))
        .filter(|mounted| mounted.starts_with(dir))
        .collect()
}

/// Detaches everything mounted on or below `dir`.
pub(crate) fn unmount_below(dir: &Path) {
    for mounted in mounts_below(dir).iter().rev() {
        if let Err(error) = rustix::mount::unmount(mounted, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", mounted.display());
        }
    }
}
