//! Rows as structs: what their fields may be, how they are read and written.
//!
//! Reading is tolerant where Go is: `null` is the zero value at every depth, the case of a key does not matter, unknown
//! fields are kept and written back.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, Deserializer, Error as _};

use crate::idmap::IdMap;
use crate::time::Time;

/// A field of a row: read with `null` as the zero value at every depth, and left out of the file where it is zero.
pub(crate) trait Field: Sized + Default {
    /// Reads a value that is not `null`.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
    /// Whether the field may be left out (Go's `omitempty`).
    fn is_zero(&self) -> bool;
}

/// Reads a [`Field`], or its zero value for `null`.
pub(crate) struct OrNull<T>(pub(crate) T);

struct NotNull<T>(T);

impl<'de, T: Field> Deserialize<'de> for OrNull<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Option::<NotNull<T>>::deserialize(deserializer)?;
        Ok(Self(value.map(|value| value.0).unwrap_or_default()))
    }
}

impl<'de, T: Field> Deserialize<'de> for NotNull<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::read(deserializer).map(Self)
    }
}

/// Reads a text with `read`, which returns the reason if it refuses the text, without allocating it first.
pub(crate) fn read_text<'de, T, D: Deserializer<'de>>(
    deserializer: D,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Visitor<F>(F);
    impl<T, F: FnOnce(&str) -> Result<T, String>> de::Visitor<'_> for Visitor<F> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.0)(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Visitor(read))
}

/// Reads a key: its meaning, or its text if it is none of `keys`.
pub(crate) struct OneOf<K: 'static> {
    pub(crate) keys: &'static [(&'static str, K)],
    /// The next key if the fields are in order, as they usually are.
    pub(crate) next: usize,
}

impl<K: Copy> OneOf<K> {
    fn find(&self, text: &str) -> Option<K> {
        let (before, from) = self.keys.split_at_checked(self.next)?;
        let mut keys = from.iter().chain(before);
        keys.find(|(key, _)| *key == text).map(|(_, found)| *found)
    }
}

impl<'de, K: Copy> de::DeserializeSeed<'de> for OneOf<K> {
    type Value = Result<K, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        read_text(deserializer, |text| {
            // Case does not matter to Go.
            let found = self.find(text).or_else(|| self.find(&text.to_lowercase()));
            Ok(found.ok_or_else(|| text.to_owned()))
        })
    }
}

macro_rules! plain_fields {
    ($($type:ty: |$value:ident| $zero:expr,)*) => {$(
        impl Field for $type {
            fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::deserialize(deserializer)
            }
            fn is_zero(&self) -> bool {
                let $value = self;
                $zero
            }
        }
    )*};
}

plain_fields! {
    String: |value| value.is_empty(),
    i64: |value| *value == 0,
    u32: |value| *value == 0,
    serde_json::Value: |value| value.is_null(),
}

/// Makes a field of a type that stands for a text: one with `as_str`, and `From<&str>` for whatever is in a file.
macro_rules! text_field {
    ($type:ident) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl $crate::record::row::Field for $type {
            fn read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::record::row::read_text(deserializer, |text| Ok(text.into()))
            }

            fn is_zero(&self) -> bool {
                self.as_str().is_empty()
            }
        }
    };
}
pub(crate) use text_field;

impl Field for Time {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer, |text| {
            text.parse()
                .map_err(|_reason: crate::error::Error| format!("{text:?} is not a time as in RFC 3339"))
        })
    }

    fn is_zero(&self) -> bool {
        self.is_go_zero()
    }
}

impl<T: Field> Field for Vec<T> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Field> de::Visitor<'de> for Visitor<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(value) = access.next_element::<OrNull<T>>()? {
                    if list.is_empty() {
                        // Most lists have one element: one name, one owner.
                        list.reserve_exact(1);
                    }
                    list.push(value.0);
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(Visitor(PhantomData))
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

impl<T: Field> Field for BTreeMap<String, T> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Field> de::Visitor<'de> for Visitor<T> {
            type Value = BTreeMap<String, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = access.next_entry::<String, OrNull<T>>()? {
                    map.insert(key, value.0);
                }
                Ok(map)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

impl Field for IdMap {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut range = Self::default();
        for (key, value) in BTreeMap::<String, serde_json::Value>::deserialize(deserializer)? {
            let target = match canonical(&key, &["container_id", "host_id", "size"]) {
                "container_id" => &mut range.container_id,
                "host_id" => &mut range.host_id,
                "size" => &mut range.size,
                _ => continue,
            };
            *target = match value {
                serde_json::Value::Null => 0,
                value => value
                    .as_u64()
                    .and_then(|number| u32::try_from(number).ok())
                    .ok_or_else(|| D::Error::custom(format!("{key} {value} is not an ID of 32 bits")))?,
            };
        }
        Ok(range)
    }

    fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// The one of `keys` that `key` means (case does not matter to Go), else `key` itself.
fn canonical<'a>(key: &'a str, keys: &[&'static str]) -> &'a str {
    if let Some(exact) = keys.iter().find(|candidate| **candidate == key) {
        return exact;
    }
    let lower = key.to_lowercase();
    keys.iter()
        .find(|candidate| **candidate == lower)
        .map_or(key, |found| found)
}

/// Declares a row: its fields in file order, each with its key and either `always` or `omit` (left out if zero),
/// plus `extra`, which keeps the fields of other writers.
macro_rules! row {
    (
        $(#[$doc:meta])*
        $name:ident { $( $(#[$field_doc:meta])* $field:ident: $type:ty = $key:literal $when:ident, )* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(crate) struct $name {
            $( $(#[$field_doc])* pub(crate) $field: $type, )*
            /// Fields that this version does not know; written back after all others.
            pub(crate) extra: std::collections::BTreeMap<String, serde_json::Value>,
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap as _;
                let mut map = serializer.serialize_map(None)?;
                $(
                    if $crate::record::row::row!(@$when self.$field) {
                        map.serialize_entry($key, &self.$field)?;
                    }
                )*
                for (key, value) in &self.extra {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                /// The fields.
                #[expect(non_camel_case_types, reason = "named like the fields")]
                #[derive(Clone, Copy)]
                enum Key {
                    $($field,)*
                }

                const KEYS: &[(&str, Key)] = &[$(($key, Key::$field),)*];

                struct Visitor;
                impl<'de> serde::de::Visitor<'de> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a record")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        let mut row = $name::default();
                        let mut next = 0;
                        while let Some(key) = map.next_key_seed($crate::record::row::OneOf { keys: KEYS, next })? {
                            match key {
                                Ok(key) => {
                                    next = key as usize + 1;
                                    match key {
                                        $(Key::$field => {
                                            row.$field =
                                                map.next_value::<$crate::record::row::OrNull<$type>>()?.0;
                                        })*
                                    }
                                }
                                Err(unknown) => drop(row.extra.insert(unknown, map.next_value()?)),
                            }
                        }
                        Ok(row)
                    }
                }
                deserializer.deserialize_map(Visitor)
            }
        }
    };
    (@always $value:expr) => { true };
    (@omit $value:expr) => { !$crate::record::row::Field::is_zero(&$value) };
}
pub(crate) use row;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{parse_array, to_bytes};
    use bytes::Bytes;
    use serde_json::Value;

    row! {
        /// A row with a field of each type.
        Sample {
            /// Text.
            id: String = "id" always,
            /// List.
            names: Vec<String> = "names" omit,
            /// Number.
            count: i64 = "big-count" omit,
            /// Small numbers.
            owners: Vec<u32> = "owners" omit,
            /// Anything.
            flags: BTreeMap<String, Value> = "flags" omit,
            /// Ranges.
            maps: Vec<IdMap> = "maps" omit,
        }
    }

    fn sample(text: &str) -> serde_json::Result<Sample> {
        parse_array::<Sample>(&Bytes::from(format!("[{text}]"))).map(|mut rows| rows.remove(0).0)
    }

    #[test]
    fn fields_are_read_tolerantly_and_written_in_order() {
        let text = |text: &str| String::from_utf8(to_bytes(&sample(text).unwrap()).unwrap()).unwrap();
        for (given, expected) in [
            ("{}", r#"{"id":""}"#),
            (
                r#"{"id":null,"names":null,"big-count":null,"flags":null,"maps":null}"#,
                r#"{"id":""}"#,
            ),
            (
                r#"{"NAMES":["a",null],"Id":"x","BIG-Count":-3}"#,
                r#"{"id":"x","names":["a",""],"big-count":-3}"#,
            ),
            (r#"{"id":"x","ID":"y"}"#, r#"{"id":"y"}"#),
            (
                r#"{"zz":1,"new-field":{"b":[],"a":null},"id":"x"}"#,
                r#"{"id":"x","new-field":{"a":null,"b":[]},"zz":1}"#,
            ),
            (
                r#"{"maps":[{"Host_ID":5,"size":null,"other":1}]}"#,
                r#"{"id":"","maps":[{"container_id":0,"host_id":5,"size":0}]}"#,
            ),
        ] {
            assert_eq!(text(given), expected, "{given}");
        }
        for bad in [
            r#"{"big-count":1.0}"#,
            r#"{"big-count":"1"}"#,
            r#"{"big-count":9223372036854775808}"#,
            r#"{"owners":[-1]}"#,
            r#"{"owners":[4294967296]}"#,
            r#"{"id":1}"#,
            r#"{"names":"a"}"#,
            r#"{"maps":[{"size":1.5}]}"#,
            r#"{"maps":[{"host_id":-1}]}"#,
            r#"{"maps":[{"container_id":4294967296}]}"#,
            "null",
            "1",
        ] {
            assert!(sample(bad).is_err(), "{bad}");
        }
    }
}
