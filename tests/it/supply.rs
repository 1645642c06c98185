//! What comes from others: the crates of the lock file, the library that runs the models.

use crate::attack::compiled;
use crate::server::{command, root};

/// F93.
#[test]
fn every_crate_comes_from_the_registry_by_its_sum() {
    let lock: toml::Table = std::fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let (own, foreign): (Vec<_>, Vec<_>) = packages.iter().partition(|package| package.get("source").is_none());
    assert_eq!(own.iter().map(|package| package["name"].as_str().unwrap()).collect::<Vec<_>>(), ["ortus"]);
    assert!(foreign.len() > 100, "{}", foreign.len());
    for package in foreign {
        assert_eq!(
            package["source"].as_str(),
            Some("registry+https://github.com/rust-lang/crates.io-index"),
            "{package}"
        );
        let sum = package.get("checksum").and_then(|sum| sum.as_str()).unwrap_or_default();
        assert!(sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()), "{package}");
    }
}

/// F01: libraries before 1.28 read what a model names outside of its folder.
#[test]
fn an_onnx_runtime_that_is_too_old_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("old.c"), folder.path().join("libonnxruntime.so.1"));
    let program = "static const void *api(unsigned version) { return (const void *)0; }\n\
        static const char *version(void) { return \"1.27.4\"; }\n\
        static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = {api, version};\n\
        const void *OrtGetApiBase(void) { return &base; }\n";
    std::fs::write(&source, program).unwrap();
    if !compiled(&source, &library) {
        eprintln!("SKIPPED: there is no C compiler for a library that says it is old");
        return;
    }
    let mut command = command();
    command.env("ORT_DYLIB_PATH", &library).args(["serve", "--listen", "127.0.0.1:0", "--models"]).arg(folder.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(text.contains("is version 1.27") && text.contains("1.28 or newer is needed"), "{text}");
}
