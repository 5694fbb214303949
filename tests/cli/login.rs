//! `login` and `logout` beside Podman: one logs in, the other pulls and logs out, and the files are the same.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::odd_registry::{Asked, OCI_MANIFEST, OddRegistry, Parts, Reply, good_config};
use crate::program::{Answer, Program};
use crate::support::each_set;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::tar::Tar;

/// `user:secret`
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

/// Asks for this name and password.
fn basic(asked: &Asked) -> Option<Reply> {
    (asked.header("authorization") != BASIC).then(|| Reply::new(401, "").challenge("Basic realm=\"here\""))
}

/// Asks for a token, which a service has for this name and password.
fn bearer(asked: &Asked) -> Option<Reply> {
    if asked.path.starts_with("/token") {
        let is_known = asked.header("authorization") == BASIC;
        return Some(match is_known {
            true => Reply::new(200, r#"{"token": "sesame"}"#),
            false => Reply::new(401, ""),
        });
    }
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"here\"", asked.address);
    (asked.header("authorization") != "Bearer sesame").then(|| Reply::new(401, "").challenge(challenge))
}

fn registry(script: fn(&Asked) -> Option<Reply>) -> OddRegistry {
    let registry = OddRegistry::start(script);
    let layer = Tar::new().file("hello", "hello\n").build();
    registry.add("team/app", &Parts::new(OCI_MANIFEST, good_config(), &[layer]));
    registry
}

/// One of the two programs with variables of its environment.
struct Runner<'a> {
    root: &'a TestRoot,
    variables: Vec<(&'static str, PathBuf)>,
}

impl Runner<'_> {
    fn run_with(&self, podman: bool, line: &str, input: &str) -> Answer {
        let mut command = match podman {
            // Ours speaks HTTP with this machine by itself.
            true => {
                let line = match line.strip_prefix("login") {
                    Some(rest) => format!("login --tls-verify=false{rest}"),
                    None => line.to_owned(),
                };
                self.root.podman().words(&line)
            }
            false => Program::Ours.on(self.root).words(line),
        };
        command
            .envs(self.variables.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A program that wants no password does not read it.
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        child.wait_with_output().unwrap().into()
    }

    fn run(&self, podman: bool, line: &str) -> Answer {
        self.run_with(podman, line, "")
    }

    /// Both say the same; `ours` and `theirs` in place of FILE.
    fn same(&self, line: &str, files: &[&Path; 2]) -> [Answer; 2] {
        let answers = [false, true].map(|podman| {
            let file = files[usize::from(podman)].display().to_string();
            self.run(podman, &line.replace("FILE", &file))
        });
        let [ours, theirs] = &answers;
        assert_eq!(ours.out, theirs.out, "{line}: {ours:?} {theirs:?}");
        assert_eq!(ours.code == 0, theirs.code == 0, "{line}: {ours:?} {theirs:?}");
        answers
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| error.to_string())
}

/// The two files are byte for byte the same, and nobody else may read them.
fn same_files(files: &[&Path; 2]) {
    assert_eq!(read(files[0]), read(files[1]));
    for file in files {
        let mode = std::fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
}

fn files_are_the_same_as_podmans(set: PeerSet) {
    for script in [basic, bearer] {
        let registry = registry(script);
        let host = registry.address();
        let root = TestRoot::vfs().of(set);
        let runner = Runner {
            root: &root,
            variables: Vec::new(),
        };
        let (a, b) = (root.path().join("a/auth.json"), root.path().join("b/auth.json"));
        let files = &[&*a, &*b];
        let login = format!("login --authfile FILE -u user -p secret {host}");
        runner.same(&login, files);
        same_files(files);
        let wrong = format!("login --authfile FILE -u user -p wrong {host}");
        for answer in runner.same(&wrong, files) {
            assert!(answer.err.contains("invalid username/password"), "{answer:?}");
            assert!(!answer.err.contains("wrong"), "{answer:?}");
        }
        runner.same(
            &format!("login --authfile FILE -u user -p secret {host}/team"),
            files,
        );
        runner.same(
            &format!("login --authfile FILE -u user -p secret http://{host}/v1/"),
            files,
        );
        same_files(files);
        assert!(read(&a).contains(&format!("{host}/team")), "{}", read(&a));
        // What is kept is used if nothing is said.
        runner.same(&format!("login --authfile FILE {host}"), files);
        runner.same(
            &format!("login --authfile FILE --get-login {host}/team/app"),
            files,
        );
        runner.same("login --authfile FILE --get-login elsewhere.example", files);
        runner.same(&format!("logout --authfile FILE {host}/team/app"), files);
        runner.same(&format!("logout --authfile FILE {host}/team"), files);
        same_files(files);
        for podman in [false, true] {
            // Each with the file of the other.
            let file = files[usize::from(!podman)].display();
            let verbose = format!("login --authfile {file} -v -u user --password-stdin {host}");
            let answer = runner.run_with(podman, &verbose, "secret\n");
            assert_eq!(answer.code, 0, "{answer:?}");
            let pull = match podman {
                true => format!("pull -q --tls-verify=false --authfile {file} {host}/team/app:v1"),
                false => format!("pull -q --authfile {file} {host}/team/app:v1"),
            };
            let answer = runner.run(podman, &pull);
            assert_eq!(answer.code, 0, "{answer:?}");
            runner.run(podman, &format!("logout --authfile {file} {host}"));
        }
        same_files(files);
        runner.same(&format!("logout --authfile FILE {host}"), files);
        runner.same(&login, files);
        runner.same("logout --all --authfile FILE", files);
        same_files(files);
        assert_eq!(read(&a), "{\n\t\"auths\": {}\n}");
        runner.same(&format!("pull -q --authfile FILE {host}/team/app:v2"), files);
        for (user, input, text) in [
            (
                "-u user --password-stdin ",
                "",
                "reading password: inappropriate ioctl for device",
            ),
            (
                "-u user --password-stdin ",
                "\n\n",
                "reading password: inappropriate ioctl for device",
            ),
            ("-u user ", "", "reading password: inappropriate ioctl for device"),
            ("", "user\n", "reading password: inappropriate ioctl for device"),
            ("", "", "reading username: EOF"),
        ] {
            for podman in [false, true] {
                let line = format!("login --authfile {} {user}elsewhere.example", a.display());
                let answer = runner.run_with(podman, &line, input);
                let text = format!("getting username and password: {text}\n");
                assert!(
                    answer.code != 0 && answer.err.ends_with(&text),
                    "{line}: {answer:?}"
                );
            }
        }
        for line in [
            "login --authfile FILE -p x --password-stdin -u user elsewhere.example",
            "login --authfile FILE --password-stdin elsewhere.example",
            "login --authfile FILE -u a -p b elsewhere.example/team:tag",
            "login --authfile FILE --compat-auth-file FILE -u a -p b elsewhere.example",
            "logout --authfile /no/such/file elsewhere.example",
            "logout --all --authfile FILE elsewhere.example",
        ] {
            let [ours, _] = runner.same(line, files);
            assert_ne!(ours.code, 0, "{line}");
        }
    }
}
each_set!(newer fn files_are_the_same_as_podmans: "podman");

/// Podman replaces a link; whoever has one keeps it here.
fn a_link_to_a_file_stays(set: PeerSet) {
    let registry = registry(basic);
    let host = registry.address();
    for podman in [false, true] {
        let root = TestRoot::vfs().of(set);
        let runner = Runner {
            root: &root,
            variables: Vec::new(),
        };
        let (link, file) = (root.path().join("auth.json"), root.path().join("real.json"));
        std::fs::write(&file, r#"{"auths": {"other.example": {"auth": "dTpw"}}}"#).unwrap();
        std::os::unix::fs::symlink("real.json", &link).unwrap();
        let line = format!("login --authfile {} -u user -p secret {host}", link.display());
        assert_eq!(runner.run(podman, &line).code, 0);
        assert_eq!(link.symlink_metadata().unwrap().is_symlink(), !podman);
        let read = read(&link);
        assert!(read.contains("other.example") && read.contains(host), "{read}");
        assert_eq!(self::read(&file).contains(host), !podman);
    }
}
each_set!(newer fn a_link_to_a_file_stays: "podman");

#[test]
fn eight_logins_at_once_are_all_kept() {
    let registry = registry(basic);
    let host = registry.address();
    let root = TestRoot::vfs();
    let file = root.path().join("new/auth.json");
    let runner = Runner {
        root: &root,
        variables: vec![("REGISTRY_AUTH_FILE", file.clone())],
    };
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (runner, line) = (&runner, format!("login -u user -p secret {host}/team{number}"));
            scope.spawn(move || assert_eq!(runner.run(false, &line).code, 0));
        }
    });
    let kept: Value = serde_json::from_str(&read(&file)).unwrap();
    assert_eq!(kept["auths"].as_object().unwrap().len(), 8, "{kept}");
}

fn the_environment_says_which_file(set: PeerSet) {
    let registry = registry(basic);
    let host = registry.address();
    let names = ["run/containers/auth.json", "named.json", "docker/config.json"];
    let docker =
        json!({"auths": {"x.example": {"auth": "eDp5"}}, "HttpHeaders": {"a": "b"}, "psFormat": "x"});
    for variables in [
        &["XDG_RUNTIME_DIR"][..],
        &["XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE"],
        &["XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG"],
        &["XDG_RUNTIME_DIR", "DOCKER_CONFIG"],
    ] {
        let changed = |podman: bool| {
            let root = TestRoot::vfs().of(set);
            for dir in ["run", "docker"] {
                std::fs::create_dir_all(root.path().join(dir)).unwrap();
            }
            std::fs::write(root.path().join(names[2]), docker.to_string()).unwrap();
            let value = |name: &&'static str| match *name {
                "XDG_RUNTIME_DIR" => (*name, root.path().join("run")),
                "REGISTRY_AUTH_FILE" => (*name, root.path().join(names[1])),
                _ => (*name, root.path().join("docker")),
            };
            let runner = Runner {
                root: &root,
                variables: variables.iter().map(value).collect(),
            };
            let mut seen = Vec::new();
            for line in [
                format!("login -u user -p secret {host}"),
                format!("login --get-login {host}"),
                format!("logout {host}"),
                format!("login --compat-auth-file compat.json -u user -p secret {host}"),
                "logout --all".to_owned(),
            ] {
                let answer = runner.run(podman, &line);
                let files = names.iter().chain([&"compat.json"]);
                let files: Vec<String> = files.map(|name| read(&root.path().join(name))).collect();
                seen.push((line, answer.code, answer.out, files));
            }
            seen
        };
        let (ours, theirs) = (changed(false), changed(true));
        assert_eq!(ours, theirs, "{variables:?}");
        assert!(ours.iter().all(|(_, code, ..)| *code == 0), "{ours:?}");
    }
}
each_set!(newer fn the_environment_says_which_file: "podman");

/// A helper that keeps what it is given in files, and writes down what it was asked.
const HELPER: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
input=$(cat)
echo "$1" >> asked
case $1 in
store) echo "$input" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/' > server; echo "$input" > kept;;
get) if [ -e kept ] && [ "$input" = "$(cat server)" ]; then cat kept; else echo credentials not found in native keychain; exit 1; fi;;
erase) if [ -e kept ]; then rm kept; else echo credentials not found in native keychain; exit 1; fi;;
list) if [ -e kept ]; then echo "{\"$(cat server)\":\"user\"}"; else echo '{}'; fi;;
esac
"#;

fn helpers_are_asked_as_by_podman(set: PeerSet) {
    let registry = registry(basic);
    let host = registry.address();
    // By the configuration of registries, and by the file of credentials.
    for by_conf in [true, false] {
        let talked = |podman: bool, logs_out: bool| {
            let root = TestRoot::vfs().of(set);
            let helper = root.path().join("docker-credential-test");
            std::fs::write(&helper, HELPER).unwrap();
            std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
            let path = std::env::join_paths(
                std::iter::once(root.path().to_owned()).chain(std::env::split_paths(&set.search_path())),
            );
            let file = root.path().join("auth.json");
            let variables = vec![
                ("PATH", path.unwrap().into()),
                ("REGISTRY_AUTH_FILE", file.clone()),
                ("CONTAINERS_REGISTRIES_CONF", root.path().join("registries.conf")),
            ];
            let conf = match by_conf {
                true => "credential-helpers = ['test', 'containers-auth.json']\n",
                false => "",
            };
            std::fs::write(root.path().join("registries.conf"), conf).unwrap();
            let helpers = match by_conf {
                true => json!({}),
                false => json!({"auths": {}, "credHelpers": {host: "test"}}),
            };
            std::fs::write(&file, helpers.to_string()).unwrap();
            let runner = Runner {
                root: &root,
                variables,
            };
            let mut seen = Vec::new();
            let pull = match podman {
                true => format!("pull -q --tls-verify=false {host}/team/app:v1"),
                false => format!("pull -q {host}/team/app:v1"),
            };
            for (podman, line) in [
                (podman, format!("login -v -u user -p secret {host}")),
                (podman, format!("login --get-login {host}")),
                (podman, pull),
                (logs_out, format!("logout {host}")),
                (podman, format!("login -u user -p secret {host}")),
                (logs_out, "logout --all".to_owned()),
                (logs_out, format!("logout {host}")),
            ] {
                let answer = runner.run(podman, &line);
                let asked = read(&root.path().join("asked"));
                std::fs::write(root.path().join("asked"), "").unwrap();
                // Pulls look once for each registry, or for each request.
                let mut asked: Vec<_> = asked.lines().map(str::to_owned).collect();
                asked.dedup();
                let is_pull = line.starts_with("pull");
                let said = if is_pull { String::new() } else { answer.out };
                // Podman does not look further if the helper fails with what it calls a failure.
                asked.truncate(if answer.code == 0 { asked.len() } else { 1 });
                seen.push((answer.code != 0, said, asked));
                assert!(!read(&file).contains("dXNlcjpzZWNyZXQ"), "{}", read(&file));
            }
            let left: Value = serde_json::from_str(&read(&file)).unwrap();
            (seen, left)
        };
        let ours = talked(false, false);
        assert_eq!(ours, talked(true, true), "by_conf: {by_conf}");
        assert_eq!(ours, talked(false, true));
        assert_eq!(ours, talked(true, false));
        let asked: Vec<_> = ours.0.iter().flat_map(|(_, _, asked)| asked.clone()).collect();
        for action in ["store", "get", "erase"] {
            assert!(asked.iter().any(|one| one == action), "{asked:?}");
        }
    }
}
each_set!(newer fn helpers_are_asked_as_by_podman: "podman");

#[test]
fn helpers_that_misbehave_are_bounded() {
    let registry = registry(basic);
    let host = registry.address();
    let root = TestRoot::vfs();
    let helper = root.path().join("docker-credential-test");
    let path = std::env::join_paths([root.path(), Path::new("/bin"), Path::new("/usr/bin")]).unwrap();
    std::fs::write(
        root.path().join("registries.conf"),
        "credential-helpers = ['test']\n",
    )
    .unwrap();
    let variables = vec![
        ("PATH", path.into()),
        ("CONTAINERS_REGISTRIES_CONF", root.path().join("registries.conf")),
    ];
    let runner = Runner {
        root: &root,
        variables,
    };
    for (script, message) in [
        (
            "echo s3cret; exit 1",
            "docker-credential-test store: exit status: 1",
        ),
        (
            "cat > /dev/null; yes s3cret | head -c 3000000; exit 1",
            "exit status: 1",
        ),
        ("kill -9 $$", "signal: 9"),
    ] {
        std::fs::write(&helper, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let answer = runner.run(false, &format!("login -u user -p secret {host}"));
        assert_eq!(answer.code, 1, "{script}: {answer:?}");
        assert!(answer.err.contains(message), "{script}: {answer:?}");
        assert!(!answer.err.contains("s3cret"), "{script}: {answer:?}");
    }
    // Nobody is kept from public images.
    let public = OddRegistry::start(|_| None);
    let layer = Tar::new().file("hello", "hello\n").build();
    public.add("team/app", &Parts::new(OCI_MANIFEST, good_config(), &[layer]));
    let answer = runner.run(false, &format!("pull -q {}/team/app:v1", public.address()));
    assert_eq!(answer.code, 0, "{answer:?}");
    let answer = runner.run(false, &format!("pull -q {host}/team/app:v1"));
    assert!(
        answer.err.contains("credentials are needed and none are known"),
        "{answer:?}"
    );
}
