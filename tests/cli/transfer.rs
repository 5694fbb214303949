//! `pull` and `push` from and to an OCI layout.

use graphroot::LayerOptions;
use serde_json::Value;

use crate::program::{good, ours};
use crate::support::oci::OciImage;
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;

const NAME: &str = "localhost/app:1";

/// A store with an image of one layer, and the image's ID.
async fn filled() -> (TestRoot, String) {
    let root = TestRoot::vfs();
    let store = root.open().await;
    let tar = Tar::new().file("hello", "hello\n").build();
    let layer = put_bytes(&store, None, LayerOptions::default(), tar)
        .await
        .unwrap();
    let image = OciImage::create(&store, &layer, NAME).await;
    let id = image.id().to_owned();
    (root, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_out_and_comes_back() {
    let (root, id) = filled().await;
    let layout = format!("oci:{}:app", root.path().join("layout").display());
    let pushed = ours(&root, &format!("push {NAME} {layout}"));
    assert_eq!(pushed.code, 0, "{pushed:?}");
    assert!(
        pushed.out.starts_with("sha256:") && pushed.out.lines().count() == 1,
        "{pushed:?}"
    );
    // Standard error is not a terminal, so events are lines of text.
    assert!(pushed.err.contains("1 layer,"), "{pushed:?}");
    assert_eq!(good(&root, &format!("push --quiet {NAME} {layout}")), pushed.out);

    let other = TestRoot::vfs();
    let pulled = ours(&other, &format!("pull --name {NAME} {layout}"));
    assert_eq!((pulled.code, pulled.out.trim()), (0, &*id), "{pulled:?}");
    assert!(pulled.err.contains("done"), "{pulled:?}");
    assert!(good(&other, "images").contains(&id));

    let again = good(&other, &format!("pull --json --name {NAME} {layout}"));
    let events: Vec<Value> = again
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events[0]["event"], "resolved");
    assert!(events.iter().any(|event| event["event"] == "reused"), "{again}");
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["id"]), (&"done".into(), &id.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_level_that_there_is_not_is_refused_before_anything_is_made() {
    let (root, _id) = filled().await;
    let to = root.path().join("to");
    for to in [format!("dir:{}", to.display()), format!("oci:{}:x", to.display())] {
        let answer = ours(&root, &format!("push --compression-level 99 {NAME} {to}"));
        assert_eq!(answer.code, 1, "{answer:?}");
        assert!(
            answer.err.contains("compression level 99 with gzip"),
            "{answer:?}"
        );
    }
    assert!(!to.exists());
}

#[test]
fn an_image_that_create_image_made_has_no_manifest_to_push() {
    let root = TestRoot::vfs();
    good(&root, "create-layer -i L1");
    good(&root, "create-image -i I1 L1");
    let answer = ours(
        &root,
        &format!("push I1 dir:{}", root.path().join("to").display()),
    );
    assert_eq!(answer.code, 1, "{answer:?}");
    assert!(
        answer
            .err
            .contains("image \"I1\" has no manifest: locating item named \"manifest\""),
        "{answer:?}"
    );
    assert!(answer.err.ends_with("file does not exist\n"), "{answer:?}");
}

#[test]
fn what_cannot_be_pulled_is_one_line_and_changes_nothing() {
    let root = TestRoot::vfs();
    let missing = root.path().join("nothing");
    for (line, message) in [
        (format!("pull --quiet oci:{}:x", missing.display()), "nothing"),
        ("pull --quiet --downloads 0 oci:x".into(), "--downloads 0"),
        ("pull --quiet --platform x oci:x".into(), "platform"),
        ("push --quiet nosuch oci:x:y".into(), "nosuch"),
        (
            "push --quiet --compression foo x oci:x:y".into(),
            "--compression foo: not one of gzip, zstd, zstd:chunked and none",
        ),
        (
            "push --quiet --compression xz x oci:x:y".into(),
            "--compression xz: not one of gzip, zstd, zstd:chunked and none",
        ),
        (
            "push --quiet x foo:/dir".into(),
            "known are docker://, oci:, dir:",
        ),
        (
            "pull --quiet containers-storage:foo".into(),
            "known are docker://, oci:, dir:",
        ),
        (
            "pull --quiet --signature-policy nofile oci:x".into(),
            "opening signature policy nofile: no such file or directory",
        ),
        ("pull --quiet ''".into(), "image"),
        ("pull --quiet --name n oci:x:1 oci:x:2".into(), "--name"),
    ] {
        let answer = ours(&root, &line);
        assert_eq!((answer.code, answer.out.as_str()), (1, ""), "{line}: {answer:?}");
        assert!(
            answer.err.contains(message) && answer.err.lines().count() == 1,
            "{line}: {answer:?}"
        );
    }
    assert_eq!(good(&root, "images"), "");
}
