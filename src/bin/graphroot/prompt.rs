//! Questions at the terminal.

use std::io::{self, BufRead, Write as _};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};

use crate::outcome::CommandError;
use crate::output::Output;
use crate::text::system_error;

/// Asks for a line on standard input.
pub(crate) fn line(out: &mut Output, question: &str) -> Result<String, CommandError> {
    out.raw(question.as_bytes())?;
    out.flush()?;
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    match read {
        Ok(0) => Err("EOF".into()),
        Ok(_) => Ok(line.trim().to_owned()),
        Err(error) => Err(error.to_string().into()),
    }
}

/// The terminal as it was, again on drop.
struct Restore(Termios);

impl Drop for Restore {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _not_restored = termios::tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// Asks for a secret at the terminal, which does not show it. Keys that would end the program end the question, so that the
/// terminal shows again what is typed.
pub(crate) fn secret(out: &mut Output, question: &str) -> Result<String, CommandError> {
    out.raw(question.as_bytes())?;
    out.flush()?;
    let failed = |error: rustix::io::Errno| system_error(&error.into());
    let before = termios::tcgetattr(io::stdin()).map_err(failed)?;
    let mut quiet = before.clone();
    quiet
        .local_modes
        .remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
    let restore = Restore(before);
    termios::tcsetattr(io::stdin(), OptionalActions::Flush, &quiet).map_err(failed)?;
    let typed = typed(io::stdin().lock());
    drop(restore);
    writeln!(io::stdout().lock()).map_err(|error| error.to_string())?;
    typed
}

/// What is typed up to the end of the line.
fn typed(input: impl BufRead) -> Result<String, CommandError> {
    const INTERRUPT: u8 = 0x03;
    const END: u8 = 0x04;
    const BACKSPACE: [u8; 2] = [0x08, 0x7f];
    const KILL: u8 = 0x15;
    const QUIT: u8 = 0x1c;
    let mut text = Vec::new();
    for byte in input.bytes() {
        match byte.map_err(|error| error.to_string())? {
            b'\n' | b'\r' => break,
            END if text.is_empty() => return Err("EOF".into()),
            END => break,
            INTERRUPT | QUIT => return Err("interrupted".into()),
            KILL => text.clear(),
            byte if BACKSPACE.contains(&byte) => {
                // A letter may be several bytes.
                while text.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            byte => text.push(byte),
        }
    }
    String::from_utf8(text).map_err(|_secret| "not UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_understood() {
        for (input, wanted) in [
            ("secret\nrest", Some("secret")),
            ("secret\r", Some("secret")),
            ("secrexä\u{7f}\u{8}t\n", Some("secret")),
            ("wrong\u{15}right\n", Some("right")),
            ("half\u{4}", Some("half")),
            ("\u{4}", None),
            ("sec\u{3}ret\n", None),
            ("", Some("")),
        ] {
            assert_eq!(typed(input.as_bytes()).ok().as_deref(), wanted, "{input:?}");
        }
    }
}
