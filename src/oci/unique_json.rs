//! JSON in which no key stands twice at any depth: what counts then would differ from program to program.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A value without repeated keys.
#[derive(Debug)]
pub(crate) struct UniqueJson(pub(crate) Value);

/// The fields of an object, which are taken one by one.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

/// Why a document is refused.
pub(crate) type Refusal = String;

/// Whether a document is an object, if it is JSON. Structs are read from arrays of their fields too.
pub(crate) fn is_object(document: &[u8]) -> bool {
    document.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

impl Fields {
    pub(crate) fn of(value: Value) -> Result<Self, Refusal> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err("an object is expected".to_owned()),
        }
    }

    /// The fields of a document.
    #[cfg(feature = "signatures")]
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let value: UniqueJson = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Self::of(value.0)
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// A field that has to be there.
    pub(crate) fn need(&mut self, name: &str) -> Result<Value, Refusal> {
        self.take(name).ok_or_else(|| format!("missing key {name:?}"))
    }

    /// A text that has to be there.
    pub(crate) fn need_text(&mut self, name: &str) -> Result<String, Refusal> {
        match self.need(name)? {
            Value::String(text) => Ok(text),
            _ => Err(format!("{name:?} is no text")),
        }
    }

    /// Refuses fields with other names than these, of those that have not been taken.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Refusal> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(format!("Unknown key {key:?}")),
        }
    }

    /// Refuses what has not been taken.
    #[cfg(feature = "signatures")]
    pub(crate) fn end(self) -> Result<(), Refusal> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(format!("unknown key {key:?}")),
        }
    }
}

impl<'de> Deserialize<'de> for UniqueJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E: Error>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut all = Vec::new();
                while let Some(UniqueJson(value)) = seq.next_element()? {
                    all.push(value);
                }
                Ok(Value::Array(all))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut all = Map::new();
                while let Some(key) = map.next_key::<String>()? {
                    let UniqueJson(value) = map.next_value()?;
                    if all.insert(key.clone(), value).is_some() {
                        return Err(A::Error::custom(format!("duplicate key {key:?}")));
                    }
                }
                Ok(Value::Object(all))
            }
        }
        deserializer.deserialize_any(Any).map(Self)
    }
}
