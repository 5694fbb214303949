//! Archives that other programs write, compared with what GNU tar makes of them.

use std::process::Command;

use super::*;

fn sh(dir: &Path, script: &str) {
    let output = Command::new("bash")
        .args(["-euc", script])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A tree with some of everything. Old formats cannot hold all of it: devices and long names are apart.
fn make_tree(dir: &Path) {
    sh(
        dir,
        r"
        mkdir -p tree/d/e tree/sticky tree/rest
        head -c 300000 /dev/urandom > tree/d/random
        echo hello > tree/d/hello; ln tree/d/hello tree/hard; ln -s ../d/hello tree/d/soft; ln -s /etc/passwd tree/abs
        : > tree/empty; chmod 0 tree/empty
        cp /bin/true tree/suid; chown 1000:1000 tree/suid; chmod 6755 tree/suid
        chmod 1777 tree/sticky; chmod 2770 tree/d/e; chown 12:34 tree/d/e
        chown -h 7:8 tree/d/soft
        printf x > 'tree/new
line'; printf y > $'tree/caf\xe9'
        touch -d '2001-02-03 04:05:06.123456789' tree/d/hello tree/d/e
        touch -h -d '1999-01-01' tree/abs
        touch -d '2000-01-01' tree/d
        mkfifo tree/rest/fifo; mknod tree/rest/c c 10 300; mknod tree/rest/b b 259 65537; chmod 640 tree/rest/b
        long=$(printf 'n%.0s' {1..120}); mkdir -p tree/rest/$long/$long; echo long > tree/rest/$long/$long/$long
        ln -s $long/$long/$long/$long tree/rest/longlink
        touch -d '2100-01-01' tree/rest/future
        truncate -s 5000000 tree/rest/sparse
        for at in 0 1000000 2000000 3000000 4000000 4999000; do
            printf data | dd of=tree/rest/sparse bs=1 seek=$at conv=notrunc status=none
        done
        setfattr -n user.one -v value tree/d/hello; setfattr -n trusted.two -v 0sAAEC/w== tree/d/e
        setcap cap_net_raw+ep tree/suid 2>/dev/null || setfattr -n security.capability \
            -v 0sAQAAAgAgAAAAAAAAAAAAAAAAAAA= tree/suid
        ",
    );
}

/// Unpacks with both, without the root's own entry, and compares.
fn compare(dir: &Path, archive: &str) {
    let bytes = std::fs::read(dir.join(archive)).unwrap();
    let layer = Layer::new(WhiteoutFormat::Verbatim);
    layer
        .apply(&bytes)
        .map_err(|error| panic!("{archive}: {}", error.chain()))
        .unwrap();
    let other = tempfile::tempdir_in(dir).unwrap();
    let script = format!(
        "tar --xattrs --xattrs-include='*' --numeric-owner -xpf {archive} -C {}",
        other.path().display()
    );
    sh(dir, &script);
    let (ours, theirs) = (layer.listing(), listing(other.path()));
    let packed = listing(dir);
    for (name, text) in &theirs {
        if ours.get(name) != Some(text) {
            // GNU tar touches some directories once more after it has set their times (it makes links last): then
            // what was packed decides, in the whole seconds that every format holds.
            let whole = |listing: &std::collections::BTreeMap<String, String>| {
                listing
                    .get(name)
                    .and_then(|text| text.split('.').next().map(str::to_owned))
            };
            assert_eq!(
                whole(&ours),
                whole(&packed),
                "{archive}: {name:?}, GNU tar made {text}"
            );
        }
    }
    assert_eq!(ours.len(), theirs.len(), "{archive}");
    assert!(ours.len() > 10);
}

#[test]
fn what_gnu_tar_writes() {
    if !root_or_skip() || !have("tar") || !have("setfattr") {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    make_tree(tmp.path());
    for (name, options, what) in [
        ("v7", "--format=v7", "--exclude=tree/rest tree"),
        ("oldgnu", "--format=oldgnu", "tree"),
        ("gnu", "--format=gnu", "tree"),
        ("gnu-sparse", "--format=gnu --sparse", "tree"),
        (
            "ustar",
            "--format=ustar",
            "--exclude=tree/rest/n* --exclude=tree/rest/longlink tree",
        ),
        ("pax", "--format=pax", "tree"),
        ("pax-xattrs", "--format=pax --xattrs --xattrs-include=*", "tree"),
        (
            "pax-sparse-0.0",
            "--format=pax --sparse --sparse-version=0.0",
            "tree",
        ),
        (
            "pax-sparse-0.1",
            "--format=pax --sparse --sparse-version=0.1",
            "tree",
        ),
        (
            "pax-sparse-1.0",
            "--format=pax --sparse --sparse-version=1.0 --xattrs",
            "tree",
        ),
        (
            "dots",
            "--format=pax --pax-option=delete=atime,delete=ctime",
            "./tree/d/../d ./tree",
        ),
        ("twice", "--format=gnu --hard-dereference", "tree tree/d tree"),
        ("multi-block", "--format=gnu -b 1", "tree"),
    ] {
        sh(
            tmp.path(),
            &format!("tar -c {options} -f {name}.tar {what} 2>/dev/null"),
        );
        compare(tmp.path(), &format!("{name}.tar"));
    }
}

#[test]
fn what_python_writes() {
    if !root_or_skip() || !have("python3") || !have("tar") || !have("setfattr") {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    make_tree(tmp.path());
    for format in ["USTAR", "GNU", "PAX"] {
        let exclude = if format == "USTAR" {
            "name.startswith(('tree/rest/n', 'tree/rest/longlink'))"
        } else {
            "False"
        };
        let script = format!(
            "import tarfile\n\
             with tarfile.open('{format}.tar', 'w', format=tarfile.{format}_FORMAT) as out:\n    \
             out.add('tree', filter=lambda item: None if (lambda name: {exclude})(item.name) else item)\n"
        );
        let output = Command::new("python3")
            .args(["-c", &script])
            .current_dir(tmp.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        compare(tmp.path(), &format!("{format}.tar"));
    }
}

#[test]
fn what_bsdtar_writes() {
    if !root_or_skip() || !have("bsdtar") || !have("tar") || !have("setfattr") {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    make_tree(tmp.path());
    for (format, exclude) in [("ustar", "--exclude tree/rest"), ("pax", ""), ("gnutar", "")] {
        sh(
            tmp.path(),
            &format!("bsdtar -c --format {format} {exclude} -f {format}.tar tree"),
        );
        compare(tmp.path(), &format!("{format}.tar"));
    }
}

/// A store of the Go library.
struct GoStore(tempfile::TempDir);

impl GoStore {
    const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn import(tar: &[u8]) -> Self {
        let store = Self(tempfile::tempdir().unwrap());
        std::fs::write(store.0.path().join("layer.tar"), tar).unwrap();
        store.run(&format!("import-layer -r -i {} -f layer.tar", Self::ID));
        store
    }

    fn run(&self, command: &str) {
        let (verb, rest) = command.split_once(' ').unwrap();
        // The host's configuration may hold options of another driver.
        let conf = "[storage]\ndriver = \"vfs\"\nrunroot = \"/nowhere\"\ngraphroot = \"/nowhere\"\n";
        std::fs::write(self.0.path().join("storage.conf"), conf).unwrap();
        let environment = "STORAGE_OPTS= CONTAINERS_STORAGE_CONF=$PWD/storage.conf";
        let program =
            format!("env {environment} containers-storage {verb} -g $PWD/g -R $PWD/r -s vfs {rest}");
        sh(self.0.path(), &program);
    }

    fn tar_split(&self) -> PathBuf {
        self.0
            .path()
            .join(format!("g/vfs-layers/{}.tar-split.gz", Self::ID))
    }

    fn tree(&self) -> PathBuf {
        self.0.path().join("g/vfs/dir").join(Self::ID)
    }

    fn diff(&self) -> Vec<u8> {
        self.run(&format!("diff -u -f out.tar {}", Self::ID));
        std::fs::read(self.0.path().join("out.tar")).unwrap()
    }
}

/// Adjacent segments joined: where they are cut means nothing.
fn joined(lines: Vec<Entry>) -> Vec<Entry> {
    let mut joined: Vec<Entry> = Vec::new();
    for line in lines {
        match (joined.last_mut(), line) {
            (Some(Entry::Segment(last)), Entry::Segment(more)) => last.extend(more),
            (_, line) => joined.push(line),
        }
    }
    joined
}

#[test]
fn the_go_library_writes_the_same_tar_split_and_reads_ours() {
    use crate::test_util::{TarBuilder, TarEntry as Item};
    if !root_or_skip() || !have("containers-storage") {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    make_tree(tmp.path());
    for format in [
        "--format=gnu",
        "--format=pax --xattrs",
        "--format=ustar --exclude=tree/rest",
    ] {
        sh(tmp.path(), &format!("tar -c {format} -f layer.tar tree"));
        let mut tar = std::fs::read(tmp.path().join("layer.tar")).unwrap();
        tar.extend(b"after the end");
        let go = GoStore::import(&tar);
        let layer = Layer::new(WhiteoutFormat::Apply);
        layer.apply(&tar).unwrap();
        let mut reader = GzipTarSplitReader::new(std::fs::File::open(go.tar_split()).unwrap());
        let theirs: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
        assert!(joined(theirs) == joined(layer.lines()), "{format}");
        assert_eq!(listing(&go.tree()), layer.listing(), "{format}");
    }
    // What Go cannot import itself it can still read back.
    let odd = TarBuilder::new()
        .entry(Item::file("a", "first"))
        .entry(Item::dir("d"))
        .entry(Item::dir("./d/"))
        .entry(Item::file("../up", "clamped"))
        .entry(Item::symlink("l", "d"))
        .entry(Item::file("l/f", "through a link"))
        .entry(Item::file("a", "second"))
        .entry(Item::dir("sized").size_field("00000010000"))
        .entry(Item::file(".wh.x", "a whiteout with content"))
        .entry(Item::file(b"caf\xe9 <&>", "not text"))
        .raw([0; 1024])
        .raw("junk")
        .unfinished();
    let go = GoStore::import(&[]);
    let layer = Layer::new(WhiteoutFormat::Apply);
    layer.apply(&odd).unwrap();
    std::fs::copy(layer.split_path(), go.tar_split()).unwrap();
    sh(
        go.0.path(),
        &format!("cp -a {}/. {}", layer.root().display(), go.tree().display()),
    );
    assert!(go.diff() == odd);
}
