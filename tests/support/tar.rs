//! The library's builder of tar archives, under short names.

pub(crate) use graphroot::test_util::{TarBuilder as Tar, TarEntry as Header};

/// Size of a tar block.
pub(crate) const BLOCK: usize = 512;

#[test]
fn tar_reads_what_the_builder_writes() {
    use super::peers::Run as _;
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}end", "long/".repeat(40));
    let archive = Tar::new()
        .dir("d/")
        .file("d/file", "content")
        .hard_link("d/second", "d/file")
        .symlink("d/symbolic", "file")
        .entry(Header::fifo("d/pipe"))
        .pax(&[("path", long.as_bytes()), ("mtime", b"1700000000.123456789")])
        .file("short", vec![7; 1000])
        .build();
    std::fs::write(dir.path().join("a.tar"), archive).unwrap();
    let listed = std::process::Command::new("tar")
        .args(["--list", "--verbose", "--full-time", "--utc", "--file", "a.tar"])
        .current_dir(dir.path())
        .run();
    for expected in [
        "d/second link to d/file",
        "d/symbolic -> file",
        "2023-11-14 22:13:20.123456789 long/",
        "/end",
        " 1000 ",
    ] {
        assert!(listed.contains(expected), "{expected:?} is missing in:\n{listed}");
    }
}
