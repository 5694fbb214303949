//! File systems in memory that a script makes, and takes away when its standard input ends.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// One that is mounted. Its program ends with this process at the latest.
#[derive(Debug)]
pub(crate) struct ScriptedFs {
    /// Where it is mounted.
    pub(crate) dir: PathBuf,
    pub(crate) program: Child,
}

/// Makes a file system in a file, mounts it, says so, and takes it away when its standard input ends: at the latest with the process
/// that has the other end. Arguments: the directory for it, its kind and its size.
const IMAGE: &str = r#"set -e
dir=$1
end() {
    umount --quiet --lazy "$dir/mounted" || true
    rm -rf --one-file-system "$dir"
}
trap end EXIT
trap "" INT TERM
truncate --size "$3" "$dir/image"
"mkfs.$2" -q "$dir/image" >/dev/null
mkdir "$dir/mounted"
mount "$dir/image" "$dir/mounted"
chmod 0755 "$dir" "$dir/mounted"
echo ready
read -r line || true
"#;

/// Makes and mounts one of a kind that `mkfs` knows; `None` if that cannot be.
pub(crate) fn make_image(kind: &str, size: &str) -> Option<ScriptedFs> {
    make(kind, IMAGE, &[kind, size])
}

/// Runs a script with a new directory as its argument, and others behind that. It mounts something on `mounted` in the directory
/// and says `ready`; `None` if it does not.
pub(crate) fn make(kind: &str, script: &str, arguments: &[&str]) -> Option<ScriptedFs> {
    let dir = tempfile::Builder::new()
        .prefix(&format!("graphroot-test-{kind}-"))
        .tempdir_in("/dev/shm")
        .unwrap()
        .keep();
    let mut program = Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(&dir)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut output = std::io::BufReader::new(program.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut said).unwrap();
    let dir = dir.join("mounted");
    (said.trim() == "ready").then_some(ScriptedFs { dir, program })
}
