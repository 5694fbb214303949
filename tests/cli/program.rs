//! Running the command on a store, and what came of it in a form that can be compared.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::support::root::TestRoot;

/// What a run came to.
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

/// Names the file of the other program, where it shall not be the distribution's.
const PEER: &str = "GRAPHROOT_TEST_CONTAINERS_STORAGE";

/// Whether the other program was chosen, and so is the newest one.
pub(crate) fn newest() -> bool {
    std::env::var_os(PEER).is_some()
}

/// One of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Ours,
    /// `containers-storage`, by default the distribution's.
    Theirs,
}

impl Program {
    fn path(self) -> OsString {
        match self {
            Self::Ours => env!("CARGO_BIN_EXE_graphroot").into(),
            Self::Theirs => std::env::var_os(PEER).unwrap_or_else(|| "containers-storage".into()),
        }
    }

    /// The program in the environment of a test's store, without arguments.
    pub(crate) fn bare(self, root: &TestRoot) -> Command {
        root.program(self.path().to_str().unwrap())
    }

    /// The program with the store as arguments.
    pub(crate) fn on(self, root: &TestRoot) -> Command {
        let mut command = self.bare(root);
        command
            .arg("--graph")
            .arg(root.graph())
            .arg("--run")
            .arg(root.run())
            .arg("--storage-driver")
            .arg(root.driver());
        command
    }

    /// Runs the program on a store with the words of a line.
    pub(crate) fn run(self, root: &TestRoot, line: &str) -> Answer {
        self.on(root).args(words(line)).output().unwrap().into()
    }
}

/// Our program on a store.
pub(crate) fn ours(root: &TestRoot, line: &str) -> Answer {
    Program::Ours.run(root, line)
}

/// What our program prints where it has to succeed.
#[track_caller]
pub(crate) fn good(root: &TestRoot, line: &str) -> String {
    let answer = ours(root, line);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""), "{line}: {answer:?}");
    answer.out
}

/// Runs a command that reads `input`.
pub(crate) fn with_input(mut command: Command, input: &[u8]) -> Answer {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that fails early does not read.
    let _closed = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap().into()
}

/// The words of a line; single quotes keep spaces and make empty words.
pub(crate) fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    for letter in line.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                any = true;
            }
            ' ' if !quoted => {
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

/// Makes texts of two stores comparable: the store's directory, random IDs (in the order in which they first appear)
/// and times of creation get fixed names.
#[derive(Debug, Default)]
pub(crate) struct Normal {
    ids: HashMap<String, usize>,
}

impl Normal {
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
fn normal_texts_have_no_ids_and_no_times() {
    let id = |letter: &str| letter.repeat(64);
    let text = format!(
        "{a} sha256:{a} {b}x {a} \"created\":\"2026\" end",
        a = id("a"),
        b = id("b")
    );
    let root = TestRoot::in_dir(&std::env::temp_dir(), "vfs");
    let mut normal = Normal::default();
    let expected = format!("ID0 sha256:{} ID1x ID0 \"created\":\"TIME\" end", id("a"));
    assert_eq!(normal.text(&root, &text), expected);
    assert_eq!(normal.text(&root, &root.path().display().to_string()), "ROOT");
    assert_eq!(words("a  'b c' '' d"), ["a", "b c", "", "d"]);
}
