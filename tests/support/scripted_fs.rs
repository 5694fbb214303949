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
