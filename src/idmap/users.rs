//! Files that tell of users: `/etc/passwd`, `/etc/group`, `/etc/subuid` and `/etc/subgid`. Pure.

use crate::error::{ErrorKind, Result};
use crate::idmap::IdMap;

/// Who owns nothing: most images have it, and its ID is not counted.
const NOBODY: u32 = 65534;

/// A file with users or groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserFile {
    /// `NAME:PASSWORD:UID:GID:…`
    Passwd,
    /// `NAME:PASSWORD:GID:…`
    Group,
}

/// How many IDs from 0 on the users or groups of a file need. Lines without a number need none, as in the Go library.
pub(crate) fn ids_needed(text: &[u8], kind: UserFile) -> u32 {
    let numbers = match kind {
        UserFile::Passwd => 2..4,
        UserFile::Group => 2..3,
    };
    let mut needed = 0;
    for line in text.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.trim_ascii().split(|byte| *byte == b':').collect();
        if matches!(fields.first(), Some(&(b"nobody" | b"nogroup"))) {
            continue;
        }
        for field in fields
            .get(numbers.clone())
            .or(fields.get(2..))
            .unwrap_or_default()
        {
            let number = std::str::from_utf8(field)
                .ok()
                .and_then(|field| field.trim().parse::<u32>().ok());
            // The last ID stands for none.
            if let Some(id) = number.filter(|id| *id != NOBODY && *id != u32::MAX) {
                needed = needed.max(id + 1);
            }
        }
    }
    needed
}

/// The user ID of a name in a file like `/etc/passwd`.
pub(crate) fn user_number(passwd: &str, name: &str) -> Option<String> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2).map(str::to_owned)
}

/// The name of a user ID in a file like `/etc/passwd`.
pub(crate) fn user_name(passwd: &str, number: u32) -> Option<String> {
    let is_it = |line: &&str| line.split(':').nth(2).is_some_and(|id| id.parse() == Ok(number));
    let line = passwd.lines().find(is_it)?;
    line.split(':').next().map(str::to_owned)
}

/// The ranges that a file such as `/etc/subuid` at `path` grants to a user, by name or by `number`, mapped consecutively
/// from container ID 0 on. The user `ALL` takes the ranges of every user, as in the Go library.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a line that is not of the form `USER:FIRST:COUNT`, or more IDs than there are.
pub(crate) fn sub_ids(text: &str, path: &str, user: &str, number: Option<&str>) -> Result<Vec<IdMap>> {
    let mut ranges = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fields: Vec<&str> = line.split(':').collect();
        let [owner, start, count] = fields[..] else {
            let what = format!(
                "cannot parse subuid/gid information: Format not correct for {path} file: the line {line:?} is not of the form USER:FIRST:COUNT"
            );
            return Err(ErrorKind::InvalidInput.err(what));
        };
        let is_number = !owner.is_empty() && Some(owner) == number;
        if owner != user && !is_number && user != "ALL" {
            continue;
        }
        let parse = |field: &str| {
            field.parse::<u32>().map_err(|_bad| {
                ErrorKind::InvalidInput.err(format!(
                    "string to int conversion failed during subuid/gid parsing of {path}: no number in the line {line:?}"
                ))
            })
        };
        ranges.push((parse(start)?, parse(count)?));
    }
    ranges.sort_unstable();
    let mut next = 0_u32;
    let mut maps = Vec::with_capacity(ranges.len());
    for (start, count) in ranges {
        maps.push(IdMap::new(next, start, count));
        next = next.checked_add(count).ok_or_else(|| {
            ErrorKind::InvalidInput.err(format!("{path}: more than 32 bits of IDs for {user}"))
        })?;
    }
    Ok(maps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_id_counts_but_nobodys() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001::/:\nnobody:x:65534:65534::/:\nother:x:65534:1::/:\n";
        assert_eq!(ids_needed(passwd, UserFile::Passwd), 1002);
        assert_eq!(ids_needed(b"root:x:0:\nstaff:x:50:70000\n", UserFile::Group), 51);
        assert_eq!(ids_needed(b"a:x:5:0\nb:x:6:0\n", UserFile::Passwd), 7);
        let odd =
            b"\n:::\nshort:x:7\n#x:y:z\n\xff:x:8:9\nhuge:x:99999999999999999999:4294967295\nneg:x:-1:-2\n";
        assert_eq!(ids_needed(odd, UserFile::Passwd), 10);
        assert_eq!(ids_needed(b"", UserFile::Group), 0);
    }

    #[test]
    fn ranges_are_those_of_the_user_in_order() {
        let text = "# comment\n\n storage:200000:10 \nother:5:5\nstorage:1000:20\n1001:7:1\n";
        let found = |user, number| sub_ids(text, "/etc/subuid", user, number).unwrap();
        let map = IdMap::new;
        assert_eq!(found("storage", None), [map(0, 1000, 20), map(20, 200_000, 10)]);
        assert_eq!(found("nobody", Some("1001")), [map(0, 7, 1)]);
        assert_eq!(found("ALL", None).len(), 4);
        assert_eq!(found("nosuch", None), []);
        for (bad, text) in [
            ("a:1", "Format not correct for /etc/subuid file"),
            (
                "user:1:x",
                "string to int conversion failed during subuid/gid parsing of /etc/subuid",
            ),
            ("user:-1:5", "string to int conversion failed"),
            ("user:1:4294967295\nuser:2:1", "more than 32 bits"),
        ] {
            let error = sub_ids(bad, "/etc/subuid", "user", None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.chain().contains(text), "{}", error.chain());
        }
    }

    #[test]
    fn names_and_numbers_of_users() {
        let passwd = "root:x:0:0\nuser:x:1000:1000\n";
        assert_eq!(user_number(passwd, "user").as_deref(), Some("1000"));
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("user"));
        assert_eq!((user_number(passwd, "x"), user_name(passwd, 7)), (None, None));
    }
}
