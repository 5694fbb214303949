//! The files that are read, and their order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::environment::Environment;
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// The variable that names the only file to read, and the one that names the last.
pub(super) const CONF: &str = "CONTAINERS_STORAGE_CONF";
pub(super) const OVERRIDE: &str = "CONTAINERS_STORAGE_CONF_OVERRIDE";

/// Where distributions and administrators have their files, without the leading slash; later ones win.
const SYSTEM: [&str; 2] = ["usr/share/containers", "etc/containers"];

/// Larger files are refused before they are read into memory.
const MAX_SIZE: u64 = 1 << 20;

/// A file that was read.
#[derive(Debug)]
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// Reads all files, the least important first.
pub(super) fn read_all(environment: &Environment) -> Result<Vec<ConfigFile>> {
    let mut sources = Vec::new();
    if let Some(path) = environment.var(CONF) {
        sources.push(read_named(Path::new(path), CONF)?);
    } else {
        let user = user_dir(environment)?;
        sources.extend(read_main(environment, user.as_deref())?);
        for path in drop_ins(environment, user.as_deref())? {
            // Removed since it was listed.
            sources.extend(read(&path)?);
        }
    }
    if let Some(path) = environment.var(OVERRIDE) {
        sources.push(read_named(Path::new(path), OVERRIDE)?);
    }
    Ok(sources)
}

/// The user's directory of configuration; root has one as well.
fn user_dir(environment: &Environment) -> Result<Option<PathBuf>> {
    let base = match environment.var("XDG_CONFIG_HOME") {
        Some(dir) => Some(PathBuf::from(dir)),
        None => environment.home()?.map(|home| home.join(".config")),
    };
    Ok(base.map(|base| base.join("containers")))
}

/// The first main file that exists: the user's, the administrator's, the distribution's.
fn read_main(environment: &Environment, user: Option<&Path>) -> Result<Option<ConfigFile>> {
    let system = SYSTEM.iter().rev().map(|dir| environment.system(dir));
    for dir in user.map(Path::to_owned).into_iter().chain(system) {
        if let Some(source) = read(&dir.join("storage.conf"))? {
            return Ok(Some(source));
        }
    }
    Ok(None)
}

/// The files of the drop-in directories in the order in which they count. A file hides those of the same name in
/// less important directories; then only the names decide.
fn drop_ins(environment: &Environment, user: Option<&Path>) -> Result<Vec<PathBuf>> {
    let uid = environment.uid();
    let mut dirs = Vec::new();
    for dir in SYSTEM.map(|dir| environment.system(dir)) {
        dirs.push(dir.join("storage.conf.d"));
        if uid == 0 {
            dirs.push(dir.join("storage.rootful.conf.d"));
        } else {
            dirs.push(dir.join("storage.rootless.conf.d"));
            dirs.push(dir.join("storage.rootless.conf.d").join(uid.to_string()));
        }
    }
    dirs.extend(user.map(|dir| dir.join("storage.conf.d")));

    let mut found: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for dir in dirs {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).at("listing configuration directory", &dir),
        };
        for entry in entries {
            let entry = entry.at("listing configuration directory", &dir)?;
            let kind = entry.file_type().at("looking at", entry.path())?;
            // Links and devices count: a link to /dev/null hides a file of a less important directory.
            if !kind.is_dir() && entry.file_name().as_bytes().ends_with(b".conf") {
                found.insert(entry.file_name(), entry.path());
            }
        }
    }
    Ok(found.into_values().collect())
}

/// Reads a file that a variable names, which must exist.
fn read_named(path: &Path, variable: &str) -> Result<ConfigFile> {
    match read(path)? {
        Some(source) => Ok(source),
        None => {
            let action = format!("opening storage configuration named by {variable}");
            Err(Error::io_at(
                action,
                path,
                io::Error::from(rustix::io::Errno::NOENT),
            ))
        }
    }
}

/// Reads a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<ConfigFile>> {
    // A pipe without a writer is empty, instead of keeping the program waiting.
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = match File::options().read(true).custom_flags(nonblock).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at("opening storage configuration", path),
    };
    let mut bytes = Vec::new();
    let action = "reading storage configuration";
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).at(action, path)?;
    let refuse = |why: String| ErrorKind::InvalidInput.err(why).context(action).at(path);
    if bytes.len() as u64 > MAX_SIZE {
        return Err(refuse(format!("larger than {MAX_SIZE} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error
            .as_bytes()
            .iter()
            .take(valid)
            .filter(|byte| **byte == b'\n')
            .count();
        refuse(format!("line {line}: not UTF-8"))
    })?;
    Ok(Some(ConfigFile {
        path: path.to_owned(),
        text,
    }))
}
