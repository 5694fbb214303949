//! What one file declares and names: its modules, its `use` items, its inline paths. Items that only a test build
//! has are left out.

use std::collections::BTreeSet;

use super::tokens::{Kind, Token, tokens};

/// A path that the file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    /// The inline modules around it.
    pub(crate) scope: Vec<String>,
    /// The name that a `use` gives it, `*` for all names of a module; no name for an inline path.
    pub(crate) alias: Option<String>,
}

/// `mod name;` or `mod name { … }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) scope: Vec<String>,
    pub(crate) inline: bool,
    pub(crate) test: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Items {
    pub(crate) named: Vec<Named>,
    pub(crate) modules: Vec<Module>,
    /// What the file defines, by name.
    pub(crate) defined: BTreeSet<String>,
}

pub(crate) fn items(source: &str) -> Items {
    let mut parser = Parser {
        tokens: tokens(source),
        at: 0,
        scope: Vec::new(),
        items: Items::default(),
    };
    parser.block();
    parser.items
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    scope: Vec<String>,
    items: Items,
}

const DEFINES: &[&str] = &[
    "fn",
    "struct",
    "enum",
    "union",
    "trait",
    "type",
    "const",
    "static",
    "mod",
    "macro_rules",
];

impl Parser {
    fn token(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead)
    }

    fn is(&self, ahead: usize, punct: char) -> bool {
        self.token(ahead).is_some_and(|token| token.is(punct))
    }

    fn is_sep(&self, ahead: usize) -> bool {
        self.token(ahead).is_some_and(|token| token.kind == Kind::PathSep)
    }

    fn word(&self, ahead: usize) -> Option<&str> {
        self.token(ahead).and_then(Token::ident)
    }

    /// Reads up to the `}` that ends the module, or the end of the file.
    fn block(&mut self) {
        let mut depth = 0;
        while let Some(token) = self.token(0) {
            match &token.kind {
                Kind::Punct('{') => depth += 1,
                Kind::Punct('}') if depth == 0 => return,
                Kind::Punct('}') => depth -= 1,
                Kind::Punct('#') if self.is(1, '[') || (self.is(1, '!') && self.is(2, '[')) => {
                    if !self.attribute() {
                        return;
                    }
                    continue;
                }
                Kind::Ident(word) => {
                    let word = word.clone();
                    self.at_word(&word);
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    fn at_word(&mut self, word: &str) {
        let after = self
            .at
            .checked_sub(1)
            .map(|before| self.tokens[before].kind.clone());
        match word {
            "pub" if self.is(1, '(') && matches!(self.word(2), Some("crate" | "self" | "super" | "in")) => {
                // `pub(crate)`, but not the tuple field `pub (crate::A, B)`.
                if self.word(2) == Some("in") || self.is(3, ')') {
                    while !self.is(0, ')') {
                        self.at += 1;
                    }
                }
                self.at += 1;
            }
            // `impl Trait + use<'a>` imports nothing.
            "use" if !self.is(1, '<') => {
                self.at += 1;
                let mut found = Vec::new();
                self.use_tree(&Vec::new(), &mut found);
                self.items.named.append(&mut found);
            }
            "mod" if self.word(1).is_some() && (self.is(2, ';') || self.is(2, '{')) => {
                let name = self.word(1).unwrap_or_default().to_owned();
                let inline = self.is(2, '{');
                self.at += 3;
                self.declare(name.clone(), inline, false);
                if inline {
                    self.scope.push(name);
                    self.block();
                    self.scope.pop();
                    self.at += 1;
                }
            }
            _ if self.is_sep(1)
                && !matches!(after, Some(Kind::PathSep | Kind::Punct('.')))
                && (word == "crate" || after != Some(Kind::Punct('$'))) =>
            {
                self.inline_path();
            }
            _ => {
                if DEFINES.contains(&word) {
                    let name = if self.is(1, '!') {
                        self.word(2)
                    } else {
                        self.word(1)
                    };
                    let name = name.map(str::to_owned);
                    self.items.defined.extend(name);
                }
                self.at += 1;
            }
        }
    }

    fn declare(&mut self, name: String, inline: bool, test: bool) {
        self.items.modules.push(Module {
            name,
            scope: self.scope.clone(),
            inline,
            test,
        });
    }

    fn inline_path(&mut self) {
        let line = self.tokens[self.at].line;
        let mut path = Vec::new();
        while let Some(word) = self.word(0).map(str::to_owned) {
            path.push(word);
            self.at += 1;
            if !self.is_sep(0) {
                break;
            }
            self.at += 1;
        }
        self.items.named.push(Named {
            path,
            line,
            scope: self.scope.clone(),
            alias: None,
        });
    }

    /// One tree of a `use` item, below the path read so far.
    fn use_tree(&mut self, above: &[String], found: &mut Vec<Named>) {
        let mut path = above.to_vec();
        if self.is_sep(0) {
            // `use ::name` is another crate's for certain; the empty segment matches no module.
            path.push(String::new());
            self.at += 1;
        }
        while let Some(token) = self.token(0).cloned() {
            let line = token.line;
            match token.kind {
                Kind::Ident(word) if word == "self" && !path.is_empty() => self.at += 1,
                Kind::Ident(word) => {
                    path.push(word);
                    self.at += 1;
                }
                Kind::Punct('*') => {
                    self.at += 1;
                    found.push(Named {
                        path,
                        line,
                        scope: self.scope.clone(),
                        alias: Some("*".to_owned()),
                    });
                    return;
                }
                Kind::Punct('{') => {
                    self.at += 1;
                    while !self.is(0, '}') && self.token(0).is_some() {
                        self.use_tree(&path, found);
                        if self.is(0, ',') {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                _ => return,
            }
            if self.is_sep(0) {
                self.at += 1;
                continue;
            }
            let mut alias = path.last().cloned();
            if self.word(0) == Some("as") {
                alias = self.word(1).map(str::to_owned);
                self.at += 2;
            }
            found.push(Named {
                path,
                line,
                scope: self.scope.clone(),
                alias,
            });
            return;
        }
    }

    /// Reads an attribute, and the item after it if only a test build has it. False if the whole file is a test's.
    fn attribute(&mut self) -> bool {
        let inner = self.is(1, '!');
        let start = self.at + if inner { 3 } else { 2 };
        let mut end = start;
        let mut depth = 1;
        while end < self.tokens.len() {
            match self.tokens[end].kind {
                Kind::Punct('[' | '(' | '{') => depth += 1,
                Kind::Punct(']' | ')' | '}') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            end += 1;
        }
        let body = &self.tokens[start..end];
        let test = match body.first().and_then(Token::ident) {
            Some("cfg") => predicate(&body[1..], &mut 0) == Some(false),
            Some("test") => body.len() == 1,
            _ => false,
        };
        if inner {
            self.at = end + 1;
            return !test;
        }
        if test {
            self.at = end + 1;
            self.skip_item();
        } else {
            // A path inside an attribute counts.
            self.at = start;
        }
        true
    }

    /// Goes past an item, statement, field, variant or arm.
    fn skip_item(&mut self) {
        while self.is(0, '#') && self.is(1, '[') {
            let mut depth = 0;
            loop {
                if self.is(0, '[') {
                    depth += 1;
                } else if self.is(0, ']') {
                    depth -= 1;
                }
                self.at += 1;
                if self.token(0).is_none() || (depth == 0 && self.at > 0 && self.tokens[self.at - 1].is(']'))
                {
                    break;
                }
            }
        }
        if self.word(0) == Some("pub") {
            self.at += 1;
            if self.is(0, '(') {
                while !self.is(0, ')') {
                    self.at += 1;
                }
                self.at += 1;
            }
        }
        if self.word(0) == Some("mod") {
            let name = self.word(1).unwrap_or_default().to_owned();
            let inline = !self.is(2, ';');
            self.declare(name, inline, true);
        }
        let word = self.word(0).unwrap_or_default().to_owned();
        let next = self.word(1).unwrap_or_default();
        let to_semicolon = match word.as_str() {
            "use" | "static" | "type" | "let" => true,
            "const" => !matches!(next, "fn" | "unsafe" | "async" | "extern"),
            "extern" => next == "crate",
            _ => false,
        };
        let item = to_semicolon
            || matches!(
                word.as_str(),
                "fn" | "struct"
                    | "enum"
                    | "union"
                    | "impl"
                    | "mod"
                    | "trait"
                    | "macro_rules"
                    | "unsafe"
                    | "async"
                    | "extern"
                    | "const"
            );
        let (mut depth, mut angles) = (0, 0);
        while let Some(token) = self.token(0) {
            match token.kind {
                Kind::Punct('(' | '[' | '{') => depth += 1,
                Kind::Punct(')' | ']' | '}') if depth == 0 => return,
                Kind::Punct(c @ (')' | ']' | '}')) => {
                    depth -= 1;
                    if depth == 0 && c == '}' && !to_semicolon {
                        self.at += 1;
                        if self.is(0, ',') {
                            self.at += 1;
                        }
                        return;
                    }
                }
                Kind::Punct('<') => angles += 1,
                Kind::Punct('>')
                    if !(self.at > 0 && matches!(self.tokens[self.at - 1].kind, Kind::Punct('-' | '='))) =>
                {
                    angles -= 1;
                }
                Kind::Punct(';') if depth == 0 => {
                    self.at += 1;
                    return;
                }
                Kind::Punct(',') if depth == 0 && angles <= 0 && !item => {
                    self.at += 1;
                    return;
                }
                _ => {}
            }
            self.at += 1;
        }
    }
}

/// The value of a `cfg` predicate in a build that is no test: none if it depends on something else.
fn predicate(tokens: &[Token], at: &mut usize) -> Option<bool> {
    // The parentheses of `cfg( … )` itself.
    if tokens.get(*at).is_some_and(|token| token.is('(')) {
        *at += 1;
        return predicate(tokens, at);
    }
    let word = tokens
        .get(*at)
        .and_then(Token::ident)
        .unwrap_or_default()
        .to_owned();
    *at += 1;
    if !matches!(word.as_str(), "all" | "any" | "not") {
        if tokens.get(*at).is_some_and(|token| token.is('=')) {
            *at += 2;
            return None;
        }
        return matches!(word.as_str(), "test" | "doctest").then_some(false);
    }
    *at += 1;
    let mut values = Vec::new();
    while tokens.get(*at).is_some_and(|token| !token.is(')')) {
        values.push(predicate(tokens, at));
        if tokens.get(*at).is_some_and(|token| token.is(',')) {
            *at += 1;
        }
    }
    *at += 1;
    let decides = word == "any";
    match word.as_str() {
        "not" => values.first().copied().flatten().map(|value| !value),
        _ if values.contains(&Some(decides)) => Some(decides),
        _ if values.contains(&None) => None,
        _ => Some(!decides),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(source: &str) -> Vec<String> {
        let text = |named: Named| match named.alias {
            Some(alias) => format!("{}={alias}", named.path.join("::")),
            None => named.path.join("::"),
        };
        items(source).named.into_iter().map(text).collect()
    }

    #[test]
    fn use_trees() {
        assert_eq!(
            named("use crate::a::{self, b::{C, D as E}, f::*,}; pub(crate) use super::super::g;"),
            [
                "crate::a=a",
                "crate::a::b::C=C",
                "crate::a::b::D=E",
                "crate::a::f=*",
                "super::super::g=g",
            ]
        );
        assert_eq!(
            named("use {crate::a, ::b::c}; use self::d as _;"),
            ["crate::a=a", "::b::c=c", "self::d=_"]
        );
    }

    #[test]
    fn inline_paths() {
        let source = "
            fn f(x: &crate::a::B) -> super::C<d::E> { x.g::<Y>(); <Z as h::I>::j(); $crate::k!(); $l::m; ::n::o() }
            pub(in crate::p) struct Q(pub (crate::r::S, u8), pub(crate) crate::T);
            fn u<'a>() -> impl V + use<'a> {}
            #[w(crate::x::y)] struct Z;
        ";
        let expected = [
            "crate::a::B",
            "super::C",
            "d::E",
            "h::I",
            "crate::k",
            "crate::r::S",
            "crate::T",
            "crate::x::y",
        ];
        assert_eq!(named(source), expected);
    }

    #[test]
    fn what_only_tests_have_is_left_out() {
        let source = "
            #[cfg(test)] use crate::no;
            #[cfg(test)] #[path = \"x.rs\"] mod no;
            #[cfg(any(test, doctest))] pub(crate) fn no<A, B>() -> [u8; 2] { crate::no::f(); }
            #[cfg(all(test, feature = \"x\"))] const NO: [u8; 2] = { crate::no::F };
            struct S { #[cfg(test)] no: Map<crate::no::A, crate::no::B>, yes: crate::yes::A }
            fn f() { #[cfg(test)] crate::no::f(); crate::yes::f(); }
            #[test] fn no() { crate::no::f() }
            #[cfg(not(test))] use crate::yes::B;
            #[cfg(any(test, feature = \"x\"))] use crate::yes::C;
            #[cfg(test)] mod tests { use super::*; mod deep { use crate::no; } }
        ";
        assert_eq!(
            named(source),
            [
                "crate::yes::A",
                "crate::yes::f",
                "crate::yes::B=B",
                "crate::yes::C=C"
            ]
        );
        assert_eq!(named("#![cfg(test)] use crate::no;"), [""; 0]);
    }

    #[test]
    fn modules_and_their_scopes() {
        let found =
            items("mod a; pub(crate) mod b { mod c; use super::x; fn f() {} } use y::z; #[cfg(test)] mod t;");
        let modules: Vec<_> = found
            .modules
            .iter()
            .map(|m| (m.name.as_str(), m.scope.join("::"), m.test))
            .collect();
        let none = String::new;
        assert_eq!(
            modules,
            [
                ("a", none(), false),
                ("b", none(), false),
                ("c", "b".into(), false),
                ("t", none(), true)
            ]
        );
        assert_eq!(found.named[0].scope, ["b"]);
        assert_eq!(found.named[1].scope, [""; 0]);
        assert!(found.defined.contains("f"));
    }
}
