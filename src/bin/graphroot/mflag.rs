//! The flag grammar of containers-storage.
//!
//! clap cannot parse it: parsing stops at the first argument that is not a flag, `-json` is tried as one name and then as
//! the letters `-j -s -o -n`, a boolean takes a value only after `=`, a value may be in quotes, and an unknown flag gives
//! exit code 125 after the command's name and 1 before it. Scripts rely on it, so it is implemented in full.
//!
//! The parser does no I/O: it returns its messages in the order in which they are printed.

use std::collections::VecDeque;

/// What value a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagKind {
    /// None, or a boolean after `=`.
    Bool,
    /// One text; the last occurrence wins.
    Text,
    /// One text for each occurrence.
    List,
}

/// A flag of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    /// All names, each without its first dash; a name with a `#` before it is deprecated and not shown.
    pub(crate) names: &'static [&'static str],
    pub(crate) kind: FlagKind,
    /// The value if the flag is not given.
    pub(crate) default: &'static str,
    pub(crate) usage: &'static str,
}

impl Flag {
    /// A flag that is on or off.
    pub(crate) const fn bool(names: &'static [&'static str], usage: &'static str) -> Self {
        Self {
            names,
            kind: FlagKind::Bool,
            default: "",
            usage,
        }
    }

    /// A flag with a text.
    pub(crate) const fn text(names: &'static [&'static str], usage: &'static str) -> Self {
        Self {
            names,
            kind: FlagKind::Text,
            default: "",
            usage,
        }
    }

    /// A flag that may be given several times.
    pub(crate) const fn list(names: &'static [&'static str], usage: &'static str) -> Self {
        Self {
            names,
            kind: FlagKind::List,
            default: "",
            usage,
        }
    }

    /// Sets the default of a flag with a text.
    pub(crate) const fn or(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    /// All names without `#`, each without its first dash.
    pub(crate) fn spellings(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().map(|name| name.trim_start_matches('#'))
    }
}

/// The value of a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FlagValue {
    Bool(bool),
    Text(String),
    List(Vec<String>),
}

impl FlagValue {
    /// The default in the usage; empty if none is shown.
    fn shown(&self) -> String {
        match self {
            Self::Bool(false) => String::new(),
            Self::Bool(true) => "true".into(),
            Self::Text(text) if text == "0" || text == "false" => String::new(),
            Self::Text(text) => text.clone(),
            Self::List(items) => format!("[{}]", items.join(" ")),
        }
    }
}

/// Why parsing ended early: what is printed, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stop {
    /// Whether the usage is printed.
    pub(crate) usage: bool,
    /// Error messages, each followed by a hint.
    pub(crate) messages: Vec<String>,
}

impl Stop {
    fn help() -> Self {
        Self {
            usage: true,
            messages: Vec::new(),
        }
    }

    fn bad(text: String) -> Self {
        Self {
            usage: false,
            messages: vec![text],
        }
    }
}

/// The flags of one command with their values.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    known: Vec<FlagState>,
    /// Warnings for standard error, a line each.
    pub(crate) messages: Vec<String>,
}

#[derive(Debug)]
struct FlagState {
    flag: Flag,
    value: FlagValue,
    default: String,
    is_given: bool,
}

/// The result of one step of the parser.
enum Step {
    Flag,
    /// No more flags.
    End,
    /// Not the name of a flag; each letter may be one.
    Letters(String),
}

impl Flags {
    /// Adds a flag with its built-in default.
    pub(crate) fn add(&mut self, flag: Flag) {
        let value = match flag.kind {
            FlagKind::Bool => FlagValue::Bool(false),
            FlagKind::Text => FlagValue::Text(flag.default.to_owned()),
            FlagKind::List => FlagValue::List(Vec::new()),
        };
        self.add_with(flag, value);
    }

    /// Adds a flag whose default is this value.
    pub(crate) fn add_with(&mut self, flag: Flag, value: FlagValue) {
        let default = value.shown();
        self.known.push(FlagState {
            flag,
            value,
            default,
            is_given: false,
        });
    }

    fn find(&self, spelling: &str) -> Option<usize> {
        self.known
            .iter()
            .position(|known| known.flag.spellings().any(|name| name == spelling))
    }

    fn value(&self, flag: &Flag) -> Option<&FlagValue> {
        let known = self.known.iter().find(|known| known.flag.names == flag.names)?;
        Some(&known.value)
    }

    /// The value of a boolean flag.
    pub(crate) fn is_on(&self, flag: &Flag) -> bool {
        self.value(flag) == Some(&FlagValue::Bool(true))
    }

    /// The value of a boolean flag, if the flag was given.
    #[cfg(feature = "pull")]
    pub(crate) fn switch(&self, flag: &Flag) -> Option<bool> {
        let known = self.known.iter().find(|known| known.flag.names == flag.names)?;
        known.is_given.then_some(known.value == FlagValue::Bool(true))
    }

    /// The text of a flag, empty if there is none.
    pub(crate) fn text(&self, flag: &Flag) -> &str {
        match self.value(flag) {
            Some(FlagValue::Text(text)) => text,
            _ => "",
        }
    }

    /// The texts of a flag that may be given several times.
    pub(crate) fn list(&self, flag: &Flag) -> &[String] {
        match self.value(flag) {
            Some(FlagValue::List(items)) => items,
            _ => &[],
        }
    }

    /// Parses flags up to the first argument that is not one, and returns the rest.
    pub(crate) fn parse(&mut self, args: &[String]) -> Result<Vec<String>, Stop> {
        let mut args: VecDeque<String> = args.iter().cloned().collect();
        loop {
            match self.step(&mut args)? {
                Step::Flag => {}
                Step::End => return Ok(args.into()),
                Step::Letters(word) if word.chars().count() > 1 => {
                    for letter in word.chars() {
                        args.push_front(format!("-{letter}"));
                        match self.step(&mut args) {
                            Ok(Step::Flag | Step::End) => {}
                            Ok(Step::Letters(_)) => return Err(undefined(&word)),
                            Err(mut stop) => {
                                // The error of the letter comes first, then that of the word.
                                stop.messages.extend(undefined(&word).messages);
                                return Err(stop);
                            }
                        }
                    }
                }
                Step::Letters(word) => return Err(undefined(&word)),
            }
        }
    }

    fn step(&mut self, args: &mut VecDeque<String>) -> Result<Step, Stop> {
        let Some(word) = args
            .front()
            .filter(|word| word.len() > 1 && word.starts_with('-'))
        else {
            return Ok(Step::End);
        };
        if word == "--" {
            args.pop_front();
            return Ok(Step::End);
        }
        let word = word.clone();
        let name = word.strip_prefix('-').unwrap_or_default();
        if name.starts_with('=') {
            return Err(Stop::bad(format!("bad flag syntax: {word}")));
        }
        args.pop_front();
        let (name, given) = match name.split_once('=') {
            Some((name, value)) => (name, Some(unquoted(value))),
            None => (name, None),
        };
        let Some(index) = self.find(name) else {
            return match name {
                "-help" | "help" | "h" => Err(Stop::help()),
                _ if name.starts_with('-') => Err(undefined(name)),
                _ => Ok(Step::Letters(name.to_owned())),
            };
        };
        let Some(known) = self.known.get_mut(index) else {
            return Err(undefined(name));
        };
        known.is_given = true;
        match &mut known.value {
            FlagValue::Bool(on) => match given {
                None => *on = true,
                Some(text) => {
                    *on = parse_bool(text).ok_or_else(|| {
                        Stop::bad(format!(
                            "invalid boolean value {quoted} for  -{name}: strconv.ParseBool: parsing {quoted}: \
                             invalid syntax",
                            quoted = crate::text::go_quote(text.as_bytes())
                        ))
                    })?;
                }
            },
            value => {
                let text = given.map(str::to_owned).or_else(|| args.pop_front());
                let text = text.ok_or_else(|| Stop::bad(format!("flag needs an argument: -{name}")))?;
                match value {
                    FlagValue::List(items) => items.push(text),
                    value => *value = FlagValue::Text(text),
                }
            }
        }
        if let Some(hidden) = known
            .flag
            .names
            .iter()
            .position(|spelling| spelling.strip_prefix('#') == Some(name))
        {
            let instead = known
                .flag
                .names
                .iter()
                .skip(hidden)
                .find(|name| !name.starts_with('#'));
            self.messages.push(match instead {
                Some(instead) => format!(
                    "Warning: '-{name}' is deprecated, it will be replaced by '-{instead}' soon. See usage."
                ),
                None => format!("Warning: '-{name}' is deprecated, it will be removed soon. See usage."),
            });
        }
        Ok(Step::Flag)
    }

    /// The table of flags and their defaults, as it was before parsing. `home` is shortened to `~`.
    pub(crate) fn table(&self, home: &str) -> String {
        let home = if home == "/" { "" } else { home };
        let mut rows: Vec<(String, String, &str)> = self
            .known
            .iter()
            .map(|known| {
                let visible: Vec<&str> = known
                    .flag
                    .names
                    .iter()
                    .copied()
                    .filter(|name| !name.starts_with('#'))
                    .collect();
                let mut left = format!("  -{}", visible.join(", -"));
                if !known.default.is_empty() {
                    left.push('=');
                    match known.default.strip_prefix(home).filter(|_| !home.is_empty()) {
                        Some(rest) => left.push_str(&format!("~{rest}")),
                        None => left.push_str(&known.default),
                    }
                }
                let first = known.flag.spellings().next().unwrap_or_default();
                let key = first.trim_start_matches('-').to_lowercase();
                (key, left, known.flag.usage)
            })
            .collect();
        rows.sort();
        let width = rows
            .iter()
            .map(|(_, left, _)| left.chars().count() + 3)
            .max()
            .unwrap_or_default()
            .max(20);
        let mut table = String::from("\n");
        for (_, left, usage) in rows {
            table.push_str(&format!("{left:width$} {usage}\n"));
        }
        table
    }
}

fn undefined(name: &str) -> Stop {
    Stop::bad(format!("flag provided but not defined: -{name}"))
}

/// A boolean as Go's `strconv.ParseBool` reads it.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The text inside a pair of quotes.
fn unquoted(text: &str) -> &str {
    ['"', '\'']
        .iter()
        .find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: Flag = Flag::bool(&["-json", "j"], "JSON");
    const QUIET: Flag = Flag::bool(&["-quiet", "q"], "quiet");
    const FILE: Flag = Flag::text(&["-file", "f"], "file").or("x");
    const NAME: Flag = Flag::list(&["-name", "n"], "name");
    const HELP: Flag = Flag::bool(&["#help", "-help"], "help");

    fn parse(line: &str) -> (Flags, Result<Vec<String>, Stop>) {
        let mut flags = Flags::default();
        for flag in [JSON, QUIET, FILE, NAME] {
            flags.add(flag);
        }
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let rest = flags.parse(&args);
        (flags, rest)
    }

    #[test]
    fn flags_end_at_the_first_argument() {
        let (flags, rest) = parse("-j --file a -n one -n=two id -q");
        assert_eq!(rest.unwrap(), ["id", "-q"]);
        assert!(flags.is_on(&JSON) && !flags.is_on(&QUIET));
        assert_eq!(
            (flags.text(&FILE), flags.list(&NAME)),
            ("a", &["one".into(), "two".into()][..])
        );
        for (line, left) in [("- -j", vec!["-", "-j"]), ("-j -- -q", vec!["-q"])] {
            assert_eq!(parse(line).1.unwrap(), left, "{line}");
        }
    }

    #[test]
    fn letters_and_values() {
        let (flags, rest) = parse("-jqf 'file' --json=F -f='b' --name=\"c");
        assert_eq!(rest.unwrap(), Vec::<String>::new());
        assert!(!flags.is_on(&JSON) && flags.is_on(&QUIET));
        assert_eq!((flags.text(&FILE), flags.list(&NAME)), ("b", &["\"c".into()][..]));
        assert_eq!(parse("-f=").0.text(&FILE), "");
        assert_eq!(parse("-j").0.text(&FILE), "x");
    }

    #[test]
    fn errors_are_those_of_the_go_program() {
        for (line, expected) in [
            ("--bogus", "flag provided but not defined: --bogus"),
            ("-zz", "flag provided but not defined: -zz"),
            ("-jz", "flag provided but not defined: -jz"),
            ("-z", "flag provided but not defined: -z"),
            ("-=x", "bad flag syntax: -=x"),
            ("--=x", "flag provided but not defined: --"),
            ("-f", "flag needs an argument: -f"),
            ("--file", "flag needs an argument: --file"),
            (
                "--json=maybe",
                "invalid boolean value \"maybe\" for  --json: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
        ] {
            assert_eq!(parse(line).1, Err(Stop::bad(expected.into())), "{line}");
        }
        let letters = Stop {
            usage: false,
            messages: vec![
                "flag needs an argument: -f".into(),
                "flag provided but not defined: -jf".into(),
            ],
        };
        assert_eq!(parse("-jf").1, Err(letters));
        assert!(
            parse("-jh")
                .1
                .is_err_and(|stop| stop.usage && stop.messages.len() == 1)
        );
        for line in ["-h", "-help", "--help", "--help=x"] {
            assert_eq!(parse(line).1, Err(Stop::help()), "{line}");
        }
    }

    #[test]
    fn the_table_is_sorted_and_shows_defaults() {
        let mut flags = Flags::default();
        flags.add(HELP);
        flags.add(QUIET);
        flags.add(NAME);
        flags.add_with(FILE, FlagValue::Text("/home/me/file".into()));
        assert_eq!(
            flags.table("/home/me"),
            "\n  --file, -f=~/file    file\n  --help               help\n  --name, -n=[]        name\n  \
             --quiet, -q          quiet\n"
        );
        assert!(flags.table("/").contains("=/home/me/file"));
        assert_eq!(flags.parse(&["-help".into()]).unwrap(), Vec::<String>::new());
        assert_eq!(
            flags.messages,
            ["Warning: '-help' is deprecated, it will be replaced by '--help' soon. See usage."]
        );
    }
}
