use proptest::prelude::*;

use super::*;
use crate::digest::Digest;

fn conf(text: &str) -> RegistriesConf {
    RegistriesConf::parse(text).unwrap()
}

fn image(name: &str) -> RegistryRef {
    name.parse().unwrap()
}

fn sources(conf: &RegistriesConf, name: &str) -> Vec<String> {
    let sources = conf.sources(&image(name)).unwrap();
    sources.iter().map(|source| source.image.to_string()).collect()
}

#[test]
fn prefixes_are_rewritten_and_the_longest_counts() {
    let conf = conf(
        "[[registry]]
         location = 'a.io'
         [[registry]]
         prefix = 'a.io/team'
         location = 'b.io/deep/er'
         insecure = true
         [[registry]]
         prefix = '*.wild.io'
         [[registry]]
         prefix = '*.moved.io'
         location = 'to.io/all'
         [[registry]]
         prefix = 'h.io/one/image'
         location = 'h.io/other/name'",
    );
    for (name, wanted) in [
        ("a.io/x", "a.io/x:latest"),
        ("a.io/team/x:1", "b.io/deep/er/x:1"),
        ("a.io/teams/x", "a.io/teams/x:latest"),
        ("x.wild.io/y", "x.wild.io/y:latest"),
        ("x.y.moved.io/z:1", "to.io/all/z:1"),
        ("moved.io/z:1", "moved.io/z:1"),
        ("h.io/one/image:tag", "h.io/other/name:tag"),
        ("h.io/one/image2:tag", "h.io/one/image2:tag"),
        ("elsewhere.io/a.io/team/x", "elsewhere.io/a.io/team/x:latest"),
    ] {
        assert_eq!(sources(&conf, name), [wanted], "{name}");
    }
    assert_eq!(conf.is_insecure("a.io/team/x"), Some(true));
    assert_ne!(conf.is_insecure("a.io/x"), Some(true));
}

#[test]
fn mirrors_come_first_where_they_serve_the_reference() {
    let conf = conf(
        "[[registry]]
         location = 'a.io'
         [[registry.mirror]]
         location = 'all.io'
         insecure = true
         [[registry.mirror]]
         location = 'tags.io:1/x'
         pull-from-mirror = 'tag-only'
         [[registry.mirror]]
         location = 'digests.io'
         pull-from-mirror = 'digest-only'
         [[registry]]
         location = 'c.io'
         mirror-by-digest-only = true
         [[registry.mirror]]
         location = 'd.io'",
    );
    let digest = Digest::sha256(b"x");
    assert_eq!(
        sources(&conf, "a.io/i:t"),
        ["all.io/i:t", "tags.io:1/x/i:t", "a.io/i:t"]
    );
    let at = |name: &str| format!("{name}@{digest}");
    assert_eq!(
        sources(&conf, &at("a.io/i")),
        [at("all.io/i"), at("digests.io/i"), at("a.io/i")]
    );
    assert_eq!(sources(&conf, "c.io/i"), ["c.io/i:latest"]);
    assert_eq!(sources(&conf, &at("c.io/i")), [at("d.io/i"), at("c.io/i")]);
    let all = conf.sources(&image("a.io/i")).unwrap();
    let told: Vec<_> = all
        .iter()
        .map(|source| (source.insecure, source.is_mirror))
        .collect();
    assert_eq!(told, [(true, true), (false, true), (false, false)]);
}

#[test]
fn short_names_are_aliases_or_searched_for() {
    let text = "unqualified-search-registries = ['a.io', 'localhost:5000/']
         [aliases]
         tool = 'b.io/team/tool'
         'x/y' = 'docker.io/library/y'
         none = ''";
    let conf = conf(text);
    let resolved = |name: &str| -> Vec<String> {
        let images = conf.resolve(name).unwrap();
        images.iter().map(ToString::to_string).collect()
    };
    let digest = Digest::sha256(b"x");
    assert_eq!(resolved("tool"), ["b.io/team/tool:latest"]);
    assert_eq!(resolved("tool:1"), ["b.io/team/tool:1"]);
    assert_eq!(
        resolved(&format!("tool@{digest}")),
        [format!("b.io/team/tool@{digest}")]
    );
    assert_eq!(resolved("x/y"), ["docker.io/library/y:latest"]);
    assert_eq!(resolved("none:2"), ["a.io/none:2", "localhost:5000/none:2"]);
    assert_eq!(
        resolved("a/b/c"),
        ["a.io/a/b/c:latest", "localhost:5000/a/b/c:latest"]
    );
    assert_eq!(resolved("h.io/a"), ["h.io/a:latest"]);
    assert_eq!(resolved("localhost/a"), ["localhost/a:latest"]);
    assert!(conf.resolve("Upper").is_err() && conf.resolve("").is_err());
    let shown = |text: &str| -> Vec<String> {
        let refs = conf.resolve_ref(text).unwrap();
        refs.iter().map(ToString::to_string).collect()
    };
    assert_eq!(shown("tool"), ["docker://b.io/team/tool:latest"]);
    assert_eq!(shown("docker://tool"), ["docker://docker.io/library/tool:latest"]);
    assert_eq!(shown("oci:dir"), ["oci:dir"]);
    let enforcing = RegistriesConf::parse(&format!("short-name-mode = 'enforcing'\n{text}")).unwrap();
    assert_eq!(enforcing.resolve("tool").unwrap().len(), 1);
    let error = enforcing.resolve("other").unwrap_err().to_string();
    assert!(
        error.contains("short-name resolution enforced but cannot prompt without a TTY"),
        "{error}"
    );
    let error = RegistriesConf::default()
        .resolve("other")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("did not resolve to an alias and no containers-registries.conf(5) was found"),
        "{error}"
    );
}

#[test]
fn what_contradicts_itself_is_refused_as_in_go() {
    for (text, wanted) in [
        (
            "[[registry]]",
            "invalid condition: both location and prefix are unset",
        ),
        (
            "[[registry]]\nprefix = 'a.io'",
            "invalid condition: location is unset and prefix is not in the format: *.example.com",
        ),
        (
            "[[registry]]\nprefix = '*.a.io/b'\nlocation = 'x'",
            "Wildcarded prefix should be in the format: *.example.com. Current prefix \"*.a.io/b\" is incorrectly \
             formatted",
        ),
        (
            "[[registry]]\nlocation = 'https://a.io'",
            "URI schemes are not supported",
        ),
        (
            "[[registry]]\nlocation = 'a.io'\npull-from-mirror = 'all'",
            "pull-from-mirror must not be set for a non-mirror registry \"a.io\"",
        ),
        (
            "[[registry]]\nlocation = 'a.io'\n[[registry.mirror]]\nlocation = 'b'\npull-from-mirror = 'x'",
            "unsupported pull-from-mirror value \"x\" for mirror \"b\"",
        ),
        (
            "[[registry]]\nlocation = 'a.io'\n[[registry.mirror]]\ninsecure = true",
            "invalid condition: mirror location is unset",
        ),
        (
            "[[registry]]\nlocation = 'a.io'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = 'b'\n\
             pull-from-mirror = 'all'",
            "cannot set mirror usage mirror-by-digest-only",
        ),
        (
            "[[registry]]\nlocation = 'a.io'\n[[registry]]\nprefix = 'b.io'\nlocation = 'a.io'\nblocked = true",
            "registry 'a.io' is defined multiple times with conflicting 'blocked' setting",
        ),
        (
            "[registries.search]\nregistries = ['a.io']",
            "registries.conf must be in v2 format but is in v1",
        ),
        ("short-name-mode = 'x'", "invalid short-name mode: \"x\""),
        (
            "unqualified-search-registries = ['a.io/b']",
            "Invalid unqualified-search-registries entry",
        ),
        (
            "unqualified-search-registries = 'a.io'",
            "line 1: unqualified-search-registries is of type string",
        ),
        (
            "\n[[registry]]\ninsecure = 'yes'",
            "line 3: insecure is of type string instead of boolean",
        ),
        (
            "[aliases]\nx = 'y'",
            "invalid alias \"y\": must contain registry and repository",
        ),
        ("[aliases]\nx = 'a.io/y:1'", "must not contain tag"),
        (
            "[aliases]\n'a.io/x' = 'a.io/y'",
            "invalid short name \"a.io/x\": must not contain registry",
        ),
        ("a = ", "line 1: not valid TOML"),
    ] {
        let error = RegistriesConf::parse(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let error = error.chain();
        assert!(error.contains(wanted), "{text}: {error}");
    }
}

#[test]
fn a_blocked_registry_is_refused() {
    let conf = conf(
        "[[registry]]
         location = 'a.io'
         blocked = true
         [[registry]]
         location = 'a.io/free'",
    );
    let error = conf.refuse_blocked("a.io/x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(
        error
            .to_string()
            .contains("registry a.io is blocked in one of registries.conf"),
        "{error}"
    );
    assert!(conf.is_blocked(&image("a.io/x")) && !conf.is_blocked(&image("a.io/free/x")));
}

#[test]
fn a_name_that_the_configuration_breaks_is_an_error() {
    let conf = conf("[[registry]]\nprefix = 'a.io'\nlocation = 'nohost'");
    let error = conf.sources(&image("a.io/x")).unwrap_err();
    assert!(error.to_string().contains("rewriting reference"), "{error}");
}

#[tokio::test]
async fn more_important_files_win() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "etc/containers/registries.conf",
        "unqualified-search-registries = ['a.io']\n[[registry]]\nlocation = 'a.io'\n[aliases]\nx = 'a.io/x'\ny = 'a.io/y'",
    );
    write(
        "etc/containers/registries.conf.d/10.conf",
        "unqualified-search-registries = ['b.io']\n[[registry]]\nprefix = 'a.io'\nlocation = 'c.io'\n[aliases]\nx = 'b.io/x'",
    );
    write(
        "var/cache/containers/short-name-aliases.conf",
        "[aliases]\ny = 'user.io/y'",
    );
    let load = || RegistriesConf::load_with(Loader::new().root(root.path()));
    let conf = load().await.unwrap();
    assert_eq!(conf.unqualified_search_registries(), ["b.io"]);
    assert_eq!(sources(&conf, "a.io/i"), ["c.io/i:latest"]);
    assert_eq!(conf.resolve("x").unwrap()[0].to_string(), "b.io/x:latest");
    assert_eq!(conf.resolve("y").unwrap()[0].to_string(), "user.io/y:latest");
    assert_eq!(conf.files().len(), 2);
    write("etc/containers/registries.conf.d/20.conf", "short-name-mode = 1");
    let error = load().await.unwrap_err().chain();
    assert!(error.contains("20.conf") && error.contains("line 1"), "{error}");
    let named = root.path().join("named");
    std::fs::write(&named, "unqualified-search-registries = ['d.io']").unwrap();
    let loader = Loader::new()
        .root(root.path())
        .variable("CONTAINERS_REGISTRIES_CONF", &named);
    let conf = RegistriesConf::load_with(loader).await.unwrap();
    assert_eq!(conf.unqualified_search_registries(), ["d.io"]);
    assert_eq!(conf.files(), [named]);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
        drop(RegistriesConf::parse(&text));
    }

    #[test]
    fn any_values_are_read_or_refused(location in "[a-z.:/*@]{0,12}", prefix in "[a-z.:/*@]{0,12}", name in "[a-z.:/]{1,12}") {
        let text = format!("[[registry]]\nlocation = '{location}'\nprefix = '{prefix}'");
        if let Ok(conf) = RegistriesConf::parse(&text)
            && let Ok(image) = name.parse()
            && let Ok(sources) = conf.sources(&image)
        {
            prop_assert_eq!(sources.len(), 1);
        }
    }
}
