//! Too much at once, runs that do not end, want of memory, clients that vanish, a clock that jumps.

use crate::attack::{Attacked, compiled, good, head, read_all, reset};
use crate::memory::write_hungry_model;
use crate::server::{PATIENCE, Server, root, store_of, wait_until};
use crate::stats::Metrics;
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

const PREDICT: &str = "/v1/models/mlp/predict";
const SLOW: &str = "/v1/models/slow/predict";
const ENDLESS: u64 = 1_000_000_000_000;

fn turns(count: u64, timeout_ms: u64) -> Value {
    json!({"inputs": {"n": count}, "timeout_ms": timeout_ms})
}

/// A request that closes its connection, as bytes.
fn bytes(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!("{}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", head(path), body.len()).into_bytes()
}

fn gauge(server: &Attacked, name: &str) -> u64 {
    Metrics::of(server).sum(name, &[("model", "slow")])
}

/// F10.
#[test]
fn clients_that_reset_in_the_midst_of_their_runs_leave_nothing_running() {
    let mut server = Attacked::with(&["slow"], &[]);
    let request = bytes(SLOW, &turns(ENDLESS, 60_000));
    let clients: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(&request).unwrap();
            stream
        })
        .collect();
    wait_until(|| gauge(&server, "ortus_inflight") == 200);
    clients.into_iter().for_each(reset);
    wait_until(|| gauge(&server, "ortus_inflight") == 0 && gauge(&server, "ortus_queue_depth") == 0);
    wait_until(|| server.is_idle());
    let cancelled = Metrics::of(&server).sum("ortus_cancelled_total", &[("model", "slow"), ("reason", "disconnected")]);
    assert_eq!(cancelled, 200);
    assert_eq!(server.post_json(SLOW, &turns(1, 10_000)).0, 200);
    server.assert_unharmed(48);
}

/// F11.
#[test]
fn what_was_accepted_is_answered_when_the_server_stops_under_load() {
    let mut server = Server::with(&["mlp"]);
    let request = bytes(PREDICT, &good());
    let (answered, broken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let address = server.address;
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                // Ends when the port is closed.
                while let Ok(mut stream) = TcpStream::connect(address) {
                    let sent = stream.write_all(&request).is_ok();
                    let got = read_all(&mut stream, PATIENCE);
                    match got.statuses()[..] {
                        [200] if sent && got.text.ends_with('}') => answered.fetch_add(1, Ordering::Relaxed),
                        [] => broken.fetch_add(1, Ordering::Relaxed),
                        _ => panic!("{}", got.text),
                    };
                }
            });
        }
        wait_until(|| answered.load(Ordering::Relaxed) > 100);
        server.terminate();
        assert!(server.wait_exit().success());
    });
    // Closing a port takes the connections with it that come in the same microseconds.
    assert!(broken.load(Ordering::Relaxed) <= 2, "{broken:?} of {answered:?}");
}

/// F34.
#[test]
fn a_run_that_wants_more_memory_than_there_is_fails_alone() {
    let store = store_of(&[]);
    write_hungry_model(&store.path().join("hungry"));
    let mut server = Attacked::on(store, &[]);
    let ask = |elements: u64| server.post_json("/v1/models/hungry/predict", &json!({"inputs": {"size": [elements]}}));
    let (status, answer) = ask(1000);
    assert_eq!((status, &answer["outputs"]["y"]), (200, &json!(0.0)), "{answer}");
    // 4 TiB, which no machine of a test has.
    let (status, answer) = ask(1 << 40);
    assert!([503, 507].contains(&status), "{status} {answer}");
    assert!(!answer.to_string().contains(".cc"), "{answer}");
    // 3 GiB, where the process may have 1 more than it has.
    let pid = server.child.id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let limit = (size.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10) + (1 << 30);
    let limited = Command::new("prlimit").args([format!("--pid={pid}"), format!("--as={limit}:")]).status();
    assert!(limited.unwrap().success());
    let (status, answer) = ask(805_306_368);
    assert!([503, 507].contains(&status), "{status} {answer}");
    assert_eq!(ask(1000).0, 200);
    server.assert_unharmed(64);
}

/// F34.
#[test]
fn a_run_over_its_models_bound_fails_alone_and_the_error_names_the_key() {
    let store = store_of(&[]);
    write_hungry_model(&store.path().join("hungry"));
    std::fs::write(store.path().join("hungry/model.toml"), "[performance]\nrun_memory_mb = 16\n").unwrap();
    let mut server = Attacked::on(store, &[]);
    let ask = |elements: u64| server.post_json("/v1/models/hungry/predict", &json!({"inputs": {"size": [elements]}}));
    let hogs = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    // 256 MiB.
                    let (status, answer) = ask(64 << 20);
                    assert_eq!(status, 503, "{answer}");
                    assert!(answer.to_string().contains("[performance] run_memory_mb"), "{answer}");
                    hogs.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Its mates, and another model, are answered meanwhile.
        while hogs.load(Ordering::Relaxed) < 40 {
            let (status, answer) = ask(1000);
            assert_eq!((status, &answer["outputs"]["y"]), (200, &json!(0.0)), "{answer}");
            assert_eq!(server.post_json(PREDICT, &good()).0, 200);
        }
    });
    // 8 MiB are within it.
    assert_eq!(ask(2 << 20).0, 200);
    assert_eq!(server.get_json("/v1/models/hungry")["config"]["performance"]["run_memory_mb"], 16);
    server.assert_unharmed(48);
}

/// F35.
#[test]
fn a_run_without_an_end_takes_no_cpu_after_its_deadline() {
    let mut server = Attacked::with(&["slow"], &[("ORTUS_BATCH__INSTANCES", "1")]);
    for path in [SLOW, "/v2/models/slow/infer"] {
        let body = if path == SLOW {
            turns(ENDLESS, 300)
        } else {
            json!({"inputs": [{"name": "n", "shape": [], "datatype": "INT64", "data": [ENDLESS]}], "parameters": {"timeout": 300_000}})
        };
        let (status, answer) = server.post_json(path, &body);
        assert_eq!(status, 504, "{path}: {answer}");
    }
    wait_until(|| server.is_idle());
    assert_eq!(server.post_json(SLOW, &turns(1, 10_000)).0, 200);
    server.assert_unharmed(32);
}

/// F36.
#[test]
fn hundreds_at_once_are_answered_or_told_when_to_come_back() {
    let settings = [("ORTUS_BATCH__MAX_QUEUE", "16"), ("ORTUS_BATCH__INSTANCES", "1")];
    let mut server = Attacked::with(&["slow"], &settings);
    let request = bytes(SLOW, &turns(20_000, 20_000));
    for count in [100, 400, 900] {
        let mut clients: Vec<TcpStream> = (0..count)
            .map(|_| {
                let mut stream = TcpStream::connect(server.address).unwrap();
                stream.write_all(&request).unwrap();
                stream
            })
            .collect();
        let (mut answered, mut refused) = (0, 0);
        for client in &mut clients {
            let got = read_all(client, PATIENCE);
            match got.statuses()[..] {
                [200] => answered += 1,
                [429 | 503] => {
                    assert!(got.text.to_lowercase().contains("\r\nretry-after: "), "{}", got.text);
                    refused += 1;
                }
                _ => panic!("of {count}: {}", got.text),
            }
        }
        assert!(answered > 16 && refused > 0, "of {count}: {answered} answered, {refused} refused");
        assert_eq!(server.post_json(SLOW, &turns(1, 10_000)).0, 200);
    }
    assert!(Metrics::of(&server).sum("ortus_rejected_total", &[("reason", "queue_full")]) > 0);
    server.assert_unharmed(96);
}

/// F37.
#[test]
fn probes_and_metrics_are_answered_while_every_core_computes() {
    let mut server = Attacked::with(&["slow"], &[]);
    let request = bytes(SLOW, &turns(ENDLESS, 20_000));
    let cores = std::thread::available_parallelism().unwrap().get();
    let mut busy: Vec<TcpStream> = (0..2 * cores)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(&request).unwrap();
            stream
        })
        .collect();
    wait_until(|| gauge(&server, "ortus_inflight") == 2 * cores as u64);
    for _ in 0..10 {
        for path in ["/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready", "/v1/models"] {
            assert_eq!(server.get(path).status(), 200, "{path}");
        }
        assert_eq!(server.post_json(PREDICT, &good()).0, 200);
    }
    // All of that took less time than the runs were given.
    assert_eq!(gauge(&server, "ortus_inflight"), 2 * cores as u64);
    busy.drain(..).for_each(reset);
    wait_until(|| server.is_idle());
    server.assert_unharmed(32);
}

/// F72.
#[test]
fn three_thousand_requests_of_all_kinds_leave_no_memory_behind() {
    let mut server = Attacked::with(&["fails", "slow", "strings"], &[]);
    let picture = std::fs::read(root().join("models/digits/samples/seven.png")).unwrap();
    let round = |index: usize| {
        let expected = |status: u16, expected: &[u16]| assert!(expected.contains(&status), "{index}: {status}");
        match index % 10 {
            0 | 1 => expected(server.post_json(PREDICT, &good()).0, &[200]),
            2 => expected(server.post_json(PREDICT, &json!({"inputs": vec![vec![0.5; 32]; 50]})).0, &[200]),
            3 => expected(server.post_json("/v1/models/fails/predict", &json!({"inputs": {"index": [9]}})).0, &[422]),
            4 => expected(
                server.post_text("/v2/models/mlp/infer", "application/json", b"{\"inputs\": [".to_vec()).0,
                &[400],
            ),
            5 => expected(server.post_text(PREDICT, "image/png", picture.clone()).0, &[415, 422]),
            6 => expected(server.get(&format!("/v1/models/m{index}")).status().as_u16(), &[404]),
            7 => expected(server.post_json(SLOW, &turns(ENDLESS, 5)).0, &[504]),
            8 => expected(
                server.post_json("/v1/models/strings/predict", &json!({"inputs": "x".repeat(2000)})).0,
                &[200, 422],
            ),
            _ => {
                let cut = format!("{}Content-Length: 5000\r\n\r\n{{", head(PREDICT));
                let mut stream = TcpStream::connect(server.address).unwrap();
                stream.write_all(cut.as_bytes()).unwrap();
                reset(stream);
            }
        }
    };
    std::thread::scope(|scope| {
        for client in 0..4 {
            let round = &round;
            scope.spawn(move || (0..750).for_each(|index| round(client + 4 * index)));
        }
    });
    server.assert_unharmed(32);
}

/// F86.
#[test]
fn a_clock_that_jumps_moves_no_deadline_and_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let (library, offset) = (folder.path().join("clock.so"), folder.path().join("offset"));
    if !compiled(&root().join("tests/it/clock.c"), &library) {
        eprintln!("SKIPPED: there is no C compiler for a clock that can be moved");
        return;
    }
    let jump = |seconds: i64| std::fs::write(&offset, seconds.to_string()).unwrap();
    jump(0);
    let environment = [("LD_PRELOAD", library.to_str().unwrap()), ("CLOCK_OFFSET", offset.to_str().unwrap())];
    let mut server = Attacked::with(&["slow"], &environment);
    let (_, accepted) = server.post_json("/v1/models/mlp/jobs", &good());
    let job = format!("/v1/jobs/{}", accepted["id"].as_str().unwrap());
    wait_until(|| server.get_json(&job)["status"] == "succeeded");
    let decade = 10 * 365 * 86_400;
    for seconds in [decade, -86_400, decade, 0] {
        let mut running = TcpStream::connect(server.address).unwrap();
        running.write_all(&bytes(SLOW, &turns(ENDLESS, 900))).unwrap();
        wait_until(|| gauge(&server, "ortus_inflight") == 1);
        jump(seconds);
        for _ in 0..5 {
            assert_eq!(server.post_json(PREDICT, &good()).0, 200);
        }
        assert_eq!(gauge(&server, "ortus_inflight"), 1, "the jump ended a run");
        assert_eq!(read_all(&mut running, PATIENCE).statuses(), [504]);
        assert_eq!(server.get(&format!("{job}/result")).status(), 200);
        server.assert_unharmed(32);
    }
    let years: Vec<i32> =
        server.log().iter().filter_map(|line| line["timestamp"].as_str()?[..4].parse().ok()).collect();
    assert!(years.iter().max().unwrap() - years.iter().min().unwrap() >= 9, "the clock did not jump: {years:?}");
}
