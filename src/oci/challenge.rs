//! The challenges in the headers of a 401: what a registry asks for.
//!
//! Registries write them in more ways than RFC 9110 allows. Several may be in one header or in several, among them schemes
//! that nobody here knows; what cannot be read is passed over, and what can be read counts.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// More challenges than any registry sends.
const MAX_CHALLENGES: usize = 32;

/// One challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// In lower case.
    pub(crate) scheme: String,
    params: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter that is there and not empty.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        let mut params = self.params.iter();
        params
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// Whether it can be answered.
    pub(crate) fn is_known(&self) -> bool {
        match self.scheme.as_str() {
            "bearer" => self.param("realm").is_some(),
            scheme => scheme == "basic",
        }
    }
}

/// All challenges, in order.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        read(&String::from_utf8_lossy(value.as_bytes()), &mut found);
    }
    found.truncate(MAX_CHALLENGES);
    found
}

fn read(header: &str, found: &mut Vec<Challenge>) {
    let before = found.len();
    let mut rest = header;
    while found.len() < MAX_CHALLENGES {
        rest = rest.trim_start_matches(|letter: char| letter == ',' || letter.is_whitespace());
        let end = rest
            .find(|letter: char| matches!(letter, ',' | '=' | '"') || letter.is_whitespace())
            .unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        if rest.is_empty() {
            return;
        }
        let behind = behind.trim_start();
        let Some(behind) = behind.strip_prefix('=') else {
            if word.is_empty() {
                // A quotation mark where none belongs.
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            found.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                params: Vec::new(),
            });
            rest = behind;
            continue;
        };
        let (value, behind) = read_value(behind.trim_start());
        rest = behind;
        if let Some(challenge) = found.get_mut(before..).and_then(<[_]>::last_mut) {
            challenge.params.push((word.to_ascii_lowercase(), value));
        }
    }
}

/// The value of a parameter, quoted or not, and what follows it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|letter: char| letter == ',' || letter.is_whitespace())
            .unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Vec<String> {
        let headers = values
            .iter()
            .map(|value| (WWW_AUTHENTICATE, value.parse().unwrap()));
        let text = |challenge: &Challenge| {
            let params = challenge
                .params
                .iter()
                .map(|(key, value)| format!(" {key}={value}"));
            format!("{}{}", challenge.scheme, params.collect::<String>())
        };
        challenges(&HeaderMap::from_iter(headers))
            .iter()
            .map(text)
            .collect()
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer =
            "bearer realm=https://auth.example/token service=here scope=repository:a:pull repository:b:pull";
        for (values, expected) in [
            (
                &[
                    r#"Bearer realm="https://auth.example/token",service="here",scope="repository:a:pull repository:b:pull""#,
                ][..],
                &[bearer][..],
            ),
            (
                &[
                    r#"BEARER  Realm = "https://auth.example/token" , SERVICE=here, scope="repository:a:pull repository:b:pull""#,
                ],
                &[bearer],
            ),
            (
                &["Bearer realm=https://auth.example/token,service=here,scope=x"],
                &["bearer realm=https://auth.example/token service=here scope=x"],
            ),
            (
                &[r#"Basic realm="a, b=\"c\"", Bearer realm="x""#],
                &[r#"basic realm=a, b="c""#, "bearer realm=x"],
            ),
            (
                &["Negotiate", "NTLM", "Basic realm=x"],
                &["negotiate", "ntlm", "basic realm=x"],
            ),
            (&["Basic"], &["basic"]),
            (&[r#"Bearer realm="x"#], &["bearer realm=x"]),
            (&["", ",", "\"\"", "=x"], &[]),
        ] {
            assert_eq!(parse(values), expected, "{values:?}");
        }
        let negotiate = parse(&["Negotiate YIIabc==, Basic realm=x"]);
        assert_eq!(negotiate.last().unwrap(), "basic realm=x");
        assert!(parse(&[&"x ".repeat(1000)]).len() <= MAX_CHALLENGES);
    }
}
