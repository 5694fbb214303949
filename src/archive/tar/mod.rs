//! The tar format: headers, PAX records, sparse maps, a reader and a writer.

mod block;
pub(crate) mod header;
pub(crate) mod pax;
pub(crate) mod reader;
pub(crate) mod sparse;
pub(crate) mod writer;
