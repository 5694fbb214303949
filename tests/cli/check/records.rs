//! Damages of data, records and files of the driver.

use std::fs;

use serde_json::json;

use super::Theirs::{Differs, Misses, Same};
use super::{Case, IMAGE, LAYER, TOP, case};

const NO_DIGEST: &str = "it compares sizes alone";
const OTHER_FILE: &str = "it takes what is missing from the list of IDs beside it";
const CONTAINER: &[&str] = &["container C1"];

/// What is wrong with data.
pub(super) fn of_data() -> Vec<Case> {
    vec![
        case("the data of an image is missing", IMAGE, Same, |s| {
            fs::remove_file(s.data("images", "I1/manifest")).unwrap();
        }),
        case("the data of an image is longer", IMAGE, Same, |s| {
            fs::write(s.data("images", "I1/manifest"), "{\"x\": 12}").unwrap();
        }),
        case("the data of an image is empty", IMAGE, Same, |s| {
            fs::write(s.data("images", "I1/manifest"), "").unwrap();
        }),
        case(
            "the data of an image is another one",
            IMAGE,
            Misses(NO_DIGEST),
            |s| {
                fs::write(s.data("images", "I1/manifest"), "{\"x\": 2}").unwrap();
            },
        ),
        case("the data of an image is a directory", IMAGE, Same, |s| {
            let path = s.data("images", "I1/manifest");
            fs::remove_file(&path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        case("an image names data that it has not", IMAGE, Same, |s| {
            s.edit("images", "I1", |row| {
                row["big-data-names"] = json!(["manifest", "other"]);
            });
        }),
        case("all data of an image is missing", IMAGE, Same, |s| {
            fs::remove_dir_all(s.data("images", "I1")).unwrap();
        }),
        case("the data of a container is missing", CONTAINER, Same, |s| {
            fs::remove_file(s.data("containers", "C1/config")).unwrap();
        }),
        case("the data of a container is shorter", CONTAINER, Same, |s| {
            fs::write(s.data("containers", "C1/config"), "{").unwrap();
        }),
        case(
            "the data of a container is another one",
            CONTAINER,
            Misses(NO_DIGEST),
            |s| {
                fs::write(s.data("containers", "C1/config"), "{\"x\": 2}").unwrap();
            },
        ),
        case("all data of a container is missing", CONTAINER, Same, |s| {
            fs::remove_dir_all(s.data("containers", "C1")).unwrap();
        }),
        case("the data of a layer is missing", TOP, Same, |s| {
            fs::remove_file(s.data("layers", "L2/item")).unwrap();
        }),
        case("the data of a layer is a directory", TOP, Same, |s| {
            let path = s.data("layers", "L2/item");
            fs::remove_file(&path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ]
}

/// What is wrong with records.
pub(super) fn of_rows() -> Vec<Case> {
    vec![
        case("the digest of a layer is another one", LAYER, Same, |s| {
            let digest = format!("sha256:{}", "0".repeat(64));
            s.edit("layers", "L1", |row| row["diff-digest"] = digest.into());
        }),
        case("the digest of a layer is none", LAYER, Same, |s| {
            s.edit("layers", "L1", |row| row["diff-digest"] = "sha256:zz".into());
        }),
        case("the size of a layer is another one", LAYER, Same, |s| {
            s.edit("layers", "L1", |row| row["diff-size"] = 7.into());
        }),
        case(
            "a layer has no size",
            &[],
            Differs("it takes none for zero"),
            |s| {
                s.edit("layers", "L1", |row| {
                    drop(row.as_object_mut().unwrap().remove("diff-size"));
                });
            },
        ),
        case("a layer does not name its data", &[], Same, |s| {
            s.edit("layers", "L2", |row| {
                drop(row.as_object_mut().unwrap().remove("big-data-names"));
            });
        }),
        case("an image is of a layer that is nowhere", IMAGE, Same, |s| {
            s.edit("images", "I1", |row| row["layer"] = "nowhere".into());
        })
        .leaving("layer L2"),
        case("a copy of an image's layer is nowhere", IMAGE, Same, |s| {
            s.edit("images", "I1", |row| row["mapped-layers"] = json!(["nowhere"]));
        }),
        case(
            "a container is of an image that is nowhere",
            CONTAINER,
            Same,
            |s| {
                s.edit("containers", "C1", |row| row["image"] = "nowhere".into());
            },
        ),
        case(
            "a container is of a layer that is nowhere",
            CONTAINER,
            Misses("it looks for the layers of images alone"),
            |s| {
                s.edit("containers", "C1", |row| row["layer"] = "nowhere".into());
            },
        )
        .leaving("layer L2"),
        case("a layer without a record", &["layer S1"], Same, |s| {
            let made = s.run(crate::program::Program::Ours, "create-storage-layer -i S1");
            assert_eq!(made.code, 0, "{made:?}");
        }),
        case("data without a record", &[], Same, |s| {
            let id = "5".repeat(64);
            fs::create_dir(s.root.metadata_dir("images").join(&id)).unwrap();
            fs::create_dir(s.root.metadata_dir("containers").join(&id)).unwrap();
            fs::write(
                s.root.metadata_dir("layers").join(format!("{id}.tar-split.gz")),
                "",
            )
            .unwrap();
        }),
    ]
}

/// What is wrong with the files in which overlay keeps what a layer stands on: they are made anew.
pub(super) fn of_overlay() -> Vec<Case> {
    vec![
        case(
            "a layer stands on another one",
            TOP,
            Differs("it mounts the other one"),
            |s| {
                let link = fs::read_to_string(s.layer("H1").join("link")).unwrap();
                fs::write(s.layer("L2").join("lower"), format!("l/{link}")).unwrap();
            },
        )
        .mended(),
        case("a layer stands on nothing", TOP, Misses(OTHER_FILE), |s| {
            fs::write(s.layer("L2").join("lower"), "").unwrap();
        })
        .mended(),
        case(
            "a layer stands on what is nowhere",
            TOP,
            Misses(OTHER_FILE),
            |s| {
                fs::write(s.layer("L2").join("lower"), "l/NOWHERE").unwrap();
            },
        )
        .mended(),
        case(
            "a layer does not say what it stands on",
            TOP,
            Misses(OTHER_FILE),
            |s| {
                fs::remove_file(s.layer("L2").join("lower")).unwrap();
            },
        )
        .mended(),
        case(
            "a layer has no link",
            LAYER,
            Differs("it makes the link anew"),
            |s| {
                let link = fs::read_to_string(s.layer("L1").join("link")).unwrap();
                fs::remove_file(s.find(&format!("overlay/l/{link}"))).unwrap();
            },
        )
        .mended(),
    ]
}
