//! The programs that share a store with the library, run on a [`TestRoot`].
//!
//! They come in sets, a [`PeerSet`] for each release of Debian. A test takes the set as its parameter and gives it to
//! its roots with [`TestRoot::of`]; everything that it runs with [`TestRoot::program`] and the others is then of that
//! set. [`each_set`](super::each_set) makes one test of it for each set:
//!
//! ```ignore
//! async fn podman_lists_our_image(set: PeerSet) {
//!     let root = TestRoot::new().of(set);
//!     // …
//!     root.podman().words("images").run();
//! }
//! each_set!(async podman_lists_our_image: "podman");
//! ```

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Once;

use super::root::TestRoot;

/// The programs of one release.
///
/// The sets that are not the machine's own are made by `tests/peers/make`, which says how; `GRAPHROOT_TEST_PEERS` names
/// the directory in which they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PeerSet {
    /// What the machine has: of Debian 12 in continuous integration.
    Installed,
    /// Debian 13.
    Trixie,
    /// Debian testing: the newest programs that there are.
    Forky,
}

impl PeerSet {
    /// The directory of a set that the machine does not have by itself.
    fn directory(self) -> Option<PathBuf> {
        let name = match self {
            Self::Installed => return None,
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        };
        let all = std::env::var_os("GRAPHROOT_TEST_PEERS").unwrap_or("/var/cache/graphroot-peers".into());
        Some(PathBuf::from(all).join(name))
    }

    /// The directory of its programs, where it has one of its own.
    pub(crate) fn bin(self) -> Option<PathBuf> {
        Some(self.directory()?.join("bin"))
    }

    /// `PATH` with the set's programs before the machine's.
    pub(crate) fn search_path(self) -> OsString {
        let machine = std::env::var_os("PATH").unwrap_or_default();
        let all = self.bin().into_iter().chain(std::env::split_paths(&machine));
        std::env::join_paths(all).unwrap()
    }

    /// Where a program of the set, or else of the machine, lies.
    pub(crate) fn find(self, program: &str) -> Option<PathBuf> {
        std::env::split_paths(&self.search_path())
            .map(|dir| dir.join(program))
            .find(|file| file.is_file())
    }

    /// Whether a test can run with these programs of the set, as root; if not, that is said, and panics where it has
    /// to. The first time, the versions are printed.
    pub(crate) fn is_ready(self, programs: &[&str]) -> bool {
        if self.is_left_out() {
            eprintln!("SKIPPED: without the peers of {self:?}");
            return false;
        }
        if self.bin().is_some_and(|bin| !bin.is_dir()) {
            super::missing(&format!(
                "the peers of {self:?} are not there; tests/peers/make makes them"
            ));
            return false;
        }
        if !super::require_root() {
            return false;
        }
        for program in programs {
            if self.find(program).is_none() {
                super::missing(&format!("{program} of {self:?} is not installed"));
                return false;
            }
        }
        self.print_versions();
        true
    }

    /// The version of the set's `containers-storage`, as major and minor number; zero for one that does not tell.
    pub(crate) fn storage_version(self) -> (u32, u32) {
        let program = self.find("containers-storage").unwrap();
        let output = Command::new(program).arg("version").output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let number = text.split_whitespace().last().unwrap_or("0.0");
        let mut parts = number.split('.').map(|part| part.parse().unwrap());
        (parts.next().unwrap(), parts.next().unwrap())
    }

    /// Whether `GRAPHROOT_TEST_WITHOUT` names it.
    fn is_left_out(self) -> bool {
        let without = std::env::var("GRAPHROOT_TEST_WITHOUT").unwrap_or_default();
        without
            .split(',')
            .any(|name| name.eq_ignore_ascii_case(&format!("{self:?}")))
    }

    /// Prints the versions once, past the harness, which keeps what a passing test writes.
    fn print_versions(self) {
        static PRINTED: [Once; 3] = [const { Once::new() }; 3];
        PRINTED[self as usize].call_once(|| {
            let version = |(program, argument): &(&str, &str)| {
                let output = Command::new(self.find(program)?).arg(argument).output().ok()?;
                let text = [output.stdout, output.stderr].concat();
                let text = String::from_utf8_lossy(&text).into_owned();
                let number = text
                    .split_whitespace()
                    .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
                Some(format!("{program} {number}"))
            };
            let programs = [
                ("podman", "--version"),
                ("buildah", "--version"),
                ("skopeo", "--version"),
                ("containers-storage", "version"),
            ];
            let found: Vec<_> = programs.iter().filter_map(version).collect();
            let line = format!("peers of {self:?}: {}\n", found.join(", "));
            // Nothing hinges on it.
            let _written = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
        });
    }
}

/// Runs a test to its end.
pub(crate) fn block_on(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

/// Makes one test for each set of peers of a function that takes the set, `async fn` or `fn`. Behind the colon are the
/// programs without which it cannot run, besides being root. With `newer` the machine's own set is left out; with `ignored`
/// and a reason too, and the tests run where they are asked for only.
macro_rules! each_set {
    ($kind:tt $name:ident: $($program:literal),*) => {
        crate::support::each_set!(@sets {} $kind $name [$($program),*]
            installed Installed trixie Trixie forky Forky);
    };
    (newer $kind:tt $name:ident: $($program:literal),*) => {
        crate::support::each_set!(@sets {} $kind $name [$($program),*] trixie Trixie forky Forky);
    };
    (ignored $why:literal $kind:tt $name:ident: $($program:literal),*) => {
        crate::support::each_set!(@sets {ignore = $why} $kind $name [$($program),*] trixie Trixie forky Forky);
    };
    (@sets $attribute:tt $kind:tt $name:ident $programs:tt $($test:ident $set:ident)*) => {
        mod $name {
            $(crate::support::each_set!(@test $attribute $kind $name $programs $test $set);)*
        }
    };
    (@test {$($attribute:meta)?} $kind:tt $name:ident $programs:tt $test:ident $set:ident) => {
            #[test]
            $(#[$attribute])?
            fn $test() {
                let set = crate::support::peers::PeerSet::$set;
                if set.is_ready(&$programs) {
                    crate::support::each_set!(@run $kind super::$name(set));
                }
            }
    };
    (@run async $test:expr) => { crate::support::peers::block_on($test) };
    (@run fn $test:expr) => { $test };
}
pub(crate) use each_set;

impl TestRoot {
    /// `podman` on this store.
    pub(crate) fn podman(&self) -> Command {
        self.with_store("podman", &["--root", "--runroot", "--storage-driver"])
    }

    /// `buildah` on this store.
    pub(crate) fn buildah(&self) -> Command {
        self.with_store("buildah", &["--root", "--runroot", "--storage-driver"])
    }

    /// `containers-storage`, the Go library's own command, on this store.
    pub(crate) fn go(&self) -> Command {
        self.with_store("containers-storage", &["--graph", "--run", "--storage-driver"])
    }

    /// `skopeo`; name images of this store by [`TestRoot::image_reference`].
    pub(crate) fn skopeo(&self) -> Command {
        self.program("skopeo")
    }

    /// Any program in the store's environment.
    pub(crate) fn program(&self, program: &str) -> Command {
        let found = self.peers().find(program);
        let mut command = Command::new(found.unwrap_or_else(|| program.into()));
        command
            .env_clear()
            .envs(self.environment())
            .stdin(Stdio::null())
            .current_dir(self.path());
        command
    }

    /// A program with the store as arguments of these names.
    pub(crate) fn with_store(&self, program: &str, [graph, run, driver]: &[&str; 3]) -> Command {
        let mut command = self.program(program);
        command
            .arg(graph)
            .arg(self.graph())
            .arg(run)
            .arg(self.run())
            .arg(driver)
            .arg(self.driver());
        command
    }
}

/// Runs commands to their end.
pub(crate) trait Run {
    /// Adds arguments, as `Command::args`, by value.
    fn with<S: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = S>) -> Self;

    /// Adds the words of a line as arguments. Single quotes keep spaces and make empty words.
    fn words(self, line: &str) -> Self;

    /// The standard output of a command that succeeds, without the final newline; panics with everything that is
    /// known if it does not.
    fn run(&mut self) -> String;
}

impl Run for Command {
    fn with<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.args(arguments);
        self
    }

    fn words(self, line: &str) -> Self {
        self.with(words(line))
    }

    fn run(&mut self) -> String {
        let output = self
            .output()
            .unwrap_or_else(|error| panic!("running {self:?}: {error}"));
        assert!(output.status.success(), "{}", report(self, &output));
        String::from_utf8_lossy(&output.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }
}

/// The words of a line. Single quotes keep spaces and make empty words.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    for letter in line.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                any = true;
            }
            letter if letter.is_whitespace() && !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            letter => word.push(letter),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

fn report(command: &Command, output: &Output) -> String {
    let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    format!(
        "{} {}\n{}\n--- stdout\n{}--- stderr\n{}",
        command.get_program().to_string_lossy(),
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    )
}

#[test]
fn words_end_at_spaces_outside_quotes() {
    assert_eq!(words("a  'b c' '' d"), ["a", "b c", "", "d"]);
}
