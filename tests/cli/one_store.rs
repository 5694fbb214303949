//! Both programs on one store: each shows what the other one has made, in the same bytes.

use std::fs;

use crate::program::{Program, good, ours, with_input};
use crate::support::each_set;
use crate::support::manifest::manifest;
use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;

const QUESTIONS: [&str; 16] = [
    "layers",
    "layers -t",
    "layers --json",
    "layer L1 L2",
    "layer -j L1 L2",
    "images",
    "images --json",
    "image I1",
    "image -j I1",
    "containers",
    "containers --json",
    "container C1",
    "container -j C1",
    "metadata -j I1 C1",
    "changes -j C1-layer",
    "diff -u L2",
];

fn fill(root: &TestRoot, program: Program) {
    fs::write(root.path().join("a.tar"), vec![0; 1024]).unwrap();
    fs::write(root.path().join("manifest"), "{\"x\": \"<&>\"}").unwrap();
    let path = |name: &str| root.path().join(name).display().to_string();
    for line in [
        format!("import-layer -i L1 -n base -f {}", path("a.tar")),
        format!("import-layer -i L2 -n '<top>' -f {} L1", path("a.tar")),
        "create-image -i I1 -n img -m 'text & <more>' L2".to_owned(),
        format!("set-image-data -f {} I1 manifest", path("manifest")),
        "create-container -i C1 -n web I1".to_owned(),
        format!("set-container-data -f {} C1 config", path("manifest")),
    ] {
        let answer = program.run(root, &line);
        assert_eq!(answer.code, 0, "{line}: {answer:?}");
    }
}

fn ask(maker: Program, set: PeerSet) {
    let root = TestRoot::new().of(set);
    fill(&root, maker);
    let layer = container_layer(&root);
    for question in QUESTIONS {
        let question = question.replace("C1-layer", &layer);
        let theirs = Program::Theirs.run(&root, &question);
        assert_eq!(theirs.code, 0, "{question}: {theirs:?}");
        assert_eq!(ours(&root, &question), theirs, "{question}");
    }
}

fn container_layer(root: &TestRoot) -> String {
    let text = good(root, "container C1");
    let line = text.lines().find_map(|line| line.strip_prefix("Layer: "));
    line.unwrap().to_owned()
}

fn ours_shows_what_theirs_made(set: PeerSet) {
    ask(Program::Theirs, set);
}
each_set!(fn ours_shows_what_theirs_made: "containers-storage");

fn theirs_shows_what_ours_made(set: PeerSet) {
    ask(Program::Ours, set);
}
each_set!(fn theirs_shows_what_ours_made: "containers-storage");

fn a_mount_is_counted_by_both(set: PeerSet) {
    let root = TestRoot::new().of(set);
    fill(&root, Program::Theirs);
    let place = good(&root, "mount web");
    let theirs = Program::Theirs.run(&root, "mount web");
    assert_eq!(theirs.out, place);
    assert_eq!(good(&root, "unmount web"), "");
    assert_eq!(Program::Theirs.run(&root, "mounted web").out, "web mounted\n");
    assert_eq!(
        Program::Theirs.run(&root, "unmount web").out,
        "web mountpoint unmounted\n"
    );
    assert_eq!(good(&root, "mounted web"), "");
}
each_set!(fn a_mount_is_counted_by_both: "containers-storage");

#[test]
fn standard_input_and_output_carry_layers_and_data() {
    let root = TestRoot::vfs();
    let tar = vec![0; 10240];
    let mut import = Program::Ours.on(&root);
    import.args(["import-layer", "-i", "L1"]);
    assert_eq!(with_input(import, &tar).out, "L1\n");
    let diff = Program::Ours
        .on(&root)
        .args(["diff", "--uncompressed", "L1"])
        .output()
        .unwrap();
    assert_eq!(diff.stdout, tar);
    let data: Vec<u8> = (0..=255).collect();
    for kind in ["layer", "image", "container"] {
        let id = match kind {
            "layer" => "L1",
            "image" => good(&root, "create-image -i I1 L1").leak().trim(),
            _ => good(&root, "create-container -i C1 I1").leak().trim(),
        };
        let mut set = Program::Ours.on(&root);
        set.args([&format!("set-{kind}-data"), id, "key"]);
        assert_eq!(with_input(set, &data).code, 0);
        let get = Program::Ours
            .on(&root)
            .args([&format!("get-{kind}-data"), id, "key"])
            .output()
            .unwrap();
        assert_eq!(get.stdout, data, "{kind}");
    }
    // An invalid archive leaves no layer behind.
    let before = good(&root, "layers -q");
    let mut broken = Program::Ours.on(&root);
    broken.args(["import-layer", "-i", "L2"]);
    let answer = with_input(broken, &[b'x'; 700]);
    assert_eq!((answer.code, answer.err.lines().count()), (1, 1), "{answer:?}");
    assert_eq!(good(&root, "layers -q"), before);
}

/// The distribution's version knows fewer rows than ours.
fn status_has_every_row_of_theirs(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let ours = ours(&root, "status").err;
    let theirs = Program::Theirs.run(&root, "status").err;
    let rows: Vec<&str> = ours.lines().collect();
    let missing: Vec<&str> = theirs.lines().filter(|row| !rows.contains(row)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "{ours}");
    assert!(theirs.contains("Backing Filesystem: "), "{theirs}");
}
each_set!(fn status_has_every_row_of_theirs: "containers-storage");

/// Switches partial pulls on for both programs.
fn with_partial_images(root: &TestRoot) {
    let file = root.path().join("etc/storage.conf");
    let config = fs::read_to_string(&file).unwrap();
    let partial = "[storage.options.pull_options]\nenable_partial_images = \"true\"\n";
    fs::write(&file, format!("{config}\n{partial}")).unwrap();
}

fn a_directory_becomes_the_content_of_a_layer(set: PeerSet) {
    let [ours, theirs] = [Program::Ours, Program::Theirs].map(|program| {
        let root = TestRoot::new().of(set);
        let dir = root.path().join("rootfs");
        fs::create_dir_all(dir.join("d")).unwrap();
        fs::write(dir.join("d/file"), "text\n".repeat(5000)).unwrap();
        fs::write(dir.join("empty"), "").unwrap();
        std::os::unix::fs::symlink("d/file", dir.join("link")).unwrap();
        fs::hard_link(dir.join("d/file"), dir.join("hard")).unwrap();
        // The store comes from the configuration file, as the option for partial pulls does.
        let apply = || {
            program.run_bare(
                &root,
                &["applydiff-using-staging-dir", "L1", dir.to_str().unwrap()],
            )
        };
        good(&root, "create-layer -i L1 -n base");
        let off = apply();
        assert_eq!(off.code, 1, "{off:?}");
        assert!(off.err.contains("partial images are disabled"), "{off:?}");
        with_partial_images(&root);
        for _ in 0..2 {
            let answer = apply();
            assert_eq!(
                (answer.code, &*answer.out, &*answer.err),
                (0, "", ""),
                "{answer:?}"
            );
        }
        let tree = manifest(&root.graph().join(root.driver()).join("L1/diff"));
        let names: Vec<_> = tree.into_keys().collect();
        let layer: serde_json::Value = serde_json::from_str(&good(&root, "layer -j L1")).unwrap();
        let keys: Vec<String> = layer[0].as_object().unwrap().keys().cloned().collect();
        let other = match program {
            Program::Ours => Program::Theirs,
            Program::Theirs => Program::Ours,
        };
        let diff = other.run(&root, "diff -u L1");
        assert_eq!(diff.code, 0, "{diff:?}");
        (names, keys)
    });
    assert_eq!(ours, theirs);
    assert!(ours.1.contains(&"toc-digest".to_owned()), "{ours:?}");
}
each_set!(newer fn a_directory_becomes_the_content_of_a_layer: "containers-storage");
