//! An ordinary user, who may map subordinate IDs and open `/dev/fuse`, for as long as one command runs.
//!
//! The system's own files are not changed: the command runs in mount and PID namespaces of its own, in which changed
//! copies lie over them. When it ends, everything that it has started and mounted goes with it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The user's ID, and the group's.
pub(crate) const UID: u32 = 54321;

/// The name of both.
const NAME: &str = "graphroot-test";

/// The first of 65536 subordinate IDs.
const FIRST_SUBORDINATE: u32 = 0x7000_0000;

/// What makes a user namespace with all of the user's IDs.
pub(crate) const NAMESPACE: &[&str] = &["unshare", "--user", "--mount", "--map-auto", "--map-root-user"];

/// The programs that this needs.
pub(crate) const PROGRAMS: [&str; 3] = ["unshare", "setpriv", "newuidmap"];

/// Sets the stage and leaves it to the user. Arguments: directory with the copies, user ID, program of this process,
/// command.
const SCRIPT: &str = r#"set -e
copies=$1 user=$2 program=$3
shift 3
for name in passwd group subuid subgid; do
    if [ -e /etc/$name ]; then mount --bind "$copies/$name" /etc/$name; fi
done
mount --bind "$program" "$copies/program"
mount -t tmpfs -o mode=0755 none "$copies/dev"
if [ -e /dev/fuse ]; then
    mknod -m 0666 "$copies/dev/fuse" c 10 229
    mount --bind "$copies/dev/fuse" /dev/fuse
fi
exec setpriv --reuid="$user" --regid="$user" --clear-groups -- "$@"
"#;

/// The user, with a directory of his own.
#[derive(Debug)]
pub(crate) struct User {
    copies: PathBuf,
    home: PathBuf,
}

impl User {
    /// Makes the user and his home in `dir`, through which he must be able to go. What he sees of `/etc` is in `dir/user`.
    pub(crate) fn new(dir: &Path) -> Self {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        let (copies, home) = (dir.join("user"), dir.join("user-home"));
        fs::create_dir_all(copies.join("dev")).unwrap();
        fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(UID), Some(UID)).unwrap();
        fs::write(copies.join("program"), "").unwrap();
        let home_path = home.display();
        // In the user's namespace root has those of the namespace, for one inside of it.
        let subordinate = format!("root:1:65535\n{NAME}:{FIRST_SUBORDINATE}:65536\n");
        for (name, line) in [
            ("passwd", format!("{NAME}:x:{UID}:{UID}::{home_path}:/bin/sh\n")),
            ("group", format!("{NAME}:x:{UID}:\n")),
            ("subuid", subordinate.clone()),
            ("subgid", subordinate),
        ] {
            let known = fs::read_to_string(Path::new("/etc").join(name)).unwrap_or_default();
            let text = match name.starts_with("sub") {
                true => line + &known,
                false => known + &line,
            };
            fs::write(copies.join(name), text).unwrap();
        }
        Self { copies, home }
    }

    /// Runs this process's program as the user, by `wrapper`. Arguments can be added.
    pub(crate) fn program(&self, wrapper: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--propagation", "private", "--", "sh", "-c", SCRIPT, "sh"])
            .arg(&self.copies)
            .arg(UID.to_string())
            .arg(std::env::current_exe().unwrap())
            .args(wrapper)
            .arg(self.copies.join("program"))
            .current_dir(&self.home)
            .env("HOME", &self.home)
            .env("TMPDIR", &self.home);
        command
    }
}

/// Runs tests of this program again as the user, by `wrapper`: those that `arguments` choose, as many as `least`. He gets
/// directories of these names in the environment, in places that exist.
pub(crate) fn test_again(wrapper: &[&str], arguments: &[&str], least: usize, places: &[(&str, &Path)]) {
    let tmp = tempfile::Builder::new()
        .prefix("graphroot-test-")
        .tempdir()
        .unwrap();
    let user = User::new(tmp.path());
    let mut program = user.program(wrapper);
    let places = places.iter().map(|(name, place)| {
        let dir = tempfile::tempdir_in(place).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(UID), Some(UID)).unwrap();
        program.env(name, dir.path());
        dir
    });
    // They are removed after the tests.
    let _places: Vec<_> = places.collect();
    let output = program.args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let passed = text
        .split_once("test result: ok. ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse::<usize>().ok());
    assert!(
        output.status.success() && passed.is_some_and(|passed| passed >= least),
        "{}\n{text}\n{errors}",
        output.status
    );
}
