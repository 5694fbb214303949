//! Which files count, and in which order.

use std::os::unix::fs::symlink;

use super::{ETC, Machine, USR, graph, value_of};
use crate::error::ErrorKind;

#[test]
fn without_any_file_there_are_defaults() {
    let machine = Machine::new();
    let effective = machine.load();
    assert_eq!(
        effective.options.graph_root.to_str(),
        Some("/var/lib/containers/storage")
    );
    assert_eq!(
        effective.options.run_root.to_str(),
        Some("/run/containers/storage")
    );
    assert_eq!(effective.options.driver, None);
    assert!(effective.options.driver_options.is_empty() && effective.warnings.is_empty());
    assert_eq!(value_of(&machine, &effective, "storage.graphroot").1, "default");
    assert!(effective.files.is_empty());
}

#[test]
fn the_first_main_file_that_exists_is_the_only_one() {
    let machine = Machine::new();
    let loader = machine
        .loader()
        .variable("HOME", machine.path("home"))
        .variable("XDG_CONFIG_HOME", machine.path("xdg"));
    // Each is more important than those before it.
    let places = [USR, ETC, "xdg/containers/storage.conf"];
    for place in places {
        machine.write(place, &graph(&format!("/{place}")));
        let effective = loader.now();
        assert_eq!(machine.files(&effective), [place]);
        assert_eq!(effective.options.graph_root.to_str(), Some(&*format!("/{place}")));
    }
    // Root has a file at home as well; the variable takes its place, unless it is set to nothing.
    let home = "home/.config/containers/storage.conf";
    machine.write(home, &graph("/home"));
    assert_eq!(machine.files(&loader.now()), [places[2]]);
    for at_home in [
        loader.clone().without_variable("XDG_CONFIG_HOME"),
        loader.variable("XDG_CONFIG_HOME", ""),
    ] {
        assert_eq!(machine.files(&at_home.now()), [home]);
    }
    // Without the variable the user database tells where home is.
    machine.write("etc/passwd", "x:x:1:0::/x:\nroot:x:0:0::/nowhere:/bin/sh\n");
    assert_eq!(machine.files(&machine.load()), [ETC]);
    let database = format!("root:x:0:0:root:{}:/bin/sh\n", machine.path("home").display());
    machine.write("etc/passwd", &database);
    assert_eq!(machine.files(&machine.load()), [home]);
}

#[test]
fn a_variable_names_the_only_file() {
    let machine = Machine::new();
    machine.write(ETC, &graph("/etc"));
    machine.write("etc/containers/storage.conf.d/1.conf", &graph("/dropin"));
    machine.write("named", "[storage]\ndriver = \"vfs\"\n");
    let loader = machine
        .loader()
        .variable("CONTAINERS_STORAGE_CONF", machine.path("named"));
    let effective = loader.now();
    assert_eq!(machine.files(&effective), ["named"]);
    assert_eq!(
        value_of(&machine, &effective, "storage.driver"),
        ("vfs".into(), "named:2".into())
    );
    assert_eq!(
        effective.options.graph_root.to_str(),
        Some("/var/lib/containers/storage")
    );

    let unset = loader.variable("CONTAINERS_STORAGE_CONF", "").now();
    assert_eq!(unset.options.graph_root.to_str(), Some("/dropin"));
}

#[test]
fn a_variable_names_the_last_file() {
    let machine = Machine::new();
    machine.write("etc/containers/storage.conf.d/1.conf", &graph("/dropin"));
    machine.write("named", &graph("/named"));
    machine.write("last", &graph("/last"));
    let last = machine
        .loader()
        .variable("CONTAINERS_STORAGE_CONF_OVERRIDE", machine.path("last"));
    let effective = last.now();
    assert_eq!(
        machine.files(&effective),
        ["etc/containers/storage.conf.d/1.conf", "last"]
    );
    assert_eq!(effective.options.graph_root.to_str(), Some("/last"));
    let both = last
        .variable("CONTAINERS_STORAGE_CONF", machine.path("named"))
        .now();
    assert_eq!(machine.files(&both), ["named", "last"]);
    assert_eq!(both.options.graph_root.to_str(), Some("/last"));
}

#[test]
fn a_file_that_a_variable_names_must_exist() {
    let machine = Machine::new();
    for variable in ["CONTAINERS_STORAGE_CONF", "CONTAINERS_STORAGE_CONF_OVERRIDE"] {
        let error = machine.loader().variable(variable, machine.path("none")).fails();
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound));
        let text = error.chain();
        assert!(text.contains(variable) && text.contains("/none"), "{text}");
    }
}

#[test]
fn drop_in_files_count_in_the_order_of_their_names() {
    // Directory, and the users for whom it counts.
    let dirs = [
        ("usr/share/containers/storage.conf.d", "root user"),
        ("usr/share/containers/storage.rootful.conf.d", "root"),
        ("usr/share/containers/storage.rootless.conf.d", "user"),
        ("usr/share/containers/storage.rootless.conf.d/1000", "user"),
        ("etc/containers/storage.conf.d", "root user"),
        ("etc/containers/storage.rootful.conf.d", "root"),
        ("etc/containers/storage.rootless.conf.d", "user"),
        ("etc/containers/storage.rootless.conf.d/1000", "user"),
        ("home/.config/containers/storage.conf.d", "root user"),
    ];
    let machine = Machine::new();
    for (index, (dir, _)) in dirs.iter().enumerate() {
        // The more important the directory, the earlier the name: names win over directories.
        let name = format!("{}.conf", 9 - index);
        let text = format!("[storage]\ndriver_priority = [\"{index}\", {{ append = true }}]\n");
        machine.write(&format!("{dir}/{name}"), &text);
        machine.write(&format!("{dir}/same.conf"), &graph(&format!("/{dir}")));
        for other in ["1.txt", "conf", "1.conf.bak"] {
            machine.write(&format!("{dir}/{other}"), "not read");
        }
    }
    std::fs::create_dir(machine.path(dirs[4].0).join("2.conf")).unwrap();

    for (who, uid) in [("root", 0), ("user", 1000)] {
        let loader = machine.loader().user(uid).variable("HOME", machine.path("home"));
        let loader = loader.variable("XDG_RUNTIME_DIR", machine.path("home"));
        let effective = loader.now();
        let mut expected: Vec<String> = Vec::new();
        for (index, (_, users)) in dirs.iter().enumerate() {
            if users.split(' ').any(|user| user == who) {
                expected.insert(0, index.to_string());
            }
        }
        assert_eq!(effective.options.driver_priority, expected, "{who}");
        // One name: only the file of the most important directory is read.
        assert_eq!(
            effective.options.graph_root.to_str(),
            Some("/home/.config/containers/storage.conf.d")
        );
        assert_eq!(effective.files.len(), expected.len() + 1);
        std::fs::remove_file(machine.path(dirs[8].0).join("same.conf")).unwrap();
        let next = if uid == 0 { dirs[5].0 } else { dirs[7].0 };
        assert_eq!(
            loader.now().options.graph_root.to_str(),
            Some(&*format!("/{next}"))
        );
        machine.write(
            &format!("{}/same.conf", dirs[8].0),
            &graph(&format!("/{}", dirs[8].0)),
        );
    }
    // Another user has no directory by number.
    let loader = machine
        .loader()
        .user(1001)
        .variable("XDG_RUNTIME_DIR", machine.path("home"));
    let other = loader.variable("HOME", "/nowhere").now();
    assert_eq!(other.options.driver_priority, ["6", "4", "2", "0"]);
}

#[test]
fn a_link_or_device_among_the_drop_in_files_hides_others() {
    let machine = Machine::new();
    let [low, high] = ["usr/share", "etc"].map(|dir| format!("{dir}/containers/storage.conf.d"));
    for name in ["file", "null", "dangling", "pipe"] {
        let text = format!("[storage]\ndriver_priority = [\"{name}\", {{ append = true }}]\n");
        machine.write(&format!("{low}/{name}.conf"), &text);
        if name == "file" {
            machine.write("linked", &text.replace("file", "linked"));
        }
    }
    std::fs::create_dir_all(machine.path(&high)).unwrap();
    symlink(machine.path("linked"), machine.path(&high).join("file.conf")).unwrap();
    symlink("/dev/null", machine.path(&high).join("null.conf")).unwrap();
    symlink("/nowhere", machine.path(&high).join("dangling.conf")).unwrap();
    assert_eq!(machine.load().options.driver_priority, ["linked", "pipe"]);
    let pipe = machine.path(&high).join("pipe.conf");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    assert_eq!(
        machine.load().options.driver_priority,
        ["linked"],
        "a pipe is not waited for"
    );
    std::fs::remove_file(&pipe).unwrap();
    symlink(machine.path("home"), &pipe).unwrap();
    std::fs::create_dir_all(machine.path("home")).unwrap();
    let error = machine.loader().fails();
    assert_eq!(
        error.io_kind(),
        Some(std::io::ErrorKind::IsADirectory),
        "{}",
        error.chain()
    );
}

#[test]
fn drop_in_files_come_after_the_main_file() {
    let machine = Machine::new();
    machine.write("home/.config/containers/storage.conf", &graph("/main"));
    machine.write("usr/share/containers/storage.conf.d/0.conf", &graph("/dropin"));
    let effective = machine.loader().variable("HOME", machine.path("home")).now();
    assert_eq!(effective.options.graph_root.to_str(), Some("/dropin"));
}

#[test]
fn what_cannot_be_read_is_an_error_that_names_it() {
    let machine = Machine::new();
    machine.write("etc/containers/storage.conf.d", "a file");
    let error = machine.loader().fails();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(
        error.path(),
        Some(&*machine.path("etc/containers/storage.conf.d"))
    );

    let machine = Machine::new();
    std::fs::create_dir_all(machine.path(ETC)).unwrap();
    let error = machine.loader().fails();
    assert_eq!(
        (error.kind(), error.path()),
        (ErrorKind::Io, Some(&*machine.path(ETC)))
    );

    for (content, expected) in [
        (b"[storage]\n# \xff\n".to_vec(), "line 2: not UTF-8"),
        (vec![b'\n'; (1 << 20) + 1], "larger than 1048576 bytes"),
    ] {
        let machine = Machine::with("");
        std::fs::write(machine.path(ETC), content).unwrap();
        let error = machine.loader().fails();
        assert!(error.chain().contains(expected), "{error:?}");
        assert_eq!(error.path(), Some(&*machine.path(ETC)));
    }
    let machine = Machine::with("");
    std::fs::write(machine.path(ETC), vec![b'\n'; 1 << 20]).unwrap();
    machine.load();
}

#[test]
fn a_main_file_may_be_a_link() {
    let machine = Machine::new();
    machine.write("real", &graph("/linked"));
    std::fs::create_dir_all(machine.path("etc/containers")).unwrap();
    symlink(machine.path("real"), machine.path(ETC)).unwrap();
    assert_eq!(machine.load().options.graph_root.to_str(), Some("/linked"));
}
