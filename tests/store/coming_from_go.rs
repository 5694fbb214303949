//! The page for users of the Go library names every method of its interface, with the signature that it has here.

/// A signature without white space, as the page and the source may break lines differently.
fn squeezed(signature: &str) -> String {
    let text: String = signature.chars().filter(|c| !c.is_whitespace()).collect();
    text.replace(",)", ")")
}

#[test]
fn every_method_of_the_interface_is_on_the_page_as_it_is_in_the_source() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("src/coming_from_go.md")).unwrap();
    let methods = page
        .split("# Methods of `Store`")
        .nth(1)
        .unwrap()
        .split("\n# ")
        .next()
        .unwrap();
    let mut source = String::new();
    let mut directories = vec![root.join("src/store")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                source.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let source = squeezed(&source);
    let rows: Vec<(&str, &str)> = methods
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | "))
        .collect();
    // The number of methods in the interface.
    assert_eq!(rows.len(), 89);
    for (go, rust) in rows {
        let Some(signature) = rust.strip_prefix('`').and_then(|rust| rust.strip_suffix('`')) else {
            assert_eq!(rust, "not yet", "{go}");
            continue;
        };
        let snake: String = go
            .replace("UID", "Uid")
            .replace("GID", "Gid")
            .replace("TOC", "Toc")
            .chars()
            .fold(String::new(), |mut name, c| {
                if c.is_ascii_uppercase() && !name.is_empty() {
                    name.push('_');
                }
                name.push(c.to_ascii_lowercase());
                name
            });
        assert!(signature.contains(&format!("fn {snake}(")), "{go} is {signature}");
        assert!(
            source.contains(&format!("pub{}{{", squeezed(signature))),
            "{go} is not {signature} in the source"
        );
    }
}

#[test]
fn every_package_function_is_on_the_page() {
    let page = include_str!("../../src/coming_from_go.md");
    let functions = page.split("# Package functions").nth(1).unwrap();
    for name in [
        "GetStore",
        "SetDefaultConfigFilePath",
        "DefaultConfigFile",
        "ReloadConfigurationFile",
        "GetDefaultMountOptions",
        "GetMountOptions",
        "DefaultStoreOptions",
    ] {
        let row = functions
            .lines()
            .find(|line| line.contains(&format!("| `{name}(")));
        let row = row.unwrap_or_else(|| panic!("{name} is missing"));
        assert!(row.contains("crate::"), "{row}");
    }
}
