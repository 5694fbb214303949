//! What programs that come from the Go library or its command need besides [`Store`](crate::Store): JSON as Go writes
//! it, the mount options that a configuration asks for, and how to keep memory low.

pub use crate::config::default_mount_options;
pub use crate::json::go_json;
pub use crate::options::driver::mount_options;
pub use crate::sys::return_memory_early;
