//! Mounting and unmounting.

use serde::Serialize;

use crate::call::{Call, DONE, FAILED, Out, Outcome, plain_error};
use crate::table::{FORCE_UNMOUNT, MOUNT_READ_ONLY, new};

#[derive(Serialize)]
struct Mounted<'a> {
    id: &'a str,
    mountpoint: String,
    error: String,
}

#[derive(Serialize)]
struct Unmounted<'a> {
    id: &'a str,
    error: String,
}

pub(crate) async fn mount(call: &Call, out: &mut Out) -> Outcome {
    let store = call.store()?;
    let label = call.flags.text(&new::LABEL);
    let mut mounts = Vec::new();
    for arg in &call.args {
        let mounted = if call.flags.is_on(&MOUNT_READ_ONLY) {
            store.mount_image(arg, &[], label).await
        } else {
            store.mount(arg, label).await
        };
        mounts.push(match mounted {
            Ok(path) => Mounted {
                id: arg,
                mountpoint: path.to_string_lossy().into_owned(),
                error: String::new(),
            },
            Err(error) => Mounted {
                id: arg,
                mountpoint: String::new(),
                error: plain_error(&error),
            },
        });
    }
    if call.json() {
        out.json(&mounts)?;
    } else {
        for mounted in &mounts {
            if !mounted.error.is_empty() {
                out.complain(format!("{} while mounting {}", mounted.error, mounted.id))?;
            }
            out.line(&mounted.mountpoint)?;
        }
    }
    if mounts.iter().all(|mounted| mounted.error.is_empty()) {
        DONE
    } else {
        FAILED
    }
}

pub(crate) async fn unmount(call: &Call, out: &mut Out) -> Outcome {
    let store = call.store()?;
    let force = call.flags.is_on(&FORCE_UNMOUNT);
    let mut unmounted = Vec::new();
    for arg in &call.args {
        let mut text = String::new();
        match store.unmount(arg, force).await {
            Ok(true) => {}
            Ok(false) => out.line(format!("{arg} mountpoint unmounted"))?,
            Err(error) => {
                // Not a layer or container; perhaps an image. If not, the first error is the one to tell.
                if store.unmount_image(arg, force).await.is_err() {
                    text = plain_error(&error);
                }
            }
        }
        unmounted.push(Unmounted { id: arg, error: text });
    }
    report(call, out, &unmounted, |id| format!("while unmounting {id}"))
}

pub(crate) async fn mounted(call: &Call, out: &mut Out) -> Outcome {
    let mut answers = Vec::new();
    for arg in &call.args {
        let mut text = String::new();
        match call.store()?.mounted(arg).await {
            Ok(count) if count > 0 => out.line(format!("{arg} mounted"))?,
            Ok(_) => {}
            Err(error) => text = plain_error(&error),
        }
        answers.push(Unmounted { id: arg, error: text });
    }
    report(call, out, &answers, |id| format!("checking if {id} is mounted"))
}

fn report(call: &Call, out: &mut Out, answers: &[Unmounted<'_>], doing: impl Fn(&str) -> String) -> Outcome {
    if call.json() {
        out.json(answers)?;
    } else {
        for answer in answers.iter().filter(|answer| !answer.error.is_empty()) {
            out.complain(format!("{} {}", answer.error, doing(answer.id)))?;
        }
    }
    if answers.iter().all(|answer| answer.error.is_empty()) {
        DONE
    } else {
        FAILED
    }
}
