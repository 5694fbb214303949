//! A real Debian root file system as a layer, made once for all tests and processes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::peers::Run as _;

/// How the layer's tar stream is compressed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    Plain,
    Gzip,
    Zstd,
}

/// The release whose packages the layer holds.
const SUITE: &str = "bookworm";

/// A layer older than this is made anew.
const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The file with the layer; `None` (and a message) if this machine cannot make it.
pub(crate) fn layer(form: Form) -> Option<PathBuf> {
    let oldest = SystemTime::now().checked_sub(MAX_AGE).unwrap();
    let plain = made("debian.tar", oldest, |to| {
        super::require("mmdebstrap")?;
        Command::new("mmdebstrap")
            .args([
                "--quiet",
                "--mode=root",
                "--variant=essential",
                "--format=tar",
                SUITE,
            ])
            .arg(to)
            .env_remove("SOURCE_DATE_EPOCH")
            .run();
        Some(())
    })?;
    let made_at = fs::metadata(&plain).unwrap().modified().unwrap();
    match form {
        Form::Plain => Some(plain),
        Form::Gzip => made("debian.tar.gz", made_at, |to| compressed("gzip", &plain, to)),
        Form::Zstd => made("debian.tar.zst", made_at, |to| compressed("zstd", &plain, to)),
    }
}

fn compressed(program: &str, from: &Path, to: &Path) -> Option<()> {
    super::require(program)?;
    let (input, output) = (File::open(from).unwrap(), File::create(to).unwrap());
    let status = Command::new(program)
        .arg("-c")
        .stdin(input)
        .stdout(output)
        .status()
        .unwrap();
    assert!(status.success(), "{program}: {status}");
    Some(())
}

/// The file `name` of the cache, made at or after `oldest`; the first caller makes it, others wait for it.
#[expect(
    clippy::disallowed_methods,
    reason = "the lock is between test processes only"
)]
fn made(name: &str, oldest: SystemTime, make: impl FnOnce(&Path) -> Option<()>) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(dir).unwrap();
    let file = dir.join(name);
    let lock = File::create(dir.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let fresh = fs::metadata(&file)
        .and_then(|found| found.modified())
        .is_ok_and(|time| time >= oldest);
    if !fresh {
        let part = dir.join(format!("{name}.part"));
        make(&part)?;
        fs::rename(&part, &file).unwrap();
    }
    drop(lock);
    Some(file)
}
