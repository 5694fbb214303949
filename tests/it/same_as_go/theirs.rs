//! The script's operations through the `containers-storage` command.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use graphroot::Compression;
use serde_json::{Value, json};

use super::answer::{Answer, Failure, Outcome, changes};
use super::archives::Archives;
use super::names::Names;
use super::op::{New, Op, Packing};
use crate::support::peers::Run as _;
use crate::support::root::TestRoot;

/// What a command said.
struct Said {
    stdout: Vec<u8>,
    failure: Option<Failure>,
}

fn execute(command: &mut Command) -> Said {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Said {
        stdout: output.stdout,
        failure: (!output.status.success()).then(|| Failure::of_text(&text)),
    }
}

impl Said {
    fn ok(self) -> Result<Vec<u8>, Failure> {
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok(self.stdout),
        }
    }

    fn nothing(self) -> Outcome {
        self.ok().map(|_| Answer::Nothing)
    }

    fn json(self) -> Outcome {
        let stdout = self.ok()?;
        Ok(Answer::Json(serde_json::from_slice(&stdout).unwrap()))
    }

    /// The only element of a list.
    fn one(self) -> Outcome {
        match self.json()? {
            Answer::Json(Value::Array(mut rows)) if rows.len() == 1 => Ok(Answer::Json(rows.remove(0))),
            other => panic!("not one row: {other:?}"),
        }
    }

    fn list(self) -> Outcome {
        let stdout = self.ok()?;
        let list: Option<Vec<String>> = serde_json::from_slice(&stdout).unwrap();
        Ok(Answer::List(list.unwrap_or_default()))
    }

    fn text(self) -> Outcome {
        let mut text = String::from_utf8(self.ok()?).unwrap();
        assert_eq!(text.pop(), Some('\n'));
        Ok(Answer::Text(text))
    }

    fn number(self) -> Outcome {
        match self.text()? {
            Answer::Text(text) => Ok(Answer::Number(text.parse().unwrap())),
            other => panic!("{other:?}"),
        }
    }
}

/// Whether the installed command is one of the old versions that [`super::accepted`] speaks of.
pub(super) fn is_old(root: &TestRoot) -> bool {
    let output = root.go().words("remove-names").output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains("unrecognized command")
}

/// Runs one operation.
pub(super) async fn run(root: &TestRoot, old: bool, op: &Op, names: &Names, archives: &Archives) -> Outcome {
    let id = |text: &str| names.id(text);
    // A command with its flags, then its arguments.
    let say = |verb: &str, arguments: &[&str]| {
        let ids = arguments.iter().map(|argument| names.id(argument));
        execute(&mut root.go().words(verb).with(ids))
    };
    let with_file = |verb: &str, data: &[u8], arguments: &[&str]| {
        let file = data_file(root, data);
        let ids = arguments.iter().map(|argument| names.id(argument));
        execute(&mut root.go().words(verb).with(["--file"]).with([file]).with(ids))
    };
    match op {
        Op::CreateLayer(new) => create(root, "create-layer --json", new, None, names).json(),
        Op::ImportLayer(new, archive) => {
            let archive = archives.file(archive);
            create(root, "import-layer --json", new, Some(archive), names).json()
        }
        Op::ApplyDiff(to, archive) => {
            let file = archives.file(archive);
            execute(root.go().words("applydiff --file").arg(file).arg(id(to))).nothing()
        }
        Op::CreateImage(new) => create(root, "create-image --json", new, None, names).json(),
        Op::CreateContainer(new) => create(root, "create-container --json", new, None, names).json(),

        Op::Names(key) => say("get-names --json", &[key]).list(),
        Op::SetNames(key, list) => change_names(root, "set-names", &id(key), list),
        Op::AddNames(key, list) if old => {
            change_names_of_old(root, &id(key), |names| [list, &*names].concat())
        }
        Op::AddNames(key, list) => change_names(root, "add-names", &id(key), list),
        Op::RemoveNames(key, list) if old => change_names_of_old(root, &id(key), |mut names| {
            names.retain(|name| !list.contains(name));
            names
        }),
        Op::RemoveNames(key, list) => change_names(root, "remove-names", &id(key), list),
        Op::Metadata(key) => say("metadata --quiet", &[key]).text(),
        Op::SetMetadata(key, text) => {
            execute(root.go().words("set-metadata --metadata").arg(text).arg(id(key))).nothing()
        }

        Op::Exists(key) => {
            // "No" is an exit code here.
            let said = say("exists --json", &[key]);
            let answers: Value = serde_json::from_slice(&said.stdout).unwrap();
            Ok(Answer::Truth(answers[id(key)].as_bool().unwrap()))
        }
        Op::Show(kind, key) => say(&format!("{} --json", kind.noun()), &[key]).one(),
        Op::List(kind) => match say(&format!("{}s --json", kind.noun()), &[]).json()? {
            Answer::Json(Value::Null) => Ok(Answer::Json(json!([]))),
            answer => Ok(answer),
        },
        Op::ImagesByDigest(digest) => say("images-by-digest --json", &[digest]).json(),
        Op::Size(kind, key) => {
            let shown = String::from_utf8(say(kind.noun(), &[key]).ok()?).unwrap();
            let size = shown.lines().find_map(|line| line.strip_prefix("Size: "));
            match size {
                Some(size) => Ok(Answer::Number(size.parse().unwrap())),
                None => Err(Failure::of_text(&shown)),
            }
        }
        Op::ParentOwners(kind, key) => {
            let shown = say(&format!("{}-parent-owners --json", kind.noun()), &[key]).json()?;
            let Answer::Json(shown) = shown else {
                unreachable!()
            };
            Ok(Answer::Json(
                json!({"UIDs": shown["UIDs"], "GIDs": shown["GIDs"]}),
            ))
        }
        Op::Directory(key) => say("get-container-dir", &[key]).text(),
        Op::RunDirectory(key) => say("get-container-run-dir", &[key]).text(),

        Op::ListData(kind, key) => say(&format!("list-{}-data --json", kind.noun()), &[key]).list(),
        Op::GetData(kind, key, item) => {
            let data = say(&format!("get-{}-data", kind.noun()), &[key, item]).ok()?;
            Ok(Answer::Bytes(data, Compression::None))
        }
        Op::SetData(kind, key, item, data) => {
            with_file(&format!("set-{}-data", kind.noun()), data, &[key, item]).nothing()
        }
        Op::DataSize(kind, key, item) => {
            say(&format!("get-{}-data-size", kind.noun()), &[key, item]).number()
        }
        Op::DataDigest(kind, key, item) => {
            say(&format!("get-{}-data-digest", kind.noun()), &[key, item]).text()
        }

        Op::Mount(key) => say("mount", &[key]).text(),
        Op::MountImage(key) => say("mount --ro", &[key]).text(),
        Op::Unmount(key) => unmounted(say("unmount", &[key]), &id(key)),
        Op::UnmountForced(key) => unmounted(say("unmount --force", &[key]), &id(key)),
        Op::UnmountImage(key) => say("unmount", &[key]).nothing(),
        Op::Mounted(key) => {
            let stdout = say("mounted", &[key]).ok()?;
            Ok(Answer::Truth(!stdout.is_empty()))
        }

        Op::Changes(to, from) => {
            let stdout = say("changes --json", &pair(to, from)).ok()?;
            Ok(changes(serde_json::from_slice(&stdout).unwrap()))
        }
        Op::DiffSize(to, from) => say("diffsize", &pair(to, from)).number(),
        Op::Diff(to, from, packing) => {
            let verb = match packing {
                Packing::Uncompressed => "diff --uncompressed",
                Packing::Gzip => "diff --gzip",
                Packing::Recorded => "diff",
            };
            Ok(archives.plain(say(verb, &pair(to, from)).ok()?).await)
        }

        Op::Delete(key) => say("delete", &[key]).nothing(),
        Op::DeleteLayer(key) => say("delete-layer", &[key]).nothing(),
        Op::TestDeleteImage(key) => deleted_layers(say("delete-image --json --test", &[key]), &id(key)),
        Op::DeleteImage(key) => deleted_layers(say("delete-image --json", &[key]), &id(key)),
        Op::DeleteContainer(key) => say("delete-container", &[key]).nothing(),
        Op::Shutdown => say("shutdown", &[]).nothing(),
        Op::ShutdownForced => say("shutdown --force", &[]).nothing(),
        Op::Wipe => say("wipe", &[]).nothing(),

        Op::Edit(..) | Op::DateDeletions(_) | Op::Checkpoint(_) => Ok(Answer::Nothing),
    }
}

/// A file with this content.
fn data_file(root: &TestRoot, data: &[u8]) -> PathBuf {
    let file = root.scratch("data").join("item");
    fs::write(&file, data).unwrap();
    file
}

fn pair<'a>(to: &'a str, from: &'a Option<&'static str>) -> Vec<&'a str> {
    std::iter::once(to).chain(*from).collect()
}

fn create(root: &TestRoot, verb: &str, new: &New, archive: Option<PathBuf>, names: &Names) -> Said {
    let mut command = root.go().words(verb);
    if let Some(file) = archive {
        command.arg("--file").arg(file);
    }
    if !new.id.is_empty() && !new.id.starts_with('@') {
        command.args(["--id", new.id]);
    }
    for name in &new.names {
        command.args(["--name", name]);
    }
    if !new.metadata.is_empty() {
        command.args(["--metadata", new.metadata]);
    }
    if let Some(digest) = new.digest {
        command.args(["--digest", digest]);
    }
    if new.read_only {
        command.arg("--readonly");
    }
    if new.volatile {
        command.arg("--volatile");
    }
    if let Some((uid, gid)) = new.maps {
        command.args(["--uidmap", &format!("0:{uid}:65536")]);
        command.args(["--gidmap", &format!("0:{gid}:65536")]);
    }
    match new.on {
        Some(below) => command.arg(names.id(below)),
        // A container's image is a mandatory argument.
        None if verb.starts_with("create-container") => command.arg(""),
        None => &mut command,
    };
    execute(&mut command)
}

fn change_names(root: &TestRoot, verb: &str, id: &str, names: &[&str]) -> Outcome {
    let mut command = root.go().words(verb).with(["--json"]);
    for name in names {
        command.args(["--name", name]);
    }
    execute(command.arg(id)).list()
}

/// Accepted: `names-of-old-versions`.
fn change_names_of_old(
    root: &TestRoot,
    id: &str,
    change: impl for<'a> FnOnce(Vec<&'a str>) -> Vec<&'a str>,
) -> Outcome {
    let Answer::List(names) = execute(root.go().words("get-names --json").arg(id)).list()? else {
        unreachable!()
    };
    let names = change(names.iter().map(String::as_str).collect());
    change_names(root, "set-names", id, &names)
}

/// Whether something is still mounted.
fn unmounted(said: Said, id: &str) -> Outcome {
    let stdout = String::from_utf8(said.ok()?).unwrap();
    Ok(Answer::Truth(stdout != format!("{id} mountpoint unmounted\n")))
}

fn deleted_layers(said: Said, id: &str) -> Outcome {
    let answers: Value = serde_json::from_slice(&said.stdout).unwrap();
    let answer = &answers[id];
    if said.failure.is_some() {
        return Err(Failure::of_text(answer["error"].as_str().unwrap_or_default()));
    }
    let layers = answer["deleted-layers"].as_array().cloned().unwrap_or_default();
    let layers = layers.iter().map(|layer| layer.as_str().unwrap().to_owned());
    Ok(Answer::List(layers.collect()))
}
