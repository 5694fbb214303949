//! The overlay mount itself, by the cheapest of three ways that works.
//!
//! 1. `mount(2)`: one call. The data may take no more than a page, about 59 layers under `/var/lib/containers`, and a
//!    path in it must not have a comma or colon.
//! 2. `fsopen`, and one parameter for each layer: no limit but the kernel's 500 layers, any path. Linux 6.8.
//! 3. `mount(2)` with open directories for paths: on a thread whose current directory is `/proc/self/fd` a layer is
//!    its descriptor's number.
//!
//! The second way also makes a mount that is attached nowhere.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount, mount_change,
};

use crate::driver::mount_flags::{self, Sorted};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::sys::mount::{MAX_PARAMETER, attach, in_directory, is_plain};

/// A mount to be made.
#[derive(Debug)]
pub(super) struct OverlayMount<'a> {
    /// Lower directories, topmost first.
    pub(super) lowers: Vec<PathBuf>,
    /// Directories that hold contents only, for files below that say where their content is.
    pub(super) contents: Contents,
    /// The upper directory and the work directory; `None` makes the mount read-only.
    pub(super) upper: Option<(PathBuf, PathBuf)>,
    /// Flags, and the options of the file system.
    pub(super) options: Sorted,
    /// SELinux label, or empty.
    pub(super) label: &'a str,
}

/// The directories of contents of a mount.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) dirs: Vec<PathBuf>,
}

/// The ways to mount, for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Data,
    Parameters,
    Descriptors,
}

/// A failed mount.
#[derive(Debug)]
struct Failure {
    errno: Errno,
    doing: &'static str,
    /// The messages of the kernel.
    log: String,
    /// The first use of the interface failed.
    early: bool,
}

impl Failure {
    fn new(doing: &'static str, errno: Errno) -> Self {
        Self {
            errno,
            doing,
            log: String::new(),
            early: false,
        }
    }

    /// Whether the kernel does not know the interface, or a seccomp filter does not let it through, or the kernel is older
    /// than the parameters.
    fn is_refusal(&self) -> bool {
        let refused = matches!(
            self.errno,
            Errno::NOSYS | Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP
        );
        self.early && refused
    }

    fn explain(self, target: &Path) -> Error {
        let what = if self.log.is_empty() {
            self.doing.into()
        } else {
            format!("{} (kernel: {})", self.doing, self.log)
        };
        Error::io_at(what, target, self.errno)
    }
}

/// Longest mount data: a page less the zero byte at the end.
fn max_data() -> usize {
    rustix::param::page_size() - 1
}

/// Mount data, made up of parts.
#[derive(Default)]
struct Data(Vec<u8>);

impl Data {
    fn push(&mut self, key: &str, values: &[&OsStr]) {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        self.0.extend_from_slice(key.as_bytes());
        for (index, value) in values.iter().enumerate() {
            self.0.push(if index == 0 { b'=' } else { b':' });
            self.0.extend_from_slice(value.as_bytes());
        }
    }

    fn append(&mut self, separator: &str, values: &[&OsStr]) {
        for value in values {
            self.0.extend_from_slice(separator.as_bytes());
            self.0.extend_from_slice(value.as_bytes());
        }
    }
}

impl OverlayMount<'_> {
    /// Makes the mount at `target`.
    pub(super) fn mount_at(&self, target: &Path) -> Result<()> {
        let way = if self.data().is_some() {
            Way::Data
        } else {
            Way::Parameters
        };
        match self.mount(way, target) {
            Err(failure) if failure.is_refusal() => self.mount(Way::Descriptors, target),
            result => result,
        }
        .map_err(|failure| failure.explain(target))?;
        match self.options.propagation {
            None => Ok(()),
            Some(propagation) => mount_change(target, propagation).at("changing propagation of", target),
        }
    }

    /// Makes the mount without attaching it: it has no path, and ends when the returned descriptor, and every file that
    /// was opened through it, is closed. `None` if the kernel cannot do that.
    pub(super) fn detached(&self) -> Result<Option<OwnedFd>> {
        match self.mount_parameters() {
            Ok(made) => Ok(Some(made)),
            Err(failure) if failure.is_refusal() => Ok(None),
            Err(failure) => Err(failure.explain(self.lowers.first().map_or(Path::new(""), |top| top))),
        }
    }

    fn mount(&self, way: Way, target: &Path) -> std::result::Result<(), Failure> {
        match way {
            Way::Data => {
                let data = self
                    .data()
                    .ok_or(Failure::new("mounting overlay at", Errno::TOOBIG))?;
                mount(
                    OsStr::new("overlay"),
                    target,
                    OsStr::new("overlay"),
                    self.options.flags,
                    &*data,
                )
                .map_err(|errno| Failure::new("mounting overlay at", errno))
            }
            Way::Parameters => attach(self.mount_parameters()?.as_fd(), target)
                .map_err(|errno| Failure::new("attaching the overlay mount at", errno)),
            Way::Descriptors => self.mount_descriptors(target),
        }
    }

    /// The options and directories as one comma-separated list, of any length.
    pub(super) fn data_of(
        &self,
        lowers: &[&OsStr],
        contents: &[&OsStr],
        upper: Option<(&OsStr, &OsStr)>,
    ) -> Vec<u8> {
        let mut data = Data::default();
        data.push("lowerdir", lowers);
        data.append("::", contents);
        if let Some((upper, work)) = upper {
            data.push("upperdir", &[upper]);
            data.push("workdir", &[work]);
        }
        for option in &self.options.data {
            data.push(option, &[]);
        }
        if !self.label.is_empty() {
            data.push(&format!("context=\"{}\"", self.label), &[]);
        }
        data.0
    }

    /// The data for `mount(2)`, if it fits and the paths can be written in it.
    fn data(&self) -> Option<CString> {
        let upper = self.upper.iter().flat_map(|(upper, work)| [upper, work]);
        let lowers = self.lowers.iter().chain(&self.contents.dirs);
        if !lowers.chain(upper).all(|path| is_plain(path)) {
            return None;
        }
        let lowers: Vec<&OsStr> = self.lowers.iter().map(|path| path.as_os_str()).collect();
        let contents: Vec<&OsStr> = self.contents.dirs.iter().map(|path| path.as_os_str()).collect();
        let upper = self
            .upper
            .as_ref()
            .map(|(upper, work)| (upper.as_os_str(), work.as_os_str()));
        let data = self.data_of(&lowers, &contents, upper);
        if data.len() > max_data() {
            return None;
        }
        CString::new(data).ok()
    }

    /// The mount, attached nowhere.
    fn mount_parameters(&self) -> std::result::Result<OwnedFd, Failure> {
        let early = |errno| Failure {
            early: true,
            ..Failure::new("opening an overlay configuration for", errno)
        };
        let context = fsopen(OsStr::new("overlay"), FsOpenFlags::FSOPEN_CLOEXEC).map_err(early)?;
        if !reads_parameters().map_err(early)? {
            return Err(early(Errno::OPNOTSUPP));
        }
        let logged = |mut failure: Failure| {
            failure.log = kernel_log(&context);
            failure
        };
        // Directories whose paths are too long or would be read differently; open until the mount is made.
        let mut open = Vec::new();
        let lowers = self.lowers.iter().map(|lower| ("lowerdir+", lower));
        let contents = self.contents.dirs.iter().map(|dir| ("datadir+", dir));
        for (index, (key, lower)) in lowers.chain(contents).enumerate() {
            let value = parameter(lower, &mut open)?;
            fsconfig_set_string(&context, OsStr::new(key), &*value).map_err(|errno| {
                logged(Failure {
                    early: index == 0,
                    ..Failure::new("adding a lower layer to the mount at", errno)
                })
            })?;
        }
        let dirs = self
            .upper
            .iter()
            .flat_map(|(upper, work)| [("upperdir", upper), ("workdir", work)]);
        for (key, path) in dirs {
            let value = parameter(path, &mut open)?;
            fsconfig_set_string(&context, OsStr::new(key), &*value)
                .map_err(|errno| logged(Failure::new("adding the upper layer to the mount at", errno)))?;
        }
        let refused = |errno| logged(Failure::new("setting an option of the overlay mount at", errno));
        for option in &self.options.data {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, OsStr::new(key), OsStr::new(value)),
                None => fsconfig_set_flag(&context, OsStr::new(option)),
            }
            .map_err(refused)?;
        }
        for flag in mount_flags::super_flags(self.options.flags) {
            fsconfig_set_flag(&context, OsStr::new(flag)).map_err(refused)?;
        }
        if !self.label.is_empty() {
            fsconfig_set_string(&context, OsStr::new("context"), OsStr::new(self.label)).map_err(refused)?;
        }
        let failed = |errno| logged(Failure::new("mounting overlay at", errno));
        fsconfig_create(&context).map_err(failed)?;
        let attributes = mount_flags::attributes(self.options.flags);
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed)
    }

    fn mount_descriptors(&self, target: &Path) -> std::result::Result<(), Failure> {
        let mut lowers = Vec::with_capacity(self.lowers.len());
        for path in &self.lowers {
            lowers.push(open_for_mount(path)?);
        }
        let mut contents = Vec::with_capacity(self.contents.dirs.len());
        for path in &self.contents.dirs {
            contents.push(open_for_mount(path)?);
        }
        let upper = match &self.upper {
            Some((upper, work)) => Some((open_for_mount(upper)?, open_for_mount(work)?)),
            None => None,
        };
        let target = open_for_mount(target)?;
        let number = |dir: &OwnedFd| dir.as_raw_fd().to_string();
        let names: Vec<String> = lowers.iter().map(number).collect();
        let content_names: Vec<String> = contents.iter().map(number).collect();
        let upper_names = upper.as_ref().map(|(upper, work)| (number(upper), number(work)));
        let data = self.data_of(
            &names.iter().map(OsStr::new).collect::<Vec<_>>(),
            &content_names.iter().map(OsStr::new).collect::<Vec<_>>(),
            upper_names
                .as_ref()
                .map(|(upper, work)| (OsStr::new(upper), OsStr::new(work))),
        );
        let too_long = Failure::new("writing mount data for", Errno::TOOBIG);
        let data = if data.len() > max_data() {
            None
        } else {
            CString::new(data).ok()
        }
        .ok_or(too_long)?;
        let failed = |errno| Failure::new("mounting overlay at", errno);
        let numbers = open_for_mount(Path::new("/proc/self/fd"))?;
        let target_name = number(&target);
        in_directory(numbers.as_fd(), || {
            mount(
                OsStr::new("overlay"),
                &*target_name,
                OsStr::new("overlay"),
                self.options.flags,
                &*data,
            )
        })
        .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?
        .map_err(failed)
    }
}

/// Whether the kernel's overlayfs reads each parameter when it is set. Before Linux 6.5 the kernel only collects them as
/// mount data, which may take no more than a page, and overlayfs refuses all of them at the end.
fn reads_parameters() -> rustix::io::Result<bool> {
    static READS: OnceLock<bool> = OnceLock::new();
    if let Some(reads) = READS.get() {
        return Ok(*reads);
    }
    let context = fsopen(OsStr::new("overlay"), FsOpenFlags::FSOPEN_CLOEXEC)?;
    let reads = match fsconfig_set_flag(&context, OsStr::new("graphroot-unknown")) {
        Ok(()) => false,
        Err(Errno::INVAL) => true,
        Err(error) => return Err(error),
    };
    Ok(*READS.get_or_init(|| reads))
}

fn open_for_mount(path: &Path) -> std::result::Result<OwnedFd, Failure> {
    rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| {
        let mut failure = Failure::new("opening a directory of the mount at", errno);
        failure.log = path.display().to_string();
        failure
    })
}

/// How a path is written as a parameter.
fn parameter(path: &Path, open: &mut Vec<OwnedFd>) -> std::result::Result<PathBuf, Failure> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= MAX_PARAMETER && !bytes.contains(&b'\\') {
        return Ok(path.to_owned());
    }
    let dir = open_for_mount(path)?;
    let name = format!("/proc/self/fd/{}", dir.as_raw_fd());
    open.push(dir);
    Ok(PathBuf::from(name))
}

/// Whether the kernel's overlayfs can verify contents by the digests in the layers (Linux 6.6).
pub(super) fn verifies_contents() -> bool {
    static VERIFIES: OnceLock<bool> = OnceLock::new();
    let probe = || -> rustix::io::Result<bool> {
        let context = fsopen(OsStr::new("overlay"), FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = fsconfig_set_string(&context, OsStr::new("verity"), OsStr::new("on"));
        Ok(reads_parameters()? && set.is_ok())
    };
    *VERIFIES.get_or_init(|| probe().unwrap_or(false))
}

/// The messages of the kernel about a configuration.
pub(super) fn kernel_log(context: &OwnedFd) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count) = rustix::io::read(context, &mut buffer[..]) {
        let line = buffer.get(..count).unwrap_or_default();
        if line.is_empty() || lines.len() >= 16 {
            break;
        }
        // Each message starts with its level: "e overlay: …".
        let text = String::from_utf8_lossy(line);
        lines.push(text.get(2..).unwrap_or_default().trim().to_owned());
    }
    lines.join("; ")
}

/// Whether the kernel refused a mount because it does not know an option.
pub(super) fn is_invalid(error: &Error) -> bool {
    error.io_kind() == Some(std::io::ErrorKind::InvalidInput) || error.kind() == ErrorKind::InvalidInput
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::conformance::{MountGuard, need_overlay};
    use rustix::fs::StatVfsMountFlags;

    /// Mounts `count` lowers under `home` one way and checks what is seen.
    fn check(way: Way, home: &Path, count: usize, read_write: bool) -> Result<()> {
        let _guard = MountGuard::new(home);
        let mut lowers = Vec::new();
        for index in 0..count {
            let dir = home.join(format!("lower{index}"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(format!("file{index}")), "").unwrap();
            std::fs::write(dir.join("top"), index.to_string()).unwrap();
            lowers.push(dir);
        }
        let (target, upper, work) = (home.join("merged"), home.join("upper"), home.join("work"));
        for dir in [&target, &upper, &work] {
            std::fs::create_dir_all(dir).unwrap();
        }
        let upper = read_write.then_some((upper, work));
        let options = mount_flags::sort(["nodev", "noatime"]).unwrap();
        let plan = OverlayMount {
            lowers,
            contents: Contents::default(),
            upper,
            options,
            label: "",
        };
        match plan.mount(way, &target) {
            // What comes next is tested in its turn; the choice is made anew.
            Err(failure) if way == Way::Parameters && failure.is_refusal() && !kernel_is_since(6, 8) => {
                plan.mount_at(&target)?;
            }
            result => result.map_err(|failure| failure.explain(&target))?,
        }
        assert_eq!(std::fs::read_to_string(target.join("top")).unwrap(), "0");
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), count + 1);
        assert_eq!(std::fs::write(target.join("new"), "").is_ok(), read_write);
        assert_eq!(home.join("upper/new").exists(), read_write);
        let flags = rustix::fs::statvfs(&target).unwrap().f_flag;
        assert!(
            flags.contains(StatVfsMountFlags::NODEV | StatVfsMountFlags::NOATIME),
            "{flags:?}"
        );
        Ok(())
    }

    fn kernel_is_since(major: u32, minor: u32) -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap(), numbers.next().unwrap()) >= (major, minor)
    }

    #[test]
    fn every_way_makes_the_same_mount() {
        if !need_overlay() {
            return;
        }
        for way in [Way::Data, Way::Parameters, Way::Descriptors] {
            for read_write in [false, true] {
                let tmp = tempfile::tempdir().unwrap();
                check(way, tmp.path(), 5, read_write).unwrap();
            }
        }
    }

    #[test]
    fn many_layers_and_odd_paths_need_another_way() {
        if !need_overlay() {
            return;
        }
        for way in [Way::Parameters, Way::Descriptors] {
            let tmp = tempfile::tempdir().unwrap();
            check(way, tmp.path(), 300, true).unwrap();
            let odd = tmp.path().join("a,b:c\\d\\,e").join("x".repeat(250));
            std::fs::create_dir_all(&odd).unwrap();
            check(way, &odd, 3, true).unwrap();
        }
        let tmp = tempfile::tempdir().unwrap();
        assert!(check(Way::Data, tmp.path(), 300, true).is_err());
    }

    #[test]
    fn a_refused_mount_says_what_the_kernel_says() {
        if !need_overlay() {
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        let plan = OverlayMount {
            lowers: vec![tmp.path().join("missing"), tmp.path().join(",")],
            contents: Contents::default(),
            upper: None,
            options: Sorted::default(),
            label: "",
        };
        let error = plan.mount_at(tmp.path()).unwrap_err();
        assert!(error.chain().contains("mount"), "{}", error.chain());
        assert_eq!(
            error.io_kind(),
            Some(std::io::ErrorKind::NotFound),
            "{}",
            error.chain()
        );
    }
}
