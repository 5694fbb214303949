//! `mount`, `unmount` and `mounted`.

use graphroot::MountOptions;
use serde::Serialize;

use crate::call::Call;
use crate::flags::{FORCE_UNMOUNT, MOUNT_READ_ONLY, new};
use crate::outcome::{DONE, FAILED, Outcome, describe_briefly};
use crate::output::Output;

#[derive(Serialize)]
struct MountResult<'a> {
    id: &'a str,
    mountpoint: String,
    error: String,
}

#[derive(Serialize)]
struct ItemResult<'a> {
    id: &'a str,
    error: String,
}

pub(crate) async fn mount(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let mut options = MountOptions::default();
    options.label = Some(call.flags.text(&new::LABEL).to_owned()).filter(|label| !label.is_empty());
    let mut mounts = Vec::new();
    for arg in &call.args {
        let mounted = if call.flags.is_on(&MOUNT_READ_ONLY) {
            store.mount_image(arg, options.clone()).await
        } else {
            store.mount(arg, options.clone()).await
        };
        mounts.push(match mounted {
            Ok(path) => MountResult {
                id: arg,
                mountpoint: path.to_string_lossy().into_owned(),
                error: String::new(),
            },
            Err(error) => MountResult {
                id: arg,
                mountpoint: String::new(),
                error: describe_briefly(&error),
            },
        });
    }
    if call.json() {
        out.json(&mounts)?;
    } else {
        for mounted in &mounts {
            if !mounted.error.is_empty() {
                out.stderr_line(format!("{} while mounting {}", mounted.error, mounted.id))?;
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

pub(crate) async fn unmount(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let force = call.flags.is_on(&FORCE_UNMOUNT);
    let mut unmounted = Vec::new();
    for arg in &call.args {
        let mut text = String::new();
        let unmounted_layer = if force {
            store.unmount_all(arg).await.map(|()| 0)
        } else {
            store.unmount(arg).await
        };
        match unmounted_layer {
            Ok(0) => out.line(format!("{arg} mountpoint unmounted"))?,
            Ok(_left) => {}
            Err(error) => {
                // The argument may be an image that `mount -r` has mounted. If not, the first error is reported.
                let unmounted_image = if force {
                    store.unmount_image_all(arg).await
                } else {
                    store.unmount_image(arg).await.map(drop)
                };
                if unmounted_image.is_err() {
                    text = describe_briefly(&error);
                }
            }
        }
        unmounted.push(ItemResult { id: arg, error: text });
    }
    report(call, out, &unmounted, |id| format!("while unmounting {id}"))
}

pub(crate) async fn mounted(call: &Call, out: &mut Output) -> Outcome {
    let mut answers = Vec::new();
    for arg in &call.args {
        let mut text = String::new();
        match call.store()?.mounted(arg).await {
            Ok(count) if count > 0 => out.line(format!("{arg} mounted"))?,
            Ok(_) => {}
            Err(error) => text = describe_briefly(&error),
        }
        answers.push(ItemResult { id: arg, error: text });
    }
    report(call, out, &answers, |id| format!("checking if {id} is mounted"))
}

fn report(
    call: &Call,
    out: &mut Output,
    answers: &[ItemResult<'_>],
    doing: impl Fn(&str) -> String,
) -> Outcome {
    if call.json() {
        out.json(answers)?;
    } else {
        for answer in answers.iter().filter(|answer| !answer.error.is_empty()) {
            out.stderr_line(format!("{} {}", answer.error, doing(answer.id)))?;
        }
    }
    if answers.iter().all(|answer| answer.error.is_empty()) {
        DONE
    } else {
        FAILED
    }
}
