//! Layers of odd archives that the Go programs and this one have unpacked: a check finds nothing in them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use graphroot::test_util::{TarBuilder, TarEntry, pax_record};

use crate::program::{Program, ours};
use crate::support::each_set;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;

/// How many chains of random layers there are, if the environment does not say another number.
const RANDOM: u64 = 24;

/// How long a program may take for a layer: the Go programs wait for the other end of a FIFO for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// Layers by name, the lowest one first.
type Chain = (String, Vec<Vec<u8>>);

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(count).unwrap()).unwrap()
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

const NAMES: &[&str] = &[
    "a",
    "b",
    "d",
    "d/a",
    "d/e",
    "d/e/f",
    "d/e/g/h",
    "l",
    "l/x",
    "l/e/y",
    "./c",
    "../up",
    "/abs",
    "d/../side",
    "m/l/x",
    "m",
    "m/l",
];

const TARGETS: &[&str] = &[
    "a", "d", "/d", "..", "nowhere", "l", "d/e", "../d", "/d/e", "m", "/",
];

/// File capabilities.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// An ACL that gives a file the permissions 0650, whatever its mode says.
const ACL: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\
    \x02\0\x07\0\xe8\x03\0\0\
    \x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x05\0\xff\xff\xff\xff\
    \x20\0\x00\0\xff\xff\xff\xff";

fn random_entry(random: &mut Random) -> TarEntry {
    let name = random.one_of(NAMES);
    let mut entry = match random.below(16) {
        0..=4 => TarEntry::file(name, random.one_of(&["", "x", "content", "other"])),
        5..=7 => TarEntry::dir(format!("{name}/")),
        8 | 9 => TarEntry::symlink(name, random.one_of(TARGETS)),
        10 => TarEntry::hard_link(name, random.one_of(NAMES)),
        11 if random.below(4) == 0 => TarEntry::fifo(name),
        11 => TarEntry::file(name, "more"),
        12 => TarEntry::char_device(name, 1, 3),
        13 | 14 => return TarEntry::whiteout(name),
        _ => return TarEntry::opaque(name),
    };
    if random.below(3) == 0 {
        entry = entry.mode(random.one_of(&[0o644, 0o4755, 0o2750, 0o1777, 0, 0o600]));
    }
    if random.below(4) == 0 {
        entry = entry.owner(random.one_of(&[0, 1000, 65534]), random.one_of(&[0, 1000]));
    }
    if random.below(4) == 0 {
        entry = entry.mtime(random.one_of(&[0, -1, -1_000_000_000, 1 << 33, 1_000_000_000]));
    }
    if random.below(6) == 0 {
        let attributes: [(&str, &[u8]); 6] = [
            ("user.x", b"1"),
            ("user.empty", b""),
            ("security.capability", CAPABILITY),
            ("system.posix_acl_access", ACL),
            ("trusted.x", b"1"),
            ("system.posix_acl_default", ACL),
        ];
        let (name, value) = random.one_of(&attributes);
        entry = entry.xattr(name, value);
    }
    entry
}

fn random_chain(seed: u64) -> Chain {
    let mut random = Random::new(seed);
    let layers = (0..1 + random.below(3)).map(|_| {
        let entries = (0..1 + random.below(7)).map(|_| random_entry(&mut random));
        archive(entries.collect())
    });
    (format!("random-{seed}"), layers.collect())
}

fn archive(entries: Vec<TarEntry>) -> Vec<u8> {
    entries
        .into_iter()
        .fold(TarBuilder::new(), TarBuilder::entry)
        .build()
}

/// Archives that are odd in ways of their own.
fn listed() -> Vec<(&'static str, Vec<Vec<TarEntry>>)> {
    let file = |name: &str| TarEntry::file(name, "content");
    let dir = |name: &str| TarEntry::dir(name);
    vec![
        (
            "links-of-aufs",
            vec![vec![
                dir("d/"),
                dir(".wh..wh.plnk/"),
                file(".wh..wh.plnk/1.2"),
                TarEntry::hard_link("d/linked", ".wh..wh.plnk/1.2"),
                TarEntry::file(".wh..wh.aufs", ""),
            ]],
        ),
        (
            "links-of-aufs-without-a-directory",
            vec![vec![
                file(".wh..wh.plnk/1.2").mode(0o600),
                TarEntry::hard_link("linked", ".wh..wh.plnk/1.2"),
            ]],
        ),
        (
            "marks-of-aufs-in-a-directory",
            vec![vec![dir("d/"), TarEntry::file("d/.wh..wh.x", ""), file("d/f")]],
        ),
        (
            "deleted-and-brought-again",
            vec![
                vec![dir("d/"), file("d/f"), dir("d/e/"), file("d/e/g"), file("x")],
                vec![
                    TarEntry::whiteout("d"),
                    dir("d/").mode(0o700),
                    file("d/new"),
                    TarEntry::whiteout("x"),
                    file("x"),
                ],
                vec![TarEntry::whiteout("d/new"), file("d/newer")],
            ],
        ),
        (
            "brought-and-deleted",
            vec![
                vec![dir("d/"), file("d/f"), file("x")],
                vec![
                    dir("d/"),
                    file("d/new"),
                    TarEntry::whiteout("d/new"),
                    file("d/other"),
                ],
                vec![file("d/last")],
            ],
        ),
        (
            "whiteouts-through-links",
            vec![
                vec![dir("d/"), file("d/f"), TarEntry::symlink("l", "d")],
                vec![
                    TarEntry::symlink("m", "d"),
                    TarEntry::whiteout("m/f"),
                    TarEntry::opaque("m/e"),
                    TarEntry::whiteout("l/f"),
                ],
            ],
        ),
        (
            "whiteouts-where-nothing-is",
            vec![
                vec![TarEntry::whiteout("a/b/c"), TarEntry::opaque("d/e"), dir("d/")],
                vec![TarEntry::whiteout("a/x"), file("d/e/f")],
            ],
        ),
        (
            "replaced-in-the-same-archive",
            vec![vec![dir("d/"), file("d/f"), file("d"), file("x"), dir("x/")]],
        ),
        (
            "directories-without-entries",
            vec![
                vec![
                    dir("d/").mode(0o2700).owner(5, 6),
                    file("d/f"),
                    dir("d/e/").mode(0o1777),
                ],
                vec![file("d/e/x/y").owner(7, 7)],
                vec![file("d/e/z")],
            ],
        ),
        (
            "opaque-at-the-end",
            vec![
                vec![dir("d/"), file("d/f"), dir("d/sub/"), file("d/sub/f")],
                vec![
                    dir("d/"),
                    file("d/sub/new"),
                    TarEntry::opaque("d"),
                    file("d/last"),
                ],
            ],
        ),
        (
            "opaque-root",
            vec![
                vec![file("a"), dir("d/"), file("d/f")],
                vec![TarEntry::file(".wh..wh..opq", ""), file("b")],
            ],
        ),
        ("contiguous", vec![vec![file("f").kind(b'7')]]),
        (
            "old-headers",
            vec![vec![
                file("f").kind(0),
                TarEntry::new(0, "d/"),
                file("d/x").kind(0),
            ]],
        ),
        ("slashes", vec![vec![file("f/"), dir("d")]]),
        (
            "devices",
            vec![vec![
                TarEntry::char_device("null", 1, 3).mode(0o666),
                TarEntry::block_device("disk", 8, 300),
                TarEntry::char_device("large", 259, 70000),
                TarEntry::char_device("zero", 0, 0),
            ]],
        ),
        (
            "global-records",
            vec![vec![
                TarEntry::new(b'g', "pax_global_header").content(pax_record(b"comment", b"x")),
                file("f"),
            ]],
        ),
        (
            "metadata-of-links",
            vec![vec![
                file("f").mode(0o4755).owner(1, 2).mtime(5),
                TarEntry::hard_link("g", "f").mode(0o600).owner(3, 4).mtime(9),
                TarEntry::symlink("s", "f").mtime(-5),
                TarEntry::hard_link("t", "s").mtime(7).owner(1, 1),
            ]],
        ),
        (
            "attributes",
            vec![
                vec![
                    file("acl").xattr("system.posix_acl_access", ACL),
                    dir("acl-dir/").xattr("system.posix_acl_access", ACL),
                    dir("acl-dir/").mode(0o711),
                    file("empty").xattr("user.empty", ""),
                    dir("d/").xattr("user.dir", "1").xattr("trusted.x", "1"),
                    file("binary").xattr("user.binary", b"\0\x01=\n"),
                    file("opaque").xattr("trusted.overlay.opaque", "y"),
                    file("label").xattr("security.selinux", "x"),
                    file("unknown").xattr("foo.bar", "1"),
                    dir("o/").xattr("user.overlay.opaque", "y"),
                    file("signed").xattr("security.ima", "x"),
                ],
                vec![file("d/above")],
            ],
        ),
        (
            "attributes-of-links",
            vec![
                vec![
                    TarEntry::symlink("l", "nowhere").xattr("security.capability", CAPABILITY),
                    TarEntry::symlink("m", "nowhere").xattr("trusted.x", "1"),
                ],
                vec![file("above")],
                vec![file("above-that")],
            ],
        ),
        (
            "sparse",
            vec![vec![
                file("before"),
                TarEntry::file("GNUSparseFile.1/s", "x".repeat(705))
                    .pax("GNU.sparse.size", "1000000")
                    .pax("GNU.sparse.numblocks", "3")
                    .pax("GNU.sparse.map", "0,5,500000,700,1000000,0")
                    .pax("GNU.sparse.name", "s"),
                file("after"),
            ]],
        ),
        (
            "times",
            vec![vec![
                file("long-ago").mtime(-2_208_988_800),
                file("later").mtime(4_294_967_296),
                file("much-later").mtime(20_000_000_000),
                file("fraction").pax("mtime", "1600000000.9999999999"),
                file("negative").pax("mtime", "-1.5"),
                dir("d/").mtime(-7),
            ]],
        ),
    ]
}

/// Archives of GNU tar with sparse files, in each of its forms.
fn sparse_archives(root: &TestRoot) -> Vec<Chain> {
    let dir = root.scratch("sparse");
    let holes = File::create(dir.join("holes")).unwrap();
    holes.set_len(3_000_000).unwrap();
    for offset in [65536, 1_000_000, 2_500_000] {
        holes.write_all_at(&[7; 5000], offset).unwrap();
    }
    File::create(dir.join("nothing-but-a-hole"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    fs::write(dir.join("plain"), "x").unwrap();
    let form = |version: &str| {
        let made = Command::new("tar")
            .words("--sparse --format=posix -cf - holes nothing-but-a-hole plain")
            .arg(format!("--sparse-version={version}"))
            .current_dir(&dir)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        (format!("sparse-{version}"), vec![made.stdout])
    };
    ["0.0", "0.1", "1.0"].map(form).into()
}

/// Whether a command succeeds in time.
fn succeeds(root: &TestRoot, command: &Command) -> bool {
    let mut limited = root.program("timeout");
    limited
        .arg(PATIENCE.as_secs().to_string())
        .arg(command.get_program())
        .args(command.get_args());
    limited.output().unwrap().status.success()
}

/// Unpacks the chains into a store; returns how many layers were accepted.
fn unpack(root: &TestRoot, program: Program, chains: &[Chain]) -> usize {
    let tar = root.path().join("layer.tar");
    let mut count = 0;
    for (name, layers) in chains {
        let mut parent = String::new();
        for (index, layer) in layers.iter().enumerate() {
            fs::write(&tar, layer).unwrap();
            let id = format!("{name}-{index}");
            let line = format!("import-layer -i {id} -f {} {parent}", tar.display());
            if !succeeds(root, &program.on(root).words(&line)) {
                break;
            }
            count += 1;
            parent = id;
        }
    }
    count
}

fn nothing_is_found(set: PeerSet, program: Program) {
    let count = std::env::var("GRAPHROOT_TEST_ODD_LAYERS").map_or(RANDOM, |count| count.parse().unwrap());
    for driver in ["overlay", "vfs"] {
        let root = TestRoot::in_dir(Path::new("/dev/shm"), driver).of(set);
        let mut chains: Vec<Chain> = (0..count).map(random_chain).collect();
        chains.extend(listed().into_iter().map(|(name, layers)| {
            let layers = layers.into_iter().map(archive);
            (name.to_owned(), layers.collect())
        }));
        chains.extend(sparse_archives(&root));
        let accepted = unpack(&root, program, &chains);
        assert!(accepted > chains.len() / 2, "{accepted} of {}", chains.len());
        let found = ours(&root, "check");
        assert!(
            found.code == 0 && found.out.is_empty(),
            "{set:?} {program:?} {driver}: {found:?}"
        );
    }
}

fn nothing_is_found_in_what_go_has_unpacked(set: PeerSet) {
    nothing_is_found(set, Program::Theirs);
}

each_set!(fn nothing_is_found_in_what_go_has_unpacked: "containers-storage");

#[test]
fn nothing_is_found_in_what_we_have_unpacked() {
    if crate::support::require_root() {
        nothing_is_found(PeerSet::Installed, Program::Ours);
    }
}
