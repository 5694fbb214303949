//! The error type of the whole crate: what was being done to which item, a kind to match on, and the cause.
//!
//! [`Error`] is opaque; callers match on [`Error::kind`]. `Display` prints this level only,
//! [`std::error::Error::source`] leads to the rest. There is deliberately no `From<std::io::Error>`: inside this crate
//! an I/O error always gets the action or the path that it belongs to. Callers who get an [`Error`] back inside an
//! `io::Error` (from an `AsyncRead`) take it out with [`Error::try_from_io`].

mod error_type;
mod io;
mod kind;

pub use error_type::{Error, Result};
pub(crate) use io::{ErrorPath, IoContext, ResultExt};
pub use kind::ErrorKind;
