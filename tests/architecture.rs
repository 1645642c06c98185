//! Keeps the borders of the house: which room may import which, where outside crates are known, and that every file says
//! what it is for. The table is the one in ARCHITECTURE.md.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Rooms on the ground floor: everyone may use them, they use nothing of ours.
const GROUND: [&str; 3] = ["tensor", "tasks", "telemetry"];

/// Each room and the rooms it may import, besides the ground floor.
const BORDERS: [(&str, &[&str]); 26] = [
    ("tensor", &[]),
    ("tasks", &[]),
    ("telemetry", &[]),
    ("load", &[]),
    ("auth", &[]),
    ("tls", &[]),
    ("runtime", &[]),
    ("pipelines", &[]),
    ("batching", &["runtime"]),
    ("cache", &["pipelines"]),
    ("models", &["cache", "hub", "pipelines", "batching", "rewrite", "runtime"]),
    ("engine", &["models", "cache", "pipelines", "batching", "runtime"]),
    ("jobs", &[]),
    ("rewrite", &["runtime"]),
    ("hub", &[]),
    ("downloads", &["hub", "models"]),
    ("optimize", &["downloads", "engine", "hub", "rewrite", "runtime"]),
    ("entrance", &["tls"]),
    ("codec", &["pipelines"]),
    ("protocol", &["codec", "engine"]),
    ("http", &["auth", "codec", "downloads", "engine", "entrance", "hub", "jobs", "optimize", "protocol", "tls"]),
    ("grpc", &["auth", "codec", "engine", "entrance", "protocol", "tls"]),
    // The settings structs of the rooms.
    ("config", &["auth", "batching", "downloads", "http", "hub", "jobs", "models", "pipelines", "runtime", "tls"]),
    ("cli", &["app", "auth", "config", "downloads", "engine", "http", "hub", "load", "optimize"]),
    (
        "app",
        &[
            "auth",
            "config",
            "downloads",
            "hub",
            "grpc",
            "http",
            "jobs",
            "engine",
            "models",
            "optimize",
            "cache",
            "pipelines",
            "batching",
            "runtime",
            "tls",
        ],
    ),
    ("main", &["app", "cli", "config"]),
];

/// Outside crates and the only folders of `src` that may name them.
const WALLS: [(&str, &[&str]); 34] = [
    ("askama", &["http/dashboard"]),
    ("axum", &["http"]),
    ("hyper", &["entrance", "grpc", "http"]),
    ("hyper_util", &["entrance"]),
    ("prost_reflect", &["grpc", "models"]),
    ("tonic", &["grpc"]),
    ("tonic_health", &["grpc"]),
    ("tonic_reflection", &["grpc"]),
    ("utoipa", &["http"]),
    ("ort", &["runtime/onnx"]),
    ("opentelemetry", &["telemetry/trace"]),
    ("opentelemetry_sdk", &["telemetry/trace"]),
    ("opentelemetry_otlp", &["telemetry/trace"]),
    ("nvml_wrapper", &["telemetry"]),
    ("image", &["pipelines/image"]),
    ("pulp", &["pipelines/image"]),
    ("symphonia", &["pipelines/audio"]),
    ("rubato", &["pipelines/audio"]),
    ("realfft", &["pipelines/audio"]),
    ("redb", &["jobs"]),
    ("tokenizers", &["pipelines/text"]),
    ("clap", &["cli", "config"]),
    ("indicatif", &["cli"]),
    ("blake3", &["cache", "models/state"]),
    ("reqwest", &["cli", "hub"]),
    ("rustls", &["cli", "hub", "tls"]),
    ("tokio_rustls", &["tls"]),
    ("x509_parser", &["tls"]),
    ("url", &["hub"]),
    ("tar", &["hub"]),
    ("flate2", &["hub"]),
    ("sha1", &["hub"]),
    ("sha2", &["auth", "hub"]),
    ("subtle", &["auth"]),
];

fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(&root).unwrap();
                let room = inside.components().next().unwrap().as_os_str().to_str().unwrap();
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((room.trim_end_matches(".rs").to_owned(), inside.to_owned(), text));
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// Code without comments, strings and unit tests: docs may link anywhere, and a test may borrow from its neighbours.
fn code(text: &str) -> String {
    let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let without_string = |line: &str| line.split('"').step_by(2).collect::<Vec<_>>().join("\"");
    own.lines().map(|line| without_string(line.split("//").next().unwrap_or_default())).collect::<Vec<_>>().join("\n")
}

/// Whether the whole file is a test of its room.
fn is_test(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| ["tests", "testing", "golden"].contains(&stem.to_str().unwrap()))
}

/// The words that follow `prefix` in the code.
fn words_after<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(prefix)
        .filter(|(at, _)| !text[..*at].ends_with(is_word))
        .map(|(at, _)| {
            let rest = &text[at + prefix.len()..];
            &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())]
        })
        .collect()
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    for (room, path, text) in sources() {
        if room == "lib" || is_test(&path) {
            continue;
        }
        let Some((_, allowed)) = BORDERS.iter().find(|(name, _)| *name == room) else {
            panic!("{}: the room '{room}' is not in the table; add a row here and in ARCHITECTURE.md", path.display());
        };
        let text = code(&text);
        let imports = words_after(&text, if room == "main" { "ortus::" } else { "crate::" });
        for import in imports {
            let is_room = BORDERS.iter().any(|(name, _)| *name == import);
            let fine = !is_room
                || import == room
                || allowed.contains(&import)
                || (GROUND.contains(&import) && !GROUND.contains(&room.as_str()))
                || (room == "config" && import == "telemetry");
            assert!(fine, "{}: '{room}' may not import '{import}'", path.display());
        }
    }
}

#[test]
fn outside_crates_stay_behind_their_walls() {
    for (_, path, text) in sources().into_iter().filter(|(_, path, _)| !is_test(path)) {
        let text = code(&text);
        for (name, folders) in WALLS {
            let used = text
                .match_indices(&format!("{name}::"))
                .any(|(at, _)| !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "_:".contains(c)))
                || text.contains(&format!("use {name};"));
            // A module of our own may have the crate's name: `image::` inside `pipelines` is the folder.
            let own_module = name == "image" && path.starts_with("pipelines");
            let fine = own_module || folders.iter().any(|folder| path.starts_with(folder));
            assert!(!used || fine, "{}: '{name}' is known only in {folders:?}", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (_, path, text) in sources() {
        assert!(text.starts_with("//! "), "{}: begins without a //! line", path.display());
    }
}

#[test]
fn only_tasks_spawns() {
    for (room, path, text) in sources() {
        if is_test(&path) {
            continue;
        }
        let text = code(&text);
        for call in ["tokio::spawn(", "spawn_blocking(move", "thread::spawn(", "thread::Builder::new"] {
            let own = room == "tasks";
            // `tasks.spawn_blocking(` is the owner's method; the bare runtime function is not.
            let used = text.match_indices(call).any(|(at, _)| {
                let before = text[..at].trim_end();
                !(call.starts_with("spawn_blocking") && before.ends_with('.'))
            });
            assert!(own || !used, "{}: calls {call} instead of tasks::Tasks", path.display());
        }
    }
}
