//! Whether SELinux is on, and what its policy has for containers.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::selinux::Policy;
use crate::sys::xattr;

/// Where the labels of containers are, if a package brings its own.
const CONTEXTS: &str = "/usr/share/containers/selinux/contexts";

/// Where policies are.
const POLICIES: &str = "/etc/selinux";

/// The usual place of the kernel's files.
const USUAL_MOUNT: &str = "/sys/fs/selinux";

/// What `statfs` says of them.
const SELINUX_MAGIC: i128 = 0xf97c_ff8c;

/// More than any of the files that are read here has.
const MAX_FILE: u64 = 1 << 20;

/// The labels of the policy that is loaded; `None` where SELinux is off.
///
/// Compat: it is on where its files can be written and a policy has given this process a label, and that is found out once,
/// as in the Go library. The labels are read each time.
pub(crate) fn policy() -> Option<Policy> {
    mount_point()?;
    let text = read(Path::new(CONTEXTS)).or_else(|| {
        let config = read(&Path::new(POLICIES).join("config"))?;
        let name = config_value(&config, "SELINUXTYPE")?;
        read(&Path::new(POLICIES).join(name).join("contexts/lxc_contexts"))
    });
    Some(Policy::parse(&text.unwrap_or_default()))
}

/// Whether the kernel knows a label.
pub(crate) fn is_valid(label: &str) -> bool {
    let Some(mount) = mount_point() else { return false };
    std::fs::write(mount.join("context"), label).is_ok()
}

/// Gives a file a label.
pub(crate) fn set_label(file: BorrowedFd<'_>, label: &str) -> rustix::io::Result<()> {
    xattr::fset(file, b"security.selinux", label.as_bytes())
}

/// Gives the file `name` of a directory a label; a symbolic link gets it itself.
pub(crate) fn set_label_at(dir: BorrowedFd<'_>, name: &[u8], label: &str) -> rustix::io::Result<()> {
    xattr::set_at(dir, name, b"security.selinux", label.as_bytes())
}

/// Where the kernel's files are; `None` where SELinux is off.
fn mount_point() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let mount = find_mount()?;
        // Without a policy every process has this label.
        let label = std::fs::read("/proc/self/attr/current").unwrap_or_default();
        (label.strip_suffix(b"\0").unwrap_or(&label) != b"kernel").then_some(mount)
    };
    FOUND.get_or_init(find).as_deref()
}

fn find_mount() -> Option<PathBuf> {
    let usual = PathBuf::from(USUAL_MOUNT);
    if is_selinuxfs(&usual) {
        return Some(usual);
    }
    let kinds = std::fs::read_to_string("/proc/filesystems").ok()?;
    if !kinds.lines().any(|line| line == "nodev\tselinuxfs") {
        return None;
    }
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let mut found = mounts_of(&mounts).into_iter();
    found.find(|path| is_selinuxfs(path))
}

/// The mount points of the kernel's files in a file like `/proc/self/mountinfo`.
fn mounts_of(text: &[u8]) -> Vec<PathBuf> {
    const TYPE: &[u8] = b" - selinuxfs ";
    let lines = text.split(|byte| *byte == b'\n');
    let of_type = lines.filter(|line| line.windows(TYPE.len()).any(|part| part == TYPE));
    of_type
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect()
}

fn is_selinuxfs(path: &Path) -> bool {
    let Ok(stat) = rustix::fs::statvfs(path) else {
        return false;
    };
    // The type is 32 bits wide, whatever the field.
    let kind = rustix::fs::statfs(path).map(|stat| i128::from(stat.f_type) & 0xffff_ffff);
    kind == Ok(SELINUX_MAGIC) && !stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY)
}

/// The value of a line `KEY=VALUE` of the configuration.
fn config_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let lines = text.lines().map(str::trim);
    let mut settings = lines.filter(|line| !line.starts_with(['#', ';']));
    let value = settings.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    let value = value.trim_matches('"');
    // One name: the policy is in a directory below.
    (!value.is_empty() && !value.contains('/') && value != "." && value != "..").then_some(value)
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_policy_is_one_component() {
        let text = "# SELINUXTYPE=no\n SELINUX=permissive\n\n SELINUXTYPE=\"default\"\nSELINUXTYPE=mls\n";
        assert_eq!(config_value(text, "SELINUXTYPE"), Some("default"));
        assert_eq!(config_value(text, "SELINUX"), Some("permissive"));
        for bad in [
            "SELINUXTYPE=",
            "SELINUXTYPE=../x",
            "SELINUXTYPE=..",
            "SELINUXTYPE",
            "",
        ] {
            assert_eq!(config_value(bad, "SELINUXTYPE"), None, "{bad}");
        }
    }

    #[test]
    fn its_files_are_found_among_the_mounts() {
        let text = b"22 27 0:20 / /proc rw - proc proc rw\n33 22 0:21 / /sys\\040x/fs rw shared:1 - selinuxfs none rw\n\
                     1 2 0:3 / /a rw - tmpfs - selinuxfs\n";
        assert_eq!(mounts_of(text), [PathBuf::from("/sys\\040x/fs")]);
    }
}
