//! Reading what can be read of a damaged file of records. Pure.
//!
//! Records that are whole are taken with their texts, byte for byte. Of one with fields of other types the other fields are
//! taken. After something that is no record the next place is sought at which one begins.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::json;
use crate::record::mount_point::MountPointRow;
use crate::record::record_trait::Record;
use crate::store::check::rebuild::damage::RecordDamage;

/// What every record begins with.
const BEGINNING: &[u8] = b"{\"id\":";

/// Damages that are told of one by one.
const MAX_DAMAGES: usize = 1000;

/// A record with an ID.
pub(crate) trait Keyed: Serialize + DeserializeOwned {
    /// The ID.
    fn key(&self) -> &str;
}

impl<R: Record> Keyed for R {
    fn key(&self) -> &str {
        self.id()
    }
}

impl Keyed for MountPointRow {
    fn key(&self) -> &str {
        &self.id
    }
}

/// A record that was read.
#[derive(Clone, Debug)]
pub(super) struct Salvaged<R> {
    pub(super) row: Arc<R>,
    /// As in the file; of a changed one as it is to be.
    pub(super) text: Bytes,
    /// Fields that were left out.
    pub(super) dropped: Vec<String>,
}

/// What a file of records has.
#[derive(Debug)]
pub(super) struct Contents<R> {
    pub(super) rows: Vec<Salvaged<R>>,
    pub(super) damage: Vec<RecordDamage>,
}

impl<R> Default for Contents<R> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            damage: Vec::new(),
        }
    }
}

impl<R: Keyed> Contents<R> {
    /// Reads a file.
    pub(super) fn of(content: &Bytes) -> Self {
        let mut found = Self::default();
        let is_nothing = |byte: &u8| *byte == 0 || byte.is_ascii_whitespace();
        if content.iter().all(is_nothing) {
            found.damage.push(RecordDamage::Empty);
            return found;
        }
        match json::parse_array_into(content, Arc::new) {
            Ok(rows) => {
                let whole = |(row, text)| Salvaged {
                    row,
                    text,
                    dropped: Vec::new(),
                };
                found.rows = rows.into_iter().map(whole).collect();
            }
            Err(_) => found.salvage(content),
        }
        found
    }

    fn note(&mut self, damage: RecordDamage) {
        if self.damage.len() < MAX_DAMAGES {
            self.damage.push(damage);
        }
    }

    fn salvage(&mut self, content: &Bytes) {
        let blank = |byte: &u8| byte.is_ascii_whitespace();
        let skip = |at: usize, more: &dyn Fn(&u8) -> bool| {
            let rest = content.get(at..).unwrap_or_default();
            at + rest.iter().take_while(|byte| more(byte)).count()
        };
        let mut at = skip(0, &blank);
        if content.get(at) == Some(&b'[') {
            at += 1;
        } else if serde_json::from_slice::<serde::de::IgnoredAny>(content).is_ok() {
            self.note(RecordDamage::NoList);
            return;
        }
        let mut index = 0;
        loop {
            let from = at;
            at = skip(at, &blank);
            if index > 0 && content.get(at) == Some(&b',') {
                at = skip(at + 1, &blank);
            }
            let rest = content.get(at..).unwrap_or_default();
            if rest.is_empty() {
                self.note(RecordDamage::Truncated { at: from as u64 });
                return;
            }
            if rest.first() == Some(&b']') && skip(at + 1, &blank) == content.len() {
                break;
            }
            let mut parser = serde_json::Deserializer::from_slice(rest).into_iter::<serde::de::IgnoredAny>();
            if let Some(Ok(_entry)) = parser.next() {
                let end = at + parser.byte_offset();
                self.take(index, content.slice(at..end));
                index += 1;
                at = end;
                continue;
            }
            // From the next byte on: where a record begins that cannot be read there may be another one in it.
            let next = find_row::<R>(content, at + 1);
            let end = next.unwrap_or(content.len());
            let is_cut = next.is_none() && rest.starts_with(b"{") && is_cut_off(rest);
            self.note(match is_cut {
                true => RecordDamage::Truncated { at: at as u64 },
                false => RecordDamage::Garbage {
                    at: at as u64,
                    length: (end - at) as u64,
                },
            });
            match next {
                Some(next) => {
                    at = next;
                    index += 1;
                }
                None => return,
            }
        }
        if self.damage.is_empty() {
            // Whatever loading does not like.
            self.note(RecordDamage::NoList);
        }
    }

    /// Takes an entry of the list.
    fn take(&mut self, index: usize, text: Bytes) {
        if let Ok(row) = serde_json::from_slice::<R>(&text)
            && !row.key().is_empty()
        {
            self.rows.push(Salvaged {
                row: Arc::new(row),
                text,
                dropped: Vec::new(),
            });
            return;
        }
        let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(&text) else {
            let reason = match serde_json::from_slice::<R>(&text) {
                Err(error) => error.to_string(),
                Ok(_) => String::new(),
            };
            self.note(RecordDamage::NoRecord { index, reason });
            return;
        };
        let (mut kept, mut dropped) = (Map::new(), Vec::new());
        for (key, value) in fields {
            let alone = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
            match serde_json::from_value::<R>(alone) {
                Ok(_) => drop(kept.insert(key, value)),
                Err(error) => dropped.push((key, error.to_string())),
            }
        }
        let row = serde_json::from_value::<R>(Value::Object(kept));
        match row {
            Ok(row) if !row.key().is_empty() => {
                for (field, reason) in &dropped {
                    self.note(RecordDamage::Field {
                        id: row.key().to_owned(),
                        field: field.clone(),
                        reason: reason.clone(),
                    });
                }
                self.push_changed(row, dropped.into_iter().map(|(field, _)| field).collect());
            }
            _ => self.note(RecordDamage::NoRecord {
                index,
                reason: "it has no ID".into(),
            }),
        }
    }

    fn push_changed(&mut self, row: R, dropped: Vec<String>) {
        if let Ok(text) = json::to_bytes(&row) {
            self.rows.push(Salvaged {
                row: Arc::new(row),
                text: text.into(),
                dropped,
            });
        }
    }
}

/// Whether a text ends before the value that it begins with.
fn is_cut_off(text: &[u8]) -> bool {
    let mut parser = serde_json::Deserializer::from_slice(text).into_iter::<serde::de::IgnoredAny>();
    matches!(parser.next(), Some(Err(error)) if error.is_eof())
}

/// Where the next record begins that can be read.
fn find_row<R: Keyed>(content: &Bytes, from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let rest = content.get(at..)?;
        let found = rest
            .windows(BEGINNING.len())
            .position(|window| window == BEGINNING)?;
        at += found;
        let mut parser = serde_json::Deserializer::from_slice(content.get(at..)?).into_iter::<R>();
        if matches!(parser.next(), Some(Ok(_))) {
            return Some(at);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::image::ImageRow;

    fn read(content: &str) -> (Vec<String>, Vec<RecordDamage>) {
        let found = Contents::<ImageRow>::of(&Bytes::from(content.to_owned()));
        let texts = found.rows.iter().map(|row| {
            assert!(!row.row.id.is_empty());
            String::from_utf8(row.text.to_vec()).unwrap()
        });
        (texts.collect(), found.damage)
    }

    const A: &str = r#"{"id":"a","names":["x"],"created":"2020-01-01T00:00:00Z","other": [1, {"id":"no"}]}"#;
    const B: &str = r#"{"id":"b","created":"2020-01-01T00:00:00Z"}"#;

    #[test]
    fn whole_files_are_taken_as_they_are() {
        for (content, rows) in [
            ("[]".to_owned(), vec![]),
            ("null".to_owned(), vec![]),
            (format!(" [{A} ,\n{B}] "), vec![A, B]),
        ] {
            let (found, damage) = read(&content);
            assert_eq!(damage, [], "{content}");
            assert_eq!(found, rows);
        }
    }

    #[test]
    fn what_is_whole_in_a_damaged_file_is_found() {
        let (a, all) = (A.len() as u64, vec![A, B]);
        for (content, rows, damage) in [
            (String::new(), vec![], RecordDamage::Empty),
            ("\0\0\n".to_owned(), vec![], RecordDamage::Empty),
            ("{}".to_owned(), vec![], RecordDamage::NoList),
            ("7".to_owned(), vec![], RecordDamage::NoList),
            ("[".to_owned(), vec![], RecordDamage::Truncated { at: 1 }),
            (
                format!("[{A},{B}"),
                all.clone(),
                RecordDamage::Truncated {
                    at: 2 + a + B.len() as u64,
                },
            ),
            (format!("[{A},"), vec![A], RecordDamage::Truncated { at: 1 + a }),
            (
                format!("[{A},{}", &B[..20]),
                vec![A],
                RecordDamage::Truncated { at: 2 + a },
            ),
            (
                format!("[{A},\u{1}\u{2}{B}]"),
                all.clone(),
                RecordDamage::Garbage { at: 2 + a, length: 2 },
            ),
            (
                format!("\0\0[{A},{B}]"),
                all.clone(),
                RecordDamage::Garbage { at: 0, length: 3 },
            ),
            (
                format!("[{A},{B}]]"),
                all.clone(),
                RecordDamage::Garbage {
                    at: 2 + a + B.len() as u64,
                    length: 2,
                },
            ),
            (
                format!("[{A},,{B}]"),
                all.clone(),
                RecordDamage::Garbage { at: 2 + a, length: 1 },
            ),
            (
                format!("[{},{B}]", &A[..10]),
                vec![B],
                RecordDamage::Garbage { at: 1, length: 11 },
            ),
        ] {
            let (found, damages) = read(&content);
            assert_eq!(found, rows, "{content}");
            assert_eq!(damages, [damage], "{content}");
        }
    }

    #[test]
    fn records_that_are_none_are_left_out_and_fields_of_other_types_too() {
        let (found, damage) = read(&format!("[null,{A},3,{{\"names\":[]}},{{\"id\":4}},{B}]"));
        assert_eq!(found, [A, B]);
        let entries = damage.iter().map(|damage| match damage {
            RecordDamage::NoRecord { index, .. } => *index,
            other => panic!("{other:?}"),
        });
        assert_eq!(entries.collect::<Vec<_>>(), [0, 2, 3, 4]);
        let (found, damage) =
            read(r#"[{"id":"c","names":"x","metadata":"m","zz":[{"q":1}],"big-data-sizes":[]}]"#);
        assert_eq!(
            found,
            [r#"{"id":"c","metadata":"m","created":"0001-01-01T00:00:00Z","zz":[{"q":1}]}"#]
        );
        let fields: Vec<String> = damage.iter().map(ToString::to_string).collect();
        assert_eq!(fields.len(), 2, "{fields:?}");
        assert!(
            fields
                .iter()
                .any(|text| text.contains("record \"c\": field \"names\"")),
            "{fields:?}"
        );
    }
}
