//! eStargz: gzip members of single files, and at the end one with a tar of the table of contents, behind which an empty
//! member says where that is.

/// Bytes of the footer: a gzip member of nothing, whose extra field has the offset of the table.
pub(crate) const FOOTER: usize = 51;

/// The same before the extra field had a subfield of its own.
const OLD_FOOTER: usize = 47;

/// gzip, deflate, with an extra field.
const HEAD: [u8; 4] = [0x1f, 0x8b, 8, 4];

/// Length of the extra field, name and length of its subfield.
const EXTRA: [u8; 6] = [26, 0, b'S', b'G', 22, 0];
const OLD_EXTRA: [u8; 2] = [22, 0];

/// What follows the 16 digits of the offset.
const NAME: &[u8] = b"STARGZ";

/// Where in the blob the table of contents begins, by its last bytes; `None` if they are no footer.
pub(crate) fn toc_offset(end: &[u8]) -> Option<u64> {
    let in_footer = |size: usize, extra: &[u8]| {
        let footer = end.get(end.len().checked_sub(size)?..)?;
        let (head, rest) = footer.split_at_checked(10)?;
        let text = rest.strip_prefix(extra)?;
        let (digits, rest) = text.split_at_checked(16)?;
        let is_footer =
            head.starts_with(&HEAD) && rest.starts_with(NAME) && digits.iter().all(u8::is_ascii_hexdigit);
        let digits = std::str::from_utf8(digits).ok().filter(|_| is_footer)?;
        u64::from_str_radix(digits, 16).ok()
    };
    in_footer(FOOTER, &EXTRA).or_else(|| in_footer(OLD_FOOTER, &OLD_EXTRA))
}

/// How long the footer is that ends these bytes.
pub(crate) fn footer_length(end: &[u8]) -> usize {
    let start = end.len().saturating_sub(FOOTER);
    match end
        .get(start..)
        .is_some_and(|footer| footer.starts_with(&HEAD) && footer.get(10..16) == Some(&EXTRA))
    {
        true => FOOTER,
        false => OLD_FOOTER,
    }
}
