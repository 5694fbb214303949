//! Programs that are missing, lie or do not end.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::driver::select::open_driver;
use crate::driver::zfs::command::Program;
use crate::driver::zfs::tests::config;
use crate::driver::{CreateOptions, Driver, DriverConfig};
use crate::error::{ErrorKind, Result};
use crate::skip::skip;
use crate::sys::privilege;

/// A program in place of `zfs`: a shell script, in a directory of its own.
struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    fn new(script: &str) -> Self {
        let fake = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fake.does(script);
        fake
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("zfs")
    }

    /// Changes what it does. `$@` are the arguments; every call is noted.
    fn does(&self, script: &str) {
        let script = format!(
            "#!/bin/sh\nprintf '%s|' \"$@\" >>{0}/calls\necho >>{0}/calls\n{script}\n",
            self.dir.path().display()
        );
        let new = self.dir.path().join("new");
        fs::write(&new, script).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    /// The arguments of all calls so far.
    fn calls(&self) -> String {
        fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default()
    }

    fn open(&self, options: &[&str]) -> Result<Arc<dyn Driver>> {
        let config = DriverConfig {
            search_path: Some(self.dir.path().into()),
            ..config(self.dir.path(), options)
        };
        open_driver(&config)
    }
}

/// What it answers when it is asked for the dataset of the layers.
const ANSWERS: &str = r#"case "$*" in "list -H -t filesystem -o name tank/a") echo tank/a; exit;; esac"#;

fn needs_root() -> bool {
    if privilege::is_rootless() {
        skip("zfs takes root");
    }
    !privilege::is_rootless()
}

#[test]
fn a_program_that_is_missing_or_does_not_work_is_told_of() {
    let tmp = tempfile::tempdir().unwrap();
    let mut without = config(tmp.path(), &["zfs.fsname=tank"]);
    without.search_path = Some(tmp.path().into());
    let error = open_driver(&without).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    let expected =
        "the 'zfs' command is not available: prerequisites for driver not satisfied (wrong filesystem?)";
    assert_eq!(error.chain(), expected);
    if !needs_root() {
        return;
    }
    for (script, kind, texts) in [
        (
            "echo 'The ZFS modules are not loaded.' >&2; exit 1",
            ErrorKind::NotSupported,
            [
                "The ZFS modules are not loaded",
                "prerequisites for driver not satisfied",
            ],
        ),
        (
            "echo \"cannot open '$7': dataset does not exist\" >&2; exit 1",
            ErrorKind::InvalidInput,
            ["cannot find root filesystem tank/a", "dataset does not exist"],
        ),
        (
            "exit 1",
            ErrorKind::NotSupported,
            ["no message", "exit status: 1"],
        ),
        ("kill -SEGV $$", ErrorKind::NotSupported, ["signal: 11", "tank/a"]),
        (
            "echo other",
            ErrorKind::Io,
            ["prints something that was not asked for", "other"],
        ),
        (
            "exit 0",
            ErrorKind::Io,
            ["prints something that was not asked for", "list -H"],
        ),
        (
            "printf '\\377'",
            ErrorKind::NotSupported,
            ["bytes that are no text", "tank/a"],
        ),
        (
            "exec yes",
            ErrorKind::NotSupported,
            ["prints more than 67108864 bytes", "tank/a"],
        ),
        ("exec yes >&2", ErrorKind::NotSupported, ["failed", "y; y; y"]),
    ] {
        let fake = Fake::new(script);
        let error = fake.open(&["zfs.fsname=tank/a"]).unwrap_err();
        let text = error.chain();
        assert_eq!(error.kind(), kind, "{script}: {text}");
        for part in texts {
            assert!(text.contains(part), "{script}: {text}");
        }
        assert!(text.len() < 10_000, "{script}: {}", text.len());
        assert!(!fake.dir.path().join("graph").exists(), "{script}");
    }
}

#[test]
fn hostile_names_of_datasets_reach_no_program() {
    if !needs_root() {
        return;
    }
    let fake = Fake::new("exit 1");
    for name in [
        "-R",
        "tank@x",
        "tank/../x",
        "tank;reboot",
        "$(reboot)",
        "tank/a\tb",
        "/etc",
        "x\ny",
    ] {
        let error = fake.open(&[&format!("zfs.fsname={name}")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}");
        assert!(error.chain().contains(&format!("{name:?}")), "{}", error.chain());
    }
    assert_eq!(fake.calls(), "");
}

#[test]
fn arguments_reach_the_program_as_they_are() {
    if !needs_root() {
        return;
    }
    let fake = Fake::new(ANSWERS);
    let driver = fake.open(&["zfs.fsname=tank/a"]).unwrap();
    assert_eq!(fake.calls(), "list|-H|-t|filesystem|-o|name|tank/a|\n");
    for id in ["a b", "-R", "a@b", "a;b", "graphroot-1-new"] {
        let is_dataset = !id.contains([' ', '@', ';']) && !id.starts_with("graphroot-");
        let error = driver.create(id, None, &CreateOptions::default());
        match is_dataset {
            // After the name of the dataset it is no option.
            true => assert!(fake.calls().contains("|tank/a/-R|\n"), "{}", fake.calls()),
            false => assert_eq!(error.unwrap_err().kind(), ErrorKind::UnsafePath, "{id:?}"),
        }
    }
    assert!(
        !fake.calls().contains(';') && !fake.calls().contains('@'),
        "{}",
        fake.calls()
    );
}

#[test]
fn failures_of_commands_are_told_with_their_reason() {
    if !needs_root() {
        return;
    }
    let fake = Fake::new(ANSWERS);
    let driver = fake.open(&["zfs.fsname=tank/a"]).unwrap();
    let run = |script: &str| {
        // Datasets that are there, without properties of ours.
        let there =
            r#"case "$1 $5" in "list -o") for last; do :; done; printf '%s\t-\t-\t-\n' "$last"; exit;; esac"#;
        fake.does(&format!("{there}\n{script}"));
        driver
            .create("b", Some("base"), &CreateOptions::default())
            .unwrap_err()
    };
    let error = run("echo \"cannot create '$2': out of space\" >&2; exit 1");
    assert!(error.is_full(), "{error:?}");
    assert!(error.chain().contains("out of space"), "{error:?}");
    let error = run("case $1 in clone) echo 'no such thing' >&2; exit 3;; esac");
    assert!(
        error.chain().contains("no such thing") && error.chain().contains("tank/a/b"),
        "{error:?}"
    );
    // The snapshot does not stay.
    let calls = fake.calls();
    let (snapshot, destroyed) = (
        calls.find("snapshot|tank/a/base@graphroot-"),
        calls.rfind("destroy|-d|tank/a/base@graphroot-"),
    );
    assert!(snapshot.unwrap() < destroyed.unwrap(), "{calls}");
    // One that says that a dataset is in the way, whatever is done about it.
    let error = run("case $1 in clone) echo 'dataset already exists' >&2; exit 1;; esac");
    assert!(error.chain().contains("dataset already exists"), "{error:?}");
    // Lists that are none.
    for garbage in [
        "echo tank/a/x",
        "printf 'other\\t-\\t-\\t-\\n'",
        "printf 'tank/a\\t\\t\\t\\t\\n'",
    ] {
        fake.does(garbage);
        let error = driver.list_layers().unwrap_err();
        assert!(
            error.chain().contains("prints something that was not asked for"),
            "{error:?}"
        );
        driver.exists("b").unwrap_err();
        driver.mount_private("b").unwrap_err();
        driver.defer_remove("b").unwrap_err();
    }
    fake.does("echo no >&2; exit 1");
    let rows = driver.status();
    assert!(
        rows[0].1.contains("error while getting pool information"),
        "{rows:?}"
    );
    assert_eq!(rows[1].1, "not available");
    fs::remove_file(fake.path()).unwrap();
    let error = driver.list_layers().unwrap_err();
    assert_eq!(error.path(), Some(&*fake.path()), "{error:?}");
}

/// Without its mark nobody would remove a dataset whose process is killed when it was renamed.
#[test]
fn what_is_in_the_way_is_marked_before_it_is_moved() {
    if !needs_root() {
        return;
    }
    let fake = Fake::new(ANSWERS);
    let driver = fake.open(&["zfs.fsname=tank/a"]).unwrap();
    let moved = fake.dir.path().join("moved");
    let moved = moved.display();
    fake.does(&format!(
        r#"case $1 in
        list) printf 'tank/a/below\t-\t-\t-\n' ;;
        clone) [ -e {moved} ] || {{ echo "dataset already exists" >&2; exit 1; }} ;;
        rename) touch {moved} ;;
        esac"#
    ));
    driver
        .create("a", Some("below"), &CreateOptions::default())
        .unwrap();
    let calls = fake.calls();
    let at = |begin: &str| calls.lines().position(|call| call.starts_with(begin)).unwrap();
    assert!(at("set|graphroot:home=") < at("rename|tank/a/a|"), "{calls}");
}

#[test]
fn a_program_that_does_not_end_is_killed() {
    let fake = Fake::new("echo oh >&2; exec sleep 1000");
    let program = Program::new(fake.path()).with_limit(Duration::from_millis(2400));
    let fails = |program: &Program, after: &str| {
        let error = program.run(&["list", "tank"]).unwrap_err();
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::TimedOut), "{error:?}");
        let text = error.chain();
        assert!(text.contains("list tank") && text.contains(after), "{text}");
        text
    };
    assert!(fails(&program, "after 2.4 s").contains("oh"));
    // Those that follow, by which things are put in order, are not waited for as long.
    fails(&program, "after 0.2 s");
    fails(&program.clone(), "after 0.2 s");
    fails(&program.beside("zfs"), "after 0.2 s");
    let answers = Fake::new("echo tank");
    std::fs::rename(answers.path(), fake.path()).unwrap();
    // Whether it ends in time depends on the machine; once it does, all is as before.
    while program.run(&["list", "tank"]).is_err() {}
    fake.does("exec sleep 1000");
    fails(&program, "after 2.4 s");
}

#[test]
fn other_file_systems_are_refused_and_stay_as_they_are() {
    if !needs_root() {
        return;
    }
    let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
    let fake = Fake::new("exit 0");
    let mut config = config(tmp.path(), &[]);
    config.search_path = Some(fake.dir.path().into());
    let error = open_driver(&config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    let text = error.chain();
    assert!(text.contains("no zfs dataset found for rootdir"), "{text}");
    assert!(
        text.contains("prerequisites for driver not satisfied (wrong filesystem?)"),
        "{text}"
    );
    assert!(!tmp.path().join("graph").exists());
    assert_eq!(fake.calls(), "");
}
