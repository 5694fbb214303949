//! Rows of every kind: arbitrary ones come back from their JSON, and their JSON is Go's to the byte.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::Value;

use crate::digest::Digest;
use crate::idmap::IdMap;
use crate::json;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::inline_id::InlineId;
use crate::record::layer::LayerRow;
use crate::record::mount_point::MountPointRow;
use crate::record::raw_digest::RawDigest;
use crate::record::record_trait::Record;
use crate::time::Time;

fn texts() -> impl Strategy<Value = Vec<String>> {
    vec(any::<String>(), 0..4)
}

/// Shorter and longer than usual, also in bytes that are no characters of their own.
fn id() -> impl Strategy<Value = InlineId> {
    let text = prop_oneof![any::<String>(), "[0-9a-f]{63,66}", "é{31,34}x?"];
    text.prop_map(InlineId::from)
}

fn digest() -> impl Strategy<Value = RawDigest> {
    prop_oneof![
        Just(RawDigest::Empty),
        any::<[u8; 4]>().prop_map(|bytes| Digest::sha256(bytes).into()),
        "[a-z0-9:]{1,12}".prop_map(|text| RawDigest::from(text.as_str())),
    ]
}

fn digests() -> impl Strategy<Value = BTreeMap<String, RawDigest>> {
    btree_map("manifest[a-z]?|\\PC{0,5}", digest(), 0..4)
}

fn time() -> impl Strategy<Value = Time> {
    prop_oneof![
        Just(Time::default()),
        (0u64..250_000_000_000, 0u32..1_000_000_000).prop_map(|(seconds, nanoseconds)| {
            (std::time::UNIX_EPOCH + std::time::Duration::new(seconds, nanoseconds)).into()
        }),
        "20[0-9]{2}-1[0-2]-0[1-9]T1[0-9]:0[0-9]:0[0-9]\\.[0-9]{1,12}[+-]0[0-9]:30"
            .prop_map(|t| t.parse().unwrap()),
    ]
}

fn maps() -> impl Strategy<Value = Vec<IdMap>> {
    let one = (any::<u32>(), any::<u32>(), any::<u32>());
    vec(
        one.prop_map(|(container, host, size)| IdMap::new(container, host, size)),
        0..3,
    )
}

fn flags() -> impl Strategy<Value = BTreeMap<String, Value>> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            btree_map(any::<String>(), inner, 0..3).prop_map(Value::from_iter),
        ]
    });
    btree_map(any::<String>(), value, 0..4)
}

/// Fields of other writers; the names must not be known ones.
fn extra() -> impl Strategy<Value = BTreeMap<String, Value>> {
    flags().prop_map(|map| {
        map.into_iter()
            .map(|(key, value)| (format!("x-{key}"), value))
            .collect()
    })
}

prop_compose! {
    fn layer()(
        (id, parent, names, metadata, mount_label) in (id(), id(), texts(), any::<String>(), any::<String>()),
        (created, compressed_digest, diff_digest, toc_digest) in (time(), digest(), digest(), digest()),
        (compressed_size, diff_size, compression) in any::<(i64, i64, i64)>(),
        (uids, gids) in (vec(any::<u32>(), 0..4), vec(any::<u32>(), 0..4)),
        (flags, uid_map, gid_map, big_data_names) in (flags(), maps(), maps(), texts()),
        extra in extra(),
    ) -> LayerRow {
        LayerRow {
            id, names, parent, metadata, mount_label, created, compressed_digest, compressed_size, diff_digest,
            toc_digest, diff_size, compression, uids, gids, flags, uid_map, gid_map, big_data_names,
            extra,
        }
    }
}

prop_compose! {
    fn image()(
        (id, layer, names, names_history) in (id(), id(), texts(), texts()),
        (digest, mapped_layers, metadata) in (digest(), texts(), any::<String>()),
        (big_data_names, big_data_digests) in (texts(), digests()),
        big_data_sizes in btree_map(any::<String>(), any::<i64>(), 0..3),
        (created, flags, extra) in (time(), flags(), extra()),
    ) -> ImageRow {
        ImageRow {
            id, digest, names, names_history, layer, mapped_layers, metadata, big_data_names, big_data_sizes,
            big_data_digests, created, flags, extra,
        }
    }
}

prop_compose! {
    fn container()(
        (id, image, layer, names, metadata) in (id(), id(), id(), texts(), any::<String>()),
        (big_data_names, big_data_digests) in (texts(), digests()),
        big_data_sizes in btree_map(any::<String>(), any::<i64>(), 0..3),
        (created, uid_map, gid_map, flags) in (time(), maps(), maps(), flags()),
        extra in extra(),
    ) -> ContainerRow {
        ContainerRow {
            id, names, image, layer, metadata, big_data_names, big_data_sizes, big_data_digests, created, uid_map,
            gid_map, flags, extra,
        }
    }
}

fn comes_back<R: Record>(rows: &[R]) -> Result<(), TestCaseError> {
    let texts: Vec<Bytes> = rows
        .iter()
        .map(|row| json::to_bytes(row).unwrap().into())
        .collect();
    let file = json::join(texts.iter());
    let plain: Value = serde_json::from_slice(&file).unwrap();
    prop_assert_eq!(plain, serde_json::to_value(rows).unwrap());
    for byte in [b'<', b'>', b'&', b'\n', b'\0'] {
        prop_assert!(!file.contains(&byte));
    }
    let back = json::parse_array::<R>(&file.into()).unwrap();
    prop_assert_eq!(back.iter().map(|(row, _)| row.clone()).collect::<Vec<_>>(), rows);
    prop_assert_eq!(back.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), texts);
    Ok(())
}

proptest! {
    #[test]
    fn layers_come_back(rows in vec(layer(), 0..3)) {
        comes_back(&rows)?;
    }

    #[test]
    fn images_come_back(rows in vec(image(), 0..3)) {
        comes_back(&rows)?;
    }

    #[test]
    fn containers_come_back(rows in vec(container(), 0..3)) {
        comes_back(&rows)?;
    }

    #[test]
    fn no_bytes_make_the_reader_panic(text in "\\PC{0,60}", bytes in vec(any::<u8>(), 0..60)) {
        drop(json::parse_array::<LayerRow>(&Bytes::from(text)));
        drop(json::parse_array::<ImageRow>(&Bytes::from(bytes)));
    }

    #[test]
    fn near_json_is_read_as_a_json_parser_reads_it(text in "[\\[\\]{},:\" \\\\udai19nl\n]{0,24}") {
        let ours = json::parse_array::<ContainerRow>(&Bytes::from(text.clone()));
        match serde_json::from_str::<Option<Vec<ContainerRow>>>(&text) {
            Ok(rows) => {
                let ours: Vec<_> = ours.unwrap().into_iter().map(|(row, _)| row).collect();
                prop_assert_eq!(ours, rows.unwrap_or_default());
            }
            // More is read only where something is no Unicode, or where there is nothing.
            Err(_invalid) => prop_assert!(ours.is_err() || text.is_empty() || text.contains("\\ud")),
        }
    }
}

/// One row of each kind with every field, in the order in which the Go library writes them.
#[test]
fn every_field_has_its_place() {
    let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
    let (a, b, c) = (digest("a"), digest("b"), digest("c"));
    let map = r#"[{"container_id":0,"host_id":100000,"size":65536}]"#;
    let layer = format!(
        r#"[{{"id":"l","names":["n"],"parent":"p","metadata":"m","mountlabel":"s","created":"2024-01-02T03:04:05.6Z","compressed-diff-digest":"{a}","compressed-size":10,"diff-digest":"{b}","toc-digest":"{c}","diff-size":-1,"compression":9,"uidset":[0,4294967295],"gidset":[1],"flags":{{"a":"b","incomplete":true}},"uidmap":{map},"gidmap":{map},"big-data-names":["k"],"z-new":{{"q":[1,null]}}}}]"#
    );
    let image = format!(
        r#"[{{"id":"i","digest":"{a}","names":["n"],"names-history":["o"],"layer":"l","mapped-layers":["m"],"metadata":"d","big-data-names":["manifest"],"big-data-sizes":{{"manifest":3}},"big-data-digests":{{"manifest":"{b}","x":"md5:bad"}},"created":"2024-01-02T03:04:05+02:00","flags":{{"f":1}},"new":1}}]"#
    );
    let container = format!(
        r#"[{{"id":"c","names":["n"],"image":"","layer":"","metadata":"m","big-data-names":["k"],"big-data-sizes":{{"k":0}},"big-data-digests":{{"k":"{c}"}},"created":"0001-01-01T00:00:00Z","uidmap":{map},"gidmap":{map},"flags":{{"MountLabel":"","MountOpts":["a"],"Volatile":true}},"new":null}}]"#
    );
    let mount = r#"[{"id":"","path":"","count":0}]"#.to_string();
    fn rewritten<R: serde::de::DeserializeOwned + serde::Serialize>(text: &str) -> String {
        let rows = json::parse_array::<R>(&Bytes::from(text.to_owned())).unwrap();
        let texts: Vec<Bytes> = rows
            .iter()
            .map(|(row, _)| json::to_bytes(row).unwrap().into())
            .collect();
        String::from_utf8(json::join(texts.iter())).unwrap()
    }
    assert_eq!(rewritten::<LayerRow>(&layer), layer);
    assert_eq!(rewritten::<ImageRow>(&image), image);
    assert_eq!(rewritten::<ContainerRow>(&container), container);
    assert_eq!(rewritten::<MountPointRow>(&mount), mount);
    let zero = r#""created":"0001-01-01T00:00:00Z""#;
    assert_eq!(rewritten::<LayerRow>("[{}]"), format!(r#"[{{"id":"",{zero}}}]"#));
    assert_eq!(rewritten::<ImageRow>("[{}]"), format!(r#"[{{"id":"",{zero}}}]"#));
    assert_eq!(
        rewritten::<ContainerRow>("[{}]"),
        format!(r#"[{{"id":"","image":"","layer":"",{zero}}}]"#)
    );
}
