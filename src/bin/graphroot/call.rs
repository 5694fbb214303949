//! One run of a command: its flags, its arguments and the open store.

use std::fs::File;
use std::io::{self, Read as _};

use graphroot::{Error, Store, StoreOptions};

use crate::flags::JSON;
use crate::mflag::{Flag, Flags};
use crate::outcome::{CommandError, file_failure};

/// One run of a command.
#[derive(Debug)]
pub(crate) struct Call {
    /// The path or name by which the program was called.
    pub(crate) program: String,
    /// The spelling of the command's name that was used.
    pub(crate) name: String,
    pub(crate) flags: Flags,
    /// The arguments after the flags.
    pub(crate) args: Vec<String>,
    /// Where the store is.
    pub(crate) options: StoreOptions,
    /// The open store, unless the table says that the command does not open it.
    store: Option<Store>,
}

impl Call {
    pub(crate) fn new(
        program: String,
        name: String,
        flags: Flags,
        args: Vec<String>,
        options: StoreOptions,
    ) -> Self {
        Self {
            program,
            name,
            flags,
            args,
            options,
            store: None,
        }
    }

    /// Opens the store for the command.
    pub(crate) async fn open(&mut self) -> Result<(), Error> {
        let options = self.options.clone();
        self.store = Some(Store::open(options).await?);
        Ok(())
    }

    /// The open store.
    pub(crate) fn store(&self) -> Result<&Store, CommandError> {
        self.store
            .as_ref()
            .ok_or_else(|| CommandError::from("this command does not open the store"))
    }

    /// Whether `--json` is given.
    pub(crate) fn json(&self) -> bool {
        self.flags.is_on(&JSON)
    }

    /// The argument at `index`, or an empty text.
    pub(crate) fn arg(&self, index: usize) -> &str {
        self.args.get(index).map_or("", String::as_str)
    }

    /// The argument at `index`, unless it is missing or empty.
    pub(crate) fn optional(&self, index: usize) -> Option<&str> {
        Some(self.arg(index)).filter(|arg| !arg.is_empty())
    }

    /// The content of the file that a flag names; `None` if the flag is not given.
    pub(crate) fn read_file(&self, flag: &Flag) -> Result<Option<Vec<u8>>, CommandError> {
        let path = self.flags.text(flag);
        if path.is_empty() {
            return Ok(None);
        }
        let mut file = File::open(path).map_err(|error| file_failure("open", path, &error))?;
        let mut data = Vec::new();
        file.read_to_end(&mut data)
            .map_err(|error| file_failure("read", path, &error))?;
        Ok(Some(data))
    }

    /// The content of the file that a flag names, or all of standard input.
    pub(crate) fn read_input(&self, flag: &Flag) -> Result<Vec<u8>, CommandError> {
        if let Some(data) = self.read_file(flag)? {
            return Ok(data);
        }
        let mut data = Vec::new();
        io::stdin()
            .lock()
            .read_to_end(&mut data)
            .map_err(|error| file_failure("read", "/dev/stdin", &error))?;
        Ok(data)
    }
}
