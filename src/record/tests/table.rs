//! The table's rules, one by one.

use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::names::NameOperation;
use crate::record::record_trait::{DigestKind, Record};
use crate::record::table::Table;
use crate::record::tests::sample::{ids, load, named_layer, strings, text};

fn layers(file: &str) -> Table<LayerRow> {
    load(&[file], false).unwrap()
}

fn names<'a, R: Record>(table: &'a Table<R>, id: &str) -> Vec<&'a str> {
    table
        .get(id)
        .unwrap()
        .names()
        .iter()
        .map(String::as_str)
        .collect()
}

const ZERO: &str = r#""created":"0001-01-01T00:00:00Z""#;

#[test]
fn lookup_goes_from_id_to_name_to_layer_to_prefix() {
    let row = |id: &str, name: &str, layer: &str| ContainerRow {
        id: id.into(),
        names: strings(&[name]),
        layer: layer.into(),
        ..ContainerRow::default()
    };
    let mut table = Table::empty(1);
    for row in [
        row("aa1", "n1", "l1"),
        row("aa2", "aa1", "n1"),
        row("b", "l1", "aa"),
        row("with space", "x", "y"),
    ] {
        table.insert(row, 0).unwrap();
    }
    for (key, expected) in [
        ("aa1", Some("aa1")),
        ("n1", Some("aa1")),
        ("l1", Some("b")),
        ("aa", Some("b")),
        ("y", Some("with space")),
        ("a", None),
        ("aa2", Some("aa2")),
        ("with space", Some("with space")),
        ("with", None),
        ("with ", None),
        ("", None),
        ("zz", None),
    ] {
        assert_eq!(table.find(key).map(|row| row.id.as_str()), expected, "{key:?}");
    }
    let error = table.require("zz").unwrap_err();
    assert_eq!(
        error.to_string(),
        "locating container with ID \"zz\": container not known"
    );
    table.remove("b");
    assert_eq!(table.find("l1").unwrap().id, "aa1");
}

#[test]
fn prefixes_are_unique_or_nothing() {
    let mut table = Table::empty(1);
    for id in ["abc", "abd", "ab", "x y", "", "é1"] {
        table.insert(named_layer(id, &[]), 0).unwrap();
    }
    for (key, expected) in [
        ("ab", Some("ab")),
        ("abc", Some("abc")),
        ("a", None),
        ("x", None),
        ("é", Some("é1")),
    ] {
        assert_eq!(table.find(key).map(|row| row.id.as_str()), expected, "{key:?}");
    }
    assert_eq!(table.find("").unwrap().id, "");
    for id in ["abd", "ab"] {
        table.remove(id);
    }
    assert_eq!(table.find("a").unwrap().id, "abc");
}

#[test]
fn insertion_refuses_what_is_taken_and_changes_nothing_then() {
    let mut table = Table::empty(2);
    table.insert(named_layer("a", &["n", "m", "n"]), 1).unwrap();
    assert_eq!(
        (names(&table, "a"), table.location("a")),
        (vec!["n", "m"], Some(1))
    );
    table.saved(1);
    let before = table.changes();
    for (row, kind) in [
        (named_layer("a", &["x"]), ErrorKind::DuplicateId),
        (named_layer("b", &["x", "m"]), ErrorKind::DuplicateName),
    ] {
        assert_eq!(table.insert(row, 0).unwrap_err().kind(), kind);
    }
    assert_eq!(
        table.insert(named_layer("c", &[]), 2).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let error = table.insert(named_layer("b", &["m"]), 0).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("layer name \"m\" is already associated with layer \"a\""),
        "{error}"
    );
    assert_eq!(
        (table.changes(), table.needs_save(), table.len()),
        (before, false, 1)
    );
    assert!(table.by_name("x").is_none());
}

#[test]
fn update_reindexes_and_is_all_or_nothing() {
    let mut table = Table::empty(1);
    table.insert(named_layer("a", &["n"]), 0).unwrap();
    table.insert(named_layer("b", &["m"]), 0).unwrap();
    table.saved(0);
    let kept = std::sync::Arc::clone(table.get("a").unwrap());
    let digest = Digest::sha256(b"x");
    assert!(!table.update("n", |_| {}).unwrap());
    assert!(table.update("a", |_| {}).unwrap());
    assert!(!table.needs_save());
    assert_eq!(
        table
            .update("a", |row| row.names.push("m".into()))
            .unwrap_err()
            .kind(),
        ErrorKind::DuplicateName
    );
    assert_eq!(
        table.update("a", |row| row.id = "c".into()).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert!(!table.needs_save() && names(&table, "a") == ["n"]);
    let change = |row: &mut LayerRow| {
        row.names = strings(&["p", "p"]);
        row.diff_digest = digest.clone().into();
        row.toc_digest = "not a digest".into();
        row.set_incomplete(true);
    };
    assert!(table.update("a", change).unwrap());
    assert!(table.needs_save() && table.by_name("n").is_none() && names(&table, "a") == ["p"]);
    assert_eq!(table.by_digest(DigestKind::Uncompressed, &digest).len(), 1);
    assert!(table.by_digest(DigestKind::Compressed, &digest).is_empty());
    assert_eq!(table.incomplete(), ["a"]);
    assert_eq!(kept.names, ["n"], "a row that was handed out stays as it was");
    table.update("a", |row| row.diff_digest = "".into()).unwrap();
    assert!(table.by_digest(DigestKind::Uncompressed, &digest).is_empty());
    table.remove("a").unwrap();
    assert!(table.incomplete().is_empty() && table.by_name("p").is_none() && table.remove("a").is_none());
}

#[test]
fn digests_find_all_rows_in_order() {
    let mut table = Table::empty(1);
    let digest = Digest::sha256(b"x");
    for id in ["c", "a", "b"] {
        let row = LayerRow {
            compressed_digest: digest.clone().into(),
            diff_digest: digest.clone().into(),
            ..named_layer(id, &[])
        };
        table.insert(row, 0).unwrap();
    }
    let found = |table: &Table<LayerRow>, kind| {
        table
            .by_digest(kind, &digest)
            .iter()
            .map(|row| row.id.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(found(&table, DigestKind::Compressed), ["c", "a", "b"]);
    assert!(found(&table, DigestKind::Toc).is_empty());
    table.remove("a");
    assert_eq!(found(&table, DigestKind::Uncompressed), ["c", "b"]);
}

#[test]
fn names_are_set_added_removed_and_stolen() {
    use NameOperation::{Add, Remove, Set};
    let mut table = Table::empty(3);
    table.insert(named_layer("a", &["a1", "a2"]), 0).unwrap();
    table.insert(named_layer("b", &["b1", "b2"]), 1).unwrap();
    for location in 0..3 {
        table.saved(location);
    }
    let mut apply = |id: &str, operation, given: &[&str]| {
        table.apply_names(id, operation, &strings(given)).unwrap();
        let dirty = table.dirty_locations();
        for location in 0..3 {
            table.saved(location);
        }
        let list = |id| table.get(id).unwrap().names().join(",");
        (list("a"), list("b"), dirty)
    };
    let result = |a: &str, b: &str, dirty: &[usize]| (a.to_string(), b.to_string(), dirty.to_vec());
    assert_eq!(
        apply("a", Add, &["x", "a2", "x"]),
        result("x,a2,a1", "b1,b2", &[0])
    );
    assert_eq!(apply("a", Add, &["b2"]), result("b2,x,a2,a1", "b1", &[0, 1]));
    assert_eq!(
        apply("b", Remove, &["x", "nothing"]),
        result("b2,x,a2,a1", "b1", &[])
    );
    assert_eq!(apply("a", Remove, &["x", "a1"]), result("b2,a2", "b1", &[0]));
    assert_eq!(
        apply("b", Set, &["a2", "n", "b1", "n"]),
        result("b2", "a2,n,b1", &[0, 1])
    );
    assert_eq!(apply("b", Set, &[]), result("b2", "", &[1]));
    let error = table.apply_names("b2", Set, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LayerUnknown);
    assert_eq!(table.by_name("b2").unwrap().id, "a");
    assert!(table.by_name("a2").is_none());
}

#[test]
fn image_names_have_a_history() {
    let mut table = Table::empty(1);
    let row = ImageRow {
        id: "i".into(),
        names: strings(&["img1", "img1b"]),
        ..ImageRow::default()
    };
    table.insert(row, 0).unwrap();
    let history = |table: &Table<ImageRow>| table.get("i").unwrap().names_history.join(",");
    assert_eq!(history(&table), "", "names given at creation do not enter it");
    table
        .apply_names("i", NameOperation::Add, &strings(&["img2", "img3"]))
        .unwrap();
    assert_eq!(names(&table, "i"), ["img2", "img3", "img1", "img1b"]);
    assert_eq!(history(&table), "img1b,img1,img3,img2");
    table
        .apply_names("i", NameOperation::Remove, &strings(&["img1b", "img3"]))
        .unwrap();
    assert_eq!(history(&table), "img1,img2,img1b,img3");
    let other = ImageRow {
        id: "j".into(),
        ..ImageRow::default()
    };
    table.insert(other, 0).unwrap();
    table
        .apply_names("j", NameOperation::Set, &strings(&["img2"]))
        .unwrap();
    assert_eq!(
        (names(&table, "i"), history(&table).as_str()),
        (vec!["img1"], "img1,img2,img1b,img3")
    );
}

#[test]
fn a_name_that_two_rows_have_goes_to_the_later_one() {
    let stable = r#"[{"id":"a","names":["n","a1"]},{"id":"b","names":["m"]}]"#;
    let volatile = r#"[{"id":"c","names":["n"]}]"#;
    let table: Table<LayerRow> = load(&[stable, "", volatile], false).unwrap();
    assert_eq!(
        (
            names(&table, "a"),
            names(&table, "c"),
            table.by_name("n").unwrap().id.as_str()
        ),
        (vec!["a1"], vec!["n"], "c")
    );
    assert_eq!((table.dirty_locations(), table.changes()), (vec![0], 0));
    assert_eq!(
        text(&table, 0),
        format!(r#"[{{"id":"a","names":["a1"],{ZERO}}},{{"id":"b","names":["m"]}}]"#)
    );
    assert_eq!(text(&table, 1), "[]");
    assert_eq!(text(&table, 2), volatile);
    let error = load::<LayerRow>(&[stable, "", volatile], true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DuplicateLayerNames);
    assert!(
        error.to_string().contains(r#"name "n" of layer "a" and "c""#),
        "{error}"
    );
    assert_eq!(
        load::<ImageRow>(&[stable, volatile], true).unwrap_err().kind(),
        ErrorKind::DuplicateImageNames
    );
    assert!(!load::<LayerRow>(&[stable], true).unwrap().needs_save());
}

/// Names move between rows of two files, of which only the first one that is to be written is.
#[test]
fn names_move_between_files_at_once() {
    for (taker, loser) in [(0, 1), (1, 0)] {
        let mut table = Table::empty(2);
        table.insert(named_layer("taker", &["old"]), taker).unwrap();
        table.insert(named_layer("loser", &["x", "y"]), loser).unwrap();
        let mut files = [text(&table, 0), text(&table, 1)];
        (0..2).for_each(|location| table.saved(location));
        table
            .apply_names("taker", NameOperation::Set, &strings(&["x", "new"]))
            .unwrap();
        assert_eq!(table.dirty_locations(), [taker, loser]);
        files[taker] = text(&table, taker);

        let mut table: Table<LayerRow> = load(&[&files[0], &files[1]], false).unwrap();
        assert_eq!(names(&table, "taker"), ["x", "new"]);
        assert_eq!(names(&table, "loser"), ["y"]);
        assert!(table.needs_save() && !table.has_incomplete());
        assert_eq!(table.dirty_locations(), [loser]);
        table.saved(loser);
        assert!(table.needs_save() && table.clear_takers());
        assert_eq!(table.dirty_locations(), [taker]);
        assert!(!text(&table, taker).contains("graphroot-pending"));
        table.saved(taker);
        assert!(!table.needs_save() && !table.clear_takers());
        assert_eq!(names(&table, "taker"), ["x", "new"]);
    }
}

#[test]
fn a_name_that_a_row_has_twice_stays_once() {
    let file = r#"[{"id":"a","names":["n","x","n"]}]"#;
    for read_only in [false, true] {
        let table: Table<LayerRow> = load(&[file], read_only).unwrap();
        assert_eq!(names(&table, "a"), ["n", "x"]);
        assert_eq!(
            text(&table, 0),
            format!(r#"[{{"id":"a","names":["n","x"],{ZERO}}}]"#)
        );
        assert!(table.needs_save());
    }
}

#[test]
fn of_two_rows_with_one_id_layers_keep_the_first_and_images_both() {
    let first = r#"[{"id":"a","metadata":"1","names":["n"]},{"id":"b"}]"#;
    let second = r#"[{"id":"a","metadata":"2","names":["m"]}]"#;
    let table: Table<LayerRow> = load(&[first, second], false).unwrap();
    assert_eq!((table.get("a").unwrap().metadata.as_str(), table.len()), ("1", 2));
    assert!(table.by_name("m").is_none() && text(&table, 1) == "[]");

    let file = format!("{},{}", &first[..first.len() - 1], &second[1..]);
    let mut table: Table<ImageRow> = load(&[&file], false).unwrap();
    assert_eq!(
        (table.get("a").unwrap().metadata.as_str(), ids(&table)),
        ("2", vec!["a", "b", "a"])
    );
    assert_eq!(table.by_name("n").unwrap().metadata, "1");
    assert!(!table.needs_save() && text(&table, 0) == file);
    assert_eq!(table.find("a").unwrap().metadata, "2");
    assert_eq!(table.remove("a").unwrap().metadata, "2");
    assert_eq!((ids(&table), table.by_name("n")), (vec!["b"], None));
}

#[test]
fn an_image_gets_the_digest_of_its_manifest() {
    let digest = Digest::sha256(b"m");
    let file = format!(
        r#"[{{"id":"i","big-data-names":["manifest"],"big-data-digests":{{"manifest":"{digest}"}}}}]"#
    );
    let table: Table<ImageRow> = load(&[&file], false).unwrap();
    assert_eq!(table.by_digest(DigestKind::Image, &digest).len(), 1);
    assert!(!table.needs_save(), "it is written along with the next change");
    assert!(text(&table, 0).starts_with(&format!(r#"[{{"id":"i","digest":"{digest}","big"#)));
}

#[test]
fn rows_that_do_not_change_are_written_as_they_were_read() {
    let odd = r#"{"ID":"a", "zz" : 1e40, "flags":{"n":12345678901234567890} , "created":"2024-01-01T00:00:00.10Z"}"#;
    let mut table = layers(&format!("[ {odd} ,\n{{\"id\":\"b\",\"x\":{{\"deep\":[1]}}}}]"));
    table
        .apply_names("b", NameOperation::Set, &strings(&["n"]))
        .unwrap();
    assert_eq!(
        text(&table, 0),
        format!(r#"[{odd},{{"id":"b","names":["n"],{ZERO},"x":{{"deep":[1]}}}}]"#)
    );
}

#[test]
fn order_is_that_of_the_file_and_then_of_insertion() {
    let mut table = layers(r#"[{"id":"c"},{"id":"a"}]"#);
    table.insert(named_layer("b", &[]), 0).unwrap();
    table.remove("c");
    table.insert(named_layer("c", &[]), 0).unwrap();
    assert_eq!(ids(&table), ["a", "b", "c"]);
    assert_eq!(table.rows().next_back().unwrap().id, "c");
}

#[test]
fn a_large_table_changes_quickly() {
    let count = 20_000u64;
    let start = std::time::Instant::now();
    let mut table = Table::empty(1);
    for number in 0..count {
        let id = crate::digest::hex(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        let name = format!("name-{number}");
        table
            .insert(
                LayerRow {
                    diff_digest: Digest::sha256(&id).into(),
                    ..named_layer(&id, &[&name])
                },
                0,
            )
            .unwrap();
    }
    let ids: Vec<String> = table.rows().map(|row| row.id.to_string()).collect();
    for id in &ids {
        assert!(table.update(id, |row| row.metadata.push('x')).unwrap());
        assert_eq!(&table.find(&id[..15]).unwrap().id, id);
    }
    for id in &ids {
        table.remove(id).unwrap();
    }
    assert!(table.is_empty());
    // Work per change that grew with the table would take minutes.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}
