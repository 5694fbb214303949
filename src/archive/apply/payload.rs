//! Writing a payload to its file, straight from the chunks in which it came.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use crate::archive::apply::holes::{HoleWriter, MIN_HOLE};
use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::error::{IoContext as _, Result};

/// Writes a payload to a new file, with holes where a sparse file has them and in the place of long runs of zeros; or only reads it, if the file has it already.
pub(crate) fn write_payload<S: ChunkSource>(
    entry: &Entry,
    file: Option<&File>,
    reader: &mut TarReader<S>,
    mut recorder: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let doing = "writing a file";
    let (Some(map), Some(file)) = (&entry.sparse, file) else {
        let mut holes = file
            .filter(|_| entry.size >= MIN_HOLE as u64)
            .map(HoleWriter::new);
        while let Some(piece) = reader.payload()? {
            match (&mut holes, file) {
                (Some(holes), _) => holes.write(&piece).during(doing)?,
                (None, Some(mut file)) => file.write_all(&piece).during(doing)?,
                (None, None) => {}
            }
            recorder(&piece)?;
        }
        return holes.map_or(Ok(()), HoleWriter::finish).during(doing);
    };
    file.set_len(entry.size).during("making a sparse file")?;
    let mut fragments = map.iter().copied();
    let mut fragment = crate::archive::tar::sparse::Fragment { offset: 0, length: 0 };
    while let Some(piece) = reader.payload()? {
        recorder(&piece)?;
        let mut rest: &[u8] = &piece;
        while !rest.is_empty() {
            if fragment.length == 0 {
                let Some(next) = fragments.next() else { break };
                fragment = next;
                continue;
            }
            let count = rest
                .len()
                .min(usize::try_from(fragment.length).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at(count);
            file.write_all_at(now, fragment.offset).during(doing)?;
            fragment.offset += count as u64;
            fragment.length -= count as u64;
            rest = later;
        }
    }
    Ok(())
}
