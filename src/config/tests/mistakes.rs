//! What is wrong in a file, and how it is told.

use super::{ETC, Machine};
use crate::config::keys::{KEYS, Kind};
use crate::error::ErrorKind;

/// An error about the administrator's file with all these texts in it.
fn assert_refused(text: &str, parts: &[&str]) {
    let machine = Machine::with(text);
    let error = machine.loader().fails();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
    assert_eq!(error.path(), Some(&*machine.path(ETC)), "{error:?}");
    let chain = error.chain();
    for part in parts {
        assert!(chain.contains(part), "{part:?} is not in {chain:?}");
    }
}

#[test]
fn every_key_refuses_every_other_type() {
    let values = [
        ("\"text\"", "the string \"text\""),
        ("7", "the integer 7"),
        ("1.5", "the number 1.5"),
        ("true", "true without quotes"),
        ("1979-05-27", "the date 1979-05-27"),
        ("[]", "an array"),
        ("{ a = 1 }", "a table"),
    ];
    for key in KEYS {
        let (table, name) = key.name.rsplit_once('.').unwrap();
        let own = match key.kind {
            Kind::Switch => "true",
            Kind::Count => "7",
            Kind::List | Kind::Directories => "[]",
            _ => "\"text\"",
        };
        for (value, described) in values.iter().filter(|(value, _)| *value != own) {
            let text = format!("[{table}]\n\n{name} = {value}\n");
            if name.starts_with("remap-") {
                // Nothing depends on these any more.
                let effective = Machine::with(&text).load();
                assert!(
                    effective.warnings[0].to_string().contains("storage.conf:3"),
                    "{effective}"
                );
            } else {
                assert_refused(
                    &text,
                    &["line 3", key.name, "expected ", &format!("found {described}")],
                );
            }
        }
    }
}

#[test]
fn values_that_make_no_sense() {
    let long = format!("[storage]\ndriver = \"{}\"\n", "x".repeat(5000));
    let cases: &[(&str, &[&str])] = &[
        (
            "[storage]\ndriver = \"devicemapper\"\n",
            &[
                "line 2",
                "storage.driver",
                "overlay, vfs, btrfs or zfs",
                "\"devicemapper\"",
            ],
        ),
        ("[storage]\ndriver = \"Overlay\"\n", &["storage.driver"]),
        (&long, &["xxx", "…"]),
        (
            "[storage]\ngraphroot = \"/g\"\nimagestore = \"/g\"\n",
            &[
                "line 3",
                "storage.imagestore",
                "another directory than the graph root",
            ],
        ),
        (
            "[storage]\nimagestore = \"/var/lib/containers/storage\"\n",
            &["line 2", "storage.imagestore"],
        ),
        (
            "[storage]\ntransient_store = \"true\"\n",
            &["true or false without quotes"],
        ),
        (
            "[storage]\ndriver_priority = [\"a\", 1]\n",
            &["line 2", "{ append = true }", "the integer 1"],
        ),
        (
            "[storage]\ndriver_priority = [\"a\",\n{ append = 1 }]\n",
            &["line 3", "a table"],
        ),
        (
            "[storage]\ndriver_priority = [{ prepend = true }]\n",
            &["a table"],
        ),
        (
            "[storage.options]\nadditionalimagestores = [\n\"/a\",\n\"b\"]\n",
            &["line 4", "additionalimagestores", "absolute paths", "\"b\""],
        ),
        (
            "[storage.options]\nadditionallayerstores = [\"/a,b\"]\n",
            &["absolute paths"],
        ),
        (
            "[storage.options]\nsize = \"big\"\n",
            &["line 2", "a size such as \"10G\"", "\"big\""],
        ),
        (
            "[storage.options]\nskip_mount_home = true\n",
            &["(\"true\", in quotes)", "true without quotes"],
        ),
        (
            "[storage.options]\nignore_chown_errors = \"yes\"\n",
            &["\"true\" or \"false\"", "\"yes\""],
        ),
        (
            "[storage.options]\nforce_mask = \"0755\"\n",
            &["an integer from 0 to 4294967295"],
        ),
        (
            "[storage.options]\nforce_mask = -1\n",
            &["an integer from 0 to 4294967295", "-1"],
        ),
        (
            "[storage.options]\nauto-userns-min-size = 4294967296\n",
            &["an integer from 0 to 4294967295", "4294967296"],
        ),
        (
            "[storage.options]\nauto-userns-max-size = -1\n",
            &["an integer from 0 to 4294967295", "-1"],
        ),
        (
            "[storage.options]\noverlay = \"x\"\n",
            &["line 2", "storage.options.overlay", "a table"],
        ),
        ("storage = 1\n", &["line 1", "storage", "a table"]),
        ("[[storage]]\n", &["line 1", "a table", "an array"]),
        (
            "[storage.options.pull_options]\nenable_partial_images = true\n",
            &[
                "line 2",
                "storage.options.pull_options.enable_partial_images",
                "in quotes",
            ],
        ),
        (
            "[storage.options.overlay]\nsize = \"1X\"\n",
            &["storage.options.overlay.size", "a size"],
        ),
        (
            "[storage.options.overlay]\ninodes = \"many\"\n",
            &["storage.options.overlay.inodes", "a number in quotes"],
        ),
        (
            "[storage.options.overlay]\nskip_mount_home = \"on\"\n",
            &["storage.options.overlay.skip_mount_home", "\"true\" or \"false\""],
        ),
        (
            "[storage.options.overlay]\nignore_chown_errors = \"on\"\n",
            &["storage.options.overlay.ignore_chown_errors"],
        ),
        (
            "[storage.options.overlay]\nuse_composefs = \"on\"\n",
            &["storage.options.overlay.use_composefs"],
        ),
        (
            "[storage.options.overlay]\nforce_mask = \"9\"\n",
            &[
                "storage.options.overlay.force_mask",
                "\"shared\", \"private\" or an octal mode",
            ],
        ),
        (
            "[storage.options.overlay]\nsync = \"full\"\n",
            &["storage.options.overlay.sync", "\"none\" or \"filesystem\""],
        ),
        (
            "[storage]\ndriver = \"vfs\"\n[storage.options.vfs]\nsync = \"full\"\n",
            &["line 4", "storage.options.vfs.sync"],
        ),
        (
            "[storage]\ndriver = \"vfs\"\n[storage.options.vfs]\nignore_chown_errors = \"x\"\n",
            &["storage.options.vfs.ignore_chown_errors"],
        ),
        (
            "[storage]\ndriver = \"btrfs\"\n[storage.options.btrfs]\nmin_space = \"x\"\n",
            &["storage.options.btrfs.min_space"],
        ),
        (
            "[storage]\ndriver = \"btrfs\"\n[storage.options.btrfs]\nsize = \"x\"\n",
            &["storage.options.btrfs.size"],
        ),
    ];
    for (text, parts) in cases {
        assert_refused(text, parts);
    }
}

#[test]
fn what_is_not_toml_is_told_with_its_line() {
    let deep = format!("a = {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    let cases = [
        ("[storage]\ndriver = \n", "line 2"),
        ("[storage\n", "line 1"),
        ("[storage]\ndriver = \"a\"\ndriver = \"b\"\n", "line 3"),
        ("[storage]\n\n[storage]\n", "line 3"),
        ("[storage]\nremap-uids = 0:1668442479:65536\n", "line 2"),
        (&deep, "line 1"),
    ];
    for (text, line) in cases {
        assert_refused(text, &["reading storage configuration", line, "not valid TOML"]);
    }
}

#[test]
fn of_drivers_that_are_not_opened_odd_values_are_only_warned_of() {
    let text = "[storage]\ndriver = \"vfs\"\n[storage.options.overlay]\nsize = \"x\"\n[storage.options.btrfs]\nsize = \"x\"\n";
    let effective = Machine::with(text).load();
    let lines: Vec<String> = effective.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains("storage.conf:6: storage.options.btrfs.size: expected a size"),
        "{lines:?}"
    );
    assert!(
        lines[1].contains("storage.conf:4: storage.options.overlay.size: expected a size"),
        "{lines:?}"
    );
    assert_eq!(
        effective.options.driver_options,
        ["btrfs.size=x", "overlay.size=x"]
    );

    // Without a name the first choice counts.
    let text = "[storage]\ndriver_priority = [\"vfs\"]\n[storage.options.overlay]\nsize = \"x\"\n";
    assert_eq!(Machine::with(text).load().warnings.len(), 1);
    // Also the vfs driver takes any image store.
    let text = "[storage]\ndriver = \"vfs\"\n[storage.options]\nadditionalimagestores = [\"relative\"]\n";
    assert_eq!(Machine::with(text).load().warnings.len(), 1);
    // A value that another file has replaced does not count.
    let machine = Machine::with("[storage.options.overlay]\nsize = \"x\"\n");
    machine.write(
        "etc/containers/storage.conf.d/1.conf",
        "[storage.options.overlay]\nsize = \"1G\"\n",
    );
    assert_eq!(machine.load().warnings, []);
}

#[test]
fn warnings_name_file_line_and_key() {
    let cases = [
        ("[storage]\nnonsense = 1\n", "2: storage.nonsense: unknown key"),
        ("nonsense = 1\n", "1: nonsense: unknown key"),
        (
            "[storage.options]\n\n\"with space\" = 1\n",
            "3: storage.options.with space: unknown key",
        ),
        ("[other]\nx = 1\n", "1: other: unknown table"),
        (
            "[storage.options.overlay2]\nsize = \"1\"\n",
            "1: storage.options.overlay2: unknown table",
        ),
        (
            "[storage.options.overlay]\noverride_kernel_check = \"1\"\n",
            "2: storage.options.overlay.override_kernel_check: unknown key",
        ),
        (
            "[storage.options.thinpool]\nfs = \"xfs\"\n",
            "1: storage.options.thinpool: ignored: this driver was removed",
        ),
        (
            "[storage.options.aufs]\nmountopt = \"x\"\n",
            "1: storage.options.aufs: ignored: this driver was removed",
        ),
        (
            "[storage.options.devicemapper]\nx = 1\n",
            "1: storage.options.devicemapper: ignored: this driver was removed",
        ),
        (
            "[storage.options]\nthinpool = 1\n",
            "2: storage.options.thinpool: ignored",
        ),
        (
            "[storage.options]\nimagestore = \"/x\"\n",
            "2: storage.options.imagestore: no effect in this table",
        ),
        (
            "[storage.options]\nuse_composefs = \"true\"\n",
            "2: storage.options.use_composefs: no effect in this table",
        ),
        (
            "[storage.options]\nremap-uids = \"0:1\"\n",
            "2: storage.options.remap-uids: removed",
        ),
        (
            "[storage.options]\nremap-gids = \"0:1:2\"\n",
            "2: storage.options.remap-gids: removed",
        ),
        (
            "[storage.options]\nremap-user = \"u\"\n",
            "2: storage.options.remap-user: removed",
        ),
        (
            "[storage.options]\nremap-group = \"g\"\n",
            "2: storage.options.remap-group: removed",
        ),
        (
            "[storage.options]\npull_options = \"x\"\n",
            "2: storage.options.pull_options: ignored, because it is not a table",
        ),
        (
            "[storage.options.pull_options]\nuse_hard_links = \"1\"\n",
            "2: storage.options.pull_options.use_hard_links: expected \"true\" or \"false\"",
        ),
        (
            "[storage]\ndriver_priority = [\n\"aufs\"]\n",
            "3: storage.driver_priority: \"aufs\" is not a driver",
        ),
        (
            "[storage]\nrootless_storage_path = \"/x\"\n",
            "2: storage.rootless_storage_path: deprecated",
        ),
        (
            "[storage]\ngraphroot = \"/g\"\nrootless_storage_path = \"/x\"\n",
            "3: storage.rootless_storage_path: deprecated, and not used because",
        ),
        (
            "[storage]\ndriver = \"overlay2\"\n",
            "2: storage.driver: deprecated",
        ),
        (
            "[storage]\ngraphroot = \"graph\"\n",
            "2: storage.graphroot: \"graph\" is relative",
        ),
        (
            "[storage]\nrunroot = \"$NOTHING\"\n",
            "2: storage.runroot: \"$NOTHING\" is relative",
        ),
        (
            "[storage]\nimagestore = \"$HOME/x\"\n",
            "2: storage.imagestore: \"$HOME/x\" is relative",
        ),
    ];
    for (text, expected) in cases {
        let machine = Machine::with(text);
        let effective = machine.load();
        let lines: Vec<String> = effective.warnings.iter().map(ToString::to_string).collect();
        let expected = format!("{}:{expected}", machine.path(ETC).display());
        assert!(
            lines.first().is_some_and(|line| line.starts_with(&expected)),
            "{expected:?}: {lines:?}"
        );
    }
    let effective = Machine::with("[storage.options]\nremap-uids = \"0:1\"\n").load();
    assert!(effective.warnings[1].message.contains("CONTAINER:HOST:SIZE"));
    assert!(effective.options.remap.uids.is_empty());
}

#[test]
fn the_exact_spelling_of_a_key_counts_most() {
    for text in [
        "driver = \"vfs\"\nDRIVER = \"overlay\"",
        "Driver = \"overlay\"\ndriver = \"vfs\"",
    ] {
        let effective = Machine::with(&format!("[Storage]\n{text}\n")).load();
        assert_eq!(effective.options.driver.as_deref(), Some("vfs"));
    }
}

proptest::proptest! {
    /// Whatever a file holds, loading it ends in options or in an error that names it.
    #[test]
    fn nothing_in_a_file_does_harm(cuts in proptest::collection::vec((0..2000_usize, 0..2000_usize, ".{0,6}"), 0..8)) {
        let mut text: Vec<char> = super::EVERYTHING.chars().collect();
        for (from, to, insert) in cuts {
            let (from, to) = (from.min(to).min(text.len()), to.max(from).min(text.len()));
            text.splice(from..to.min(from + 20), insert.chars());
        }
        let text: String = text.into_iter().collect();
        let machine = Machine::with(&text);
        match machine.loader().load_now() {
            Ok(effective) => proptest::prop_assert!(effective.to_json().is_ok()),
            Err(error) => proptest::prop_assert_eq!(error.path(), Some(&*machine.path(ETC))),
        }
    }
}
