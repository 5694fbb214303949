//! Labels, and the pair of them that a container gets.

use std::fmt;

use crate::error::{ErrorKind, Result};
use crate::selinux::levels::{Levels, PRIVATE};

/// Compat: what the Go library says of an option that it does not know.
const VALID: &str =
    "valid options 'disable' or \n'user, role, level, type, filetype' followed by ':' and a value";

/// A label: `USER:ROLE:TYPE`, or `USER:ROLE:TYPE:LEVEL`, where the level may have colons too.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    /// Empty: it has none.
    level: String,
}

impl Label {
    fn parse(text: &str) -> Result<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(user), Some(role), Some(kind)) => Ok(Self {
                user,
                role,
                kind,
                level: parts.next().unwrap_or_default(),
            }),
            _ => Err(ErrorKind::InvalidInput.err(format!("invalid Label {text:?}"))),
        }
    }

    fn with_level(mut self, level: &str) -> Self {
        level.clone_into(&mut self.level);
        self
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            user,
            role,
            kind,
            level,
        } = self;
        write!(f, "{user}:{role}:{kind}")?;
        match level.is_empty() {
            true => Ok(()),
            false => write!(f, ":{level}"),
        }
    }
}

/// The labels of a container. Empty is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LabelPair {
    /// Of its processes.
    pub(crate) process: String,
    /// Of its files.
    pub(crate) mount: String,
}

/// The labels that a policy has for containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    process: String,
    file: String,
}

impl Policy {
    /// Reads a file like `/etc/selinux/TYPE/contexts/lxc_contexts`: lines `KEY = "VALUE"`, comments with `#` or `;`. The last
    /// line of a key counts. Anything else is passed over.
    pub(crate) fn parse(text: &str) -> Self {
        let mut policy = Self::default();
        for line in text.lines().map(str::trim) {
            if line.starts_with(['#', ';']) {
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let value = value.trim().trim_matches('"').to_owned();
            match key.trim() {
                "process" => policy.process = value,
                "file" => policy.file = value,
                _ => {}
            }
        }
        policy
    }

    /// The label of files that only unconfined processes may use; empty if the policy has none.
    pub(crate) fn private_files(&self) -> String {
        self.files(PRIVATE)
    }

    /// The label of files that the processes of every container may use; empty if the policy has none.
    pub(crate) fn shared_files(&self) -> String {
        match self.process.is_empty() {
            true => self.file.clone(),
            false => self.files("s0"),
        }
    }

    fn files(&self, level: &str) -> String {
        Label::parse(&self.file)
            .map(|label| label.with_level(level).to_string())
            .unwrap_or_default()
    }

    /// The labels of a new container: a level that `levels` do not have, then the caller's options in their order. `random`
    /// chooses the level.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an option that is unknown, or a policy with a label that is none;
    /// [`ErrorKind::NotSupported`] if every level is in use.
    pub(crate) fn label(&self, options: &[String], levels: &Levels, random: u32) -> Result<LabelPair> {
        let unconfined = || LabelPair {
            process: String::new(),
            mount: self.private_files(),
        };
        if options.first().is_some_and(|option| option == "disable") {
            return Ok(unconfined());
        }
        if self.process.is_empty() || self.file.is_empty() {
            return Ok(LabelPair {
                process: String::new(),
                mount: self.file.clone(),
            });
        }
        let (mut process, mut mount) = (Label::parse(&self.process)?, Label::parse(&self.file)?);
        if !process.level.is_empty() {
            let level = levels.unused(random).ok_or_else(|| {
                ErrorKind::NotSupported.err("another container: every pair of SELinux categories is in use")
            })?;
            process = process.with_level(&level);
            mount = mount.with_level(&level);
        }
        for option in options {
            if option == "disable" {
                return Ok(unconfined());
            }
            let invalid = || ErrorKind::InvalidInput.err(format!("bad label option {option:?}, {VALID}"));
            let (key, value) = option.split_once(':').ok_or_else(invalid)?;
            let value = || value.to_owned();
            match key {
                "user" => (process.user, mount.user) = (value(), value()),
                "role" => process.role = value(),
                "type" => process.kind = value(),
                "filetype" => mount.kind = value(),
                "level" => (process.level, mount.level) = (value(), value()),
                _ => return Err(invalid()),
            }
        }
        Ok(LabelPair {
            process: process.to_string(),
            mount: mount.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXTS: &str = "# a comment\n; another\n\nprocess = \"system_u:system_r:container_t:s0\"\n\
                            content = \"system_u:object_r:virt_var_lib_t:s0\"\nno value\n\
                            file=system_u:object_r:container_file_t:s0\nro_file = \"u:r:ro_t:s0\"\n";

    fn label(policy: &Policy, options: &[&str]) -> Result<LabelPair> {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        policy.label(&options, &Levels::default(), 0)
    }

    #[test]
    fn the_labels_of_a_container_follow_the_policy_and_the_options() {
        let policy = Policy::parse(CONTEXTS);
        let cases: [(&[&str], &str, &str); 12] = [
            (
                &[],
                "system_u:system_r:container_t:s0:c0,c1",
                "system_u:object_r:container_file_t:s0:c0,c1",
            ),
            (
                &["disable"],
                "",
                "system_u:object_r:container_file_t:s0:c1022,c1023",
            ),
            (
                &["type:spc_t", "disable"],
                "",
                "system_u:object_r:container_file_t:s0:c1022,c1023",
            ),
            (
                &["disable", "nonsense"],
                "",
                "system_u:object_r:container_file_t:s0:c1022,c1023",
            ),
            (
                &["type:spc_t"],
                "system_u:system_r:spc_t:s0:c0,c1",
                "system_u:object_r:container_file_t:s0:c0,c1",
            ),
            (
                &["filetype:usr_t"],
                "system_u:system_r:container_t:s0:c0,c1",
                "system_u:object_r:usr_t:s0:c0,c1",
            ),
            (
                &["role:a_r"],
                "system_u:a_r:container_t:s0:c0,c1",
                "system_u:object_r:container_file_t:s0:c0,c1",
            ),
            (
                &["user:a_u"],
                "a_u:system_r:container_t:s0:c0,c1",
                "a_u:object_r:container_file_t:s0:c0,c1",
            ),
            (
                &["level:s0:c1,c2"],
                "system_u:system_r:container_t:s0:c1,c2",
                "system_u:object_r:container_file_t:s0:c1,c2",
            ),
            (
                &["level:s0"],
                "system_u:system_r:container_t:s0",
                "system_u:object_r:container_file_t:s0",
            ),
            (
                &["level:"],
                "system_u:system_r:container_t",
                "system_u:object_r:container_file_t",
            ),
            (
                &[
                    "level:s0:c5",
                    "type:a_t",
                    "type:b_t",
                    "filetype:",
                    "level:s1-s2:c3",
                ],
                "system_u:system_r:b_t:s1-s2:c3",
                "system_u:object_r::s1-s2:c3",
            ),
        ];
        for (options, process, mount) in cases {
            let found = label(&policy, options).unwrap();
            assert_eq!((&*found.process, &*found.mount), (process, mount), "{options:?}");
        }
        assert_eq!(policy.shared_files(), "system_u:object_r:container_file_t:s0");
        assert_eq!(
            policy.private_files(),
            "system_u:object_r:container_file_t:s0:c1022,c1023"
        );
    }

    #[test]
    fn an_option_that_is_unknown_is_refused_with_the_words_of_the_go_library() {
        let policy = Policy::parse(CONTEXTS);
        for option in ["nested", "nonsense:x", "type", "", ":", "Type:x"] {
            let error = label(&policy, &["type:a_t", option]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{option:?}");
            let text = format!("bad label option {option:?}, valid options 'disable' or \n'user, role,");
            assert!(error.chain().contains(&text), "{}", error.chain());
        }
    }

    #[test]
    fn a_policy_without_labels_for_containers_gives_none() {
        let none = Policy::parse("process = \"a:b:c:s0\"\n");
        assert_eq!(label(&none, &["type:x"]).unwrap(), LabelPair::default());
        assert_eq!(
            (none.shared_files(), none.private_files()),
            (String::new(), String::new())
        );
        // Only of files: options are not looked at.
        let files = Policy::parse("file = \"a:b:c:s0\"\n");
        let found = label(&files, &["nonsense"]).unwrap();
        assert_eq!((&*found.process, &*found.mount), ("", "a:b:c:s0"));
        assert_eq!(files.shared_files(), "a:b:c:s0");
        // A policy without levels.
        let plain = Policy::parse("process = a:b:c\nfile = a:b:d\nfile = \"a:b:e\"");
        let found = label(&plain, &[]).unwrap();
        assert_eq!((&*found.process, &*found.mount), ("a:b:c", "a:b:e"));
        let broken = Policy::parse("process = a:b\nfile = a:b:d");
        assert_eq!(label(&broken, &[]).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
