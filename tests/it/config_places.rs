//! Main files, drop-in directories and variables, against what the newest program makes of the same places.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use graphroot::config::Loader;

use crate::support::each_set;
use crate::support::peers::PeerSet;

/// How many arrangements of files are compared for each of the two users.
const ROUNDS: u64 = 30;

/// The directories of drop-in files; the last is the user's.
const DIRS: [&str; 9] = [
    "usr/storage.conf.d",
    "usr/storage.rootful.conf.d",
    "usr/storage.rootless.conf.d",
    "usr/storage.rootless.conf.d/1000",
    "etc/storage.conf.d",
    "etc/storage.rootful.conf.d",
    "etc/storage.rootless.conf.d",
    "etc/storage.rootless.conf.d/1000",
    "home/.config/containers/storage.conf.d",
];

/// The main files.
const MAIN: [&str; 3] = [
    "usr/storage.conf",
    "etc/storage.conf",
    "home/.config/containers/storage.conf",
];

/// Numbers without a pattern, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A machine's configuration: `etc` and `usr` stand for `/etc/containers` and `/usr/share/containers`.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new(numbers: &mut Numbers) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Self { dir };
        let open = fs::Permissions::from_mode(0o777);
        for sub in ["", "home", "stores", "targets"] {
            fs::create_dir_all(machine.path(sub)).unwrap();
            fs::set_permissions(machine.path(sub), open.clone()).unwrap();
        }
        for file in MAIN {
            fs::create_dir_all(machine.path(file).parent().unwrap()).unwrap();
            if numbers.below(3) > 0 {
                machine.write(file, true);
            }
        }
        if !machine.path(MAIN[0]).exists() {
            machine.write(MAIN[0], true);
        }
        for dir in DIRS {
            if numbers.below(3) == 0 {
                continue;
            }
            fs::create_dir_all(machine.path(dir)).unwrap();
            for name in ["a.conf", "b.conf", "c.conf", "d.txt"] {
                machine.add(&format!("{dir}/{name}"), numbers.below(12));
            }
        }
        machine.write("named", false);
        machine.write("last", false);
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// A file that sets the graph root to one of its own.
    fn write(&self, path: &str, main: bool) {
        let root = self.path(&format!("stores/{}", path.replace('/', "-")));
        let text = format!("graphroot = {root:?}\nrunroot = {:?}\n", self.path("stores/run"));
        let driver = if main { "driver = \"vfs\"\n" } else { "" };
        fs::write(self.path(path), format!("[storage]\n{driver}{text}")).unwrap();
    }

    /// Something in a drop-in directory.
    fn add(&self, path: &str, kind: u64) {
        match kind {
            0..=3 => self.write(path, false),
            4 => {
                let target = format!("targets/{}", path.replace('/', "-"));
                self.write(&target, false);
                symlink(self.path(&target), self.path(path)).unwrap();
            }
            5 => symlink("/dev/null", self.path(path)).unwrap(),
            6 => symlink("/nowhere", self.path(path)).unwrap(),
            7 => fs::create_dir(self.path(path)).unwrap(),
            _ => {}
        }
    }

    fn variables(&self, with_conf: bool, with_override: bool) -> Vec<(&'static str, PathBuf)> {
        let mut variables = vec![
            ("HOME", self.path("home")),
            ("XDG_RUNTIME_DIR", self.path("home")),
        ];
        if with_conf {
            variables.push(("CONTAINERS_STORAGE_CONF", self.path("named")));
        }
        if with_override {
            variables.push(("CONTAINERS_STORAGE_CONF_OVERRIDE", self.path("last")));
        }
        variables
    }

    /// The graph root that a program finds, run where the configuration is that of the system.
    fn theirs(&self, program: &Path, uid: u32, variables: &[(&str, PathBuf)]) -> String {
        let places = "mount --bind \"$1\" /etc/containers && mount --bind \"$2\" /usr/share/containers && shift 2 && exec \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", places, "sh"])
            .args([self.path("etc"), self.path("usr")]);
        if uid != 0 {
            let uid = uid.to_string();
            command.args(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"]);
        }
        let output = command
            .arg(program)
            .arg("config")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("STORAGE_DRIVER", "vfs")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        let found = text
            .split_once("\"root\":\"")
            .and_then(|(_, rest)| rest.split_once('"'));
        let (root, _) = found.unwrap_or_else(|| panic!("{text}{error}"));
        root.to_owned()
    }
}

async fn places_count_as_in_the_newest_program(set: PeerSet) {
    // Older ones have no drop-in files.
    if set.storage_version() < (1, 64) {
        return;
    }
    let program = set.find("containers-storage").unwrap();
    let mut numbers = Numbers(7);
    let mut winners = std::collections::BTreeSet::new();
    for round in 0..2 * ROUNDS {
        let machine = Machine::new(&mut numbers);
        let uid = if round % 2 == 0 { 0 } else { 1000 };
        let named = numbers.below(6) == 0;
        let last = numbers.below(6) == 0;
        let variables = machine.variables(named, last);
        // Ours looks for the directories of the system below a root.
        let root = machine.path("root");
        for (place, dir) in [("etc", "etc"), ("usr/share", "usr")] {
            let place = root.join(place);
            fs::create_dir_all(&place).unwrap();
            symlink(machine.path(dir), place.join("containers")).unwrap();
        }
        let mut loader = Loader::new()
            .user(uid)
            .root(&root)
            .variable("STORAGE_DRIVER", "vfs");
        for (name, value) in &variables {
            loader = loader.variable(name, value);
        }
        let ours = loader.load().await.unwrap().options.graph_root;
        let theirs = machine.theirs(&program, uid, &variables);
        assert_eq!(ours.to_str(), Some(&*theirs), "round {round}, user {uid}");
        winners.insert(ours.file_name().unwrap().to_owned());
    }
    assert!(winners.len() > 8, "too few places were decisive: {winners:?}");
}

each_set!(newer async places_count_as_in_the_newest_program: "containers-storage");
