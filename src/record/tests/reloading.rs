//! A table that is made current is the table that a full load gives.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use crate::digest::Digest;
use crate::json;
use crate::record::image::ImageRow;
use crate::record::intent;
use crate::record::layer::LayerRow;
use crate::record::record_trait::{DigestKind, Record};
use crate::record::table::Table;

/// What another program may do to a file.
#[derive(Clone, Debug)]
enum Edit {
    Remove(usize),
    Insert(usize, u8),
    Append(u8),
    Change(usize, u8),
    /// A name that another row may have.
    Name(usize, u8),
    Swap(usize, usize),
    Repeat(usize),
    /// To the other file.
    Move(usize),
    /// White space in the row.
    Space(usize),
    Intent(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = || 0..40usize;
    prop_oneof![
        4 => at().prop_map(Edit::Remove),
        1 => (at(), any::<u8>()).prop_map(|(at, new)| Edit::Insert(at, new)),
        6 => any::<u8>().prop_map(Edit::Append),
        6 => (at(), any::<u8>()).prop_map(|(at, new)| Edit::Change(at, new)),
        3 => (at(), 0..12u8).prop_map(|(at, new)| Edit::Name(at, new)),
        1 => (at(), at()).prop_map(|(one, other)| Edit::Swap(one, other)),
        1 => at().prop_map(Edit::Repeat),
        1 => at().prop_map(Edit::Move),
        1 => at().prop_map(Edit::Space),
        1 => at().prop_map(Edit::Intent),
    ]
}

/// How the whole file is written.
#[derive(Clone, Copy, Debug)]
enum Form {
    Go,
    Pretty,
    Blanks,
    Null,
    Truncated(usize),
    Garbage(usize),
}

fn form() -> impl Strategy<Value = Form> {
    prop_oneof![
        10 => Just(Form::Go),
        2 => Just(Form::Pretty),
        5 => Just(Form::Blanks),
        1 => Just(Form::Null),
        1 => (0..5000usize).prop_map(Form::Truncated),
        1 => (0..5000usize).prop_map(Form::Garbage),
    ]
}

fn write(rows: &[String], form: Form) -> Bytes {
    let plain = format!("[{}]", rows.join(","));
    match form {
        Form::Go => plain.into(),
        Form::Pretty => {
            let values: Vec<serde_json::Value> = rows
                .iter()
                .map(|row| serde_json::from_str(row).unwrap())
                .collect();
            serde_json::to_string_pretty(&values).unwrap().into()
        }
        Form::Blanks => format!(" [   {}  ] ", rows.join("    \n,")).into(),
        Form::Null => "null".into(),
        Form::Truncated(at) => plain[..at.min(plain.len())].to_owned().into(),
        Form::Garbage(at) => {
            let mut bytes = plain.into_bytes();
            let at = at.min(bytes.len() - 1);
            bytes[at] = b'}';
            bytes.into()
        }
    }
}

/// A row of its kind, as text.
trait Sample: Record {
    fn sample(number: u8, text: u8) -> Self;
}

impl Sample for LayerRow {
    fn sample(number: u8, text: u8) -> Self {
        Self {
            id: format!("id{number}").as_str().into(),
            parent: format!("id{}", number / 2).as_str().into(),
            metadata: text.to_string(),
            diff_digest: Digest::sha256([text]).into(),
            ..Self::default()
        }
    }
}

impl Sample for ImageRow {
    fn sample(number: u8, text: u8) -> Self {
        let mut row = Self {
            id: format!("id{number}").as_str().into(),
            layer: format!("id{}", number / 2).as_str().into(),
            metadata: text.to_string(),
            ..Self::default()
        };
        // Read, and not written by others: what an image is found by follows from it.
        row.big_data_names.push("manifest".into());
        row.big_data_digests
            .insert("manifest".into(), Digest::sha256([text]).into());
        row
    }
}

fn text<R: Record>(row: &R) -> String {
    String::from_utf8(json::to_bytes(row).unwrap()).unwrap()
}

fn changed<R: Record>(text_before: &str, change: impl FnOnce(&mut R)) -> String {
    let mut row: R = serde_json::from_str(text_before).unwrap();
    change(&mut row);
    text(&row)
}

fn apply<R: Sample>(files: &mut [Vec<String>; 2], which: usize, edit: &Edit) {
    let other = 1 - which;
    let count = files[which].len();
    let at = |at: &usize| (count > 0).then(|| at % count);
    match edit {
        Edit::Remove(index) => drop(at(index).map(|index| files[which].remove(index))),
        Edit::Insert(index, new) => files[which].insert(index % (count + 1), text(&R::sample(*new, 0))),
        Edit::Append(new) => files[which].push(text(&R::sample(*new, 1))),
        Edit::Change(index, new) => {
            if let Some(index) = at(index) {
                let id: u8 = changed_id::<R>(&files[which][index]);
                files[which][index] = text(&R::sample(id, *new));
            }
        }
        Edit::Name(index, new) => {
            if let Some(index) = at(index) {
                let name = format!("name{new}");
                files[which][index] = changed::<R>(&files[which][index], |row| row.names_mut().push(name));
            }
        }
        Edit::Swap(one, two) => {
            if let (Some(one), Some(two)) = (at(one), at(two)) {
                files[which].swap(one, two);
            }
        }
        Edit::Repeat(index) => {
            if let Some(index) = at(index) {
                let row = files[which][index].clone();
                files[which].push(row);
            }
        }
        Edit::Move(index) => {
            if let Some(index) = at(index) {
                let row = files[which].remove(index);
                files[other].push(row);
            }
        }
        Edit::Space(index) => {
            if let Some(index) = at(index) {
                files[which][index] = files[which][index].replacen(':', " : ", 1);
            }
        }
        Edit::Intent(index) => {
            if let Some(index) = at(index) {
                files[which][index] = changed::<R>(&files[which][index], |row| row.set_intent(intent::NAMES));
            }
        }
    }
}

/// The number in the ID of a row; garbage may have made it an ID without one.
fn changed_id<R: Record>(text: &str) -> u8 {
    let row: R = serde_json::from_str(text).unwrap();
    let number = row.id().strip_prefix("id").and_then(|id| id.parse().ok());
    number.unwrap_or(0)
}

/// Everything that can be asked.
fn compare<R: Record>(one: &Table<R>, other: &Table<R>) {
    let all = |table: &Table<R>| {
        let slots = table.slots.values();
        let slots = slots.map(|slot| (Arc::clone(&slot.row), slot.location, slot.text.clone()));
        slots.collect::<Vec<_>>()
    };
    assert_eq!(all(one), all(other));
    assert_eq!(
        (&one.dirty, one.needs_repair()),
        (&other.dirty, other.needs_repair())
    );
    assert_eq!(one.incomplete(), other.incomplete());
    let rank = |table: &Table<R>, id: &str| {
        let position = table.position(id)?;
        Some(table.slots.range(..position).count())
    };
    for row in one.rows() {
        assert_eq!(rank(one, row.id()), rank(other, row.id()));
        for name in row.names() {
            assert_eq!(one.by_name(name), other.by_name(name));
        }
        row.each_digest(&mut |kind, digest| {
            assert_eq!(one.by_digest(kind, digest), other.by_digest(kind, digest));
        });
    }
    for number in 0..=u8::MAX {
        let id = format!("id{number}");
        assert_eq!(one.find(&id), other.find(&id));
        assert!(one.users_of(&id).eq(other.users_of(&id)));
    }
    for digit in 0..=9 {
        assert_eq!(one.find(&format!("id{digit}")), other.find(&format!("id{digit}")));
    }
}

/// What is done to the files, which of the two, and how each is written.
type Step = (Vec<(bool, Edit)>, [Form; 2]);

/// Returns how many of the steps needed no full load.
fn follow<R: Sample>(steps: &[Step]) -> usize {
    let mut files: [Vec<String>; 2] = [
        (0..30).map(|number| text(&R::sample(number, 9))).collect(),
        (100..104).map(|number| text(&R::sample(number, 9))).collect(),
    ];
    let load = |texts: &[Bytes]| {
        let parsed = texts.iter().map(|text| json::parse_array_into(text, Arc::new));
        let parsed: Result<Vec<_>, _> = parsed.collect();
        Table::<R>::load(parsed.ok()?, false).ok()
    };
    let mut known = load(&files.clone().map(|rows| write(&rows, Form::Go))).unwrap();
    // The indexes that are built on demand are there.
    assert!(known.find("id").is_none());
    drop(known.by_digest(DigestKind::Image, &Digest::sha256("")));
    assert_eq!(known.users_of("none").count(), 0);
    let mut partly = 0;
    for (edits, forms) in steps {
        for (second, edit) in edits {
            apply::<R>(&mut files, usize::from(*second), edit);
        }
        let texts = [write(&files[0], forms[0]), write(&files[1], forms[1])];
        let lists = texts.clone().map(|text| match &*text {
            b"null" => Bytes::from_static(b"[]"),
            _ => text,
        });
        let full = load(&texts);
        if let Some(table) = known.clone().reload(&lists) {
            partly += 1;
            compare(&table, full.as_ref().expect("what cannot be loaded was reloaded"));
            known = table;
        } else if let Some(table) = full {
            known = table;
        }
        if known.needs_save() {
            // As its next writer does.
            for location in 0..2 {
                known.fill_texts(location).unwrap();
                known.saved(location);
            }
            known.clear_takers();
            for location in 0..2 {
                known.saved(location);
            }
            known.keep_changes();
            for (location, file) in files.iter_mut().enumerate() {
                known.fill_texts(location).unwrap();
                let rows = known.rows_in(location);
                *file = rows.map(|row| text(&**row)).collect();
            }
        }
    }
    partly
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn layers_are_reloaded_as_they_are_loaded(
        steps in prop::collection::vec((prop::collection::vec((any::<bool>(), edit()), 0..4), [form(), form()]), 1..12),
    ) {
        follow::<LayerRow>(&steps);
    }

    #[test]
    fn images_are_reloaded_as_they_are_loaded(
        steps in prop::collection::vec((prop::collection::vec((any::<bool>(), edit()), 0..4), [form(), form()]), 1..12),
    ) {
        follow::<ImageRow>(&steps);
    }
}

#[test]
fn usual_changes_need_no_full_load() {
    let steps: Vec<_> = [
        vec![(false, Edit::Append(50))],
        vec![(true, Edit::Append(120))],
        vec![(false, Edit::Append(51)), (true, Edit::Remove(1))],
        vec![
            (false, Edit::Change(3, 77)),
            (false, Edit::Remove(0)),
            (false, Edit::Name(5, 3)),
        ],
        vec![],
        vec![(false, Edit::Insert(2, 60))],
        vec![(false, Edit::Swap(1, 20))],
    ]
    .into_iter()
    .zip([Form::Go, Form::Blanks].into_iter().cycle())
    .map(|(edits, form)| (edits, [form, form]))
    .collect();
    assert_eq!(follow::<LayerRow>(&steps), steps.len());
    assert_eq!(follow::<ImageRow>(&steps), steps.len());
}
