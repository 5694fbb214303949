//! A file system that serves an additional layer store and counts its uses, as `stargz-store` does: what is below a directory,
//! but that making the file `use` and removing a directory are notices, to which the answer is "no such file".

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Requests of the kernel, as `linux/fuse.h` numbers them.
mod request {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const READLINK: u32 = 5;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const CREATE: u32 = 35;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const BATCH_FORGET: u32 = 42;
}

/// Bytes of the kernel's largest request.
const REQUEST: usize = 1024 * 1024 + 4096;
/// Bytes before the arguments of a request, and before an answer.
const HEADER: usize = 40;
/// Bytes of a file's attributes.
const ATTRIBUTES: usize = 88;

/// How often each layer is in use, by its directory.
type Uses = Arc<(Mutex<BTreeMap<PathBuf, i64>>, Condvar)>;

/// A store that is served as long as this lives.
pub(crate) struct CountingStore {
    mounted: PathBuf,
    uses: Uses,
}

impl CountingStore {
    /// Serves what is in `source` at `mounted`, which is made. `None`, with a message, if that cannot be done here.
    pub(crate) fn serve(source: &Path, mounted: &Path) -> Option<Self> {
        let device = match File::options().read(true).write(true).open("/dev/fuse") {
            Ok(device) => device,
            Err(error) => {
                crate::support::missing(&format!("/dev/fuse cannot be opened: {error}"));
                return None;
            }
        };
        fs::create_dir_all(mounted).unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let options = std::ffi::CString::new(options).unwrap();
        mount(
            "counting-store",
            mounted,
            "fuse",
            MountFlags::NOSUID | MountFlags::NODEV,
            &*options,
        )
        .unwrap();
        let uses = Uses::default();
        let server = Server {
            device,
            nodes: vec![PathBuf::new(), source.to_owned()],
            numbers: HashMap::new(),
            uses: Arc::clone(&uses),
        };
        std::thread::spawn(move || server.run());
        Some(Self {
            mounted: mounted.to_owned(),
            uses,
        })
    }

    /// How often a layer is in use.
    pub(crate) fn uses(&self, layer: &Path) -> i64 {
        self.uses.0.lock().unwrap().get(layer).copied().unwrap_or(0)
    }

    /// Waits until a layer is in use that often.
    #[track_caller]
    pub(crate) fn expect_uses(&self, layer: &Path, expected: i64) {
        let other = |uses: &mut BTreeMap<PathBuf, i64>| uses.get(layer).copied().unwrap_or(0) != expected;
        let (uses, waited) = (self.uses.1)
            .wait_timeout_while(self.uses.0.lock().unwrap(), Duration::from_secs(20), other)
            .unwrap();
        assert!(!waited.timed_out(), "{uses:?}, expected {expected}");
    }

    /// Forgets all uses.
    pub(crate) fn forget_uses(&self) {
        self.uses.0.lock().unwrap().clear();
    }
}

impl Drop for CountingStore {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.mounted, UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.mounted.display());
        }
    }
}

/// What answers the kernel.
struct Server {
    device: File,
    /// The paths of what the kernel knows, by number; the root is 1.
    nodes: Vec<PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    uses: Uses,
}

/// An answer without its header.
type Answer = Result<Vec<u8>, Errno>;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The name at the start of some bytes.
fn name_in(bytes: &[u8]) -> PathBuf {
    let name = bytes.split(|byte| *byte == 0).next().unwrap();
    PathBuf::from(std::ffi::OsString::from_vec(name.to_owned()))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn attributes(number: u64, path: &Path) -> Answer {
    let found = path.symlink_metadata().map_err(|error| errno(&error))?;
    let mut out = Vec::with_capacity(ATTRIBUTES);
    for field in [number, found.len(), found.blocks(), 0, 0, 0] {
        out.extend(field.to_ne_bytes());
    }
    let links = u32::try_from(found.nlink()).unwrap();
    for field in [0, 0, 0, found.mode(), links, found.uid(), found.gid(), 0, 4096, 0] {
        out.extend(field.to_ne_bytes());
    }
    Ok(out)
}

impl Server {
    fn run(mut self) {
        let mut buffer = vec![0; REQUEST];
        loop {
            let count = match self.device.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::NotFound) => {
                    continue;
                }
                // It is not mounted any more.
                Err(_ended) => return,
            };
            let (code, node) = (u32_at(&buffer, 4), u64_at(&buffer, 16));
            if matches!(code, request::FORGET | request::BATCH_FORGET | request::INTERRUPT) {
                continue;
            }
            let answer = self.answer(code, node, &buffer[HEADER..count]);
            let (code, bytes) = match answer {
                Ok(bytes) => (0, bytes),
                Err(errno) => (-errno.raw_os_error(), Vec::new()),
            };
            let length = u32::try_from(16 + bytes.len()).unwrap();
            let mut whole = Vec::with_capacity(16 + bytes.len());
            whole.extend(length.to_ne_bytes());
            whole.extend(code.to_ne_bytes());
            whole.extend(&buffer[8..16]);
            whole.extend(bytes);
            // Who asked may be gone.
            let _gone = self.device.write_all(&whole);
        }
    }

    fn number(&mut self, path: &Path) -> u64 {
        let next = self.nodes.len() as u64;
        let number = *self.numbers.entry(path.to_owned()).or_insert(next);
        if number == next {
            self.nodes.push(path.to_owned());
        }
        number
    }

    fn count(&self, layer: &Path, change: i64) -> Errno {
        let mut uses = self.uses.0.lock().unwrap();
        let layer = layer.strip_prefix(&self.nodes[1]).unwrap();
        *uses.entry(layer.to_owned()).or_default() += change;
        self.uses.1.notify_all();
        Errno::NOENT
    }

    fn answer(&mut self, code: u32, node: u64, arguments: &[u8]) -> Answer {
        let path = usize::try_from(node).ok().and_then(|node| self.nodes.get(node));
        let path = path.cloned().ok_or(Errno::NOENT)?;
        match code {
            request::INIT => {
                // Version 7.31; requests of 128 KiB; no features.
                let mut out = Vec::new();
                for field in [7, 31, u32_at(arguments, 8), 0, 0, 128 * 1024, 1, 0] {
                    out.extend(field.to_ne_bytes());
                }
                out.resize(64, 0);
                Ok(out)
            }
            request::LOOKUP => {
                let path = path.join(name_in(arguments));
                if path.ends_with("use") {
                    return Err(Errno::NOENT);
                }
                let number = self.number(&path);
                let attributes = attributes(number, &path)?;
                // Nothing is kept by the kernel.
                let mut out = number.to_ne_bytes().to_vec();
                out.resize(40, 0);
                out.extend(attributes);
                Ok(out)
            }
            request::GETATTR => {
                let mut out = vec![0; 16];
                out.extend(attributes(node, &path)?);
                Ok(out)
            }
            request::READLINK => {
                let target = fs::read_link(path).map_err(|error| errno(&error))?;
                Ok(target.into_os_string().into_vec())
            }
            request::MKNOD => Err(self.notice(&path, &name_in(&arguments[16..]))),
            request::CREATE => Err(self.notice(&path, &name_in(&arguments[16..]))),
            request::RMDIR => Err(self.count(&path.join(name_in(arguments)), -1)),
            request::OPEN | request::OPENDIR => Ok(vec![0; 16]),
            request::READ => {
                let size = usize::try_from(u32_at(arguments, 16)).unwrap();
                let mut out = vec![0; size];
                let file = File::open(path).map_err(|error| errno(&error))?;
                let read = file.read_at(&mut out, u64_at(arguments, 8));
                out.truncate(read.map_err(|error| errno(&error))?);
                Ok(out)
            }
            request::READDIR => self.list(&path, u64_at(arguments, 8), u32_at(arguments, 16)),
            request::RELEASE | request::RELEASEDIR | request::FLUSH => Ok(Vec::new()),
            request::STATFS => Ok(vec![0; 80]),
            _ => Err(Errno::NOSYS),
        }
    }

    fn notice(&self, layer: &Path, name: &Path) -> Errno {
        match name == Path::new("use") {
            true => self.count(layer, 1),
            false => Errno::ROFS,
        }
    }

    fn list(&mut self, path: &Path, offset: u64, room: u32) -> Answer {
        let entries = fs::read_dir(path).map_err(|error| errno(&error))?;
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let mut out = Vec::new();
        for (index, name) in names.iter().enumerate().skip(usize::try_from(offset).unwrap()) {
            let file = path.join(name);
            let number = self.number(&file);
            let kind = file.symlink_metadata().unwrap().mode() >> 12;
            let name = name.as_bytes();
            let length = (24 + name.len()).next_multiple_of(8);
            if out.len() + length > usize::try_from(room).unwrap() {
                break;
            }
            let end = out.len() + length;
            out.extend(number.to_ne_bytes());
            out.extend((index as u64 + 1).to_ne_bytes());
            out.extend(u32::try_from(name.len()).unwrap().to_ne_bytes());
            out.extend(kind.to_ne_bytes());
            out.extend(name);
            out.resize(end, 0);
        }
        Ok(out)
    }
}
