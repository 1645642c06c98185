//! Files that crash ONNX Runtime end the process that tries them out, and nothing else.

use crate::attack::Attacked;
use crate::memory::write_slow_to_load_model;
use crate::server::{Server, command, copy_folder, fixture, store_of, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// What turns trials on, which tests' servers have off.
pub const TRIALS: (&str, &str) = ("ORTUS_STORE__TRIAL_LOAD", "first");

/// The processes that a server has started to try files out.
fn trials_of(server: u32) -> Vec<u32> {
    let is_trial = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        parent.and_then(|text| text.trim().parse().ok()) == Some(server) && command.contains("try-load")
    };
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter(is_trial).collect()
}

/// The process that tries files out for this server, once there is one.
fn trial_of(server: u32) -> u32 {
    let mut found = None;
    wait_until(|| {
        found = trials_of(server).first().copied();
        found.is_some()
    });
    found.unwrap()
}

/// Fails where it has ended, which is as good.
fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).stderr(Stdio::null()).status().unwrap();
}

fn is_gone(pid: u32) -> bool {
    // What nobody has waited for yet has ended all the same.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

/// A server with `mlp`, which it serves, and `slow-load`, which nobody has asked for.
fn start(settings: &[(&str, &str)]) -> Attacked {
    let server = Attacked::with(&["mlp"], settings);
    write_slow_to_load_model(&server.store.path().join("slow-load"));
    server
}

fn load(server: &Server, model: &str) -> (u16, Value) {
    server.post_json(&format!("/v1/models/{model}/load"), &json!({}))
}

fn note(store: &Path, model: &str) -> std::path::PathBuf {
    store.join(".ortus/tried").join(model).join("1.json")
}

/// F33.
#[test]
fn files_that_crash_the_library_fail_alone_with_the_signal_in_the_reason() {
    let mut server = start(&[TRIALS]);
    let pid = server.child.id();
    for (name, part) in [("SEGV", "SIGSEGV"), ("ABRT", "SIGABRT"), ("KILL", "SIGKILL")] {
        let (status, answer) = std::thread::scope(|scope| {
            let loading = scope.spawn(|| load(&server, "slow-load"));
            let trial = trial_of(pid);
            // Others are answered meanwhile.
            server.assert_well();
            // Set as it begins: no core dump, and the first to go where memory is short.
            let of = |file: &str| fs::read_to_string(format!("/proc/{trial}/{file}")).unwrap();
            let is_core = |line: &str| line.starts_with("Max core file size") && line.contains(" 0 ");
            wait_until(|| of("limits").lines().any(is_core) && of("oom_score_adj").trim() == "1000");
            // Rust's own handler lets a first SIGSEGV pass that comes from elsewhere.
            wait_until(|| {
                signal(trial, name);
                is_gone(trial)
            });
            loading.join().unwrap()
        });
        assert_eq!(status, 422, "{answer}");
        assert!(answer.to_string().contains(part), "{answer}");
        let info = server.get_json("/v1/models/slow-load");
        assert_eq!(info["state"], "failed", "{info}");
        assert!(info["last_error"].as_str().unwrap().contains(part), "{info}");
        assert!(!note(server.store.path(), "slow-load").exists());
        assert!(trials_of(pid).is_empty());
    }
    server.assert_unharmed(32);
    // What was no fault of the files is none the next time.
    assert_eq!(load(&server, "slow-load").0, 200);
    assert_eq!(server.post_json("/v1/models/slow-load/predict", &json!({"inputs": {"x": [2.0]}})).0, 200);
}

#[test]
fn what_has_passed_is_not_tried_again_until_its_files_change() {
    let mut server = Server::start(&["mlp"], &[TRIALS]);
    let passed = note(server.store.path(), "mlp");
    let time = |file: &Path| fs::metadata(file).unwrap().modified().unwrap();
    let first: SystemTime = time(&passed);
    // Another load by this process, and another process.
    assert_eq!(load(&server, "mlp").0, 200);
    server.terminate();
    server.wait_exit();
    let server = Server::on(server.take_store(), &[TRIALS]);
    assert_eq!(time(&passed), first);
    // Other files: by their name in the note the old ones are not these.
    copy_folder(&fixture("store/echo/1"), &server.store.path().join("mlp/1"));
    assert_eq!(load(&server, "mlp").0, 200);
    assert_ne!(time(&passed), first);
    assert_eq!(server.client.delete(server.url("/v1/models/mlp")).send().unwrap().status(), 200);
    assert!(!passed.exists());
    server.assert_well();
}

#[test]
fn a_load_without_an_end_is_ended_and_names_the_key() {
    let server = start(&[TRIALS, ("ORTUS_STORE__TRIAL_LOAD_TIMEOUT_S", "1")]);
    let pid = server.child.id();
    let (status, answer) = std::thread::scope(|scope| {
        let loading = scope.spawn(|| load(&server, "slow-load"));
        // However quick the machine is, it does not come to its end.
        signal(trial_of(pid), "STOP");
        loading.join().unwrap()
    });
    assert_eq!(status, 422, "{answer}");
    assert!(answer.to_string().contains("trial_load_timeout_s"), "{answer}");
    wait_until(|| trials_of(pid).is_empty());
    server.assert_well();
}

#[test]
fn the_process_ends_with_the_server_however_that_ends() {
    for name in ["KILL", "TERM"] {
        let mut server = Server::start(&["mlp"], &[TRIALS]);
        write_slow_to_load_model(&server.store.path().join("slow-load"));
        let trial = std::thread::scope(|scope| {
            // Nobody answers it.
            scope.spawn(|| server.post("/v1/models/slow-load/load").json(&json!({})).send());
            let trial = trial_of(server.child.id());
            server.signal(name);
            trial
        });
        server.wait_exit();
        wait_until(|| is_gone(trial));
    }
}

#[test]
fn a_download_that_is_cancelled_ends_the_process_that_tries_it_out() {
    let folder = tempfile::tempdir().unwrap();
    write_slow_to_load_model(folder.path());
    let allowed = ("ORTUS_HUB__ALLOWED_PATHS", folder.path().to_str().unwrap());
    let server = Server::start(&["mlp"], &[TRIALS, allowed, ("ORTUS_HUB__RESERVE_MB", "0")]);
    let order = json!({"name": "slow-load", "source": "local", "path": folder.path().join("1/model.onnx")});
    let (status, answer) = server.post_json("/v1/models", &order);
    assert_eq!(status, 202, "{answer}");
    let trial = trial_of(server.child.id());
    // It would take hours.
    signal(trial, "STOP");
    let download = format!("/v1/downloads/{}", answer["download"]["id"].as_str().unwrap());
    assert_eq!(server.client.delete(server.url(&download)).send().unwrap().status(), 200);
    wait_until(|| is_gone(trial));
    assert_eq!(server.get("/v1/models/slow-load").status(), 404);
    server.assert_well();
}

#[test]
fn what_is_refused_without_a_crash_has_the_reason_that_a_load_gives() {
    let reason = |trials: &str| {
        let store = store_of(&[]);
        for model in ["unknown-op", "cyclic"] {
            let from = fixture("hostile").join(model);
            if from.is_dir() {
                copy_folder(&from, &store.path().join(model));
            }
        }
        let server = Server::on(store, &[("ORTUS_STORE__TRIAL_LOAD", trials)]);
        let models = server.get_json("/v1/models");
        let models = models["models"].as_array().unwrap().clone();
        assert!(!models.is_empty());
        models.iter().map(|model| (model["state"].clone(), model["last_error"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(reason("first"), reason("off"));
}

#[test]
fn whoever_starts_a_trial_by_hand_is_told_who_does() {
    let output = command().arg("try-load").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("by the server alone"));
}
