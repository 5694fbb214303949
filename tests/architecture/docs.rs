//! What the documentation of a public async method has to say.

use std::path::Path;

use super::tree;

/// A public async function with what stands before it.
struct Method {
    name: String,
    docs: String,
}

/// The public async functions of a file.
fn methods(source: &str) -> Vec<Method> {
    let mut found = Vec::new();
    let mut docs = String::new();
    for line in source.lines().map(str::trim_start) {
        if let Some(text) = line.strip_prefix("///") {
            docs.push_str(text);
            docs.push('\n');
        } else if let Some(rest) = line.strip_prefix("pub async fn ") {
            let end = rest.find(['(', '<']).unwrap_or(rest.len());
            let (name, docs) = (rest[..end].to_owned(), std::mem::take(&mut docs));
            found.push(Method { name, docs });
        } else if !line.starts_with("#[") {
            docs.clear();
        }
    }
    found
}

/// What is missing in the documentation of a method; those of the store also say which locks they take.
fn missing(method: &Method, in_store: bool) -> Vec<&'static str> {
    let docs = &method.docs;
    let has = |title: &str| {
        let mut lines = docs.lines().skip_while(|line| line.trim() != title).skip(1);
        lines.next().is_some_and(|line| !line.trim().is_empty())
    };
    let before = docs.split("# Errors").next().unwrap_or_default().to_lowercase();
    let mut missing = Vec::new();
    for (what, there) in [
        ("# Errors", has("# Errors")),
        ("# Cancellation", has("# Cancellation")),
        ("the locks", !in_store || before.contains("lock")),
    ] {
        if !there {
            missing.push(what);
        }
    }
    missing
}

#[test]
fn every_public_async_method_says_its_errors_its_cancellation_and_its_locks() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut count, mut faults) = (0, Vec::new());
    for file in tree::rust_files(&root) {
        // The command, and what only the benchmarks use.
        if file.starts_with("bin/") || file == "bench.rs" {
            continue;
        }
        let source = std::fs::read_to_string(root.join(&file)).unwrap();
        for method in methods(&source) {
            count += 1;
            for what in missing(&method, file.starts_with("store/")) {
                faults.push(format!("{file}: {} does not say {what}", method.name));
            }
        }
    }
    assert!(count > 100, "only {count} methods were found");
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn what_is_missing_is_found() {
    let source = "
        /// Takes a lock.
        ///
        /// # Errors
        /// None.
        ///
        /// # Cancellation
        /// No effect.
        #[must_use]
        pub async fn good<T>() {}

        /// # Errors
        ///
        /// # Cancellation
        pub async fn bad() {}
    ";
    let methods = methods(source);
    assert_eq!(missing(&methods[0], true), Vec::<&str>::new());
    assert_eq!(
        missing(&methods[1], true),
        ["# Errors", "# Cancellation", "the locks"]
    );
    assert_eq!(missing(&methods[1], false), ["# Errors", "# Cancellation"]);
}
