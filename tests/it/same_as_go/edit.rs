//! Changes to mounted trees, the same on both sides.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::op::Edit;

/// The time of everything that a script dates.
const FIXED: (i64, i64) = (1_720_000_000, 0);

fn set_time(path: &Path, (tv_sec, tv_nsec): (i64, i64)) {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Makes the changes, then gives everything they touched, and the directories around it, a fixed time.
pub(super) fn apply(root: &Path, edits: &[Edit]) {
    let mut touched = Vec::new();
    for edit in edits {
        touched.extend(one(root, edit).into_iter().flat_map(|path| {
            let parent = Path::new(path).parent().unwrap();
            [Path::new(path).to_owned(), parent.to_owned()]
        }));
    }
    for path in touched {
        let path = root.join(path);
        if path.symlink_metadata().is_ok() {
            set_time(&path, FIXED);
        }
    }
    for edit in edits {
        if let Edit::Time(path, seconds, nanoseconds) = *edit {
            set_time(&root.join(path), (seconds, nanoseconds));
        }
    }
}

/// Makes one change and names what it touches.
fn one(root: &Path, edit: &Edit) -> Vec<&'static str> {
    let at = |path: &str| root.join(path);
    match *edit {
        Edit::Write(path, content) => fs::write(at(path), content).map(|()| vec![path]),
        Edit::Append(path, content) => {
            let mut file = fs::File::options().append(true).open(at(path)).unwrap();
            file.write_all(content).map(|()| vec![path])
        }
        Edit::Mkdir(path) => fs::create_dir(at(path)).map(|()| vec![path]),
        Edit::Symlink(path, target) => symlink(target, at(path)).map(|()| vec![path]),
        Edit::HardLink(path, target) => fs::hard_link(at(target), at(path)).map(|()| vec![path]),
        Edit::Fifo(path) => node(&at(path), FileType::Fifo, 0).map(|()| vec![path]),
        Edit::CharDevice(path, major, minor) => {
            let device = rustix::fs::makedev(major, minor);
            node(&at(path), FileType::CharacterDevice, device).map(|()| vec![path])
        }
        Edit::Remove(path) => {
            let removed = match at(path).symlink_metadata() {
                Ok(meta) if meta.is_dir() => fs::remove_dir_all(at(path)),
                _ => fs::remove_file(at(path)),
            };
            removed.map(|()| vec![path])
        }
        Edit::Rename(from, to) => fs::rename(at(from), at(to)).map(|()| vec![from, to]),
        Edit::Mode(path, mode) => {
            fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).map(|()| vec![path])
        }
        Edit::Owner(path, uid, gid) => chown(at(path), Some(uid), Some(gid)).map(|()| vec![path]),
        Edit::Attribute(path, name, value) => {
            rustix::fs::lsetxattr(at(path), name, value, XattrFlags::empty()).unwrap();
            Ok(vec![path])
        }
        Edit::Time(..) => Ok(Vec::new()),
    }
    .unwrap_or_else(|error| panic!("{edit:?} in {}: {error}", root.display()))
}

fn node(path: &Path, kind: FileType, device: u64) -> std::io::Result<()> {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device)?;
    // Whatever the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(0o640))
}

/// Gives the whiteouts below `dir` a fixed time.
pub(super) fn date_deletions(dir: &Path) {
    let mut queue = vec![dir.to_owned()];
    while let Some(dir) = queue.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            if meta.file_type().is_char_device() && meta.rdev() == 0 {
                set_time(&path, FIXED);
            } else if meta.is_dir() {
                queue.push(path);
            }
        }
    }
}
