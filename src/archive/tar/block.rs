//! Text fields and checksum of a USTAR header block, as the Go library fills them in.

use tar_core::{EntryType, Header};

use crate::archive::path;

/// Longest name and link target in a block.
pub(super) const NAME: usize = 100;
/// Longest prefix in a block.
const PREFIX: usize = 155;

/// Printable for a header block: no bytes beyond ASCII, no NUL.
pub(super) fn is_plain(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii() && *byte != 0)
}

/// Where the slash is at which a long name is split into prefix and name; `None` if it cannot be.
pub(super) fn split_at(name: &[u8]) -> Option<usize> {
    let searched = if name.len() > PREFIX + 1 {
        name.get(..=PREFIX)?
    } else {
        name.strip_suffix(b"/").unwrap_or(name)
    };
    let slash = searched.iter().rposition(|byte| *byte == b'/')?;
    let rest = name.len() - slash - 1;
    (slash > 0 && slash <= PREFIX && rest > 0 && rest <= NAME).then_some(slash)
}

/// Copies what a text field can hold: ASCII only, cut off. No cut-off name ends in a slash, which would make a
/// directory of it for readers that do not know pax.
pub(super) fn put_text(field: &mut [u8; NAME], text: &[u8]) {
    let length = text.iter().filter(|byte| byte.is_ascii() && **byte != 0).count();
    let plain = text.iter().filter(|byte| byte.is_ascii() && **byte != 0);
    for (to, from) in field.iter_mut().zip(plain) {
        *to = *from;
    }
    if length > NAME {
        for byte in field.iter_mut().rev().take_while(|byte| **byte == b'/') {
            *byte = 0;
        }
    }
}

/// Fills in what every block has, and the checksum.
pub(super) fn seal(header: &mut Header, kind: EntryType) {
    header.set_entry_type(kind);
    let sum = format!("{:06o}\0 ", header.compute_checksum());
    if let Some(sum) = sum.as_bytes().first_chunk::<8>() {
        header.as_ustar_mut().cksum = *sum;
    }
}

/// The name of the block that carries the pax records of `name`.
pub(super) fn pax_name(name: &[u8]) -> Vec<u8> {
    // A directory's own name counts as the directory here.
    let (dir, base) = match name.strip_suffix(b"/") {
        Some(dir) => (dir, &[][..]),
        None => path::split(name),
    };
    let mut pax = dir.to_vec();
    path::push(&mut pax, b"PaxHeaders.0");
    if !base.is_empty() {
        path::push(&mut pax, base);
    }
    pax.retain(|byte| byte.is_ascii() && *byte != 0);
    pax.truncate(NAME);
    while pax.last() == Some(&b'/') {
        pax.pop();
    }
    pax
}
