//! Every key, and files as they are found on real machines.

use super::{CRIO, DEBIAN, EVERYTHING, FEDORA, Machine, NESTED, value_of};
use crate::config::keys::{KEYS, Kind, Role};
use crate::idmap::IdMap;

#[test]
fn every_key_is_read_and_tells_its_line() {
    for key in KEYS {
        let (written, expected) = match key.kind {
            Kind::Text => ("\"/7\"", "/7"),
            Kind::Number => ("\"7\"", "7"),
            Kind::Path => ("\"/does/not/exist\"", "/does/not/exist"),
            Kind::Driver => ("\"zfs\"", "zfs"),
            Kind::Switch => ("true", "true"),
            Kind::Count => (
                "0o17",
                if matches!(key.role, Role::Field) {
                    "15"
                } else {
                    "17"
                },
            ),
            Kind::List => ("[\"vfs\"]", "vfs"),
            Kind::Directories => ("[\"/d\"]", "/d"),
            Kind::TextSwitch => ("\"true\"", "true"),
            Kind::Size => ("\"1 GiB\"", "1 GiB"),
            Kind::Sync => ("\"none\"", "none"),
            Kind::Mask => ("\"0700\"", "0700"),
            Kind::Ranges => ("\"0:5:1\"", "0:5:1"),
        };
        let (table, name) = key.name.rsplit_once('.').unwrap();
        for spelling in [name.to_owned(), name.to_uppercase()] {
            let machine = Machine::with(&format!("# a comment\n[{table}]\n\n{spelling} = {written}\n"));
            let effective = machine.load();
            let warned = effective.warnings.iter().any(|warning| warning.key == key.name);
            let origin = "etc/containers/storage.conf:4";
            match key.role {
                Role::Idle(_) => assert!(warned, "{}", key.name),
                Role::Field if key.name == "storage.rootless_storage_path" => assert!(warned),
                _ => {
                    let found = value_of(&machine, &effective, key.name);
                    assert_eq!(found, (expected.to_owned(), origin.to_owned()), "{}", key.name);
                    assert!(!warned, "{}", key.name);
                }
            }
            if let Role::DriverOption(driver, option) = key.role {
                let dot = if driver.is_empty() { "" } else { "." };
                let text = format!("{driver}{dot}{option}={expected}");
                assert_eq!(effective.options.driver_options, [text]);
            }
            assert!(
                effective
                    .warnings
                    .iter()
                    .all(|warning| warning.origin.to_string().ends_with("storage.conf:4"))
            );
        }
    }
}

#[test]
fn everything_at_once() {
    let machine = Machine::with(EVERYTHING);
    let effective = machine.load();
    assert_eq!(effective.warnings, []);
    let options = &effective.options;
    assert_eq!(
        options.driver_options,
        [
            "imagestore=/images1",
            "imagestore=/images2,/images3",
            "additionallayerstore=/layers:ref",
            "size=1G",
            "mount_program=/bin/mount-it",
            "skip_mount_home=false",
            "ignore_chown_errors=true",
            "force_mask=755",
            "mountopt=noatime",
            "btrfs.min_space=2G",
            "btrfs.size=3G",
            "overlay.ignore_chown_errors=1",
            "overlay.mount_program=/usr/bin/fuse-overlayfs",
            "overlay.mountopt=nodev,metacopy=on",
            "overlay.size=4G",
            "overlay.inodes=1000",
            "overlay.skip_mount_home=true",
            "overlay.force_mask=shared",
            "overlay.use_composefs=false",
            "overlay.sync=filesystem",
            "vfs.ignore_chown_errors=true",
            "vfs.sync=none",
            "zfs.fsname=pool/containers",
            "zfs.mountopt=nodev",
            "zfs.size=5G",
        ]
    );
    assert_eq!(options.driver.as_deref(), Some("overlay"));
    assert_eq!(options.driver_priority, ["vfs", "overlay"]);
    assert_eq!(options.graph_root.to_str(), Some("/graph"));
    assert_eq!(options.run_root.to_str(), Some("/run-here"));
    assert_eq!(options.image_store.as_deref(), Some("/split".as_ref()));
    assert!(options.transient && options.disable_volatile);
    assert_eq!(options.root_auto_userns_user.as_deref(), Some("ranges"));
    assert_eq!(
        (options.auto_userns_min_size, options.auto_userns_max_size),
        (2048, u32::MAX)
    );
    assert_eq!(options.pull_options.len(), 2);
    let expected = concat!(
        r#"{"runroot":"/run-here","root":"/graph","imagestore":"/split","driver":"overlay","#,
        r#""driver-priority":["vfs","overlay"],"driver-options":["imagestore=/images1","imagestore=/images2,/images3","#,
        r#""additionallayerstore=/layers:ref","size=1G","mount_program=/bin/mount-it","skip_mount_home=false","#,
        r#""ignore_chown_errors=true","force_mask=755","mountopt=noatime","btrfs.min_space=2G","btrfs.size=3G","#,
        r#""overlay.ignore_chown_errors=1","overlay.mount_program=/usr/bin/fuse-overlayfs","#,
        r#""overlay.mountopt=nodev,metacopy=on","overlay.size=4G","overlay.inodes=1000","#,
        r#""overlay.skip_mount_home=true","overlay.force_mask=shared","overlay.use_composefs=false","#,
        r#""overlay.sync=filesystem","vfs.ignore_chown_errors=true","vfs.sync=none","zfs.fsname=pool/containers","#,
        r#""zfs.mountopt=nodev","zfs.size=5G"],"root_auto_ns_user":"ranges","auto_userns_min_size":2048,"#,
        r#""auto_userns_max_size":4294967295,"PullOptions":{"enable_partial_images":"TRUE","my_own":"anything"},"#,
        r#""disable-volatile":true,"transient_store":true}"#
    );
    assert_eq!(effective.to_json().unwrap(), expected);
}

#[test]
fn json_leaves_out_what_is_empty() {
    let bare =
        r#"{"runroot":"/run/containers/storage","root":"/var/lib/containers/storage","PullOptions":null}"#;
    assert_eq!(Machine::new().load().to_json().unwrap(), bare);
    // A table without entries is not the same as no table, and Go escapes what HTML would take for markup.
    let machine = Machine::with("[storage]\ngraphroot = \"/<&>\"\n[storage.options.pull_options]\n");
    let odd = r#"{"runroot":"/run/containers/storage","root":"/\u003c\u0026\u003e","PullOptions":{}}"#;
    assert_eq!(machine.load().to_json().unwrap(), odd);
}

#[test]
fn debian() {
    let effective = Machine::with(DEBIAN).load();
    assert_eq!(
        effective.warnings,
        [],
        "an empty table of a removed driver is no error"
    );
    assert_eq!(effective.options.driver.as_deref(), Some("overlay"));
    assert_eq!(effective.options.driver_options, ["overlay.mountopt=nodev"]);
    let pull: Vec<&str> = effective
        .options
        .pull_options
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(pull, ["enable_partial_images", "ostree_repos", "use_hard_links"]);
}

#[test]
fn fedora() {
    let effective = Machine::with(FEDORA).load();
    assert_eq!(effective.warnings, []);
    let expected = [
        "imagestore=/usr/lib/containers/storage",
        "overlay.mountopt=nodev,metacopy=on",
    ];
    assert_eq!(effective.options.driver_options, expected);
    assert_eq!(effective.options.pull_options["enable_partial_images"], "true");
}

#[test]
fn crio() {
    let machine = Machine::with(CRIO);
    let effective = machine.load();
    let options = &effective.options;
    assert_eq!(
        options.driver_options,
        ["overlay.mountopt=nodev,metacopy=on", "overlay.size=8G"]
    );
    assert_eq!(options.image_store.as_deref(), Some("/var/lib/images".as_ref()));
    assert_eq!(
        (options.auto_userns_min_size, options.auto_userns_max_size),
        (65536, 131_072)
    );
    assert_eq!(options.root_auto_userns_user.as_deref(), Some("containers"));
    // Carried, with a warning for each, but no mapping of the store.
    assert_eq!(options.remap.uids, [IdMap::new(0, 1_668_442_479, 65536)]);
    assert_eq!(options.remap.uids, options.remap.gids);
    assert_eq!(
        (options.remap.user.as_deref(), options.remap.group.as_deref()),
        (Some("containers"), None)
    );
    assert!(options.id_mappings.is_identity());
    let lines: Vec<String> = effective.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, key) in lines
        .iter()
        .zip(["9: storage.options.remap-uids", "10: ", "11: "])
    {
        assert!(
            line.contains(&format!("etc/containers/storage.conf:{key}")) && line.contains("removed"),
            "{line}"
        );
    }
}

#[test]
fn nested() {
    let effective = Machine::with(NESTED).load();
    assert_eq!(effective.warnings, []);
    let expected = [
        "imagestore=/var/lib/shared",
        "imagestore=/usr/lib/containers/storage",
        "overlay.mount_program=/usr/bin/fuse-overlayfs",
        "overlay.mountopt=nodev,fsync=0",
    ];
    assert_eq!(effective.options.driver_options, expected);
}

#[test]
fn the_old_name_of_overlay() {
    let effective = Machine::with("[storage]\ndriver = \"overlay2\"\n").load();
    assert_eq!(effective.options.driver.as_deref(), Some("overlay"));
    assert!(
        effective.warnings[0]
            .to_string()
            .contains("storage.conf:2: storage.driver: deprecated")
    );
}

#[test]
fn printing_names_every_value_with_its_origin() {
    let machine = Machine::with("[storage]\ndriver = \"vfs\"\nx = 1\n");
    let text = machine
        .load()
        .to_string()
        .replace(machine.0.path().to_str().unwrap(), "");
    let expected = "storage.driver = \"vfs\" (/etc/containers/storage.conf:2)\n\
         storage.graphroot = \"/var/lib/containers/storage\" (default)\n\
         storage.runroot = \"/run/containers/storage\" (default)\n\
         storage.transient_store = \"false\" (default)\n\
         storage.options.disable-volatile = \"false\" (default)\n\
         warning: /etc/containers/storage.conf:3: storage.x: unknown key, ignored\n";
    assert_eq!(text, expected);
}
