//! JSON documents that programs in Go decode into types: read only if that works, and read as they read it.
//!
//! `encoding/json` has rules of its own. Names of fields count without regard to upper and lower case; unknown fields are
//! passed over; `null` leaves any field as it is; a number is an integer only without point and exponent; a time is the
//! text between the quotes, with no escapes in it. A document that breaks one of them anywhere fails as a whole.
//!
//! One rule is stricter here: a known field that is there twice is refused, since readers differ in which one counts.
//!
//! No I/O.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize as _;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::time::Time;

/// A type of Go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// Whatever there is.
    Any,
    /// `bool`.
    Bool,
    /// `int`, `int64` or a duration.
    Integer,
    /// `string`.
    Text,
    /// `[]byte`: text in Base64.
    Bytes,
    /// `time.Time`.
    Time,
    /// A list of texts, or one text.
    Words,
    /// A slice.
    List(&'static Self),
    /// A map with texts as keys.
    Map(&'static Self),
    /// A struct with these fields.
    Object(&'static [(&'static str, Self)]),
}

impl Shape {
    /// What is expected, for messages.
    fn name(&self) -> &'static str {
        match self {
            Self::Any => "anything",
            Self::Bool => "true or false",
            Self::Integer => "an integer",
            Self::Text => "a string",
            Self::Bytes => "a string in Base64",
            Self::Time => "a time as in RFC 3339",
            Self::Words => "a list of strings",
            Self::List(_) => "a list",
            Self::Map(_) | Self::Object(_) => "an object",
        }
    }

    /// What `null` means as an item of a list or the value of a map.
    fn zero(&self) -> Value {
        match self {
            Self::Text => Value::String(String::new()),
            Self::Map(_) | Self::Object(_) => Value::Object(Map::new()),
            Self::List(_) | Self::Words => Value::Array(Vec::new()),
            _ => Value::Null,
        }
    }
}

/// Reads a document of this shape. In the result the known fields have their exact names, and those that are `null` are
/// left out.
pub(crate) fn decode(bytes: &[u8], shape: &'static Shape, what: &str) -> Result<Value> {
    let failed = |error| unreadable(what, error);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed {
        shape,
        place: &Place::Top,
    };
    let value = seed.deserialize(&mut deserializer).map_err(failed)?;
    deserializer.end().map_err(failed)?;
    Ok(match value {
        Value::Null => shape.zero(),
        value => value,
    })
}

/// A document that was decoded, as a type.
pub(crate) fn typed<T: DeserializeOwned>(document: Value, what: &str) -> Result<T> {
    serde_json::from_value(document).map_err(|error| unreadable(what, error))
}

fn unreadable(what: &str, error: serde_json::Error) -> Error {
    ErrorKind::InvalidInput
        .err(format!("{what} cannot be read"))
        .with_source(error)
}

/// Where in the document a value is.
enum Place<'a> {
    Top,
    Field(&'a Self, &'static str),
    Key(&'a Self, &'a str),
    Item(&'a Self, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top => f.write_str("the document"),
            Self::Field(Self::Top, name) => write!(f, "{name}"),
            Self::Field(place, name) => write!(f, "{place}.{name}"),
            Self::Key(place, key) => {
                // Names come from elsewhere and may be long.
                let short: String = key.chars().take(60).collect();
                write!(f, "{place}.{short:?}")
            }
            Self::Item(place, index) => write!(f, "{place}[{index}]"),
        }
    }
}

/// A value that is expected at a place.
struct Seed<'a> {
    shape: &'static Shape,
    place: &'a Place<'a>,
}

impl Seed<'_> {
    fn wrong<E: serde::de::Error>(&self, found: &str) -> E {
        E::custom(format!(
            "{} is {found}, expected {}",
            self.place,
            self.shape.name()
        ))
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.shape {
            Shape::Any => Value::deserialize(deserializer),
            _ => deserializer.deserialize_any(self),
        }
    }
}

/// Whether Go takes a key for this field.
fn is_field(key: &str, name: &str) -> bool {
    let fold = |letter: char| match letter {
        // The two letters beyond ASCII that have upper or lower case there.
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.shape.name(), self.place)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        match self.shape {
            Shape::Bool => Ok(value.into()),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        match self.shape {
            Shape::Integer => Ok(value.into()),
            _ => Err(self.wrong("a number")),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_large) => Err(self.wrong("a number of more than 63 bits")),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, _value: f64) -> Result<Value, E> {
        Err(self.wrong("a number with a fraction or exponent"))
    }

    /// Text without escapes.
    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Value, E> {
        match self.shape {
            Shape::Time => match text.parse::<Time>() {
                Ok(time) if time.is_written_by_go() => Ok(text.into()),
                _ => Err(self.wrong(&format!("{:?}", text.chars().take(60).collect::<String>()))),
            },
            _ => self.visit_str(text),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        match self.shape {
            Shape::Text | Shape::Words => Ok(text.into()),
            Shape::Bytes => {
                let plain: String = text
                    .chars()
                    .filter(|letter| !matches!(letter, '\r' | '\n'))
                    .collect();
                match STANDARD.decode(&plain) {
                    Ok(_bytes) => Ok(plain.into()),
                    Err(_reason) => Err(self.wrong("another string")),
                }
            }
            Shape::Time => Err(self.wrong("a string with escapes")),
            _ => Err(self.wrong("a string")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let shape = match self.shape {
            Shape::List(shape) => *shape,
            Shape::Words => &Shape::Text,
            _ => return Err(self.wrong("a list")),
        };
        let mut items = Vec::new();
        loop {
            let place = Place::Item(self.place, items.len());
            let seed = Seed { shape, place: &place };
            match list.next_element_seed(seed)? {
                Some(Value::Null) => items.push(shape.zero()),
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let fields = match self.shape {
            Shape::Object(fields) => *fields,
            Shape::Map(_) => &[],
            _ => return Err(self.wrong("an object")),
        };
        let mut read = Map::new();
        let mut seen = vec![false; fields.len()];
        while let Some(key) = map.next_key::<String>()? {
            if let Shape::Map(shape) = self.shape {
                let place = Place::Key(self.place, &key);
                let seed = Seed { shape, place: &place };
                let value = match map.next_value_seed(seed)? {
                    Value::Null => shape.zero(),
                    value => value,
                };
                read.insert(key, value);
                continue;
            }
            let Some(at) = fields.iter().position(|(name, _)| is_field(&key, name)) else {
                let value = map.next_value()?;
                read.insert(key, value);
                continue;
            };
            let Some(((name, shape), seen)) = fields.get(at).zip(seen.get_mut(at)) else {
                continue;
            };
            let place = Place::Field(self.place, name);
            if std::mem::replace(seen, true) {
                return Err(A::Error::custom(format!(
                    "{place} is there more than once, and programs differ in which one they read"
                )));
            }
            let seed = Seed { shape, place: &place };
            match map.next_value_seed(seed)? {
                Value::Null => {}
                value => drop(read.insert((*name).to_owned(), value)),
            }
        }
        Ok(Value::Object(read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    static SHAPE: Shape = Shape::Object(&[
        ("text", Shape::Text),
        ("flag", Shape::Bool),
        ("Size", Shape::Integer),
        ("data", Shape::Bytes),
        ("created", Shape::Time),
        ("shell", Shape::Words),
        ("list", Shape::List(&Shape::Text)),
        ("labels", Shape::Map(&Shape::Text)),
        ("ports", Shape::Map(&Shape::Object(&[]))),
        ("steps", Shape::List(&Shape::Object(&[("created", Shape::Time)]))),
    ]);

    fn read(text: &str) -> Result<Value> {
        decode(text.as_bytes(), &SHAPE, "it")
    }

    #[test]
    fn what_go_takes_is_read_under_the_names_of_its_fields() {
        for (text, expected) in [
            ("null", json!({})),
            (
                r#"{"other":{"text":5},"text":null}"#,
                json!({"other": {"text": 5}}),
            ),
            (r#"{"TEXT":"a","SIZE":-7}"#, json!({"text": "a", "Size": -7})),
            (r#"{"li\u017ft":["a",null]}"#, json!({"list": ["a", ""]})),
            (
                r#"{"labels":{"A":"b","a":null}}"#,
                json!({"labels": {"A": "b", "a": ""}}),
            ),
            (
                r#"{"ports":{"1":{},"2":null,"3":{"x":1}}}"#,
                json!({"ports": {"1": {}, "2": {}, "3": {"x": 1}}}),
            ),
            (
                r#"{"shell":"sh","data":"QQ=\n="}"#,
                json!({"shell": "sh", "data": "QQ=="}),
            ),
            (r#"{"shell":["a","b"]}"#, json!({"shell": ["a", "b"]})),
            (r#"{"steps":[null,{"created":null}]}"#, json!({"steps": [{}, {}]})),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        for time in [
            "0001-01-01T00:00:00Z",
            "2024-06-19T1:22:45Z",
            "2024-06-19T19:22:45,5Z",
            "2024-06-19T19:22:45.12345678901234+23:59",
        ] {
            assert!(read(&format!(r#"{{"created":"{time}"}}"#)).is_ok(), "{time}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused_with_the_name_of_the_field() {
        for (text, why) in [
            ("[]", "the document is a list, expected an object"),
            ("{} x", "trailing"),
            (r#"{"text":5}"#, "text is a number, expected a string"),
            (r#"{"flag":"true"}"#, "flag is a string, expected true or false"),
            (r#"{"Size":1.0}"#, "Size is a number with a fraction or exponent"),
            (
                r#"{"size":9223372036854775808}"#,
                "Size is a number of more than 63 bits",
            ),
            (
                r#"{"data":"Q"}"#,
                "data is another string, expected a string in Base64",
            ),
            (r#"{"list":"a"}"#, "list is a string, expected a list"),
            (r#"{"list":["a",["b"]]}"#, "list[1] is a list, expected a string"),
            (r#"{"labels":["a"]}"#, "labels is a list, expected an object"),
            (r#"{"labels":{"a\nb":{}}}"#, r#"labels."a\nb" is an object"#),
            (
                r#"{"ports":{"80":""}}"#,
                r#"ports."80" is a string, expected an object"#,
            ),
            (
                r#"{"shell":{}}"#,
                "shell is an object, expected a list of strings",
            ),
            (r#"{"shell":[1]}"#, "shell[0] is a number"),
            (r#"{"text":"a","Text":"b"}"#, "text is there more than once"),
            (r#"{"text":null,"text":"b"}"#, "text is there more than once"),
            (
                r#"{"steps":[{},{"created":""}]}"#,
                r#"steps[1].created is "", expected a time"#,
            ),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.chain().contains(why), "{text}: {}", error.chain());
        }
        for time in [
            "",
            "yesterday",
            "2024-06-19",
            "2024-06-19 19:22:45Z",
            "2024-06-19T19:22:45",
            "2024-06-19T19:22:60Z",
            "2024-02-30T19:22:45Z",
            "12024-06-19T19:22:45Z",
            // Read, but not written again.
            "2024-06-19T19:22:45+24:00",
            r"2024-06-19T19:22:45\u005a",
        ] {
            let error = read(&format!(r#"{{"created":"{time}"}}"#)).unwrap_err();
            assert!(error.chain().contains("created is "), "{time}: {}", error.chain());
        }
        assert!(read(r#"{"created":1700000000}"#).is_err());
    }
}
