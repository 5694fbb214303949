//! Mounting by a mount program, fuse-overlayfs or one with the same arguments, where the kernel's overlay does not work.
//!
//! The program gets `-o DATA TARGET`, daemonises when the mount is made, and ends when it is unmounted. It runs in the
//! driver's directory, as with the Go library. Of the mount flags it gets those for which FUSE has options.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::driver::overlay::mount::OverlayMount;
use crate::driver::program::Printed;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::idmap::{IdMap, IdMappings};
use crate::sys::child;
use crate::sys::mount::{is_mount_point, is_plain, unmount_lazily};

/// The program that is used if one is needed and no option names one.
pub(super) const DEFAULT: &str = "fuse-overlayfs";

/// Set-user-ID programs that unmount FUSE mounts of their caller.
const UNMOUNTERS: [&str; 2] = ["fusermount3", "fusermount"];

/// Options that only a mount program has.
#[derive(Debug, Default)]
pub(super) struct Extras<'a> {
    /// Owners that it maps, those of new files included.
    pub(super) mappings: Option<&'a IdMappings>,
    /// Owners and modes are kept in an attribute.
    pub(super) masked: bool,
}

/// How long a program may take to mount or to unmount. It holds up everybody who waits for the lock of the layers.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts `program` in the directory `home` to make the mount of `plan` at `target`. One that does not end is killed, and
/// what it may have mounted is unmounted.
pub(super) fn mount(
    program: &Path,
    home: &Path,
    plan: &OverlayMount<'_>,
    target: &Path,
    extras: &Extras<'_>,
) -> Result<()> {
    mount_within(LIMIT, program, home, plan, target, extras)
}

fn mount_within(
    limit: Duration,
    program: &Path,
    home: &Path,
    plan: &OverlayMount<'_>,
    target: &Path,
    extras: &Extras<'_>,
) -> Result<()> {
    let data = data(plan, extras)?;
    tracing::debug!(program = %program.display(), data = %data.display(), "mounting through a program");
    let mut messages = Printed::new()?;
    let mut child = Command::new(program)
        .arg("-o")
        .arg(data)
        .arg(target)
        .current_dir(home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(messages.end()?)
        .spawn()
        .at("starting mount program", program)?;
    let status = match child::wait(&mut child, limit) {
        Ok(status) => status,
        Err(error) => {
            let said = messages.messages();
            if let Err(error) = unmount(target) {
                tracing::warn!(error = %error.chain(), "cannot undo the mount of a program that was killed");
            }
            let what = format!("waiting for mount program {} ({said})", program.display());
            return Err(Error::io(what, error));
        }
    };
    if !status.success() {
        let said = messages.messages();
        let reason = format!("mount program failed ({status}): {said}:");
        return Err(ErrorKind::Io.err(reason).at(program));
    }
    if !is_mount_point(target).at("looking for a mount at", target)? {
        return Err(ErrorKind::Io
            .err("mount program claims to have made a mount that is not there:")
            .at(program));
    }
    Ok(())
}

/// The options in one argument.
fn data(plan: &OverlayMount<'_>, extras: &Extras<'_>) -> Result<OsString> {
    let dirs = plan.upper.iter().flat_map(|(upper, work)| [upper, work]);
    if let Some(odd) = plan.lowers.iter().chain(dirs).find(|path| !is_plain(path)) {
        return Err(ErrorKind::InvalidInput
            .err("comma, colon, quote or backslash in a path for a mount program:")
            .at(odd));
    }
    let lowers: Vec<&OsStr> = plan.lowers.iter().map(|path| path.as_os_str()).collect();
    let upper = plan
        .upper
        .as_ref()
        .map(|(upper, work)| (upper.as_os_str(), work.as_os_str()));
    let mut data = plan.data_of(&lowers, &[], upper);
    for (flag, name) in [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::NOSUID, "nosuid"),
        (MountFlags::NODEV, "nodev"),
        (MountFlags::NOEXEC, "noexec"),
    ] {
        if plan.options.flags.contains(flag) {
            data.extend_from_slice(format!(",{name}").as_bytes());
        }
    }
    if let Some(mappings) = extras.mappings {
        let uids = mapping_option("uidmapping", "squash_to_uid", &mappings.uids);
        let gids = mapping_option("gidmapping", "squash_to_gid", &mappings.gids);
        data.extend_from_slice(format!(",{uids},{gids}").as_bytes());
    }
    if extras.masked {
        data.extend_from_slice(b",xattr_permissions=2");
    }
    Ok(OsString::from_vec(data))
}

/// A map of one ID means that all files have that owner.
fn mapping_option(mapping: &str, squash: &str, ranges: &[IdMap]) -> String {
    match ranges {
        [only] if only.size == 1 => format!("{squash}={}", only.host_id),
        ranges => {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            format!("{mapping}={}", ranges.join(":"))
        }
    }
}

/// Whether a program can map with these: neither host nor container IDs may have gaps, because new files of every owner
/// are mapped too.
pub(super) fn can_map(mappings: &IdMappings) -> bool {
    let without_gaps = |ranges: &[IdMap], start: fn(&IdMap) -> u32| {
        let mut sorted: Vec<&IdMap> = ranges.iter().collect();
        sorted.sort_by_key(|range| start(range));
        sorted.windows(2).all(|pair| match pair {
            [one, next] => start(one).checked_add(one.size) == Some(start(next)),
            _ => true,
        })
    };
    [&mappings.uids, &mappings.gids].into_iter().all(|ranges| {
        without_gaps(ranges, |range| range.host_id) && without_gaps(ranges, |range| range.container_id)
    })
}

/// Unmounts the mount of a program. Nothing mounted, or no such path, is no error.
pub(super) fn unmount(target: &Path) -> Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
        Err(Errno::PERM) if UNMOUNTERS.iter().any(|name| ask_to_unmount(name, target)) => return Ok(()),
        Err(reason) => tracing::debug!(target = %target.display(), %reason, "detaching a mount instead"),
    }
    // A detached mount lives until its last file is closed, but the next mount reads the changes now.
    match rustix::fs::openat(CWD, target, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(dir) => {
            if let Err(error) = rustix::fs::syncfs(&dir) {
                tracing::debug!(target = %target.display(), %error, "cannot sync a mount that is being detached");
            }
        }
        // Its program may be dead.
        Err(error) => tracing::debug!(target = %target.display(), %error, "cannot open a mount to sync it"),
    }
    unmount_lazily(target).at("unmounting", target)
}

/// Whether the set-user-ID program `name` has unmounted.
fn ask_to_unmount(name: &str, target: &Path) -> bool {
    let child = Command::new(name)
        .arg("-u")
        .arg("--")
        .arg(target)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let ended = child.and_then(|mut child| child::wait(&mut child, LIMIT));
    ended.is_ok_and(|status| status.success())
}

/// The error for a store that needs a mount program if none is installed.
pub(super) fn missing(home: &Path) -> Error {
    let what = format!(
        "overlay store {} without its mount program ({DEFAULT} is not in $PATH)",
        home.display()
    );
    ErrorKind::NotSupported.err(what)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::driver::mount_flags;
    use crate::driver::overlay::mount::Contents;
    use std::path::PathBuf;

    fn plan() -> OverlayMount<'static> {
        OverlayMount {
            lowers: vec![PathBuf::from("/s/l/A"), PathBuf::from("/s/l/B")],
            contents: Contents::default(),
            upper: Some((PathBuf::from("/s/x/diff"), PathBuf::from("/s/x/work"))),
            options: mount_flags::sort(["nodev,volatile", "noatime"]).unwrap(),
            label: "",
        }
    }

    fn maps(ranges: &[(u32, u32, u32)]) -> IdMappings {
        let ranges: Vec<IdMap> = ranges
            .iter()
            .map(|(container, host, size)| IdMap::new(*container, *host, *size))
            .collect();
        IdMappings {
            uids: ranges.clone(),
            gids: ranges,
        }
    }

    #[test]
    fn a_program_is_told_everything_in_one_argument() {
        let plain = data(&plan(), &Extras::default()).unwrap();
        let start = "lowerdir=/s/l/A:/s/l/B,upperdir=/s/x/diff,workdir=/s/x/work,volatile,nodev";
        assert_eq!(plain, start);
        let mappings = maps(&[(0, 1000, 1), (1, 1001, 9)]);
        let extras = Extras {
            mappings: Some(&mappings),
            masked: true,
        };
        let mapped = data(&plan(), &extras).unwrap();
        let range = "0:1000:1:1:1001:9";
        assert_eq!(
            mapped.to_str().unwrap(),
            format!("{start},uidmapping={range},gidmapping={range},xattr_permissions=2")
        );
        let single = maps(&[(0, 1000, 1)]);
        let extras = Extras {
            mappings: Some(&single),
            masked: false,
        };
        let squashed = data(&plan(), &extras).unwrap();
        assert_eq!(
            squashed.to_str().unwrap(),
            format!("{start},squash_to_uid=1000,squash_to_gid=1000")
        );
        let mut odd = plan();
        odd.lowers.push(PathBuf::from("/s/a,b"));
        let error = data(&odd, &Extras::default()).unwrap_err();
        assert!(error.chain().contains("/s/a,b"), "{}", error.chain());
    }

    #[test]
    fn only_mappings_without_gaps_can_be_done_by_a_program() {
        for good in [&[][..], &[(0, 5, 10)], &[(1, 1001, 9), (0, 1000, 1)]] {
            assert!(can_map(&maps(good)), "{good:?}");
        }
        for bad in [
            &[(0, 1000, 1), (1, 2000, 9)][..],
            &[(0, 1000, 1), (5, 1001, 9)],
            &[(0, 1000, 10), (10, 0, 10)],
            &[(0, u32::MAX, 5), (5, 3, 1)],
        ] {
            assert!(!can_map(&maps(bad)), "{bad:?}");
        }
    }

    #[test]
    fn what_a_failed_program_says_is_in_the_error() {
        let tmp = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = tmp.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let run = |program: &Path| {
            mount(program, tmp.path(), &plan(), tmp.path(), &Extras::default())
                .unwrap_err()
                .chain()
        };
        // The options are one argument, and no shell reads it.
        let failing = run(&script(
            "failing",
            r#"echo "$# $1 $3 in $(pwd)" >&2; echo oh >&2; exit 3"#,
        ));
        let place = tmp.path().display();
        assert!(
            failing.contains(&format!("3 -o {place} in {place}; oh")),
            "{failing}"
        );
        assert!(failing.contains("exit status: 3"), "{failing}");
        let silent = run(&script("silent", "exit 1"));
        assert!(silent.contains("no message"), "{silent}");
        // A daemon that keeps the file for messages open is not waited for.
        let lying = run(&script("lying", "sleep 600 & echo $! > pid; exit 0"));
        assert!(lying.contains("not there"), "{lying}");
        let pid: i32 = std::fs::read_to_string(tmp.path().join("pid"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let endless = script("endless", "echo oh >&2; exec sleep 1000");
        let limit = Duration::from_millis(300);
        let endless = mount_within(
            limit,
            &endless,
            tmp.path(),
            &plan(),
            tmp.path(),
            &Extras::default(),
        );
        let endless = endless.unwrap_err();
        assert_eq!(
            endless.io_kind(),
            Some(std::io::ErrorKind::TimedOut),
            "{}",
            endless.chain()
        );
        assert!(endless.chain().contains("/endless"), "{}", endless.chain());
        let missing = run(Path::new("/does/not/exist"));
        assert!(missing.contains("/does/not/exist"), "{missing}");
    }
}
