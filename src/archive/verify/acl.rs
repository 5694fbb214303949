//! What an access control list says of a file's permissions. Pure.

/// The attribute of an ACL.
pub(super) const ACCESS_ACL: &str = "system.posix_acl_access";

/// The entries of an ACL: a tag, permissions, an ID.
fn entries(value: &[u8]) -> impl Iterator<Item = &[u8; 8]> {
    // The version comes before them.
    value.get(4..).unwrap_or_default().as_chunks().0.iter()
}

/// The tags of the owner, the group, the mask and all others.
const OWNER: u16 = 1;
const GROUP: u16 = 4;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

fn tag_of(entry: &[u8; 8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

/// Whether an entry stands for bits of the mode.
fn is_of_mode(entry: &[u8; 8]) -> bool {
    matches!(tag_of(entry), OWNER | GROUP | MASK | OTHERS)
}

/// Whether an ACL says nothing but a mode, and so becomes one.
pub(super) fn is_minimal(value: &[u8]) -> bool {
    entries(value).all(|entry| matches!(tag_of(entry), OWNER | GROUP | OTHERS))
}

/// Whether an ACL is another one after a change of the mode, which changes it too.
pub(super) fn is_same_but_for_mode(before: &[u8], now: &[u8], mode: u32) -> bool {
    let mut pairs = entries(before).zip(entries(now));
    before.len() == now.len()
        && self::mode(now) == Some(mode & 0o777)
        && pairs.all(|(before, now)| before == now || is_of_mode(before) && tag_of(before) == tag_of(now))
}

/// The permissions that an ACL gives a file.
pub(super) fn mode(value: &[u8]) -> Option<u32> {
    let of = |tag| {
        let entry = entries(value).find(|entry| tag_of(entry) == tag)?;
        Some(u32::from(entry[2] & 7))
    };
    Some(of(OWNER)? << 6 | of(MASK).or_else(|| of(GROUP))? << 3 | of(OTHERS)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(list: &[(u16, u8)]) -> Vec<u8> {
        let entry = |(tag, permissions): &(u16, u8)| {
            [&tag.to_le_bytes()[..], &[*permissions, 0], &[0xff; 4]].concat()
        };
        [vec![2, 0, 0, 0], list.iter().flat_map(entry).collect()].concat()
    }

    #[test]
    fn an_acl_gives_permissions() {
        let minimal = acl(&[(OWNER, 6), (GROUP, 4), (OTHERS, 0)]);
        assert_eq!((mode(&minimal), is_minimal(&minimal)), (Some(0o640), true));
        let full = acl(&[(OWNER, 7), (2, 6), (GROUP, 4), (MASK, 5), (OTHERS, 1)]);
        assert_eq!((mode(&full), is_minimal(&full)), (Some(0o751), false));
        for bad in [&b""[..], b"\x02\0\0\0", b"\x02\0\0\0\x01"] {
            assert_eq!(mode(bad), None);
        }
    }

    #[test]
    fn a_change_of_the_mode_changes_an_acl() {
        let list = |mask, user| acl(&[(OWNER, 7), (2, user), (GROUP, 4), (MASK, mask), (OTHERS, 1)]);
        assert!(is_same_but_for_mode(&list(5, 6), &list(7, 6), 0o100_771));
        assert!(!is_same_but_for_mode(&list(5, 6), &list(7, 6), 0o751));
        assert!(!is_same_but_for_mode(&list(5, 6), &list(7, 7), 0o771));
        assert!(!is_same_but_for_mode(&list(5, 6), &acl(&[]), 0));
    }
}
