//! `pull` and `push`: images copied between the store and registries, OCI layouts, directories and archives.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use graphroot::oci::{
    BlobState, Event, ImageRef, ImageState, Policy, Progress, PullOptions, Puller, PushOptions,
    RegistryOptions, push as push_image,
};
use graphroot::{Compression, Digest};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::call::Call;
use crate::flags::{QUIET_TRANSFER, transfer};
use crate::outcome::{CommandError, DONE, FAILED, Outcome, describe};
use crate::output::Output;
use crate::text::human_size;

/// Digits of a digest that are shown.
const SHORT: usize = 12;

fn short(digest: &Digest) -> &str {
    let encoded = digest.encoded();
    encoded.get(..SHORT).unwrap_or(encoded)
}

/// How events are reported: JSON on standard output, nothing, progress bars on a terminal, or lines on standard error.
fn progress(call: &Call) -> Progress {
    if call.json() {
        return Progress::new(|event| {
            // The transfer goes on if the reader has closed the pipe.
            drop(writeln!(
                io::stdout().lock(),
                "{}",
                serde_json::to_string(&event).unwrap_or_default()
            ));
        });
    }
    if call.flags.is_on(&QUIET_TRANSFER) {
        return Progress::default();
    }
    if io::stderr().is_terminal() {
        let bars = Arc::new(Mutex::new(ProgressBars::default()));
        return Progress::new(move |event| {
            let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
            bars.show(event);
        });
    }
    let reused = Mutex::new(ReusedBytes::default());
    Progress::new(move |event| {
        let reused = reused.lock().unwrap_or_else(PoisonError::into_inner).note(&event);
        if let Some(line) = as_line(&event, reused) {
            drop(writeln!(io::stderr().lock(), "{line}"));
        }
    })
}

/// Bytes of each blob that were not transferred because the store has the files that they hold.
#[derive(Default)]
struct ReusedBytes(HashMap<Digest, u64>);

impl ReusedBytes {
    /// Notes what an event says, and returns the sum for its blob.
    fn note(&mut self, event: &Event) -> u64 {
        let Event::Blob { digest, state } = event else {
            return 0;
        };
        match state {
            BlobState::PartlyReused { bytes } => {
                self.0.insert(digest.clone(), *bytes);
                *bytes
            }
            // Perhaps as a whole, after a transfer of parts did not work.
            BlobState::Started { .. } => self.0.remove(digest).map_or(0, |_before| 0),
            _ => self.0.get(digest).copied().unwrap_or(0),
        }
    }
}

/// How a blob of which some bytes were reused is done.
fn done(reused: u64) -> String {
    match reused {
        0 => "done".to_owned(),
        _ => format!("done, {} of it reused", human_size(reused)),
    }
}

/// An event as a line of text; `None` for events without a line of their own, such as transferred bytes. `reused` bytes
/// of its blob were not transferred.
fn as_line(event: &Event, reused: u64) -> Option<String> {
    match event {
        Event::Image {
            image,
            state: ImageState::Resolved { blobs, .. },
        } => {
            let size = blobs.iter().map(|(_, size)| *size).fold(0, u64::saturating_add);
            let layers = match blobs.len() {
                1 => "1 layer".to_owned(),
                count => format!("{count} layers"),
            };
            Some(format!("{image}: {layers}, {}", human_size(size)))
        }
        Event::Blob { digest, state } => {
            let what = match state {
                BlobState::Started { total, kept: 0 } => human_size(*total),
                BlobState::Started { total, kept } => {
                    format!("{}, {} of them kept", human_size(*total), human_size(*kept))
                }
                BlobState::Retrying { wait, reason } => {
                    format!("again in {:.1} s: {reason}", wait.as_secs_f64())
                }
                BlobState::Committed { .. } => done(reused),
                BlobState::Reused { .. } => "already there".to_owned(),
                _ => return None,
            };
            Some(format!("{}: {what}", short(digest)))
        }
        _ => None,
    }
}

/// A progress bar for each blob.
#[derive(Default)]
struct ProgressBars {
    all: MultiProgress,
    reused: ReusedBytes,
    transferred: HashMap<Digest, u64>,
    blobs: HashMap<Digest, ProgressBar>,
}

impl ProgressBars {
    fn show(&mut self, event: Event) {
        let reused = self.reused.note(&event);
        if let (Some(line), Event::Image { .. }) = (as_line(&event, reused), &event) {
            drop(self.all.println(line));
        }
        let Event::Blob { digest, state } = event else {
            return;
        };
        let (all, name) = (&self.all, short(&digest).to_owned());
        let transferred = self.transferred.entry(digest.clone()).or_default();
        let bar = self.blobs.entry(digest).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(0));
            let style = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {msg}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.with_prefix(name)
        });
        match state {
            BlobState::Started { total, kept } => {
                *transferred = kept;
                bar.set_length(total);
                bar.set_position(kept);
            }
            BlobState::Transferred { bytes } => {
                *transferred = bytes;
                bar.set_position(bytes.saturating_add(reused));
            }
            BlobState::PartlyReused { bytes } => {
                bar.set_position(transferred.saturating_add(bytes));
                bar.set_message(format!("{} reused", human_size(bytes)));
            }
            BlobState::Retrying { reason, .. } => bar.set_message(reason),
            BlobState::Unpacked => bar.set_message("waiting"),
            BlobState::Committed { .. } => bar.finish_with_message(done(reused)),
            BlobState::Reused { .. } => bar.finish_with_message("already there"),
            _ => {}
        }
    }
}

/// How registries are reached: as configured on this machine, and from the flags.
pub(super) async fn registry_options(call: &Call) -> Result<RegistryOptions, CommandError> {
    let mut options = RegistryOptions::default_for_user().await?;
    options.tls_verify = call.flags.switch(&transfer::TLS_VERIFY);
    let certificates = call.flags.text(&transfer::CERT_DIR);
    if !certificates.is_empty() {
        options = options.certificate_directory(certificates);
    }
    let auth_file = call.flags.text(&transfer::AUTH_FILE);
    if !auth_file.is_empty() {
        options.auth_file = Some(auth_file.into());
    }
    for registry in call.flags.list(&transfer::PLAIN_HTTP) {
        options = options.plain_http(registry);
    }
    Ok(options)
}

/// The value of a flag that takes a number above 0.
fn count(text: &str, flag: &str) -> Result<Option<usize>, CommandError> {
    match text.parse() {
        _ if text.is_empty() => Ok(None),
        Ok(count) if count > 0 => Ok(Some(count)),
        _ => Err(format!("--{flag} {text}: not a number above 0").into()),
    }
}

/// The value of `--compression`: one of those that can be written.
fn compression(text: &str) -> Result<Compression, CommandError> {
    match text.parse() {
        Ok(Compression::Bzip2 | Compression::Xz) | Err(_) => {
            let what = format!("--compression {text}: not one of gzip, zstd, zstd:chunked and none");
            Err(what.into())
        }
        Ok(compression) => Ok(compression),
    }
}

/// Pulls all images concurrently and prints their IDs.
pub(crate) async fn pull(call: &Call, out: &mut Output) -> Outcome {
    let policy = match call.flags.text(&transfer::POLICY) {
        "" => Policy::load().await?,
        file => Policy::from_file(file).await?,
    };
    let mut options = PullOptions::default()
        .registry(registry_options(call).await?)
        .policy(policy)
        .progress(progress(call));
    options.keep_partial = call.flags.is_on(&transfer::KEEP_PARTIAL);
    if let Some(downloads) = count(call.flags.text(&transfer::DOWNLOADS), "downloads")? {
        options.downloads = downloads;
    }
    let platform = call.flags.text(&transfer::PLATFORM);
    if !platform.is_empty() {
        options.platform = platform.parse()?;
    }
    // Before anything is pulled.
    for image in &call.args {
        options.registry.registries_conf.resolve_ref(image)?;
    }
    let names = call.flags.list(&transfer::NAME);
    if !names.is_empty() && call.args.len() > 1 {
        return Err("--name goes with one image only".into());
    }
    let puller = Puller::new(call.store()?, options);
    let pulls = call.args.iter().cloned().map(|image| {
        let (puller, names) = (puller.clone(), names.to_vec());
        tokio::spawn(async move {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let names = (!names.is_empty()).then_some(&names[..]);
            puller.pull_by_name(&image, names).await
        })
    });
    let pulls: Vec<_> = pulls.collect();
    let mut results = Vec::new();
    for pull in pulls {
        results.push(match pull.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        });
    }
    let mut failed = false;
    for result in results {
        match result {
            Ok(_) if call.json() => {}
            Ok(pulled) => out.line(pulled.image.id())?,
            Err(error) => {
                failed = true;
                out.stderr_line(format!("{}: {}", call.name, describe(&error)))?;
            }
        }
    }
    if failed { FAILED } else { DONE }
}

/// Pushes one image and prints the digest of its manifest at the destination.
pub(crate) async fn push(call: &Call, out: &mut Output) -> Outcome {
    let level = call.flags.text(&transfer::LEVEL);
    let level: Option<i32> = match level.parse() {
        _ if level.is_empty() => None,
        Ok(level) => Some(level),
        Err(_reason) => return Err(format!("--compression-level {level}: not a number").into()),
    };
    let options = PushOptions::default()
        .registry(registry_options(call).await?)
        .progress(progress(call))
        .compression(compression(call.flags.text(&transfer::COMPRESSION))?)
        .level(level);
    let to: ImageRef = call.arg(1).parse()?;
    let pushed = push_image(call.store()?, call.arg(0), &to, options).await?;
    if !call.json() {
        out.line(pushed.manifest.as_str())?;
    }
    if pushed.has_signatures {
        out.stderr_line("the signatures of the image are not pushed")?;
    }
    DONE
}
