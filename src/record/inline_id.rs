//! An ID as it is in a record.

use std::hash::{Hash, Hasher};
use std::ops::Deref;

use crate::record::row::text_field;
use arrayvec::ArrayString;

/// Length of the usual IDs in bytes: 64 hexadecimal digits.
const USUAL: usize = 64;

/// An ID, empty for none. IDs of the usual length are stored inline, without an allocation, since opening a store reads
/// thousands of them.
#[derive(Clone)]
pub(crate) enum InlineId {
    /// Up to [`USUAL`] bytes.
    Short(ArrayString<USUAL>),
    /// More than that.
    Long(Box<str>),
}

impl InlineId {
    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Short(text) => text,
            Self::Long(text) => text,
        }
    }
}

impl Default for InlineId {
    fn default() -> Self {
        Self::Short(ArrayString::new())
    }
}

impl Deref for InlineId {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<&str> for InlineId {
    fn from(text: &str) -> Self {
        match ArrayString::from(text) {
            Ok(short) => Self::Short(short),
            Err(_too_long) => Self::Long(text.into()),
        }
    }
}

impl From<String> for InlineId {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl PartialEq for InlineId {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for InlineId {}

impl PartialEq<str> for InlineId {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for InlineId {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialEq<String> for InlineId {
    fn eq(&self, other: &String) -> bool {
        self.as_str() == other
    }
}

impl Hash for InlineId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

text_field!(InlineId);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::row::Field as _;
    use std::collections::HashMap;

    #[test]
    fn any_length_is_the_same_text() {
        for length in [0, 1, USUAL - 1, USUAL, USUAL + 1, 1000] {
            let text = "f".repeat(length);
            let id = InlineId::from(text.as_str());
            assert_eq!(matches!(id, InlineId::Short(_)), length <= USUAL);
            assert!(id == text && id == text.as_str() && id == *text);
            assert_eq!(id, id.clone());
            assert_eq!(id.is_zero(), text.is_empty());
            assert_eq!(format!("{id} {id:?}"), format!("{text} {text:?}"));
            assert_eq!(HashMap::from([(id.clone(), 1)]).get(&id), Some(&1));
            assert!(id != format!("{text}x"));
        }
        assert!(InlineId::default().is_empty());
    }
}
