//! The programs that share a store with the library, run on a [`TestRoot`].

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use super::root::TestRoot;

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
        let mut command = Command::new(program);
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
