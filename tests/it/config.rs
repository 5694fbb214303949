//! The configuration in effect, against what Podman and the Go library's command make of the same files.
//!
//! Those of Debian 12 read one file only, no drop-ins, and know fewer keys; [`Theirs`] says where that shows. Newer ones
//! do as they did or as this library does, the newest `containers-storage` always the latter. Of the driver options old
//! versions list only those for the driver in use, and they put its name before those of `[storage.options]`;
//! [`as_listed_by_them`] does the same to ours.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use graphroot::config::Loader;
use graphroot::{Store, StoreOptions};
use serde_json::Value;

use crate::support::each_set;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;

/// What the other programs make of a configuration, compared with us.
#[derive(Clone, Copy, Debug)]
enum Theirs {
    /// The same.
    Same,
    /// The graph root is this one; why.
    GraphRoot(&'static str, &'static str),
    /// The driver is this one; why.
    Driver(&'static str, &'static str),
    /// They do not start; why.
    Fail(&'static str),
    /// They start although we do not; why.
    Start(&'static str),
    /// The driver options are none; why.
    NoOptions(&'static str),
}

/// What we make of it.
#[derive(Clone, Copy, Debug)]
enum Ours {
    /// This driver in the end, and these driver options.
    Opens(&'static str, &'static [&'static str]),
    /// An error with this text.
    Fails(&'static str),
}

/// A configuration. `@` is the case's own directory; the graph root is `@/g` unless the file says otherwise.
#[derive(Debug)]
struct Case {
    name: &'static str,
    /// Below `[storage]` with both roots.
    storage: &'static str,
    /// Environment variables beside the one that names the file.
    variables: &'static [(&'static str, &'static str)],
    ours: Ours,
    theirs: Theirs,
}

const fn case(name: &'static str, storage: &'static str, ours: Ours, theirs: Theirs) -> Case {
    with(name, storage, &[], ours, theirs)
}

const fn with(
    name: &'static str,
    storage: &'static str,
    variables: &'static [(&'static str, &'static str)],
    ours: Ours,
    theirs: Theirs,
) -> Case {
    Case {
        name,
        storage,
        variables,
        ours,
        theirs,
    }
}

use Ours::{Fails, Opens};
use Theirs::{Driver, Fail, GraphRoot, NoOptions, Same, Start};

/// Cases of which Podman 5.4 makes something else than its predecessors and successors, and why.
const OF_TRIXIE: &[(&str, &str)] = &[(
    "file and drop-in file in the user's directory",
    "an empty CONTAINERS_STORAGE_CONF names a file there",
)];

const CASES: &[Case] = &[
    case("overlay", "driver = \"overlay\"", Opens("overlay", &[]), Same),
    case("vfs", "driver = \"vfs\"", Opens("vfs", &[]), Same),
    case("no driver named", "", Opens("overlay", &[]), Same),
    case(
        "old name of overlay",
        "driver = \"overlay2\"",
        Opens("overlay", &[]),
        Same,
    ),
    case(
        "priority list",
        "driver_priority = [\"vfs\"]",
        Opens("vfs", &[]),
        Driver("overlay", "the key is new"),
    ),
    with(
        "driver by variable",
        "driver = \"overlay\"",
        &[("STORAGE_DRIVER", "vfs")],
        Opens("vfs", &[]),
        Same,
    ),
    with(
        "options by variable",
        "driver = \"overlay\"\n[storage.options.overlay]\nmountopt = \"noatime\"",
        &[(
            "STORAGE_OPTS",
            "overlay.mountopt=nodev,overlay.skip_mount_home=true",
        )],
        Opens(
            "overlay",
            &["overlay.mountopt=nodev", "overlay.skip_mount_home=true"],
        ),
        Same,
    ),
    with(
        "options cleared by variable",
        "driver = \"overlay\"\n[storage.options.overlay]\nmountopt = \"noatime\"",
        &[("STORAGE_OPTS", "")],
        Opens("overlay", &[]),
        Same,
    ),
    with(
        "variables in paths",
        "driver = \"vfs\"\ngraphroot = \"$PLACE/g-${WHO}-$UID\"",
        &[("PLACE", "@"), ("WHO", "me")],
        Opens("vfs", &[]),
        Same,
    ),
    case(
        "links in paths",
        "driver = \"vfs\"\ngraphroot = \"@/link/real\"",
        Opens("vfs", &[]),
        Same,
    ),
    case(
        "additional image stores of vfs",
        "driver = \"vfs\"\n[storage.options]\nadditionalimagestores = [\"@/images1\", \"@/images2\"]",
        Opens("vfs", &["imagestore=@/images1", "imagestore=@/images2"]),
        Same,
    ),
    case(
        "additional image stores of overlay",
        "driver = \"overlay\"\n[storage.options]\nadditionalimagestores = [\"@/images1\"]",
        Opens("overlay", &["imagestore=@/images1"]),
        Same,
    ),
    case(
        "mount options",
        "driver = \"overlay\"\n[storage.options.overlay]\nmountopt = \"nodev,metacopy=on\"",
        Opens("overlay", &["overlay.mountopt=nodev,metacopy=on"]),
        Same,
    ),
    case(
        "mount options for every driver",
        "driver = \"overlay\"\n[storage.options]\nmountopt = \"nodev\"",
        Opens("overlay", &["mountopt=nodev"]),
        Same,
    ),
    case(
        "switches of overlay",
        "driver = \"overlay\"\n[storage.options.overlay]\nskip_mount_home = \"true\"\nignore_chown_errors = \"true\"",
        Opens(
            "overlay",
            &["overlay.ignore_chown_errors=true", "overlay.skip_mount_home=true"],
        ),
        Same,
    ),
    case(
        "switch of vfs",
        "driver = \"vfs\"\n[storage.options.vfs]\nignore_chown_errors = \"true\"",
        Opens("vfs", &["vfs.ignore_chown_errors=true"]),
        Same,
    ),
    case(
        "tables of other drivers",
        "driver = \"vfs\"\n[storage.options.btrfs]\nmin_space = \"1G\"\n[storage.options.overlay]\nmountopt = \"nodev\"",
        Opens("vfs", &["btrfs.min_space=1G", "overlay.mountopt=nodev"]),
        Same,
    ),
    case(
        "pull options",
        "driver = \"vfs\"\n[storage.options.pull_options]\nuse_hard_links = \"true\"",
        Opens("vfs", &[]),
        Same,
    ),
    case(
        "unknown keys and removed tables",
        "driver = \"vfs\"\nnonsense = 1\n[storage.options.thinpool]\nfs = \"xfs\"\n[nonsense]\nx = 1",
        Opens("vfs", &[]),
        Same,
    ),
    case(
        "letters of another case",
        "DRIVER = \"vfs\"",
        Opens("vfs", &[]),
        Same,
    ),
    case(
        "automatic user namespaces",
        "driver = \"vfs\"\n[storage.options]\nroot-auto-userns-user = \"me\"\nauto-userns-min-size = 5",
        Opens("vfs", &[]),
        Same,
    ),
    case(
        "store-wide mapping",
        "driver = \"vfs\"\n[storage.options]\nremap-uids = \"0:100000:1000\"\nremap-gids = \"0:100000:1000\"",
        Opens("vfs", &[]),
        Same,
    ),
    case(
        "transient store",
        "driver = \"vfs\"\ntransient_store = true",
        Opens("vfs", &[]),
        Same,
    ),
    with(
        "a last file",
        "driver = \"vfs\"",
        &[("CONTAINERS_STORAGE_CONF_OVERRIDE", "@/last.conf")],
        Opens("vfs", &[]),
        GraphRoot("@/g", "the variable is new"),
    ),
    with(
        "file and drop-in file in the user's directory",
        "",
        &[("CONTAINERS_STORAGE_CONF", ""), ("XDG_CONFIG_HOME", "@/xdg")],
        Opens("vfs", &["vfs.ignore_chown_errors=true"]),
        NoOptions("drop-in files are new"),
    ),
    case(
        "appending list",
        "driver = \"vfs\"\n[storage.options]\nadditionalimagestores = [\"@/images1\", { append = true }]",
        Opens("vfs", &["imagestore=@/images1"]),
        Fail("lists of strings and tables are new"),
    ),
    case(
        "wrong type",
        "driver = \"overlay\"\n[storage.options.overlay]\nmountopt = true",
        Fails("line 6: storage.options.overlay.mountopt: expected a string"),
        Fail("a wrong type stops every version"),
    ),
    case(
        "wrong value",
        "driver = \"overlay\"\n[storage.options.overlay]\nskip_mount_home = \"perhaps\"",
        Fails("line 6: storage.options.overlay.skip_mount_home: expected \"true\" or \"false\""),
        Start("the driver took every text, and all but truth values for false"),
    ),
    case(
        "unknown driver",
        "driver = \"nonsense\"",
        Fails("line 4: storage.driver: expected the name of a driver"),
        Fail("there is no such driver"),
    ),
];

/// Runs something for each case, several at a time.
async fn for_each<F: Future<Output = ()> + Send + 'static>(
    cases: impl Iterator<Item = &'static Case>,
    run: impl Fn(&'static Case) -> F,
) {
    let mut cases: tokio::task::JoinSet<()> = cases.map(run).collect();
    while let Some(case) = cases.join_next().await {
        if let Err(panicked) = case {
            std::panic::resume_unwind(panicked.into_panic());
        }
    }
}

async fn podman_and_we_open_the_same_store(set: PeerSet) {
    for_each(CASES.iter(), move |case| async move {
        let root = TestRoot::new().of(set);
        let place = Place::new(&root, case);
        let ours = place.ours().await;
        if let Some((options, found)) = &ours {
            // What is in effect is also what is opened; Podman comes second and has to cope with it.
            let store = Store::open(options.clone()).await.unwrap();
            assert_eq!(store.graph_driver_name(), found.driver, "{}", case.name);
            assert_eq!(store.graph_root(), found.graph_root, "{}", case.name);
            assert_eq!(store.run_root(), found.run_root, "{}", case.name);
            assert_eq!(store.graph_options(), options.driver_options, "{}", case.name);
            assert_eq!(store.pull_options(), &options.pull_options, "{}", case.name);
            assert_eq!(store.transient_store(), options.transient, "{}", case.name);
            store.shutdown_force().await.unwrap();
            store.free();
        }
        let (mut ours, mut theirs) = (ours.map(|(_, found)| found), place.podman());
        if set != PeerSet::Installed {
            // Newer versions list options in forms of their own; the command below shows them as they are.
            for found in ours.iter_mut().chain(&mut theirs) {
                found.options.clear();
            }
        }
        place.compare(ours, theirs);
    })
    .await;
}
each_set!(async podman_and_we_open_the_same_store: "podman");

async fn the_go_command_and_we_see_the_same_configuration(set: PeerSet) {
    // For root this one looks at the system's files alone unless the variable names another.
    let named = |case: &&Case| !case.variables.contains(&("CONTAINERS_STORAGE_CONF", ""));
    for_each(CASES.iter().filter(named), move |case| async move {
        let root = TestRoot::new().of(set);
        let place = Place::new(&root, case);
        let ours = place.ours().await.map(|(_, found)| found);
        place.compare(ours, place.go());
    })
    .await;
}
each_set!(async the_go_command_and_we_see_the_same_configuration: "containers-storage");

/// A case on disk.
struct Place<'a> {
    root: &'a TestRoot,
    case: &'a Case,
}

/// What a program found in the configuration.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    graph_root: PathBuf,
    run_root: PathBuf,
    driver: String,
    /// In the order of the alphabet, of each name the last.
    options: Vec<String>,
}

impl Found {
    /// What counts is the last option of a name: Podman shows only that, and the command some of them twice.
    fn new(
        graph_root: impl Into<PathBuf>,
        run_root: impl Into<PathBuf>,
        driver: &str,
        options: impl IntoIterator<Item = String>,
    ) -> Self {
        let mut last = BTreeMap::new();
        for option in options {
            let (name, value) = option.split_once('=').unwrap();
            last.insert(name.to_owned(), value.to_owned());
        }
        Self {
            graph_root: graph_root.into(),
            run_root: run_root.into(),
            driver: driver.to_owned(),
            options: last
                .into_iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
        }
    }
}

/// Driver options as old versions list them: those of the driver, under its name.
fn as_listed_by_them(driver: &str, options: &[String]) -> Vec<String> {
    let listed = options
        .iter()
        .filter_map(|option| match option.split('=').next()?.split_once('.') {
            None => Some(format!("{driver}.{option}")),
            Some((of, _)) => (of == driver).then(|| option.clone()),
        });
    listed.collect()
}

impl<'a> Place<'a> {
    fn new(root: &'a TestRoot, case: &'a Case) -> Self {
        let place = Self { root, case };
        for dir in ["images1", "images2", "real", "xdg/containers/storage.conf.d"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        std::os::unix::fs::symlink(root.path(), root.path().join("link")).unwrap();
        let roots = "[storage]\ngraphroot = \"@/g\"\nrunroot = \"@/r\"\n";
        let roots = if case.storage.contains("graphroot") {
            "[storage]\n\nrunroot = \"@/r\"\n"
        } else {
            roots
        };
        for (file, text) in [
            ("storage.conf", format!("{roots}{}\n", case.storage)),
            ("last.conf", "[storage]\ngraphroot = \"@/last\"\n".into()),
            (
                "xdg/containers/storage.conf",
                format!("{roots}driver = \"vfs\"\n"),
            ),
            (
                "xdg/containers/storage.conf.d/1.conf",
                "[storage.options.vfs]\nignore_chown_errors = \"true\"\n".into(),
            ),
        ] {
            std::fs::write(root.path().join(file), place.expand(&text)).unwrap();
        }
        place
    }

    fn expand(&self, text: &str) -> String {
        text.replace('@', self.root.path().to_str().unwrap())
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![("CONTAINERS_STORAGE_CONF", self.expand("@/storage.conf"))];
        variables.extend(
            self.case
                .variables
                .iter()
                .map(|(name, value)| (*name, self.expand(value))),
        );
        variables
    }

    fn loader(&self) -> Loader {
        let loader = Loader::new().root(self.root.path().join("system"));
        self.variables()
            .into_iter()
            .fold(loader, |loader, (name, value)| loader.variable(name, value))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.root.program(program);
        for (name, value) in self.variables() {
            if value.is_empty() && name == "CONTAINERS_STORAGE_CONF" {
                command.env_remove(name);
            } else {
                command.env(name, value);
            }
        }
        command
    }

    /// Our options, and what they come to, checked against the table; `None` where they should be refused, and are.
    async fn ours(&self) -> Option<(StoreOptions, Found)> {
        let name = self.case.name;
        match (self.case.ours, self.loader().load().await) {
            (Fails(text), Err(error)) => {
                assert!(error.chain().contains(text), "{name}: {}", error.chain());
                None
            }
            (Opens(driver, options), Ok(effective)) => {
                let options: Vec<String> = options.iter().map(|option| self.expand(option)).collect();
                assert_eq!(effective.options.driver_options, options, "{name}");
                let listed = as_listed_by_them(driver, &options);
                let (graph_root, run_root) = (&effective.options.graph_root, &effective.options.run_root);
                let found = Found::new(graph_root, run_root, driver, listed);
                Some((effective.options, found))
            }
            (expected, found) => panic!("{name}: {expected:?}, found {found:?}"),
        }
    }

    fn compare(&self, ours: Option<Found>, theirs: Result<Found, String>) {
        let name = self.case.name;
        if self.root.peers() != PeerSet::Installed && self.is_same(ours.as_ref(), theirs.as_ref().ok()) {
            return;
        }
        if let (PeerSet::Trixie, Some(ours), Ok(theirs)) = (self.root.peers(), &ours, &theirs)
            && let Some((_, why)) = OF_TRIXIE.iter().find(|(case, _)| *case == name)
        {
            assert_ne!(ours, theirs, "{name}: {why}");
            return;
        }
        match (self.case.theirs, ours, theirs) {
            (Same, Some(ours), Ok(theirs)) => assert_eq!(ours, theirs, "{name}"),
            (GraphRoot(root, why), Some(mut ours), Ok(theirs)) => {
                assert_ne!(ours, theirs, "{name}: {why}");
                ours.graph_root = self.expand(root).into();
                assert_eq!(ours, theirs, "{name}: {why}");
            }
            (Driver(driver, why), Some(mut ours), Ok(theirs)) => {
                assert_ne!(ours, theirs, "{name}: {why}");
                driver.clone_into(&mut ours.driver);
                assert_eq!(ours, theirs, "{name}: {why}");
            }
            (NoOptions(why), Some(mut ours), Ok(theirs)) => {
                assert_ne!(ours, theirs, "{name}: {why}");
                ours.options.clear();
                assert_eq!(ours, theirs, "{name}: {why}");
            }
            (Fail(why), _, Err(_)) | (Start(why), None, Ok(_)) => assert!(!why.is_empty(), "{name}"),
            (expected, ours, theirs) => panic!("{name}: {expected:?}\nours {ours:?}\ntheirs {theirs:?}"),
        }
    }

    /// Whether newer peers make of it what we do.
    fn is_same(&self, ours: Option<&Found>, theirs: Option<&Found>) -> bool {
        let (Opens(driver, options), Some(ours), Some(theirs)) = (self.case.ours, ours, theirs) else {
            return ours.is_none() && theirs.is_none();
        };
        let all = options.iter().map(|option| self.expand(option));
        let all = Found::new(&ours.graph_root, &ours.run_root, driver, all);
        ours == theirs || all == *theirs
    }

    fn podman(&self) -> Result<Found, String> {
        let output = self
            .command("podman")
            .words("info --format json")
            .output()
            .unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let info: Value = serde_json::from_slice(&output.stdout).unwrap();
        let store = &info["store"];
        let text = |key: &str| store[key].as_str().unwrap();
        let options = store["graphOptions"].as_object().unwrap().iter();
        let options = options.map(|(key, value)| match value {
            Value::String(text) => format!("{key}={text}"),
            other => format!("{key}={other}"),
        });
        Ok(Found::new(
            text("graphRoot"),
            text("runRoot"),
            text("graphDriverName"),
            options,
        ))
    }

    fn go(&self) -> Result<Found, String> {
        let output = self
            .command("containers-storage")
            .words("status")
            .output()
            .unwrap();
        // That is where it prints the status.
        let status = String::from_utf8(output.stderr).unwrap();
        if !output.status.success() {
            return Err(status);
        }
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.strip_prefix(": ")).unwrap_or_default()
        };
        let options = field("Driver Options")
            .trim_matches(['[', ']'])
            .split_whitespace();
        let options = options.map(str::to_owned);
        Ok(Found::new(
            field("Root"),
            field("Run Root"),
            field("Driver Name"),
            options,
        ))
    }
}
