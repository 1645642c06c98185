//! Predictions that are answered later: right answers, states, bounds, restarts and kills.

use crate::server::{PATIENCE, Server, copy_folder, raw, root, store_of};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

const ENDLESS: u64 = 1_000_000_000_000;

fn mlp_body() -> Value {
    json!({"inputs": [vec![0.5; 32]], "id": "a-1"})
}

fn slow_body(turns: u64) -> Value {
    json!({"inputs": {"n": turns}})
}

/// Submits and gives the id.
#[track_caller]
fn submit(server: &Server, model: &str, body: &Value) -> String {
    let (status, job) = server.post_json(&format!("/v1/models/{model}/jobs"), body);
    assert_eq!(status, 202, "{job}");
    job["id"].as_str().unwrap().to_owned()
}

fn job(server: &Server, id: &str) -> Value {
    server.get_json(&format!("/v1/jobs/{id}"))
}

#[track_caller]
fn wait(server: &Server, id: &str, status: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let job = job(server, id);
        if job["status"] == status {
            return job;
        }
        assert!(Instant::now() < deadline, "not {status}: {job}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn delete(server: &Server, id: &str) -> (u16, Value) {
    let response = server.client.delete(server.url(&format!("/v1/jobs/{id}"))).send().unwrap();
    (response.status().as_u16(), response.json().unwrap_or_default())
}

/// All events of a stream that ends.
fn events(server: &Server, id: &str) -> Vec<(String, Value)> {
    events_while(server, id, || ())
}

/// The same, with something that is done once the first event is there.
fn events_while(server: &Server, id: &str, after_first: impl FnOnce()) -> Vec<(String, Value)> {
    let response = server.get(&format!("/v1/jobs/{id}/events"));
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut events, mut name, mut after_first) = (Vec::new(), String::new(), Some(after_first));
    for line in BufReader::new(response).lines() {
        let line = line.unwrap();
        if let Some(event) = line.strip_prefix("event: ") {
            name = event.to_owned();
        } else if let Some(data) = line.strip_prefix("data: ") {
            events.push((name.clone(), serde_json::from_str(data).unwrap()));
            after_first.take().into_iter().for_each(|act| act());
        }
    }
    events
}

/// F75.
#[test]
fn a_job_answers_what_predict_answers() {
    let server = Server::with(&["mlp"]);
    let (_, expected) = server.post_json("/v1/models/mlp/predict", &mlp_body());
    let response =
        server.post("/v1/models/mlp/jobs?version=1").header("x-request-id", "mine-1").json(&mlp_body()).send().unwrap();
    assert_eq!(response.status(), 202);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let accepted: Value = response.json().unwrap();
    let id = accepted["id"].as_str().unwrap();
    assert_eq!(location, format!("/v1/jobs/{id}"));
    assert_eq!(
        (&accepted["model"], &accepted["version"], &accepted["request_id"]),
        (&json!("mlp"), &json!("1"), &json!("mine-1"))
    );
    let version_nibble = id.as_bytes()[14];
    assert_eq!((id.len(), version_nibble), (36, b'4'), "a random UUID: {id}");

    let job = wait(&server, id, "succeeded");
    assert_eq!(job["result"], expected);
    assert_eq!(job["progress"], json!({"done": 1, "total": 1}));
    for time in ["created_at", "started_at", "finished_at", "expires_at"] {
        assert!(job[time].as_str().unwrap().ends_with('Z'), "{job}");
    }
    assert_eq!(server.get_json(&format!("{location}/result")), expected);
    server.assert_well();
}

#[test]
fn all_media_types_and_binary_results_work() {
    let store = store_of(&["mlp"]);
    copy_folder(&root().join("models/digits"), &store.path().join("digits"));
    let server = Server::on(store, &[]);
    let seven = std::fs::read(root().join("models/digits/samples/seven.png")).unwrap();
    let (status, accepted) = server.post_text("/v1/models/digits/jobs?top_k=1", "image/png", seven.clone());
    assert_eq!(status, 202, "{accepted}");
    let job = wait(&server, accepted["id"].as_str().unwrap(), "succeeded");
    assert_eq!(job["result"]["predictions"].as_array().unwrap().len(), 1);
    assert_eq!(job["result"]["predictions"][0][0]["label"], "7");

    let part = || reqwest::blocking::multipart::Part::bytes(seven.clone()).file_name("seven.png");
    let form = reqwest::blocking::multipart::Form::new().part("file", part()).part("file", part());
    let accepted: Value = server.post("/v1/models/digits/jobs").multipart(form).send().unwrap().json().unwrap();
    let job = wait(&server, accepted["id"].as_str().unwrap(), "succeeded");
    assert_eq!(job["result"]["predictions"].as_array().unwrap().len(), 2);
    assert_eq!(job["progress"], json!({"done": 2, "total": 2}));

    for accept in ["application/x-npy", "application/x-npz", "application/vnd.safetensors"] {
        let send = |path: &str| server.post(path).header("accept", accept).json(&mlp_body()).send().unwrap();
        let expected = send("/v1/models/mlp/predict").bytes().unwrap();
        let accepted: Value = send("/v1/models/mlp/jobs").json().unwrap();
        let id = accepted["id"].as_str().unwrap();
        let job = wait(&server, id, "succeeded");
        assert_eq!((&job["result_type"], &job["result_bytes"]), (&json!(accept), &json!(expected.len())));
        assert!(job.get("result").is_none());
        let result = server.get(&format!("/v1/jobs/{id}/result"));
        assert_eq!(result.headers()["content-type"], accept);
        // The entries of an archive carry their time.
        if accept != "application/x-npz" {
            assert_eq!(result.bytes().unwrap(), expected);
        }
    }
}

#[test]
fn a_large_job_is_whole() {
    let server = Server::with(&["echo"]);
    let meta = server.get_json("/v2/models/echo");
    let input = meta["inputs"][0]["name"].as_str().unwrap().to_owned();
    let values: Vec<f32> = (0..300_000).map(|index| index as f32 / 7.0).collect();
    let rank = meta["inputs"][0]["shape"].as_array().unwrap().len();
    let mut shape = vec![1; rank];
    shape[rank - 1] = values.len();
    let body = json!({"inputs": {input: {"dtype": "FP32", "shape": shape, "data": values}}});
    let (status, expected) = server.post_json("/v1/models/echo/predict", &body);
    assert_eq!(status, 200, "{expected}");
    let id = submit(&server, "echo", &body);
    assert_eq!(wait(&server, &id, "succeeded")["result"], expected);
    assert_eq!(delete(&server, &id).0, 204);
    // Nothing of it is left on the disk but the file of jobs.
    assert_eq!(std::fs::read_dir(server.store.path().join(".ortus/jobs")).unwrap().count(), 1);
}

/// F75.
#[test]
fn what_predict_refuses_is_refused_at_once_or_is_the_error_of_the_job() {
    let server = Server::with(&["mlp", "fails"]);
    let refuse = |path: &str, media_type: &str, body: &str, status: u16, code: &str| {
        let (came, problem) = server.post_text(path, media_type, body.as_bytes().to_vec());
        assert_eq!((came, &problem["code"]), (status, &json!(code)), "{path} {problem}");
    };
    let json_type = "application/json";
    refuse("/v1/models/nope/jobs", json_type, "{}", 404, "model_not_found");
    refuse("/v1/models/mlp/jobs?version=9", json_type, "{}", 404, "version_not_found");
    refuse("/v1/models/mlp/jobs?version=x", json_type, "{}", 400, "invalid_query");
    refuse("/v1/models/mlp/jobs", "image/png", "x", 415, "unsupported_media_type");
    refuse("/v1/models/mlp/jobs", json_type, "{", 400, "malformed_body");
    refuse("/v1/models/mlp/jobs", json_type, r#"{"inputs": {"nope": 1}}"#, 422, "invalid_input");
    for path in ["/v1/jobs/nope", "/v1/jobs/00000000-0000-4000-8000-000000000000", "/v1/jobs/nope/result"] {
        let response = server.get(path);
        assert_eq!(response.status(), 404);
        assert_eq!(response.json::<Value>().unwrap()["code"], "job_not_found");
    }
    assert_eq!(delete(&server, "00000000-0000-4000-8000-000000000000").0, 404);
    assert_eq!(server.get("/v1/jobs?limit=0").status(), 400);
    assert_eq!(server.get("/v1/jobs?nope=1").status(), 400);
    assert_eq!(server.get_json("/v1/jobs"), json!({"jobs": [], "next": null}));

    // Found only while it runs.
    let bad = json!({"inputs": {"index": [0, 9]}});
    let (status, expected) = server.post_json("/v1/models/fails/predict", &bad);
    let id = submit(&server, "fails", &bad);
    let job = wait(&server, &id, "failed");
    for field in ["type", "title", "status", "detail", "code"] {
        assert_eq!(job["error"][field], expected[field], "{job}");
    }
    assert_eq!(job["error"]["instance"], format!("/v1/jobs/{id}"));
    assert_eq!(job["error"]["request_id"], job["request_id"]);
    let result = server.get(&format!("/v1/jobs/{id}/result"));
    assert_eq!(
        (result.status().as_u16(), &result.headers()["content-type"]),
        (status, &"application/problem+json".parse().unwrap())
    );
    assert_eq!(result.json::<Value>().unwrap(), job["error"]);
    server.assert_well();
}

#[test]
fn queued_and_running_jobs_are_cancelled() {
    let server = Server::start(&["slow", "mlp"], &[("ORTUS_LIMITS__JOBS_AT_ONCE", "1")]);
    let running = submit(&server, "slow", &slow_body(ENDLESS));
    wait(&server, &running, "running");
    let queued = submit(&server, "slow", &slow_body(1));
    let response = server.get(&format!("/v1/jobs/{running}/result"));
    assert_eq!((response.status().as_u16(), response.headers().contains_key("retry-after")), (409, true));
    for id in [&queued, &running] {
        let (status, job) = delete(&server, id);
        assert_eq!((status, &job["status"]), (200, &json!("cancelled")));
        assert_eq!(job["progress"]["done"], 0);
        assert_eq!(server.get(&format!("/v1/jobs/{id}/result")).status(), 409);
    }
    // The model is free again, and so is the slot.
    assert_eq!(server.post_json("/v1/models/slow/predict", &slow_body(1)).0, 200);
    let next = submit(&server, "slow", &slow_body(1));
    wait(&server, &next, "succeeded");
    for id in [queued, running, next] {
        assert_eq!(delete(&server, &id).0, 204);
        assert_eq!(delete(&server, &id).0, 404);
    }
    server.assert_well();
}

#[test]
fn lists_are_filtered_and_paged() {
    let server = Server::start(&["slow", "mlp"], &[("ORTUS_LIMITS__JOBS_AT_ONCE", "1")]);
    let done: Vec<String> = (0..5).map(|_| submit(&server, "mlp", &mlp_body())).collect();
    wait(&server, done.last().unwrap(), "succeeded");
    let running = submit(&server, "slow", &slow_body(ENDLESS));
    wait(&server, &running, "running");
    let ids = |page: &Value| -> Vec<String> {
        page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    };
    let first = server.get_json("/v1/jobs?limit=4");
    let second = server.get_json(&format!("/v1/jobs?limit=4&after={}", first["next"].as_str().unwrap()));
    assert_eq!(second["next"], Value::Null);
    let mut all = ids(&first);
    all.extend(ids(&second));
    let newest_first: Vec<String> = done.iter().chain([&running]).rev().cloned().collect();
    assert_eq!(all, newest_first);
    assert_eq!(ids(&server.get_json("/v1/jobs?status=running")), std::slice::from_ref(&running));
    assert_eq!(ids(&server.get_json("/v1/jobs?model=mlp&status=succeeded")).len(), 5);
    assert!(first.to_string().len() < 4000 && !first.to_string().contains("outputs"), "no results in lists");
    delete(&server, &running);
}

/// F75.
#[test]
fn a_flood_is_refused_with_the_time_to_come_back() {
    let server =
        Server::start(&["slow", "mlp"], &[("ORTUS_LIMITS__MAX_JOBS", "5"), ("ORTUS_LIMITS__MAX_JOB_BYTES", "100000")]);
    let endless = submit(&server, "slow", &slow_body(ENDLESS));
    let statuses: Vec<(u16, bool)> = std::thread::scope(|scope| {
        let send = || {
            let response = server.post("/v1/models/slow/jobs").json(&slow_body(ENDLESS)).send().unwrap();
            (response.status().as_u16(), response.headers().contains_key("retry-after"))
        };
        let clients: Vec<_> = (0..20).map(|_| scope.spawn(send)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|(status, _)| *status == 202).count(), 4, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|answer| **answer == (503, true)).count(), 16, "{statuses:?}");
    let (_, problem) = server.post_json("/v1/models/slow/jobs", &slow_body(1));
    assert_eq!(problem["code"], "queue_full");
    // Room on the disk is bounded too.
    delete(&server, &endless);
    assert_eq!(delete(&server, &endless).0, 204);
    let large = json!({"inputs": [vec![0.5; 32]], "id": "x", "parameters": {"pad": "y".repeat(100_000)}});
    let (status, problem) = server.post_json("/v1/models/mlp/jobs", &large);
    assert_eq!((status, &problem["code"]), (507, &json!("job_storage_full")), "{problem}");
    assert_eq!(server.post_json("/v1/models/mlp/predict", &mlp_body()).0, 200);
    server.assert_well();
}

#[test]
fn events_tell_each_state_and_end() {
    let server = Server::start(&["slow"], &[("ORTUS_LIMITS__JOBS_AT_ONCE", "1")]);
    let blocker = submit(&server, "slow", &slow_body(ENDLESS));
    let id = submit(&server, "slow", &slow_body(200_000));
    let told = events_while(&server, &id, || {
        delete(&server, &blocker);
    });
    let states: Vec<&Value> =
        told.iter().filter(|(name, _)| name == "state").map(|(_, data)| &data["status"]).collect();
    assert_eq!(states, [&json!("queued"), &json!("running"), &json!("succeeded")], "{told:?}");
    let progress: Vec<&Value> = told.iter().filter(|(name, _)| name == "progress").map(|(_, data)| data).collect();
    assert_eq!(progress.last(), Some(&&json!({"done": 1, "total": 1})), "{told:?}");
    assert_eq!(told.last().unwrap().0, "state");
    // A finished job has one more thing to say, and a cancelled one too.
    assert_eq!(events(&server, &id).last().unwrap().1["status"], "succeeded");
    assert_eq!(events(&server, &blocker).last().unwrap().1["status"], "cancelled");
    assert_eq!(server.get("/v1/jobs/nope/events").status(), 404);
}

/// F75.
#[test]
fn finished_jobs_are_removed_after_their_time() {
    let server = Server::start(&["mlp"], &[("ORTUS_LIMITS__JOB_RESULT_TTL_MS", "300")]);
    let id = submit(&server, "mlp", &mlp_body());
    let deadline = Instant::now() + PATIENCE;
    while server.get(&format!("/v1/jobs/{id}")).status() != 404 {
        assert!(Instant::now() < deadline, "it is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.get_json("/v1/jobs")["jobs"], json!([]));
}

#[test]
fn a_job_that_takes_too_long_fails() {
    let server = Server::start(&["slow"], &[("ORTUS_LIMITS__JOB_TIMEOUT_MS", "500")]);
    let id = submit(&server, "slow", &slow_body(ENDLESS));
    assert_eq!(wait(&server, &id, "failed")["error"]["status"], 504);
    let mut body = slow_body(ENDLESS);
    body["timeout_ms"] = json!(100);
    let id = submit(&server, "slow", &body);
    assert_eq!(wait(&server, &id, "failed")["error"]["code"], "deadline_exceeded");
    server.assert_well();
}

#[test]
fn a_job_waits_for_a_model_whose_queue_is_full() {
    let server = Server::start(&["slow"], &[("ORTUS_BATCH__MAX_QUEUE", "1"), ("ORTUS_BATCH__INSTANCES", "1")]);
    let mut endless = slow_body(ENDLESS);
    endless["timeout_ms"] = json!(1500);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| server.post_json("/v1/models/slow/predict", &endless));
        }
        std::thread::sleep(Duration::from_millis(200));
        let id = submit(&server, "slow", &slow_body(1));
        wait(&server, &id, "succeeded");
    });
}

/// Kills the server and starts another one on its store.
fn restart(mut server: Server, environment: &[(&str, &str)]) -> Server {
    server.kill();
    Server::on(server.take_store(), environment)
}

#[test]
fn jobs_and_results_survive_a_kill() {
    let environment = [("ORTUS_LIMITS__JOBS_AT_ONCE", "1")];
    let server = Server::start(&["slow", "mlp"], &environment);
    let done = submit(&server, "mlp", &mlp_body());
    let result = wait(&server, &done, "succeeded")["result"].clone();
    let cancelled = submit(&server, "mlp", &mlp_body());
    wait(&server, &cancelled, "succeeded");
    assert_eq!(delete(&server, &cancelled).0, 204);
    // Long enough to be in the middle of it, short enough to be waited for.
    let running = submit(&server, "slow", &slow_body(1_000_000));
    wait(&server, &running, "running");
    let queued = submit(&server, "mlp", &mlp_body());
    let server = restart(server, &environment);
    assert_eq!(wait(&server, &done, "succeeded")["result"], result);
    assert_eq!(server.get(&format!("/v1/jobs/{cancelled}")).status(), 404);
    assert_eq!(wait(&server, &queued, "succeeded")["result"], result);
    assert_eq!(wait(&server, &running, "succeeded")["result"]["model"], "slow");
    let order = server.get_json("/v1/jobs");
    assert_eq!(order["jobs"][0]["id"], queued);

    // A second time, now with all results there.
    let server = restart(server, &environment);
    for id in [&done, &queued, &running] {
        wait(&server, id, "succeeded");
    }
    server.assert_well();
}

#[test]
fn a_stop_does_not_wait_for_jobs_or_open_streams_and_loses_nothing() {
    let mut server = Server::start(&["slow"], &[("ORTUS_LIMITS__JOBS_AT_ONCE", "1")]);
    let running = submit(&server, "slow", &slow_body(ENDLESS));
    let queued = submit(&server, "slow", &slow_body(1));
    wait(&server, &running, "running");
    let mut stream = server.get(&format!("/v1/jobs/{queued}/events"));
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"event: state");
    let started = Instant::now();
    server.terminate();
    assert!(server.wait_exit().success());
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("\n\n"), "the stream ended properly: {rest:?}");

    let server = Server::on(server.take_store(), &[("ORTUS_LIMITS__JOBS_AT_ONCE", "2")]);
    wait(&server, &running, "running");
    assert_eq!(delete(&server, &running).0, 200);
    wait(&server, &queued, "succeeded");
}

#[test]
fn a_damaged_file_does_not_keep_the_server_from_starting() {
    let mut server = Server::with(&["mlp"]);
    let id = submit(&server, "mlp", &mlp_body());
    wait(&server, &id, "succeeded");
    server.kill();
    let store = server.take_store();
    let folder = store.path().join(".ortus/jobs");
    std::fs::write(folder.join("jobs.redb"), vec![0xa5; 50_000]).unwrap();
    std::fs::write(folder.join("0000.result"), "left over").unwrap();
    let server = Server::on(store, &[]);
    assert_eq!(server.get(&format!("/v1/jobs/{id}")).status(), 404);
    assert!(folder.join("jobs.redb.damaged").exists());
    assert!(!folder.join("0000.result").exists());
    let id = submit(&server, "mlp", &mlp_body());
    wait(&server, &id, "succeeded");
    server.assert_well();
}

#[test]
fn a_store_without_jobs_is_left_alone() {
    let server = Server::with(&["mlp"]);
    assert_eq!(server.get_json("/v1/jobs")["jobs"], json!([]));
    assert!(!server.store.path().join(".ortus/jobs").exists());
    // A head alone creates nothing either.
    let head = "POST /v1/models/mlp/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n";
    assert!(raw(server.address, head.as_bytes()).starts_with("HTTP/1.1 413"));
    assert!(!server.store.path().join(".ortus/jobs").exists());
}
