//! The files that are read, and their order. It is the same for `storage.conf` and `registries.conf`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::environment::Environment;
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// Which files are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConfigName {
    /// The file is `STEM.EXTENSION`, and there may be directories of more of them.
    stem: &'static str,
    extension: &'static str,
    /// What the names of directories of more files end in.
    directory: &'static str,
    /// What is being done to a file, for errors.
    opening: &'static str,
    reading: &'static str,
    /// The variable that names the only file to read.
    pub(crate) conf: &'static str,
    /// The variable that names the last file.
    pub(super) last: &'static str,
}

/// `storage.conf`.
pub(super) const STORAGE: ConfigName = ConfigName {
    stem: "storage",
    extension: "conf",
    directory: "conf.d",
    opening: "opening storage configuration",
    reading: "reading storage configuration",
    conf: "CONTAINERS_STORAGE_CONF",
    last: "CONTAINERS_STORAGE_CONF_OVERRIDE",
};

/// `registries.conf`.
#[cfg(feature = "pull")]
pub(crate) const REGISTRIES: ConfigName = ConfigName {
    stem: "registries",
    extension: "conf",
    directory: "conf.d",
    opening: "opening registries configuration",
    reading: "reading registries configuration",
    conf: "CONTAINERS_REGISTRIES_CONF",
    last: "CONTAINERS_REGISTRIES_CONF_OVERRIDE",
};

/// `policy.json`.
#[cfg(feature = "pull")]
pub(crate) const POLICY: ConfigName = ConfigName {
    stem: "policy",
    extension: "json",
    directory: "json.d",
    opening: "opening signature policy",
    reading: "reading signature policy",
    conf: "CONTAINERS_POLICY_JSON",
    last: "",
};

/// `registries.d`, which has no main file.
#[cfg(feature = "signatures")]
pub(crate) const REGISTRIES_D: ConfigName = ConfigName {
    stem: "registries",
    extension: "yaml",
    directory: "d",
    opening: "opening signature storage configuration",
    reading: "reading signature storage configuration",
    conf: "",
    last: "",
};

/// Where distributions and administrators have their files, without the leading slash; later ones win.
const SYSTEM: [&str; 2] = ["usr/share/containers", "etc/containers"];

/// Larger files are refused before they are read into memory.
const MAX_SIZE: u64 = 1 << 20;

/// A file that was read.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// Reads all files, the least important first.
pub(crate) fn read_all(environment: &Environment, name: &ConfigName) -> Result<Vec<ConfigFile>> {
    let mut sources = Vec::new();
    if let Some(path) = environment.var(name.conf) {
        sources.push(read_existing(Path::new(path), name, Some(name.conf))?);
    } else {
        let user = user_dir(environment)?;
        sources.extend(read_main(environment, name, user.as_deref())?);
        for path in drop_ins(environment, name, user.as_deref())? {
            // Removed since it was listed.
            sources.extend(read(&path, name)?);
        }
    }
    if let Some(path) = environment.var(name.last) {
        sources.push(read_existing(Path::new(path), name, Some(name.last))?);
    }
    Ok(sources)
}

/// Reads the one file that counts where there are no directories of more of them.
#[cfg(feature = "pull")]
pub(crate) fn read_one(environment: &Environment, name: &ConfigName) -> Result<Option<ConfigFile>> {
    match environment.var(name.conf) {
        Some(path) => read_existing(Path::new(path), name, Some(name.conf)).map(Some),
        None => read_main(environment, name, user_dir(environment)?.as_deref()),
    }
}

/// The user's directory of configuration; root has one as well.
pub(crate) fn user_dir(environment: &Environment) -> Result<Option<PathBuf>> {
    let base = match environment.var("XDG_CONFIG_HOME") {
        Some(dir) => Some(PathBuf::from(dir)),
        None => environment.home()?.map(|home| home.join(".config")),
    };
    Ok(base.map(|base| base.join("containers")))
}

/// The first main file that exists: the user's, the administrator's, the distribution's.
fn read_main(
    environment: &Environment,
    name: &ConfigName,
    user: Option<&Path>,
) -> Result<Option<ConfigFile>> {
    let system = SYSTEM.iter().rev().map(|dir| environment.system(dir));
    for dir in user.map(Path::to_owned).into_iter().chain(system) {
        if let Some(source) = read(&dir.join(format!("{}.{}", name.stem, name.extension)), name)? {
            return Ok(Some(source));
        }
    }
    Ok(None)
}

/// The files of the drop-in directories in the order in which they count. A file hides those of the same name in
/// less important directories; then only the names decide.
fn drop_ins(environment: &Environment, name: &ConfigName, user: Option<&Path>) -> Result<Vec<PathBuf>> {
    let uid = environment.uid();
    let ConfigName { stem, directory, .. } = name;
    let mut dirs = Vec::new();
    for dir in SYSTEM.map(|dir| environment.system(dir)) {
        dirs.push(dir.join(format!("{stem}.{directory}")));
        if uid == 0 {
            dirs.push(dir.join(format!("{stem}.rootful.{directory}")));
        } else {
            let rootless = dir.join(format!("{stem}.rootless.{directory}"));
            dirs.push(rootless.clone());
            dirs.push(rootless.join(uid.to_string()));
        }
    }
    dirs.extend(user.map(|dir| dir.join(format!("{stem}.{directory}"))));

    let mut found: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for dir in dirs {
        match list(&dir, name) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {}
            listed => found.extend(listed?),
        }
    }
    Ok(found.into_values().collect())
}

/// The files of one directory.
fn list(dir: &Path, name: &ConfigName) -> Result<BTreeMap<OsString, PathBuf>> {
    let ending = format!(".{}", name.extension);
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).at("listing configuration directory", dir)? {
        let entry = entry.at("listing configuration directory", dir)?;
        let kind = entry.file_type().at("looking at", entry.path())?;
        // Links and devices count: a link to /dev/null hides a file of a less important directory.
        if !kind.is_dir() && entry.file_name().as_bytes().ends_with(ending.as_bytes()) {
            found.insert(entry.file_name(), entry.path());
        }
    }
    Ok(found)
}

/// Reads the files of the directories where there is no main file.
#[cfg(feature = "signatures")]
pub(crate) fn read_drop_ins(environment: &Environment, name: &ConfigName) -> Result<Vec<ConfigFile>> {
    let user = user_dir(environment)?;
    let paths = drop_ins(environment, name, user.as_deref())?;
    read_those(paths.into_iter(), name)
}

/// Reads the files of one directory, which must exist.
#[cfg(feature = "signatures")]
pub(crate) fn read_directory(dir: &Path, name: &ConfigName) -> Result<Vec<ConfigFile>> {
    read_those(list(dir, name)?.into_values(), name)
}

#[cfg(feature = "signatures")]
fn read_those(paths: impl Iterator<Item = PathBuf>, name: &ConfigName) -> Result<Vec<ConfigFile>> {
    // Some may be removed since they were listed.
    paths.filter_map(|path| read(&path, name).transpose()).collect()
}

/// Reads a file that must exist, and that the user names, perhaps in a variable.
pub(crate) fn read_existing(path: &Path, name: &ConfigName, variable: Option<&str>) -> Result<ConfigFile> {
    match read(path, name)? {
        Some(source) => Ok(source),
        None => {
            let action = match variable {
                Some(variable) => format!("{} named by {variable}", name.opening),
                None => name.opening.to_owned(),
            };
            Err(Error::io_at(
                action,
                path,
                io::Error::from(rustix::io::Errno::NOENT),
            ))
        }
    }
}

/// Reads a file; `None` if there is none.
pub(crate) fn read(path: &Path, name: &ConfigName) -> Result<Option<ConfigFile>> {
    // A pipe without a writer is empty, instead of keeping the program waiting.
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = match File::options().read(true).custom_flags(nonblock).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at(name.opening, path),
    };
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1)
        .read_to_end(&mut bytes)
        .at(name.reading, path)?;
    let refuse = |why: String| ErrorKind::InvalidInput.err(why).context(name.reading).at(path);
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
