//! Runs of the command and of `containers-storage` on a store, and outputs that can be compared.

use std::collections::HashMap;
use std::fmt;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::support::peers::Run as _;
use crate::support::root::TestRoot;

impl TestRoot {
    /// A store of the vfs driver below `$TMPDIR`.
    pub(crate) fn vfs() -> Self {
        Self::in_dir(&std::env::temp_dir(), "vfs")
    }
}

/// Exit code and output of a run.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exit code {}\n--- stdout\n{}--- stderr\n{}",
            self.code, self.out, self.err
        )
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// One of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Ours,
    /// `containers-storage` of the root's peers.
    Theirs,
}

impl Program {
    fn path(self) -> &'static str {
        match self {
            Self::Ours => env!("CARGO_BIN_EXE_graphroot"),
            Self::Theirs => "containers-storage",
        }
    }

    /// The program in the environment of a test's store, without arguments.
    pub(crate) fn bare(self, root: &TestRoot) -> Command {
        root.program(self.path())
    }

    /// Runs the program in the environment of a test's store, with these arguments only.
    pub(crate) fn run_bare(self, root: &TestRoot, arguments: &[&str]) -> Answer {
        self.bare(root).args(arguments).output().unwrap().into()
    }

    /// The program with the store as arguments.
    pub(crate) fn on(self, root: &TestRoot) -> Command {
        root.with_store(self.path(), &["--graph", "--run", "--storage-driver"])
    }

    /// Runs the program on a store with the words of a line.
    pub(crate) fn run(self, root: &TestRoot, line: &str) -> Answer {
        self.on(root).words(line).output().unwrap().into()
    }
}

/// Our program on a store.
pub(crate) fn ours(root: &TestRoot, line: &str) -> Answer {
    Program::Ours.run(root, line)
}

/// The standard output of a run of our program that must succeed without a word on standard error.
#[track_caller]
pub(crate) fn good(root: &TestRoot, line: &str) -> String {
    let answer = ours(root, line);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""), "{line}: {answer:?}");
    answer.out
}

/// Runs a command with `input` on its standard input.
pub(crate) fn with_input(mut command: Command, input: &[u8]) -> Answer {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that fails early closes its end without reading.
    let _closed = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap().into()
}

/// Replaces what differs between equal stores: the store's directory, random IDs (numbered by first appearance) and
/// times of creation.
#[derive(Debug, Default)]
pub(crate) struct Normalizer {
    ids: HashMap<String, usize>,
}

impl Normalizer {
    pub(crate) fn answer(&mut self, root: &TestRoot, answer: &Answer) -> Answer {
        Answer {
            code: answer.code,
            out: self.text(root, &answer.out),
            err: self.text(root, &answer.err),
        }
    }

    fn text(&mut self, root: &TestRoot, text: &str) -> String {
        let text = text.replace(root.path().to_str().unwrap(), "ROOT");
        let mut done = String::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find("\"created\":\"") {
            let (before, after) = rest.split_at(at + "\"created\":\"".len());
            done.push_str(before);
            done.push_str("TIME");
            rest = &after[after.find('"').unwrap()..];
        }
        done.push_str(rest);
        self.without_ids(&done)
    }

    fn without_ids(&mut self, text: &str) -> String {
        let is_hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        let mut out = String::new();
        let mut rest = text;
        while !rest.is_empty() {
            let length = rest.bytes().take_while(is_hex).count();
            if length == 64 && !out.ends_with("sha256:") {
                let next = self.ids.len();
                let number = self.ids.entry(rest[..64].to_owned()).or_insert(next);
                out.push_str(&format!("ID{number}"));
                rest = &rest[64..];
                continue;
            }
            let step = length.max(rest.chars().next().map_or(1, char::len_utf8));
            out.push_str(&rest[..step]);
            rest = &rest[step..];
        }
        out
    }
}

#[test]
fn normalized_texts_have_no_ids_and_no_times() {
    let id = |letter: &str| letter.repeat(64);
    let text = format!(
        "{a} sha256:{a} {b}x {a} \"created\":\"2026\" end",
        a = id("a"),
        b = id("b")
    );
    let root = TestRoot::vfs();
    let mut normal = Normalizer::default();
    let expected = format!("ID0 sha256:{} ID1x ID0 \"created\":\"TIME\" end", id("a"));
    assert_eq!(normal.text(&root, &text), expected);
    assert_eq!(normal.text(&root, &root.path().display().to_string()), "ROOT");
}
