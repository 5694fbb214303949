//! Commands about the store as a whole, its configuration and its locks.

use std::io::IsTerminal as _;

use graphroot::config::Loader;
use graphroot::{DedupHashMethod, DedupOptions, Store};
use serde::Serialize;

use crate::call::Call;
use crate::flags::{FORCE_SHUTDOWN, HASH_METHOD};
use crate::input::spinner;
use crate::outcome::{DONE, FAILED, Outcome, describe, file_failure};
use crate::output::Output;

fn pairs(call: &Call, out: &mut Output, pairs: &[(String, String)]) -> Outcome {
    if call.json() {
        out.json(pairs)?;
        return DONE;
    }
    for (name, value) in pairs {
        out.stderr_line(format!("{name}: {value}"))?;
    }
    DONE
}

pub(crate) async fn version(call: &Call, out: &mut Output) -> Outcome {
    let version = call.store()?.version().await;
    pairs(call, out, &version)
}

pub(crate) async fn status(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let mut status = vec![
        ("Root".to_owned(), path(store.graph_root())),
        ("Run Root".to_owned(), path(store.run_root())),
        ("Driver Name".to_owned(), store.graph_driver_name().to_owned()),
        (
            "Driver Options".to_owned(),
            format!("[{}]", store.graph_options().join(" ")),
        ),
    ];
    status.extend(store.status().await?);
    pairs(call, out, &status)
}

/// One line of JSON; on a terminal one line for each value with its origin.
pub(crate) async fn config(call: &Call, out: &mut Output) -> Outcome {
    let mut loader = Loader::for_process();
    if let Some(file) = call.args.first() {
        // The loader's error would name the variable.
        std::fs::File::open(file).map_err(|error| file_failure("open", file, &error))?;
        loader = loader.variable("CONTAINERS_STORAGE_CONF", file);
    }
    let effective = loader.load().await?;
    if std::io::stdout().is_terminal() {
        out.line(effective.to_string().trim_end())?;
    } else {
        out.line(effective.to_json()?)?;
    }
    DONE
}

/// The outcome of a command that has no output besides success or failure.
fn plain(call: &Call, out: &mut Output, result: graphroot::Result<()>) -> Outcome {
    match result {
        Ok(()) if call.json() => out.json("").and(DONE),
        Ok(()) => DONE,
        // Go encodes an error value as an empty object.
        Err(_) if call.json() => out.line("{}").and(FAILED),
        Err(error) => Err(format!("{}: {}", call.name, describe(&error)).into()),
    }
}

pub(crate) async fn shutdown(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let result = if call.flags.is_on(&FORCE_SHUTDOWN) {
        store.shutdown_force().await.map(drop)
    } else {
        store.shutdown().await
    };
    plain(call, out, result)
}

pub(crate) async fn wipe(call: &Call, out: &mut Output) -> Outcome {
    let busy = spinner("Wiping");
    let result = call.store()?.wipe().await;
    busy.finish_and_clear();
    plain(call, out, result)
}

pub(crate) async fn gc(call: &Call, out: &mut Output) -> Outcome {
    call.store()?.garbage_collect().await?;
    if call.json() {
        out.json("")?;
    }
    DONE
}

/// The result of `dedup` in JSON.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DedupRow {
    deduped: u64,
}

pub(crate) async fn dedup(call: &Call, out: &mut Output) -> Outcome {
    let method = match call.flags.text(&HASH_METHOD) {
        "crc" => DedupHashMethod::Crc,
        "size" => DedupHashMethod::FileSize,
        "sha256" => DedupHashMethod::Sha256,
        method => {
            let what = format!("--hash-method is crc, sha256 or size: invalid hash method: {method}");
            return Err(what.into());
        }
    };
    let busy = spinner("Deduplicating");
    let result = call
        .store()?
        .dedup(DedupOptions::default().hash_method(method))
        .await;
    busy.finish_and_clear();
    let result = match result {
        // Go encodes an error value as an empty object.
        Err(_) if call.json() => return out.line("{}").and(FAILED),
        result => result?,
    };
    if call.json() {
        out.json(&DedupRow {
            deduped: result.deduped,
        })?;
    } else {
        out.line(format!("Deduplicated {} bytes", result.deduped))?;
    }
    if let Some(reason) = result.unsupported {
        out.stderr_line(format!(
            "files cannot share their content on this file system: {reason}"
        ))?;
    }
    DONE
}

#[derive(Serialize)]
struct LockRow {
    file: String,
    pid: u32,
    command: String,
    exclusive: bool,
}

pub(crate) async fn locks(call: &Call, out: &mut Output) -> Outcome {
    let owners = Store::lock_owners_of(&call.options).await?;
    let locks: Vec<LockRow> = owners
        .into_iter()
        .map(|owner| LockRow {
            file: owner.path.to_string_lossy().into_owned(),
            pid: owner.pid,
            command: owner.command,
            exclusive: owner.exclusive,
        })
        .collect();
    if call.json() {
        out.json(&locks)?;
        return DONE;
    }
    for lock in locks {
        let mode = if lock.exclusive { "exclusive" } else { "shared" };
        out.line(format!("{} {mode} {} {}", lock.file, lock.pid, lock.command))?;
    }
    DONE
}
