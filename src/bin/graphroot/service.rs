//! Commands about the store as a whole.

use std::io::IsTerminal as _;

use graphroot::config::Loader;

use crate::call::{Call, DONE, FAILED, Failure, Out, Outcome, told};
use crate::input::spinner;
use crate::table::{FORCE_SHUTDOWN, HASH_METHOD, check as check_flags};
use crate::text::go_quote;

/// For commands whose part of the library does not exist.
pub(crate) fn not_there_yet(call: &Call) -> Outcome {
    Err(format!("{}: not there yet in this version", call.name).into())
}

fn pairs(call: &Call, out: &mut Out, pairs: &[(String, String)]) -> Outcome {
    if call.json() {
        out.json(pairs)?;
        return DONE;
    }
    for (name, value) in pairs {
        out.complain(format!("{name}: {value}"))?;
    }
    DONE
}

pub(crate) async fn version(call: &Call, out: &mut Out) -> Outcome {
    let version = call.store()?.version().await;
    pairs(call, out, &version)
}

pub(crate) async fn status(call: &Call, out: &mut Out) -> Outcome {
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

/// One line of JSON for scripts; for people every value and where it came from.
pub(crate) async fn config(call: &Call, out: &mut Out) -> Outcome {
    let mut loader = Loader::for_process();
    if let Some(file) = call.args.first() {
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

/// The outcome of a command that has nothing to tell but whether it worked.
fn plain(call: &Call, out: &mut Out, result: graphroot::Result<()>) -> Outcome {
    match result {
        Ok(()) if call.json() => out.json("").and(DONE),
        Ok(()) => DONE,
        // An error has no fields that its JSON could show, as ever.
        Err(_) if call.json() => out.line("{}").and(FAILED),
        Err(error) => Err(format!("{}: {}", call.name, told(&error)).into()),
    }
}

pub(crate) async fn shutdown(call: &Call, out: &mut Out) -> Outcome {
    let force = call.flags.is_on(&FORCE_SHUTDOWN);
    let result = call.store()?.shutdown(force).await.map(drop);
    plain(call, out, result)
}

pub(crate) async fn wipe(call: &Call, out: &mut Out) -> Outcome {
    let busy = spinner("Wiping");
    let result = call.store()?.wipe().await;
    busy.finish_and_clear();
    plain(call, out, result)
}

pub(crate) async fn gc(call: &Call, out: &mut Out) -> Outcome {
    call.store()?.garbage_collect().await?;
    if call.json() {
        out.json("")?;
    }
    DONE
}

pub(crate) async fn dedup(call: &Call, _out: &mut Out) -> Outcome {
    let method = call.flags.text(&HASH_METHOD);
    if !["crc", "size", "sha256"].contains(&method) {
        return Err(format!("invalid hash method: {method}").into());
    }
    not_there_yet(call)
}

pub(crate) async fn check(call: &Call, _out: &mut Out) -> Outcome {
    let max = call.flags.text(&check_flags::MAX);
    if !max.is_empty() && !is_duration(max) {
        return Err(Failure::from(format!(
            "time: invalid duration {}",
            go_quote(max.as_bytes())
        )));
    }
    not_there_yet(call)
}

/// Whether a text is a length of time as Go writes it, such as `1h30m` or `-1.5s`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut any = false;
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
        let digits = rest.strip_suffix(number).unwrap_or_default();
        let units = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"];
        // The longest unit that fits: `ms` is not `m` and a rest.
        let unit = units
            .iter()
            .filter(|unit| number.starts_with(**unit))
            .max_by_key(|unit| unit.len());
        let Some(unit) = unit else { return false };
        let dots = digits.bytes().filter(|byte| *byte == b'.').count();
        if dots > 1 || digits.len() == dots {
            return false;
        }
        rest = number.strip_prefix(unit).unwrap_or_default();
        any = true;
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for good in ["24h", "1h30m", "-1.5s", "0", "+0", "3ms", ".5h", "1.h", "2µs"] {
            assert!(is_duration(good), "{good}");
        }
        for bad in ["", "24", "h", "1x", "1..5s", ".s", "foo", "1h30", "-"] {
            assert!(!is_duration(bad), "{bad}");
        }
    }
}
