//! An ID as it stands in a record.

use std::hash::{Hash, Hasher};
use std::ops::Deref;

use crate::record::row::text_field;
use arrayvec::ArrayString;

/// Bytes of the IDs that everybody makes: 64 hexadecimal digits.
const USUAL: usize = 64;

/// An ID, empty for none. The usual ones lie in the record itself: a store that is opened makes thousands of them.
#[derive(Clone)]
pub(crate) enum IdText {
    /// Up to [`USUAL`] bytes.
    Short(ArrayString<USUAL>),
    /// More than that.
    Long(Box<str>),
}

impl IdText {
    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Short(text) => text,
            Self::Long(text) => text,
        }
    }
}

impl Default for IdText {
    fn default() -> Self {
        Self::Short(ArrayString::new())
    }
}

impl Deref for IdText {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<&str> for IdText {
    fn from(text: &str) -> Self {
        match ArrayString::from(text) {
            Ok(short) => Self::Short(short),
            Err(_too_long) => Self::Long(text.into()),
        }
    }
}

impl From<String> for IdText {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl PartialEq for IdText {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for IdText {}

impl PartialEq<str> for IdText {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for IdText {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialEq<String> for IdText {
    fn eq(&self, other: &String) -> bool {
        self.as_str() == other
    }
}

impl Hash for IdText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

text_field!(IdText);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::row::Field as _;
    use std::collections::HashMap;

    #[test]
    fn any_length_is_the_same_text() {
        for length in [0, 1, USUAL - 1, USUAL, USUAL + 1, 1000] {
            let text = "f".repeat(length);
            let id = IdText::from(text.as_str());
            assert_eq!(matches!(id, IdText::Short(_)), length <= USUAL);
            assert!(id == text && id == text.as_str() && id == *text);
            assert_eq!(id, id.clone());
            assert_eq!(id.is_zero(), text.is_empty());
            assert_eq!(format!("{id} {id:?}"), format!("{text} {text:?}"));
            assert_eq!(HashMap::from([(id.clone(), 1)]).get(&id), Some(&1));
            assert!(id != format!("{text}x"));
        }
        assert!(IdText::default().is_empty());
    }
}
