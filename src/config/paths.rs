//! Directories: the defaults of a store, and variables in configured paths.

use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

use crate::config::environment::Environment;
use crate::config::value::Origin;
use crate::error::{ErrorKind, IoContext as _, Result};

/// The default directories of a store of the system.
const GRAPH_ROOT: &str = "/var/lib/containers/storage";
const RUN_ROOT: &str = "/run/containers/storage";

/// The default graph root.
pub(super) fn default_graph_root(environment: &Environment) -> Result<(PathBuf, Origin)> {
    if !environment.is_per_user() {
        return Ok((GRAPH_ROOT.into(), Origin::Default));
    }
    let (data, origin) = match environment.var("XDG_DATA_HOME") {
        Some(dir) => (PathBuf::from(dir), Origin::variable("XDG_DATA_HOME")),
        None => (
            environment
                .need_home("the user's graph root")?
                .join(".local/share"),
            Origin::Default,
        ),
    };
    Ok((data.join("containers/storage"), origin))
}

/// The default run root. The user's directory for it is created if it is missing.
pub(super) fn default_run_root(environment: &Environment) -> Result<(PathBuf, Origin)> {
    if !environment.is_per_user() {
        return Ok((RUN_ROOT.into(), Origin::Default));
    }
    let (dir, origin) = runtime_dir(environment)?;
    Ok((dir.join("containers"), origin))
}

fn runtime_dir(environment: &Environment) -> Result<(PathBuf, Origin)> {
    if let Some(dir) = environment.var("XDG_RUNTIME_DIR") {
        let resolved = resolve(Path::new(dir)).at("resolving XDG_RUNTIME_DIR", dir)?;
        return Ok((resolved, Origin::variable("XDG_RUNTIME_DIR")));
    }
    let uid = environment.uid();
    let user = format!("run/user/{uid}");
    if is_private(&environment.system(&user), environment.effective_uid) {
        return Ok((Path::new("/").join(user), Origin::Default));
    }
    let name = format!("storage-run-{uid}");
    let (seen, named, origin) = match environment.var("TMPDIR") {
        Some(dir) => {
            let dir = Path::new(dir).join(&name);
            (dir.clone(), dir, Origin::variable("TMPDIR"))
        }
        None => (
            environment.system("tmp").join(&name),
            Path::new("/tmp").join(&name),
            Origin::Default,
        ),
    };
    if is_private(&seen, environment.effective_uid) {
        return Ok((named, origin));
    }
    // All users can write to `/tmp`: a directory there with this user's name may belong to another user.
    let what = "looking for a runtime directory: not a directory that only this user can write to:";
    Err(ErrorKind::InvalidInput.err(what).at(seen))
}

/// Whether this directory, created if it is missing, is one that only this user can write to.
fn is_private(dir: &Path, effective_uid: u32) -> bool {
    if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        tracing::debug!(dir = %dir.display(), %error, "cannot make runtime directory");
    }
    std::fs::symlink_metadata(dir)
        .is_ok_and(|found| found.is_dir() && found.uid() == effective_uid && found.mode() & 0o722 == 0o700)
}

/// A configured path with its variables replaced and, if it exists, its links resolved; and whether it depends on the
/// working directory.
pub(super) fn expand(environment: &Environment, text: &str) -> (PathBuf, bool) {
    let uid = environment.uid().to_string();
    // Compat: `$UID` is replaced as a piece of text, before and apart from all others, so `${UID}` is not it.
    let expanded = expand_variables(text.replace("$UID", &uid).as_bytes(), |name| {
        environment.set_var(name).unwrap_or_default()
    });
    let path = PathBuf::from(OsString::from_vec(expanded));
    let resolved = resolve(&path).unwrap_or_else(|_missing| cleaned(&path));
    (resolved, path.is_relative())
}

/// Replaces `$NAME` and `${NAME}` by what `lookup` says. Names are letters, digits and underscores, or one of the
/// shell's special characters, which are variables of no known value. A dollar sign before anything else stays.
fn expand_variables<'a>(text: &[u8], lookup: impl Fn(&str) -> &'a OsStr) -> Vec<u8> {
    let is_special = |byte: u8| b"*#$@!?-0123456789".contains(&byte);
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.iter().position(|byte| *byte == b'$') {
        let (before, from_dollar) = rest.split_at(dollar);
        out.extend_from_slice(before);
        let after = from_dollar.get(1..).unwrap_or_default();
        let (name, used) = match after {
            [] => {
                out.push(b'$');
                return out;
            }
            [b'{', special, b'}', ..] if is_special(*special) => (after.get(1..2), 3),
            [b'{', inner @ ..] => match inner.iter().position(|byte| *byte == b'}') {
                Some(end) => (inner.get(..end), end + 2),
                // An opening brace without its closing one is dropped together with the dollar sign.
                None => (None, 1),
            },
            [special, ..] if is_special(*special) => (after.get(..1), 1),
            _ => {
                let length = after.iter().take_while(|byte| is_name(byte)).count();
                if length == 0 {
                    out.push(b'$');
                }
                (after.get(..length), length)
            }
        };
        // A name of other bytes cannot be a variable of ours.
        if let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok()) {
            out.extend_from_slice(lookup(name).as_bytes());
        }
        rest = after.get(used..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    out
}

/// The path without links. Fails if it does not exist.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the configuration names paths of the host, and programs compare them as text"
    )]
    std::fs::canonicalize(if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    })
}

/// The path without `.`, `..` and doubled slashes, by its text alone.
fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir | Component::Prefix(_) => {}
            Component::RootDir => clean.push("/"),
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => match clean.components().next_back() {
                Some(Component::Normal(_)) => {
                    clean.pop();
                }
                Some(Component::RootDir) => {}
                _ => clean.push(".."),
            },
        }
    }
    if clean.as_os_str().is_empty() {
        clean.push(".");
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_as_in_a_shell_and_in_go() {
        let lookup = |name: &str| {
            OsStr::new(match name {
                "A" => "a",
                "LONG_NAME1" => "long",
                "1" => "no parameter",
                _ => "",
            })
        };
        let cases = [
            ("/x/$A/y", "/x/a/y"),
            ("$A$A", "aa"),
            ("${A}b", "ab"),
            ("$LONG_NAME1/", "long/"),
            ("$LONG-NAME", "-NAME"),
            ("$none/x", "/x"),
            ("$", "$"),
            ("x$", "x$"),
            ("$/x", "$/x"),
            ("$ü", "$ü"),
            ("${}x", "x"),
            ("${A", "A"),
            ("${?}x", "x"),
            ("$?x", "x"),
            ("$$A", "A"),
            ("$1x", "no parameterx"),
            ("${A B}", ""),
            ("no variable", "no variable"),
        ];
        for (text, expected) in cases {
            let out = expand_variables(text.as_bytes(), lookup);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn cleaning_is_textual() {
        let cases = [
            ("/a//b/./c/../d/", "/a/b/d"),
            ("/..", "/"),
            ("", "."),
            ("a/..", "."),
            ("../a/../..", "../.."),
            ("a/b", "a/b"),
        ];
        for (path, expected) in cases {
            assert_eq!(cleaned(Path::new(path)), Path::new(expected), "{path:?}");
        }
    }
}
