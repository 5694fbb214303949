//! Directories of users without root's powers, and of root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::{ETC, Machine, graph, value_of};
use crate::config::Loader;
use crate::config::paths::resolve;

/// The user who runs the tests, under another number: directories that the test makes are this user's own.
fn user(machine: &Machine) -> Loader {
    let mut loader = machine.loader().variable("HOME", "/home/u");
    loader.environment.real_uid = 1000;
    loader.environment.effective_uid = rustix::process::geteuid().as_raw();
    loader.environment.confined = true;
    loader
}

fn private(machine: &Machine, dir: &str, mode: u32) {
    fs::create_dir_all(machine.path(dir)).unwrap();
    fs::set_permissions(machine.path(dir), Permissions::from_mode(mode)).unwrap();
}

fn roots(loader: &Loader) -> (String, String) {
    let options = loader.now().options;
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    (text(options.graph_root), text(options.run_root))
}

#[test]
fn the_graph_root_is_where_data_is() {
    let machine = Machine::new();
    private(&machine, "run/user/1000", 0o700);
    let loader = user(&machine);
    assert_eq!(roots(&loader).0, "/home/u/.local/share/containers/storage");
    let empty = loader.clone().variable("XDG_DATA_HOME", "");
    assert_eq!(roots(&empty).0, "/home/u/.local/share/containers/storage");
    let effective = loader.clone().variable("XDG_DATA_HOME", "/data").now();
    assert_eq!(
        value_of(&machine, &effective, "storage.graphroot"),
        (
            "/data/containers/storage".into(),
            "environment variable XDG_DATA_HOME".into()
        )
    );

    let homeless = loader.without_variable("HOME");
    let error = homeless.fails().chain();
    assert!(
        error.contains("HOME is not set") && error.contains("1000"),
        "{error}"
    );
    machine.write(
        "etc/passwd",
        "a:x:100:100::/a:\nu:x:1000:1000:U:/users/u:/bin/sh\n",
    );
    assert_eq!(roots(&homeless).0, "/users/u/.local/share/containers/storage");
}

#[test]
fn the_run_root_is_the_first_directory_that_is_the_users_own() {
    let machine = Machine::new();
    let loader = user(&machine);
    // A link is resolved, as programs compare these paths as text.
    private(&machine, "runtime", 0o700);
    symlink(machine.path("runtime"), machine.path("link")).unwrap();
    let linked = loader.clone().variable("XDG_RUNTIME_DIR", machine.path("link"));
    let resolved = resolve(&machine.path("runtime")).unwrap();
    assert_eq!(roots(&linked).1, resolved.join("containers").to_str().unwrap());
    let missing = loader.clone().variable("XDG_RUNTIME_DIR", "/does/not/exist");
    let error = missing.fails().chain();
    assert!(error.contains("XDG_RUNTIME_DIR /does/not/exist"), "{error}");

    let loader = loader.variable("XDG_RUNTIME_DIR", "");
    private(&machine, "run/user/1000", 0o700);
    assert_eq!(roots(&loader).1, "/run/user/1000/containers");
    private(&machine, "run/user/1000", 0o755);
    assert_eq!(roots(&loader).1, "/run/user/1000/containers", "others may look");

    // Where others could write, or where it is no directory of the user, the temporary directory is used.
    private(&machine, "run/user/1000", 0o770);
    assert_eq!(roots(&loader).1, "/tmp/storage-run-1000/containers");
    let made = fs::symlink_metadata(machine.path("tmp/storage-run-1000")).unwrap();
    assert_eq!(made.permissions().mode() & 0o7777, 0o700);
    let other = loader.clone().variable("TMPDIR", machine.path("mine"));
    let expected = machine.path("mine/storage-run-1000/containers");
    assert_eq!(roots(&other).1, expected.to_str().unwrap());

    // Another process was faster.
    private(&machine, "tmp/storage-run-1000", 0o777);
    let error = loader.fails().chain();
    assert!(error.contains("storage-run-1000"), "{error}");
    fs::remove_dir(machine.path("tmp/storage-run-1000")).unwrap();
    private(&machine, "elsewhere", 0o700);
    symlink(machine.path("elsewhere"), machine.path("tmp/storage-run-1000")).unwrap();
    assert!(loader.fails().chain().contains("storage-run-1000"));
    fs::remove_file(machine.path("tmp/storage-run-1000")).unwrap();
    let mut stranger = loader;
    stranger.environment.effective_uid += 1;
    private(&machine, "tmp/storage-run-1000", 0o700);
    assert!(stranger.fails().chain().contains("storage-run-1000"));
}

#[test]
fn with_both_roots_set_no_directories_are_needed() {
    let machine = Machine::with("[storage]\ngraphroot = \"/g/$UID\"\nrunroot = \"/r/$UID\"\n");
    let loader = user(&machine)
        .without_variable("HOME")
        .variable("XDG_RUNTIME_DIR", "/does/not/exist");
    assert_eq!(roots(&loader), ("/g/1000".into(), "/r/1000".into()));
    assert!(!machine.path("tmp").exists() && !machine.path("run").exists());
}

#[test]
fn who_counts_as_root() {
    let machine = Machine::new();
    private(&machine, "run/user/1000", 0o700);
    let system = "/var/lib/containers/storage";
    let own = "/h/.local/share/containers/storage";
    // Real user, effective user, without root's powers, the variables of Podman's namespaces; the graph root.
    let cases = [
        (0, 0, false, None, None, system),
        (0, 0, true, None, None, system), // root of a foreign user namespace
        (1000, 0, false, None, None, system), // set-user-ID root: has the powers
        (0, 0, true, Some("1000"), Some("1"), own), // inside `podman unshare`
        (0, 0, false, Some("1000"), None, own),
        (1000, 0, true, Some(""), None, own),
        (1000, 0, true, Some("0"), None, system),
        (1000, 0, true, Some("nonsense"), None, system),
        (1000, 0, false, None, Some("1"), own),
        (1000, 0, false, None, Some(""), system),
        (0, 0, false, None, Some("done"), system),
    ];
    let me = rustix::process::geteuid().as_raw();
    for (real, effective, confined, outer, configured, expected) in cases {
        let mut loader = machine
            .loader()
            .variable("HOME", "/h")
            .variable("XDG_RUNTIME_DIR", machine.path("run"));
        loader.environment.real_uid = real;
        loader.environment.effective_uid = effective;
        loader.environment.confined = confined;
        for (name, value) in [
            ("_CONTAINERS_ROOTLESS_UID", outer),
            ("_CONTAINERS_USERNS_CONFIGURED", configured),
        ] {
            if let Some(value) = value {
                loader = loader.variable(name, value);
            }
        }
        let case = format!("{real} {effective} {confined} {outer:?} {configured:?} as {me}");
        assert_eq!(roots(&loader).0, expected, "{case}");
    }
    let plain = machine
        .loader()
        .user(1000)
        .variable("HOME", "/h")
        .variable("XDG_RUNTIME_DIR", machine.path("run"));
    assert_eq!(roots(&plain).0, own);
}

#[test]
fn the_systems_file_holds_for_users_too() {
    let machine = Machine::with("[storage]\ngraphroot = \"/shared/$UID\"\ndriver = \"vfs\"\n");
    private(&machine, "run/user/1000", 0o700);
    let options = user(&machine).now().options;
    assert_eq!(options.graph_root.to_str(), Some("/shared/1000"));
    assert_eq!(options.driver.as_deref(), Some("vfs"));
}

#[test]
fn the_deprecated_path_is_for_users_and_only_without_a_graph_root() {
    let machine = Machine::with("[storage]\nrootless_storage_path = \"$HOME/mine/$UID\"\n");
    private(&machine, "run/user/1000", 0o700);
    let effective = user(&machine).now();
    let origin = "etc/containers/storage.conf:2".to_owned();
    assert_eq!(
        value_of(&machine, &effective, "storage.graphroot"),
        ("/home/u/mine/1000".into(), origin)
    );
    assert!(effective.warnings[0].message.contains("storage.rootless.conf.d"));
    assert_eq!(
        machine.load().options.graph_root.to_str(),
        Some("/var/lib/containers/storage")
    );

    machine.write("etc/containers/storage.conf.d/1.conf", &graph("/later"));
    assert_eq!(roots(&user(&machine)).0, "/later");
    machine.write("etc/containers/storage.conf.d/1.conf", "");
    machine.write(
        ETC,
        "[storage]\nrootless_storage_path = \"/a\"\ngraphroot = \"/b\"\n",
    );
    assert_eq!(roots(&user(&machine)).0, "/b");
}

#[test]
fn variables_and_links_in_paths() {
    let machine = Machine::new();
    private(&machine, "real/graph", 0o700);
    symlink(machine.path("real"), machine.path("link")).unwrap();
    let real = resolve(&machine.path("real")).unwrap();
    let link = machine.path("link");
    let (real, link) = (real.to_str().unwrap(), link.to_str().unwrap());
    // As configured, and what becomes of it for user 1000 whose home is /home/u and whose ROOM is `attic`.
    let cases = [
        ("/x/$UID/y".to_owned(), "/x/1000/y".to_owned()),
        ("/x/$UIDS".into(), "/x/1000S".into()), // compat: a piece of text, not a variable
        ("/x/${UID}/y".into(), "/x/y".into()),  // compat: not set in most environments
        ("$HOME/$ROOM/${ROOM}s".into(), "/home/u/attic/attics".into()),
        ("/x//./y/../z/".into(), "/x/z".into()),
        (format!("{link}/graph"), format!("{real}/graph")),
        (format!("{link}/none/../graph"), format!("{link}/graph")), // does not exist, so only cleaned
    ];
    private(&machine, "run/user/1000", 0o700);
    for (configured, expected) in cases {
        machine.write(
            ETC,
            &format!("[storage]\nrunroot = \"{configured}\"\ngraphroot = \"{configured}\"\n"),
        );
        let loader = user(&machine).variable("ROOM", "attic");
        assert_eq!(roots(&loader), (expected.clone(), expected), "{configured}");
    }
}
