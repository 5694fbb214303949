//! A disk whose writes are logged in the order in which they became durable, by the kernel's device mapper
//! (`dm-log-writes`): what the disk was sure to hold at any moment can be made again.
//!
//! A write is in the log once a flush has ended that came after it, and no sooner, as on a disk that loses what is in its
//! cache.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::peers::Run as _;

/// Bytes of a sector of a loop device, and so of a block of the log.
const SECTOR: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// The device, with a disk and its log in files of a directory.
#[derive(Debug)]
pub(crate) struct LoggedDisk {
    name: String,
    dir: PathBuf,
    loops: Vec<String>,
}

/// One entry of the log.
#[derive(Debug)]
pub(crate) enum Entry {
    /// So many marks have been set.
    Mark(usize),
    /// What was written to a place of the disk.
    Write(u64, Vec<u8>),
    /// What was on a part of the disk does not matter any more.
    Discard,
}

fn dmsetup(arguments: &[&str]) {
    // Nobody waits for a udev that may not be there.
    let mut command = Command::new("dmsetup");
    command.args(arguments).env("DM_DISABLE_UDEV", "1").run();
}

impl LoggedDisk {
    pub(crate) fn new(dir: &Path, size: u64) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("graphroot-test-{}-{count}", std::process::id());
        let mut disk = Self {
            name,
            dir: dir.to_owned(),
            loops: Vec::new(),
        };
        for (file, size) in [("disk", size), ("log", 8 * size)] {
            let path = dir.join(file);
            File::create_new(&path).unwrap().set_len(size).unwrap();
            let device = Command::new("losetup").words("--find --show").arg(path).run();
            disk.loops.push(device);
        }
        let [data, log] = &*disk.loops else { unreachable!() };
        let table = format!("0 {} log-writes {data} {log}", size / SECTOR);
        dmsetup(&["create", &disk.name, "--table", &table]);
        disk
    }

    pub(crate) fn device(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// Sets a mark.
    pub(crate) fn mark(&self) {
        dmsetup(&["message", &self.name, "0", "mark graphroot"]);
    }

    /// Ends logging; the disk must not be in use. Calls `each` with every entry of the log in turn.
    pub(crate) fn replay(self, mut each: impl FnMut(Entry)) {
        let log = File::open(self.dir.join("log")).unwrap();
        drop(self);
        let number = |at: u64| {
            let mut bytes = [0; 8];
            log.read_exact_at(&mut bytes, at).unwrap();
            u64::from_le_bytes(bytes)
        };
        let (magic, entries, sector) = (number(0), number(16), number(24) & 0xffff_ffff);
        assert_eq!((magic, sector), (MAGIC, SECTOR), "a log of another form");
        let (mut at, mut marks) = (SECTOR, 0);
        for _ in 0..entries {
            let (place, length, flags) = (number(at) * SECTOR, number(at + 8) * SECTOR, number(at + 16));
            at += SECTOR;
            if flags & MARK != 0 {
                // The device itself sets one at its end.
                marks += 1;
                each(Entry::Mark(marks));
            } else if flags & DISCARD != 0 {
                each(Entry::Discard);
            } else {
                let mut bytes = vec![0; usize::try_from(length).unwrap()];
                log.read_exact_at(&mut bytes, at).unwrap();
                at += length;
                each(Entry::Write(place, bytes));
            }
        }
    }
}

impl Drop for LoggedDisk {
    fn drop(&mut self) {
        dmsetup(&["remove", "--retry", &self.name]);
        for device in &self.loops {
            Command::new("losetup").arg("--detach").arg(device).run();
        }
    }
}
