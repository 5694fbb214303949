//! Rust source as tokens with line numbers, without comments and without the text of literals.

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ident(String),
    /// `::`
    PathSep,
    Punct(char),
    /// A string, character or number.
    Literal,
}

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) line: usize,
}

impl Token {
    pub(crate) fn ident(&self) -> Option<&str> {
        match &self.kind {
            Kind::Ident(name) => Some(name),
            _ => None,
        }
    }

    pub(crate) fn is(&self, punct: char) -> bool {
        self.kind == Kind::Punct(punct)
    }

    pub(crate) fn is_word(&self, word: &str) -> bool {
        self.ident() == Some(word)
    }
}

/// The tokens of a file that the compiler accepts.
pub(crate) fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer {
        chars: source.chars().collect(),
        at: 0,
        line: 1,
        out: Vec::new(),
    };
    while lexer.at < lexer.chars.len() {
        lexer.step();
    }
    lexer.out
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
    out: Vec<Token>,
}

fn starts_ident(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn continues_ident(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn bump(&mut self) -> char {
        let c = self.peek(0);
        self.at += 1;
        if c == '\n' {
            self.line += 1;
        }
        c
    }

    fn push(&mut self, kind: Kind, line: usize) {
        self.out.push(Token { kind, line });
    }

    fn step(&mut self) {
        let line = self.line;
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => {
                while self.at < self.chars.len() && self.peek(0) != '\n' {
                    self.bump();
                }
            }
            ('/', '*') => self.block_comment(),
            ('"', _) => self.string(),
            ('\'', _) => self.quote(),
            (':', ':') => {
                self.at += 2;
                self.push(Kind::PathSep, line);
            }
            (c, _) if starts_ident(c) => self.word(),
            (c, _) if c.is_ascii_digit() => {
                self.take_word();
                self.push(Kind::Literal, line);
            }
            (c, _) => {
                self.bump();
                if !c.is_whitespace() {
                    self.push(Kind::Punct(c), line);
                }
            }
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => (depth, self.at) = (depth + 1, self.at + 2),
                ('*', '/') => (depth, self.at) = (depth - 1, self.at + 2),
                _ => {
                    self.bump();
                }
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// From the opening `"` to the closing one.
    fn string(&mut self) {
        let line = self.line;
        self.bump();
        while self.at < self.chars.len() {
            match self.bump() {
                '\\' => {
                    self.bump();
                }
                '"' => break,
                _ => {}
            }
        }
        self.push(Kind::Literal, line);
    }

    /// From the first `#` or `"` after the `r`.
    fn raw_string(&mut self) {
        let line = self.line;
        let mut hashes = 0;
        while self.peek(0) == '#' {
            hashes += 1;
            self.at += 1;
        }
        self.bump();
        while self.at < self.chars.len() {
            if self.bump() == '"' && (0..hashes).all(|ahead| self.peek(ahead) == '#') {
                self.at += hashes;
                break;
            }
        }
        self.push(Kind::Literal, line);
    }

    /// A character literal; a lifetime or label gives no token.
    fn quote(&mut self) {
        let line = self.line;
        if self.peek(1) == '\\' {
            self.at += 1;
            self.bump();
            self.bump();
            while self.at < self.chars.len() && self.bump() != '\'' {}
            self.push(Kind::Literal, line);
        } else if self.peek(2) == '\'' {
            self.bump();
            self.bump();
            self.bump();
            self.push(Kind::Literal, line);
        } else {
            self.at += 1;
            self.take_word();
        }
    }

    fn take_word(&mut self) -> String {
        let start = self.at;
        while continues_ident(self.peek(0)) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    /// An identifier, or the prefix of a literal and the literal.
    fn word(&mut self) {
        let line = self.line;
        let word = self.take_word();
        let next = self.peek(0);
        match word.as_str() {
            "r" if next == '#' && starts_ident(self.peek(1)) => {
                self.at += 1;
                let name = self.take_word();
                self.push(Kind::Ident(name), line);
            }
            "r" | "br" | "cr" if next == '"' || next == '#' => self.raw_string(),
            "b" | "c" if next == '"' => self.string(),
            "b" if next == '\'' => self.quote(),
            _ => self.push(Kind::Ident(word), line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<String> {
        tokens(source)
            .iter()
            .filter_map(|token| token.ident().map(str::to_owned))
            .collect()
    }

    #[test]
    fn comments_and_literals_have_no_words() {
        let source = r####"
            a // unsafe
            /// unsafe
            /* unsafe /* unsafe */ unsafe */ b
            "unsafe \" unsafe" c
            r"\" d r#"unsafe " unsafe"# e b"unsafe\\" f br##"unsafe "# unsafe"## g c"unsafe" h
            '"' i '\'' j '\u{1f}' k b'"' l b'\'' m
        "####;
        assert_eq!(words(source).concat(), "abcdefghijklm");
    }

    #[test]
    fn a_lifetime_is_no_character() {
        assert_eq!(
            words("fn f<'a, 'b>(x: &'a str) -> &'static X { 'out: loop {} }"),
            ["fn", "f", "x", "str", "X", "loop"]
        );
        assert_eq!(words("('a', 'b')"), [""; 0]);
    }

    #[test]
    fn raw_identifiers_and_numbers() {
        assert_eq!(words("r#type 0x1fu8 1_000 1.5e3 0..end"), ["type", "end"]);
    }

    #[test]
    fn lines_are_counted_through_every_literal() {
        let source = "a\n\"one\ntwo\\\nthree\" /* \n */ r#\"\n\"# 'x' b";
        let last = tokens(source).pop().unwrap();
        assert_eq!((last.ident(), last.line), (Some("b"), 6));
    }
}
