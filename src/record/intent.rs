//! Intents: what is under way with a record while another file changes too.
//!
//! No rename changes two files at once. So a writer that makes or deletes a layer together with an image or a container
//! marks the layer first, and at the end the mark goes, or the layer with it; likewise a writer that takes names from
//! records in another file of the same store. Writers hold the lock, so a mark that is found was left by a killed writer,
//! and the finder completes the work before anything else, also the one that only reads: a marked layer to which something refers is kept, another one
//! is deleted.
//!
//! ```text
//! creating   layer (incomplete, marked) → layer (marked) → image or container → layer
//! deleting   layer (marked) → no image or container → layer (incomplete, marked) → no layer
//! ```
//!
//! Compat: an intent is one of the record's flags, which the Go library keeps when it writes the file. It does not know
//! what it means; so the order is one in which no image or container is ever without its layer, and what the Go library
//! makes of what a killed writer has left is a layer that nothing refers to, as after the death of one of its own processes.

use std::collections::BTreeMap;

use serde_json::Value;

/// The record has taken names that a record in another file may still have.
pub(crate) const NAMES: &str = "names";

/// New content of a big data item waits beside the old one, see [`big_data`](crate::record::big_data). It becomes the
/// content for the Go library, which knows of no such file, when it is renamed.
pub(crate) const DATA: &str = "data";

/// The flag that holds the intent.
pub(crate) const FLAG: &str = "graphroot-pending";

/// How the intent of a layer begins to which a diff is being applied, see [`pending_diff`](crate::record::pending_diff).
pub(super) const DIFF: &str = "diff ";

/// Whether a diff is being applied to the layer with these flags.
pub(super) fn is_diff(flags: &BTreeMap<String, Value>) -> bool {
    of(flags).starts_with(DIFF)
}

/// The intent among the flags of a record; empty for none.
pub(crate) fn of(flags: &BTreeMap<String, Value>) -> &str {
    flags.get(FLAG).and_then(Value::as_str).unwrap_or_default()
}

/// Sets the intent among the flags of a record; an empty one removes it.
pub(crate) fn set(flags: &mut BTreeMap<String, Value>, intent: &str) {
    match intent {
        "" => drop(flags.remove(FLAG)),
        intent => drop(flags.insert(FLAG.to_owned(), intent.into())),
    }
}

/// The item together with which a layer is made or deleted, by its ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Companion {
    Image(String),
    Container(String),
}

const IMAGE: &str = "with image ";
const CONTAINER: &str = "with container ";

impl Companion {
    /// The companion that an intent names.
    pub(crate) fn of(intent: &str) -> Option<Self> {
        let image = intent.strip_prefix(IMAGE).map(|id| Self::Image(id.to_owned()));
        let container = || {
            intent
                .strip_prefix(CONTAINER)
                .map(|id| Self::Container(id.to_owned()))
        };
        image.or_else(container)
    }

    /// The intent of a layer with this companion.
    pub(crate) fn intent(&self) -> String {
        match self {
            Self::Image(id) => format!("{IMAGE}{id}"),
            Self::Container(id) => format!("{CONTAINER}{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companions_are_read_as_written() {
        for companion in [Companion::Image("a b".into()), Companion::Container("c".into())] {
            let mut flags = BTreeMap::from([("other".to_owned(), Value::from(true))]);
            set(&mut flags, &companion.intent());
            assert_eq!(Companion::of(of(&flags)), Some(companion));
            set(&mut flags, "");
            assert_eq!((of(&flags), flags.len()), ("", 1));
        }
        assert_eq!(Companion::of(NAMES), None);
        assert_eq!(of(&BTreeMap::from([(FLAG.to_owned(), Value::from(1))])), "");
    }
}
