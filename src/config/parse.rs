//! Parsing one file into assignments to known keys. Pure.
//!
//! The `toml` crate parses TOML; its tree has the position of each key in the text. Types are as strict as in the
//! Go library: a file with a value of the wrong type stops every program that reads it.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::keys::{Key, Kind, PULL_OPTIONS, REMOVED_TABLES, Role, TABLES};
use crate::config::value::{Origin, Warning, quoted};
use crate::error::{ErrorKind, Result};

/// The content of one file.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) assignments: Vec<Assignment>,
    /// Pull options, and where each is set.
    pub(super) pull_options: Vec<(String, String, Origin)>,
    /// Whether the table of pull options is there, if only empty.
    pub(super) has_pull_options: bool,
    pub(super) warnings: Vec<Warning>,
}

/// One key set to a value of the type that it holds.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) key: &'static Key,
    pub(super) value: Content,
    pub(super) origin: Origin,
}

/// A value as TOML has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Text(String),
    Switch(bool),
    Count(u32),
    /// With what the list says about appending, if it does.
    List(Vec<(String, Origin)>, Option<bool>),
}

/// Reads the text of the file `path`.
pub(super) fn parse(path: &Path, text: &str) -> Result<Parsed> {
    let mut reader = Reader {
        path,
        text,
        parsed: Parsed::default(),
    };
    let root = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = reader.line(at);
        let problem = error.message().trim().replace('\n', ", ");
        ErrorKind::InvalidInput
            .err(format!("line {line}: not valid TOML: {problem}"))
            .context("reading storage configuration")
            .at(path)
    })?;
    reader.table("", root.get_ref())?;
    Ok(reader.parsed)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    parsed: Parsed,
}

impl Reader<'_> {
    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    fn origin(&self, offset: usize) -> Origin {
        Origin::file(self.path, self.line(offset))
    }

    fn warn(&mut self, origin: Origin, key: String, message: &str) {
        self.parsed.warnings.push(Warning::new(origin, key, message));
    }

    /// Reads a table whose name is `path` (empty for the whole file).
    fn table(&mut self, path: &str, table: &DeTable<'_>) -> Result<()> {
        let mut entries: Vec<_> = table.iter().collect();
        // In the order of the file; but of several spellings of one key the exact one comes last and so counts.
        entries.sort_by_key(|(key, _)| {
            let exact =
                Key::find(path, key.get_ref()).is_none_or(|known| known.last() == key.get_ref().as_ref());
            (exact, key.span().start)
        });
        for (key, value) in entries {
            self.entry(path, key.get_ref(), self.origin(key.span().start), value)?;
        }
        Ok(())
    }

    fn entry(&mut self, table: &str, name: &str, origin: Origin, value: &Spanned<DeValue<'_>>) -> Result<()> {
        let dotted = if table.is_empty() {
            name.to_owned()
        } else {
            format!("{table}.{name}")
        };
        if let Some(key) = Key::find(table, name) {
            return self.assign(key, origin, value);
        }
        let same = |known: &&&'static str| known.eq_ignore_ascii_case(&dotted);
        if let Some(known) = TABLES.iter().find(same) {
            return match value.get_ref() {
                DeValue::Table(inner) if *known == PULL_OPTIONS => self.pull_options(inner),
                DeValue::Table(inner) => self.table(known, inner),
                // Compat: of all tables this one the Go library passes over if it is none.
                _ if *known == PULL_OPTIONS => {
                    self.warn(origin, dotted, "ignored, because it is not a table");
                    Ok(())
                }
                other => Err(origin.error(known, "a table", &describe(other))),
            };
        }
        if REMOVED_TABLES
            .iter()
            .any(|removed| removed.eq_ignore_ascii_case(&dotted))
        {
            if !value.get_ref().as_table().is_some_and(DeTable::is_empty) {
                self.warn(origin, dotted, "ignored: this driver was removed");
            }
            return Ok(());
        }
        let what = match value.get_ref() {
            DeValue::Table(_) => "unknown table, ignored",
            _ => "unknown key, ignored",
        };
        self.warn(origin, dotted, what);
        Ok(())
    }

    fn assign(&mut self, key: &'static Key, origin: Origin, value: &Spanned<DeValue<'_>>) -> Result<()> {
        let removed = key.kind == Kind::Ranges || key.name.starts_with("storage.options.remap-");
        let value = match self.content(key, &origin, value) {
            Ok(value) => value,
            // It has no effect any more, and other programs accept it.
            Err(_wrong_type) if removed => {
                self.warn(origin, key.name.to_owned(), "removed, and not a text: ignored");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Role::Idle(why) = key.role {
            self.warn(origin.clone(), key.name.to_owned(), why);
        }
        self.parsed.assignments.push(Assignment { key, value, origin });
        Ok(())
    }

    fn content(&self, key: &Key, origin: &Origin, value: &Spanned<DeValue<'_>>) -> Result<Content> {
        let wrong = |expected: &str| origin.error(key.name, expected, &describe(value.get_ref()));
        match (key.kind, value.get_ref()) {
            (Kind::Switch, DeValue::Boolean(switch)) => Ok(Content::Switch(*switch)),
            (Kind::Switch, _) => Err(wrong("true or false without quotes")),
            (Kind::Count, DeValue::Integer(number)) => u32::from_str_radix(number.as_str(), number.radix())
                .map(Content::Count)
                .map_err(|_out_of_range| wrong("an integer from 0 to 4294967295")),
            (Kind::Count, _) => Err(wrong("an integer from 0 to 4294967295")),
            (Kind::List | Kind::Directories, DeValue::Array(elements)) => self.list(key, elements),
            (Kind::List | Kind::Directories, _) => Err(wrong("an array of strings")),
            (Kind::TextSwitch, DeValue::Boolean(switch)) => {
                Err(wrong(&format!("a string (\"{switch}\", in quotes)")))
            }
            (_, DeValue::String(text)) => Ok(Content::Text(text.clone().into_owned())),
            _ => Err(wrong("a string")),
        }
    }

    fn list(&self, key: &Key, elements: &[Spanned<DeValue<'_>>]) -> Result<Content> {
        let (mut texts, mut append) = (Vec::new(), None);
        for element in elements {
            let origin = self.origin(element.span().start);
            let wrong = || {
                let expected = "strings, and at most { append = true } or { append = false }";
                origin.error(key.name, expected, &describe(element.get_ref()))
            };
            match element.get_ref() {
                DeValue::String(text) => texts.push((text.clone().into_owned(), origin)),
                DeValue::Table(attributes) => {
                    for (name, value) in attributes {
                        match (name.get_ref().as_ref(), value.get_ref()) {
                            ("append", DeValue::Boolean(switch)) => append = Some(*switch),
                            _ => return Err(wrong()),
                        }
                    }
                }
                _ => return Err(wrong()),
            }
        }
        Ok(Content::List(texts, append))
    }

    fn pull_options(&mut self, table: &DeTable<'_>) -> Result<()> {
        self.parsed.has_pull_options = true;
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let (name, origin) = (key.get_ref().as_ref(), self.origin(key.span().start));
            let DeValue::String(text) = value.get_ref() else {
                let dotted = format!("{PULL_OPTIONS}.{name}");
                return Err(origin.error(&dotted, "a string (in quotes)", &describe(value.get_ref())));
            };
            let text = text.clone().into_owned();
            self.parsed.pull_options.push((name.to_owned(), text, origin));
        }
        Ok(())
    }
}

/// A value for a message.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {}", quoted(text)),
        DeValue::Integer(number) => format!("the integer {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(switch) => format!("{switch} without quotes"),
        DeValue::Datetime(time) => format!("the date {time}"),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}
