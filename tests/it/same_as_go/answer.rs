//! What an operation gives, in a form that both sides can be brought to.

use graphroot::{Compression, ErrorKind};
use serde_json::Value;

/// What an operation gives.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Nothing,
    Truth(bool),
    Number(i64),
    Text(String),
    List(Vec<String>),
    /// Records; compared by meaning.
    Json(Value),
    /// Data or a plain archive, and how it was compressed.
    Bytes(Vec<u8>, Compression),
}

/// A list of changes, one line each, sorted. Accepted: `order-of-changes`.
pub(super) fn changes(changes: Value) -> Answer {
    let rows = changes.as_array().cloned().unwrap_or_default();
    let kinds = ["modified", "added", "deleted"];
    let line = |row: &Value| {
        let kind = usize::try_from(row["Kind"].as_u64().unwrap()).unwrap();
        format!("{} {}", row["Path"].as_str().unwrap(), kinds[kind])
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    lines.sort();
    Answer::List(lines)
}

/// Why an operation failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// The sentinel error; `None` for any other.
    pub(super) sentinel: Option<ErrorKind>,
    pub(super) text: String,
}

pub(super) type Outcome = Result<Answer, Failure>;

/// The sentinels of the Go library: all kinds up to the library's own.
fn sentinels() -> impl Iterator<Item = ErrorKind> {
    let own = ErrorKind::ALL.iter().position(|kind| *kind == ErrorKind::Io);
    ErrorKind::ALL.iter().take(own.unwrap()).copied()
}

impl Failure {
    /// From what a command says: the sentinel with which a line ends, maybe followed by "while doing something".
    pub(super) fn of_text(text: &str) -> Self {
        let text = text.trim();
        // The longest, as one text may end with another.
        let sentinel = sentinels()
            .filter(|kind| {
                let text_of_kind = kind.as_str();
                let says = |line: &str| {
                    line.ends_with(text_of_kind) || line.contains(&format!("{text_of_kind} while "))
                };
                text.lines().any(says)
            })
            .max_by_key(|kind| kind.as_str().len());
        Self {
            sentinel,
            text: text.to_owned(),
        }
    }
}

impl From<graphroot::Error> for Failure {
    fn from(error: graphroot::Error) -> Self {
        Self {
            sentinel: sentinels().find(|kind| *kind == error.kind()),
            text: format!("{error:?}"),
        }
    }
}

/// For a failure that says nothing, such as an exit code.
impl From<()> for Failure {
    fn from((): ()) -> Self {
        Self::of_text("")
    }
}

#[test]
fn sentinels_are_recognised_by_their_text() {
    let kind = |text: &str| Failure::of_text(text).sentinel;
    assert_eq!(
        kind("x: layer x used by image y: layer is in use by an image\n"),
        Some(ErrorKind::LayerUsedByImage)
    );
    assert_eq!(
        kind("identifier is not a layer, image, or container"),
        Some(ErrorKind::NotAnId)
    );
    assert_eq!(
        kind("layer not known while unmounting x"),
        Some(ErrorKind::LayerUnknown)
    );
    assert_eq!(kind("open /x: no such file or directory"), None);
    assert_eq!(kind(""), None);
}
