//! Layers compared (`changes`, `diffsize`), their diffs as tar streams (`diff`, `applydiff`), and a directory as the content
//! of a layer (`applydiff-using-staging-dir`).

use std::sync::Arc;

use graphroot::chunked::pack_directory;
use graphroot::{
    ChangeKind, ChunkedDiffer, Compression, DiffOptions, LayerOptions, PartialPullOptions, StagingOptions,
};
use tokio::io::AsyncReadExt as _;

use crate::call::Call;
use crate::flags::{BZIP2, GZIP, UNCOMPRESSED, XZ, file};
use crate::input::{Input, bar};
use crate::outcome::{DONE, Outcome, stream_failure};
use crate::output::{DataOutput, Output};
use crate::text::go_quote;

/// Size of the buffer between the diff and the output.
const CHUNK: usize = 128 * 1024;

pub(crate) async fn changes(call: &Call, out: &mut Output) -> Outcome {
    use std::os::unix::ffi::OsStrExt as _;
    let changes = call.store()?.changes(call.optional(1), call.arg(0)).await?;
    if call.json() {
        out.json_or_null(&changes)?;
        return DONE;
    }
    for change in changes {
        let what = match change.kind {
            ChangeKind::Add => "Add",
            ChangeKind::Modify => "Modify",
            ChangeKind::Delete => "Delete",
        };
        out.line(format!("{what} {}", go_quote(change.path.as_os_str().as_bytes())))?;
    }
    DONE
}

pub(crate) async fn size(call: &Call, out: &mut Output) -> Outcome {
    let size = call.store()?.diff_size(call.optional(1), call.arg(0)).await?;
    out.line(size.to_string())?;
    DONE
}

pub(crate) async fn diff(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let path = call.flags.text(&file::INSTEAD_OF_STDOUT);
    let mut output = DataOutput::new(path, out)?;
    let wanted = [
        (&XZ, Compression::Xz),
        (&BZIP2, Compression::Bzip2),
        (&GZIP, Compression::Gzip),
        (&UNCOMPRESSED, Compression::None),
    ];
    let mut options = DiffOptions::default();
    options.compression = wanted
        .iter()
        .find(|(flag, _)| call.flags.is_on(flag))
        .map(|(_, compression)| *compression);
    let mut diff = store.diff(call.optional(1), call.arg(0), options).await?;
    let progress = bar(None, if path.is_empty() { "Reading" } else { "Writing" });
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        chunk.clear();
        let count = diff.read_buf(&mut chunk).await.map_err(stream_failure)?;
        if count == 0 {
            break;
        }
        progress.inc(count as u64);
        output.write(&chunk)?;
    }
    progress.finish_and_clear();
    DONE
}

pub(crate) async fn apply(call: &Call, _out: &mut Output) -> Outcome {
    let diff = Input::open(call, &file::INSTEAD_OF_STDIN, "Applying")?;
    call.store()?.apply_diff(call.arg(0), diff).await?;
    DONE
}

pub(crate) async fn apply_staged(call: &Call, _out: &mut Output) -> Outcome {
    let store = call.store()?;
    let packed = pack_directory(call.arg(1)).await?;
    if !PartialPullOptions::new(store.pull_options()).enable_partial_images {
        return Err("partial images are disabled".to_owned().into());
    }
    let size = packed.blob.size();
    let differ = ChunkedDiffer::open(store, &packed.annotations, size, Arc::new(packed.blob)).await?;
    let staged = store
        .prepare_staged_layer(StagingOptions::default(), differ)
        .await?;
    let options = LayerOptions::default().id(call.arg(0));
    store.apply_staged_layer(None, options, staged).await?;
    DONE
}
