//! Claims, trials, installs, choices and deletions over real folders, and what a kill at any of their steps leaves.

use super::*;
use crate::hub::{Provenance, ProvenanceFile};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A complete version outside all models, whose graph file holds `content`.
fn stage(root: &Path, content: &str) -> Staged {
    let folder = root.join(".ortus/downloads").join(uuid::Uuid::new_v4().simple().to_string()).join("version");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("model.onnx"), content).unwrap();
    Staged { folder, model_toml: None }
}

impl House {
    async fn install(&self, model: &str, content: &str) -> Result<Version, ModelError> {
        let staged = stage(self.root.path(), content);
        let claim = match self.manager.status(&name(model)) {
            Ok(_) => self.manager.claim_version(&name(model)).await?,
            Err(_) => self.manager.claim(&name(model)).await?,
        };
        self.manager.install(claim, staged).await
    }

    fn chosen(&self, model: &str) -> Option<u64> {
        self.manager.status(&name(model)).unwrap().chosen_version.map(|version| version.0)
    }

    /// What is left of work in the server's own folders.
    fn leftovers(&self) -> Vec<PathBuf> {
        leftovers(self.root.path())
    }

    /// Another manager over the same store, as after a restart.
    async fn again(&self) -> House {
        self.manager.close().await;
        let house = House::over(self.root.clone(), true, None, None);
        house.manager.start().await;
        house
    }
}

fn leftovers(store: &Path) -> Vec<PathBuf> {
    let entries = |name: &str| fs::read_dir(store.join(".ortus").join(name)).into_iter().flatten();
    let work = entries("incoming").chain(entries("trash")).map(|entry| entry.unwrap().path());
    let choices = entries("chosen").map(|entry| entry.unwrap().path());
    let is_cut_off = |path: &PathBuf| path.file_name().unwrap().as_encoded_bytes().starts_with(b".");
    work.chain(choices.filter(is_cut_off)).collect()
}

fn three_versions() -> [(&'static str, &'static str); 3] {
    [("m/1/model.onnx", "a"), ("m/2/model.onnx", "b"), ("m/3/model.onnx", "c")]
}

/// F65.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_eight_claims_of_a_name_wins() {
    let house = House::with_poll(true, Some(Duration::from_millis(2)), &[]);
    house.manager.start().await;
    let claims: Vec<_> = (0..8)
        .map(|_| {
            let manager = house.manager.clone();
            house.tasks.spawn("claim", async move { manager.claim(&name("m")).await })
        })
        .collect();
    let mut won = Vec::new();
    for claim in claims {
        match claim.await.unwrap() {
            Ok(claim) => won.push(claim),
            Err(error) => assert!(matches!(error, ModelError::Conflict { .. }), "{error}"),
        }
    }
    assert_eq!(won.len(), 1);
    // Looks at the store do not forget what has no folder yet.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(house.manager.status(&name("m")).unwrap().state, ModelState::Downloading);
    for error in [house.get("m").await.map(|_| ()).unwrap_err(), house.load("m").await.unwrap_err()] {
        assert_eq!(error.to_string(), "model 'm' is downloading");
        assert!(matches!(error, ModelError::NotReady { state: ModelState::Downloading, .. }));
    }
    let deleted = house.manager.delete(&name("m"), None).await.unwrap_err().to_string();
    assert_eq!(deleted, "model 'm': it is being downloaded; DELETE /v1/downloads/{id} stops that");
    drop(won);
    assert_eq!(house.states("m"), "none");
    assert!(house.manager.claim(&name("m")).await.is_ok());
}

#[tokio::test]
async fn what_is_there_cannot_be_claimed() {
    let house = House::new(true, &[("m/1/model.onnx", "a"), ("file", "")]);
    // Also before the store was looked at, and also what is no model.
    for taken in ["m", "file"] {
        assert!(matches!(house.manager.claim(&name(taken)).await, Err(ModelError::Conflict { .. })), "{taken}");
        assert_eq!(house.states(taken), "none");
    }
    house.manager.start().await;
    assert!(matches!(house.manager.claim(&name("m")).await, Err(ModelError::Conflict { .. })));
    assert!(matches!(house.manager.claim_version(&name("none")).await, Err(ModelError::NotFound { .. })));
    let first = house.manager.claim_version(&name("m")).await.unwrap();
    assert!(matches!(house.manager.claim_version(&name("m")).await, Err(ModelError::Conflict { .. })));
    // A model serves on while a version of it is got.
    assert!(run(&house.get("m").await.unwrap()).await);
    assert!(matches!(house.manager.delete(&name("m"), None).await, Err(ModelError::Conflict { .. })));
    drop(first);
    assert_eq!(house.states("m"), "1:ready");
    assert!(house.manager.claim_version(&name("m")).await.is_ok());
}

#[tokio::test]
async fn a_version_is_tried_out_before_anything_is_seen_of_it() {
    let house = House::new(true, &[]);
    house.manager.start().await;
    let claim = house.manager.claim(&name("m")).await.unwrap();
    let tried = house.manager.try_out(&claim, &stage(house.root.path(), "a")).await.unwrap();
    assert_eq!((tried.inputs[0].name.as_str(), tried.outputs.len(), tried.task), ("x", 1, None));
    assert!(tried.run_time.is_some() && tried.run_problem.is_none(), "{tried:?}");
    let refuses = house.manager.try_out(&claim, &stage(house.root.path(), "refuses")).await.unwrap();
    assert_eq!((refuses.run_time, refuses.run_problem.as_deref()), (None, Some("not this input")));
    for (content, reason) in [("broken", "the file is not an ONNX graph"), ("panics", "abnormally")] {
        let error = house.manager.try_out(&claim, &stage(house.root.path(), content)).await.unwrap_err();
        assert!(matches!(error, ModelError::Load { version: Version(1), .. }) && error.to_string().contains(reason));
    }
    let toml = Staged { model_toml: Some("tasks = 1".into()), ..stage(house.root.path(), "a") };
    let error = house.manager.try_out(&claim, &toml).await.unwrap_err().to_string();
    assert!(error.contains("model.toml, line 1: unknown key 'tasks'"), "{error}");
    assert_eq!(house.manager.status(&name("m")).unwrap().state, ModelState::Downloading);
    assert_eq!((house.leftovers(), house.root.path().join("m").exists()), (vec![], false));

    let small = House::with_budget(true, None, Some(1 << 20), &[]);
    let claim = small.manager.claim(&name("m")).await.unwrap();
    let error = small.manager.try_out(&claim, &stage(small.root.path(), "a")).await.unwrap_err();
    assert!(matches!(error, ModelError::Load { source: LoadError::NoMemory { .. }, .. }), "{error}");
}

#[tokio::test]
async fn versions_are_numbered_and_whole() {
    let house = House::new(true, &[]);
    house.manager.start().await;
    let claim = house.manager.claim(&name("m")).await.unwrap();
    let staged = Staged { model_toml: Some("description = \"d\"".into()), ..stage(house.root.path(), "a") };
    assert_eq!(house.manager.install(claim, staged.clone()).await.unwrap(), Version(1));
    assert!(!staged.folder.exists());
    assert_eq!(house.states("m"), "1:unloaded");
    house.load("m").await.unwrap();
    let status = house.manager.status(&name("m")).unwrap();
    assert_eq!((status.state, status.manifest.description.as_deref()), (ModelState::Ready, Some("d")));

    house.write("m/7/model.onnx", "a");
    assert_eq!(house.install("m", "b").await.unwrap(), Version(8));
    // What is no version of any use has its number all the same.
    house.write("m/12", "a file");
    assert_eq!(house.install("m", "c").await.unwrap(), Version(13));
    house.load("m").await.unwrap();
    assert_eq!(house.states("m"), "1:unloaded 7:unloaded 8:unloaded 13:ready");
    house.write(&format!("m/{}/model.onnx", u64::MAX), "a");
    assert!(matches!(house.install("m", "d").await, Err(ModelError::Conflict { .. })));
    assert_eq!(house.leftovers(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn what_cannot_be_installed_changes_nothing() {
    let house = House::new(true, &[("bare/model.onnx", "a"), ("bad/1/model.onnx", "a"), ("bad/model.toml", "x = 1")]);
    house.manager.start().await;
    let error = house.install("bare", "b").await.unwrap_err().to_string();
    assert!(error.contains("into a folder 1"), "{error}");
    assert!(matches!(house.install("bad", "b").await, Err(ModelError::Invalid { .. })));
    assert_eq!(house.states("bare"), "1:ready");

    let refused = |staged: Staged| {
        let manager = house.manager.clone();
        async move {
            let claim = manager.claim(&name("m")).await.unwrap();
            manager.install(claim, staged).await.unwrap_err()
        }
    };
    let linked = stage(house.root.path(), "a");
    std::os::unix::fs::symlink("/etc/passwd", linked.folder.join("labels.txt")).unwrap();
    let empty = stage(house.root.path(), "a");
    fs::remove_file(empty.folder.join("model.onnx")).unwrap();
    let missing = Staged { folder: house.root.path().join("none"), model_toml: None };
    let toml = Staged { model_toml: Some("x = 1".into()), ..stage(house.root.path(), "a") };
    for staged in [linked, empty, missing, toml] {
        let error = refused(staged).await;
        assert!(matches!(error, ModelError::Invalid { .. }), "{error}");
        assert_eq!(house.states("m"), "none");
    }
    // A model of the name came by other ways meanwhile: what was got stays where it is.
    let (claim, staged) = (house.manager.claim(&name("m")).await.unwrap(), stage(house.root.path(), "mine"));
    house.write("m/1/model.onnx", "theirs");
    let error = house.manager.install(claim, staged.clone()).await.unwrap_err();
    assert!(matches!(error, ModelError::Conflict { .. }), "{error}");
    assert!(staged.folder.join("model.onnx").exists());
    assert_eq!(fs::read_to_string(house.root.path().join("m/1/model.onnx")).unwrap(), "theirs");
    house.load("m").await.unwrap();
    // `.ortus` is a link out of the store.
    let (store, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(outside.path(), store.path().join(".ortus")).unwrap();
    let house = House::over(Root::from(store), true, None, None);
    let (claim, staged) = (house.manager.claim(&name("m")).await.unwrap(), stage(outside.path(), "a"));
    assert!(matches!(house.manager.install(claim, staged).await, Err(ModelError::Conflict { .. })));
    assert!(!house.root.path().join("m").exists());
}

#[tokio::test]
async fn the_version_that_follows_is_ready_before_a_deleted_one_goes() {
    let house = House::new(true, &[("m/1/model.onnx", "slow"), ("m/2/model.onnx", "b")]);
    house.manager.start().await;
    assert_eq!(house.states("m"), "1:unloaded 2:ready");
    let manager = house.manager.clone();
    let delete = house.tasks.spawn("delete", async move { manager.delete(&name("m"), Some(Version(2))).await });
    house.until(|| house.states("m") == "1:loading 2:ready").await;
    assert!(!house.root.path().join("m/2").exists());
    assert!(run(&house.get("m").await.unwrap()).await);
    house.gate.open();
    assert_eq!(delete.await.unwrap().unwrap(), Deleted { versions: vec![Version(2)], model: false });
    assert_eq!((house.states("m").as_str(), house.leftovers()), ("1:ready", vec![]));
    let missing = house.manager.delete(&name("m"), Some(Version(2))).await.unwrap_err();
    assert!(matches!(missing, ModelError::VersionNotFound { .. }), "{missing}");
    // The last one takes the model along.
    let last = house.manager.delete(&name("m"), Some(Version(1))).await.unwrap();
    assert_eq!(last, Deleted { versions: vec![Version(1)], model: true });
    assert_eq!((house.states("m").as_str(), house.root.path().join("m").exists()), ("none", false));
    assert!(matches!(house.manager.delete(&name("m"), None).await, Err(ModelError::NotFound { .. })));
}

#[tokio::test]
async fn a_deleted_model_answers_what_it_has_taken() {
    let house = House::with_poll(true, Some(Duration::from_millis(2)), &[("m/model.onnx", "waits")]);
    house.manager.start().await;
    let model = house.get("m").await.unwrap();
    let ended = model.handle.ended();
    let in_flight = house.tasks.spawn("run", async move { run(&model).await });
    house.until(|| house.runs.load(Ordering::SeqCst) == 1).await;
    let manager = house.manager.clone();
    let delete = house.tasks.spawn("delete", async move { manager.delete(&name("m"), None).await });
    house.until(|| house.states("m") == "1:unloading").await;
    assert!(!house.root.path().join("m").exists());
    let error = house.get("m").await.unwrap_err();
    assert!(matches!(error, ModelError::NotReady { state: ModelState::Unloading, .. }), "{error}");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!delete.is_finished() && !ended.is_cancelled());
    house.gate.open();
    assert!(in_flight.await.unwrap());
    assert!(delete.await.unwrap().unwrap().model);
    assert!(ended.is_cancelled());
    assert!(matches!(house.get("m").await, Err(ModelError::NotFound { .. })));
    assert_eq!(house.leftovers(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn broken_linked_and_brought_models_can_be_deleted() {
    let house =
        House::new(true, &[("broken/model.onnx", "broken"), ("bad/model.toml", "x"), ("bad/1/model.onnx", "a")]);
    let outside = tempfile::tempdir().unwrap();
    for file in ["1/model.onnx", "2/model.onnx"] {
        fs::create_dir_all(outside.path().join(file).parent().unwrap()).unwrap();
        fs::write(outside.path().join(file), "a").unwrap();
    }
    std::os::unix::fs::symlink(outside.path(), house.root.path().join("linked")).unwrap();
    house.manager.start().await;
    let files = vec![("1/model.onnx".to_owned(), Bytes::from_static(b"x"))];
    let brought = LoadOverrides { config_json: Some("{}".into()), files };
    house.manager.load(&name("brought"), brought).await.unwrap();
    let inside = house.manager.delete(&name("linked"), Some(Version(1))).await;
    assert!(matches!(inside, Err(ModelError::Conflict { .. })), "{inside:?}");
    for model in ["broken", "bad", "linked", "brought"] {
        assert!(house.manager.delete(&name(model), None).await.unwrap().model, "{model}");
        assert_eq!(house.states(model), "none");
        assert!(fs::symlink_metadata(house.root.path().join(model)).is_err(), "{model}");
    }
    assert!(outside.path().join("1/model.onnx").exists());
    assert!(!house.root.path().join(".ortus/overrides/brought").exists());
    assert_eq!(house.leftovers(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_chosen_version_serves_until_a_new_one_comes() {
    let house = House::new(true, &three_versions());
    house.manager.start().await;
    assert_eq!(house.manager.roll_back(&name("m")).await.unwrap(), Some(Version(2)));
    assert_eq!((house.states("m").as_str(), house.chosen("m")), ("1:unloaded 2:ready 3:unloaded", Some(2)));
    assert_eq!(house.manager.roll_back(&name("m")).await.unwrap(), Some(Version(1)));
    assert!(matches!(house.manager.roll_back(&name("m")).await, Err(ModelError::Conflict { .. })));
    let error = house.manager.get_or_load(&name("m"), Some(Version(3))).await.unwrap_err().to_string();
    assert!(error.contains("version 1 was chosen"), "{error}");
    // A load, a poll and a restart leave it.
    house.load("m").await.unwrap();
    assert_eq!(house.states("m"), "1:ready 2:unloaded 3:unloaded");
    let house = house.again().await;
    assert_eq!((house.states("m").as_str(), house.chosen("m")), ("1:ready 2:unloaded 3:unloaded", Some(1)));
    // Forward, and back to the policy.
    house.manager.choose(&name("m"), Some(Version(2))).await.unwrap();
    assert_eq!(house.get("m").await.unwrap().version, Version(2));
    house.manager.choose(&name("m"), None).await.unwrap();
    assert_eq!((house.states("m").as_str(), house.chosen("m")), ("1:unloaded 2:unloaded 3:ready", None));

    house.manager.choose(&name("m"), Some(Version(1))).await.unwrap();
    // The highest goes; the number of the next is above it all the same, so that the choice ends.
    house.manager.delete(&name("m"), Some(Version(3))).await.unwrap();
    assert_eq!(house.chosen("m"), Some(1));
    assert_eq!(house.install("m", "d").await.unwrap(), Version(4));
    house.load("m").await.unwrap();
    assert_eq!((house.states("m").as_str(), house.chosen("m")), ("1:unloaded 2:unloaded 4:ready", None));

    // A choice goes with its version, and with its model.
    house.manager.choose(&name("m"), Some(Version(2))).await.unwrap();
    house.manager.delete(&name("m"), Some(Version(2))).await.unwrap();
    assert_eq!((house.states("m").as_str(), house.chosen("m")), ("1:unloaded 4:ready", None));
    house.manager.choose(&name("m"), Some(Version(1))).await.unwrap();
    house.manager.delete(&name("m"), None).await.unwrap();
    assert!(!house.root.path().join(".ortus/chosen/m").exists());
    assert_eq!(house.install("m", "e").await.unwrap(), Version(1));
    assert!(matches!(house.manager.choose(&name("none"), None).await, Err(ModelError::NotFound { .. })));
    let missing = house.manager.choose(&name("m"), Some(Version(9))).await;
    assert!(matches!(missing, Err(ModelError::VersionNotFound { .. })));
}

#[tokio::test]
async fn a_version_that_does_not_load_is_not_chosen() {
    let house = House::new(
        true,
        &[("m/1/model.onnx", "broken"), ("m/2/model.onnx", "b"), ("m/model.toml", "version_policy = \"all\"")],
    );
    house.manager.start().await;
    assert_eq!(house.states("m"), "1:failed 2:ready");
    assert!(matches!(house.manager.roll_back(&name("m")).await, Err(ModelError::Load { .. })));
    assert_eq!((house.states("m").as_str(), house.chosen("m")), ("1:failed 2:ready", None));
    assert!(!house.root.path().join(".ortus/chosen/m").exists());
    assert!(run(&house.get("m").await.unwrap()).await);
}

#[tokio::test]
async fn a_file_of_a_choice_that_is_none_is_ignored() {
    for text in
        ["", "{", "{\"version\": 1}", "{\"version\": 9, \"newest\": 9}", "{\"version\": 1, \"newest\": 2}", "[]"]
    {
        let house = House::new(true, &three_versions());
        house.write(".ortus/chosen/m", text);
        // Of a model that is gone, and of a write that was cut off.
        house.write(".ortus/chosen/gone", "{\"version\": 1, \"newest\": 1}");
        house.write(".ortus/chosen/.cut-off", "{");
        house.manager.start().await;
        assert_eq!((house.states("m").as_str(), house.chosen("m")), ("1:unloaded 2:unloaded 3:ready", None), "{text}");
        assert!(!house.root.path().join(".ortus/chosen/gone").exists());
        assert_eq!(house.leftovers(), Vec::<PathBuf>::new());
    }
}

#[tokio::test]
async fn a_file_that_is_not_what_was_installed_is_never_served() {
    let house = House::new(true, &[("m/1/model.onnx", "abc")]);
    let origin = |sha256: &str| Provenance {
        source: "url".into(),
        model_id: "https://example.org/model.onnx".into(),
        files: vec![ProvenanceFile { path: "model.onnx".into(), bytes: 3, sha256: sha256.into() }],
        ..Provenance::default()
    };
    let folder = house.root.path().join("m/1");
    let right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    origin(right).write(&folder).unwrap();
    house.manager.start().await;
    let status = house.manager.status(&name("m")).unwrap();
    assert_eq!(status.state, ModelState::Ready);
    assert_eq!(status.versions[0].origin.as_ref().unwrap().source, "url");
    drop(status);
    let reason = |house: &House| house.manager.status(&name("m")).unwrap().versions[0].reason.clone().unwrap();
    // The same size, another size, gone, and a file of checksums that says nothing.
    let rows: [(&dyn Fn(), &str); 4] = [
        (&|| house.write("m/1/model.onnx", "abd"), "its SHA-256 is"),
        (&|| house.write("m/1/model.onnx", "abcd"), "has 4 bytes and had 3"),
        (&|| house.write("m/1/ortus-provenance.json", "{\"source\": \"url\", \"mod"), "cannot be read"),
        (
            &|| {
                let files = vec![ProvenanceFile { path: "../../secret".into(), bytes: 1, sha256: right.into() }];
                Provenance { files, ..origin(right) }.write(&folder).unwrap();
            },
            "outside the version's folder",
        ),
    ];
    for (spoil, expected) in rows {
        spoil();
        let error = house.load("m").await.unwrap_err();
        assert!(matches!(error, ModelError::Load { source: LoadError::Checksum(_), .. }), "{error}");
        assert!(reason(&house).starts_with("checksum: ") && reason(&house).contains(expected), "{}", reason(&house));
        // What served was loaded from the right bytes.
        assert!(run(&house.get("m").await.unwrap()).await);
        house.write("m/1/model.onnx", "abc");
        origin(right).write(&folder).unwrap();
        house.load("m").await.unwrap();
    }
    house.write("m/1/model.onnx", "abd");
    let house = house.again().await;
    assert_eq!((house.states("m").as_str(), house.loads()), ("1:failed", 0));
    assert!(matches!(house.get("m").await, Err(ModelError::NotReady { state: ModelState::Failed, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_installs_choices_and_deletions_never_fails_a_request_that_was_taken() {
    let house = Arc::new(House::with_poll(true, Some(Duration::from_millis(1)), &[("m/1/model.onnx", "a")]));
    house.manager.start().await;
    let until = Instant::now() + Duration::from_millis(600);
    let mut work = Vec::new();
    for index in 0..7u64 {
        let house = house.clone();
        let tasks = house.tasks.clone();
        work.push(tasks.spawn("storm", async move {
            let mut turn = index;
            while Instant::now() < until {
                turn += 1;
                match index {
                    0 | 1 => {
                        let _ = house.install("m", &format!("{turn}")).await;
                        let _ = house.load("m").await;
                    }
                    2 => {
                        let _ = house.manager.roll_back(&name("m")).await;
                    }
                    3 => {
                        let version = (turn % 4 != 0).then_some(Version(turn % 7));
                        let _ = house.manager.delete(&name("m"), version).await;
                    }
                    4 => {
                        let _ = house.manager.unload(&name("m")).await;
                        let _ = house.manager.choose(&name("m"), None).await;
                    }
                    _ => match house.get("m").await {
                        Ok(model) => assert!(run(&model).await),
                        Err(ModelError::NotReady { .. } | ModelError::NotFound { .. } | ModelError::Load { .. }) => {
                            tokio::task::yield_now().await
                        }
                        Err(error) => panic!("{error}"),
                    },
                }
            }
        }));
    }
    for task in work {
        task.await.unwrap();
    }
    let _ = house.manager.delete(&name("m"), None).await;
    assert_eq!(house.install("m", "last").await.unwrap(), Version(1));
    house.load("m").await.unwrap();
    assert_eq!((house.states("m").as_str(), house.leftovers()), ("1:ready", vec![]));
    house.manager.close().await;
    assert!(house.tasks.close(Duration::from_secs(20)).await);
}

/// What somebody does with a model.
#[derive(Debug, Clone, Copy)]
enum Step {
    Install,
    Delete(usize),
    Choose(usize),
    ByPolicy,
    RollBack,
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Install),
        1 => (0usize..4).prop_map(Step::Delete),
        2 => (0usize..4).prop_map(Step::Choose),
        1 => Just(Step::ByPolicy),
        2 => Just(Step::RollBack),
        1 => Just(Step::Restart),
    ]
}

/// A model as it should be: its versions, the chosen one, and the highest there ever was while it is chosen.
#[derive(Debug, Default)]
struct Expected {
    versions: BTreeSet<u64>,
    chosen: Option<(u64, u64)>,
}

impl Expected {
    fn serving(&self) -> Option<u64> {
        self.chosen.map(|(version, _)| version).or(self.versions.last().copied())
    }

    fn states(&self) -> String {
        if self.versions.is_empty() {
            return "none".into();
        }
        let state = |version| if Some(version) == self.serving() { "ready" } else { "unloaded" };
        let shown: Vec<String> = self.versions.iter().map(|&version| format!("{version}:{}", state(version))).collect();
        shown.join(" ")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_changes_ends_as_it_should(steps in proptest::collection::vec(any_step(), 1..14)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut house = House::new(true, &[]);
            let mut houses = Vec::new();
            house.manager.start().await;
            let mut expected = Expected::default();
            for step in steps {
                let nth = |nth: usize| expected.versions.iter().nth(nth).copied();
                match step {
                    Step::Install => {
                        let highest = expected.versions.last().copied().max(expected.chosen.map(|(_, newest)| newest));
                        let version = highest.map_or(1, |highest| highest + 1);
                        assert_eq!(house.install("m", "a").await.unwrap(), Version(version));
                        house.load("m").await.unwrap();
                        expected.versions.insert(version);
                        expected.chosen = None;
                    }
                    Step::Delete(index) => {
                        let Some(version) = nth(index) else { continue };
                        house.manager.delete(&name("m"), Some(Version(version))).await.unwrap();
                        expected.versions.remove(&version);
                        expected.chosen = expected.chosen.filter(|(chosen, _)| *chosen != version);
                    }
                    Step::Choose(index) => {
                        let Some(version) = nth(index) else { continue };
                        house.manager.choose(&name("m"), Some(Version(version))).await.unwrap();
                        expected.chosen = expected.versions.last().map(|newest| (version, *newest));
                    }
                    Step::ByPolicy => {
                        let done = house.manager.choose(&name("m"), None).await;
                        assert_eq!(done.is_ok(), !expected.versions.is_empty());
                        expected.chosen = None;
                    }
                    Step::RollBack => {
                        let below = expected.serving().and_then(|serving| expected.versions.range(..serving).next_back());
                        let done = house.manager.roll_back(&name("m")).await;
                        assert_eq!(done.ok().flatten(), below.copied().map(Version));
                        if let Some((below, newest)) = below.copied().zip(expected.versions.last()) {
                            expected.chosen = Some((below, *newest));
                        }
                    }
                    Step::Restart => {
                        let next = house.again().await;
                        houses.push(std::mem::replace(&mut house, next));
                    }
                }
                assert_eq!(house.states("m"), expected.states(), "{step:?}");
                assert_eq!(house.leftovers(), Vec::<PathBuf>::new());
            }
        });
    }
}

#[cfg(debug_assertions)]
mod crash {
    //! A child process, this very program, does one thing to a store and is killed at one of its steps.

    use super::*;
    use crate::models::steps;
    use std::process::Command;

    const STORE: &str = "ORTUS_TEST_CRASH_STORE";
    const WORK: &str = "ORTUS_TEST_CRASH_WORK";
    const KILLED: &str = "models::tests::versions::crash::a_kill_at_any_step_leaves_the_old_or_the_new";
    const FAILED: &str = "models::tests::versions::crash::a_disk_that_fails_at_any_step_leaves_the_old";

    /// Each on a store with the model `m` of versions 1 and 2.
    const WORKS: [&str; 6] = ["install", "install a version", "choose", "by policy", "delete a version", "delete"];

    async fn act(house: &House, store: &Path, work: &str) -> Result<(), ModelError> {
        let manager = &house.manager;
        match work {
            "install" => {
                let claim = manager.claim(&name("new")).await?;
                let staged = Staged { model_toml: Some("description = \"d\"".into()), ..stage(store, "a") };
                manager.try_out(&claim, &staged).await?;
                manager.install(claim, staged).await?;
                manager.load(&name("new"), LoadOverrides::default()).await
            }
            "install a version" => {
                let claim = manager.claim_version(&name("m")).await?;
                manager.install(claim, stage(store, "c")).await?;
                manager.load(&name("m"), LoadOverrides::default()).await
            }
            "choose" => manager.choose(&name("m"), Some(Version(1))).await,
            "by policy" => manager.choose(&name("m"), None).await,
            "delete a version" => manager.delete(&name("m"), Some(Version(1))).await.map(|_| ()),
            "delete" => manager.delete(&name("m"), None).await.map(|_| ()),
            other => panic!("no such work: {other}"),
        }
    }

    /// A store as it is before the work.
    fn store(work: &str) -> tempfile::TempDir {
        let store = tempfile::tempdir().unwrap();
        let write = |file: &str, content: &str| {
            let path = store.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        for file in ["m/1/model.onnx", "m/2/model.onnx", "other/1/model.onnx"] {
            write(file, "a");
        }
        if ["install a version", "by policy", "delete a version", "delete"].contains(&work) {
            write(".ortus/chosen/m", "{\"version\": 1, \"newest\": 2}");
        }
        store
    }

    async fn open(store: &Path) -> House {
        let root = Root { path: store.to_owned(), _folder: None };
        let house = House::over(root, true, None, None);
        house.manager.start().await;
        house
    }

    /// All that is to be seen of a store.
    fn seen(house: &House, store: &Path) -> String {
        let models = house.manager.list().into_iter().map(|model| {
            let text = fs::read_to_string(store.join(model.name.as_str()).join("model.toml")).unwrap_or_default();
            format!("{} [{}] {:?} {text}", model.name, house.states(model.name.as_str()), model.chosen_version)
        });
        models.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_kill_at_any_step_leaves_the_old_or_the_new() {
        // F87
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        if let (Ok(store), Ok(work)) = (std::env::var(STORE), std::env::var(WORK)) {
            let store = PathBuf::from(store);
            runtime.block_on(async { act(&open(&store).await, &store, &work).await.unwrap() });
            return;
        }
        let mut kills = 0;
        for work in WORKS {
            let (before, after) = runtime.block_on(async {
                let store = store(work);
                let house = open(store.path()).await;
                let before = seen(&house, store.path());
                act(&house, store.path(), work).await.unwrap();
                (before, seen(&house, store.path()))
            });
            assert_ne!(before, after, "{work}");
            let (mut olds, mut news) = (0, 0);
            for step in 1.. {
                let store = store(work);
                let child = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", KILLED, "--nocapture"])
                    .env(STORE, store.path())
                    .env(WORK, work)
                    .env("ORTUS_FAILPOINT", step.to_string())
                    .output()
                    .unwrap();
                if child.status.success() {
                    break;
                }
                let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
                assert_eq!(signal, Some(9), "{work}, step {step}: {child:?}");
                kills += 1;
                runtime.block_on(async {
                    let house = open(store.path()).await;
                    let found = seen(&house, store.path());
                    assert!(found == before || found == after, "{work}, step {step}: {found}");
                    assert_eq!(leftovers(store.path()), Vec::<PathBuf>::new(), "{work}, step {step}");
                    if found == before {
                        olds += 1;
                        act(&house, store.path(), work).await.unwrap();
                        assert_eq!(seen(&house, store.path()), after, "{work}, step {step}");
                    } else {
                        news += 1;
                    }
                    assert!(run(&house.get("other").await.unwrap()).await);
                });
            }
            assert!(olds > 0 && news > 0, "{work}: {olds} times the old, {news} times the new");
        }
        assert!(kills >= 20, "killed {kills} times");
    }

    #[test]
    fn a_disk_that_fails_at_any_step_leaves_the_old() {
        // F88: by turns no space and an I/O error
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        if let (Ok(store), Ok(work)) = (std::env::var(STORE), std::env::var(WORK)) {
            let store = PathBuf::from(store);
            runtime.block_on(fail_once(&store, &work));
            return;
        }
        let mut failures = 0;
        for work in WORKS {
            for step in 1.. {
                let errno = if step % 2 == 1 { rustix::io::Errno::NOSPC } else { rustix::io::Errno::IO };
                let store = store(work);
                let child = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", FAILED, "--nocapture"])
                    .env(STORE, store.path())
                    .env(WORK, work)
                    .env("ORTUS_FAILPOINT", format!("{step}:{}", errno.raw_os_error()))
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&child.stdout);
                assert!(child.status.success(), "{work}, step {step}: {said} {child:?}");
                if said.contains("no such step") {
                    break;
                }
                failures += 1;
            }
        }
        assert!(failures >= 20, "{failures} failures");
    }

    /// Does the work, of which a step may fail; where it says that it failed, it is done again.
    async fn fail_once(store: &Path, work: &str) {
        let house = open(store).await;
        let before = seen(&house, store);
        let first = act(&house, store, work).await;
        let now = seen(&open(store).await, store);
        if !steps::HAS_FAILED.load(std::sync::atomic::Ordering::SeqCst) {
            println!("no such step");
        }
        // Steps on which nothing depends.
        let Err(error) = first else { return assert_ne!(now, before) };
        println!("{error}");
        assert!(matches!(error, ModelError::NoSpace { .. } | ModelError::Conflict { .. }), "{error:?}");
        // A choice may be kept although it cannot be told for certain.
        assert!(now == before || ["choose", "by policy"].contains(&work), "{now}");
        assert_eq!(leftovers(store), Vec::<PathBuf>::new());
        assert!(run(&house.get("other").await.unwrap()).await);
        act(&house, store, work).await.unwrap();
        assert_ne!(seen(&open(store).await, store), before);
    }
}
