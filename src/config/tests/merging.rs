//! What several files make together.

use super::{ETC, Machine, value_of};

/// Three files, each on top of the one before.
fn three(texts: [&str; 3]) -> Machine {
    let machine = Machine::new();
    for (name, text) in [
        ETC,
        "etc/containers/storage.conf.d/1.conf",
        "etc/containers/storage.conf.d/2.conf",
    ]
    .iter()
    .zip(texts)
    {
        machine.write(name, text);
    }
    machine
}

#[test]
fn the_last_file_wins_key_by_key() {
    let machine = three([
        "[storage]\ndriver = \"vfs\"\nrunroot = \"/one\"\n[storage.options.overlay]\nsize = \"1G\"\nmountopt = \"nodev\"\n",
        "[storage]\nrunroot = \"/two\"\ntransient_store = true\n[storage.options.overlay]\n\nsize = \"2G\"\n",
        "[storage]\ntransient_store = false\n",
    ]);
    let effective = machine.load();
    let expected = [
        ("storage.driver", "vfs", "etc/containers/storage.conf:2"),
        (
            "storage.runroot",
            "/two",
            "etc/containers/storage.conf.d/1.conf:2",
        ),
        (
            "storage.transient_store",
            "false",
            "etc/containers/storage.conf.d/2.conf:2",
        ),
        (
            "storage.options.overlay.size",
            "2G",
            "etc/containers/storage.conf.d/1.conf:6",
        ),
        (
            "storage.options.overlay.mountopt",
            "nodev",
            "etc/containers/storage.conf:6",
        ),
    ];
    for (key, value, origin) in expected {
        assert_eq!(
            value_of(&machine, &effective, key),
            (value.into(), origin.into()),
            "{key}"
        );
    }
    assert_eq!(
        effective.options.driver_options,
        ["overlay.mountopt=nodev", "overlay.size=2G"]
    );
}

#[test]
fn an_empty_value_takes_an_earlier_one_back() {
    let machine = three([
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"/g\"\n[storage.options]\nforce_mask = 0o700\n\
         auto-userns-min-size = 5\nadditionalimagestores = [\"/a\"]\n",
        "[storage]\ndriver = \"\"\ngraphroot = \"\"\n[storage.options]\nforce_mask = 0\nauto-userns-min-size = 0\n\
         additionalimagestores = []\n",
        "",
    ]);
    let options = machine.load().options;
    assert_eq!((options.driver, options.auto_userns_min_size), (None, 0));
    assert_eq!(options.graph_root.to_str(), Some("/var/lib/containers/storage"));
    assert!(options.driver_options.is_empty());
}

#[test]
fn lists_append_when_they_say_so_and_go_on_until_told_otherwise() {
    // The list in three files, and what comes out.
    let cases: [([&str; 3], &[&str]); 7] = [
        ([r#""a""#, r#""b""#, r#""c""#], &["c"]),
        ([r#""a""#, r#""b", {append = true}"#, ""], &["a", "b"]),
        ([r#""a""#, r#"{append = true}, "b""#, r#""c""#], &["a", "b", "c"]),
        ([r#""a", {append = true}"#, r#""b""#, r#""c""#], &["a", "b", "c"]),
        (
            [r#""a", {append = true}"#, r#""b", {append = false}"#, r#""c""#],
            &["c"],
        ),
        (
            [r#""a""#, r#"{append = true}"#, r#""c", {append = false}"#],
            &["c"],
        ),
        ([r#""a""#, r#"{}, "b""#, r#""c", {append = true}"#], &["b", "c"]),
    ];
    for (lists, expected) in cases {
        for key in [
            "driver_priority",
            "options.additionalimagestores",
            "options.additionallayerstores",
        ] {
            let texts = lists.map(|list| {
                list.replace("\"a", "\"/a")
                    .replace("\"b", "\"/b")
                    .replace("\"c", "\"/c")
            });
            let texts = texts.map(|list| format!("[storage]\n{key} = [{list}]\n"));
            // A file that does not have the key says nothing about it.
            let texts = texts.map(|text| {
                if text.ends_with("[]\n") {
                    String::new()
                } else {
                    text
                }
            });
            let machine = three([&texts[0], &texts[1], &texts[2]]);
            let effective = machine.load();
            let name = format!("storage.{key}");
            let found: Vec<_> = effective
                .values
                .iter()
                .filter(|value| value.key == name)
                .collect();
            let expected: Vec<String> = expected.iter().map(|path| format!("/{path}")).collect();
            assert_eq!(
                found.iter().map(|value| &value.value).collect::<Vec<_>>(),
                expected.iter().collect::<Vec<_>>()
            );
            // Each element knows its own file.
            for value in found {
                let index = ["/a", "/b", "/c"]
                    .iter()
                    .position(|path| *path == value.value)
                    .unwrap();
                let file = ["storage.conf:2", "1.conf:2", "2.conf:2"][index];
                assert!(value.origin.to_string().ends_with(file), "{value}");
            }
        }
    }
}

#[test]
fn pull_options_merge_one_by_one() {
    let machine = three([
        "[storage.options]\npull_options = { a = \"1\", B = \"1\" }\n",
        "[storage.options.pull_options]\nb = \"2\"\na = \"\"\n",
        "[storage.options.pull_options]\n",
    ]);
    let effective = machine.load();
    let options: Vec<_> = effective
        .options
        .pull_options
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    assert_eq!(options, ["B=1", "a=", "b=2"]);
    assert_eq!(
        value_of(&machine, &effective, "storage.options.pull_options.a"),
        (String::new(), "etc/containers/storage.conf.d/1.conf:3".into())
    );
}

#[test]
fn variables_have_the_last_word() {
    let machine = Machine::with(
        "[storage]\ndriver = \"overlay\"\n[storage.options]\nadditionalimagestores = [\"/a\"]\n\
         [storage.options.overlay]\nmountopt = \"nodev\"\nsize = \"nonsense\"\n",
    );
    let loader = machine.loader().variable("STORAGE_DRIVER", "vfs");
    let effective = loader.clone().variable("STORAGE_OPTS", "a=b,vfs.c=d,").now();
    assert_eq!(
        value_of(&machine, &effective, "storage.driver"),
        ("vfs".into(), "environment variable STORAGE_DRIVER".into())
    );
    assert_eq!(effective.options.driver_options, ["a=b", "vfs.c=d", ""]);
    assert_eq!(
        value_of(&machine, &effective, "driver-options"),
        ("a=b".into(), "environment variable STORAGE_OPTS".into())
    );
    assert!(
        !effective
            .values
            .iter()
            .any(|value| value.key.starts_with("storage.options.overlay"))
    );

    // Set to nothing, one clears the list and the other is none.
    let loader = loader.variable("STORAGE_OPTS", "").variable("STORAGE_DRIVER", "");
    let effective = loader.now();
    assert_eq!(effective.options.driver.as_deref(), Some("overlay"));
    assert!(effective.options.driver_options.is_empty());

    let error = machine.loader().variable("STORAGE_DRIVER", "nonsense").fails();
    let text = error.chain();
    assert!(
        text.contains("STORAGE_DRIVER") && text.contains("overlay, vfs, btrfs or zfs"),
        "{text}"
    );
}
