//! What runs where: reported by the model, the system, the metrics and readiness, also where a device does not work.

use crate::server::{Server, command, fixture};
use crate::stats::Metrics;
use serde_json::Value;

/// Providers of `/v1/system` by name, with the reason why one is not available.
fn providers(server: &Server) -> Vec<(String, Option<String>)> {
    let system = server.get_json("/v1/system");
    let told = system["execution_providers"].as_array().unwrap();
    told.iter()
        .map(|provider| {
            let reason = provider["reason"].as_str().map(str::to_owned);
            assert_eq!(provider["available"], Value::Bool(reason.is_none()), "{system}");
            (provider["name"].as_str().unwrap().to_owned(), reason)
        })
        .collect()
}

#[test]
fn a_model_tells_which_provider_runs_how_much_of_it() {
    let server = Server::start(&["mlp"], &[("ORTUS_DEVICE__DEVICE_TYPE", "cpu")]);
    let model = server.get_json("/v1/models/mlp");
    let execution = &model["execution"];
    assert_eq!(execution["asked"], serde_json::json!(["CPUExecutionProvider"]));
    assert_eq!(execution["registered"], model["providers"]);
    assert_eq!(execution["missing"], serde_json::json!([]));
    assert_eq!(execution["is_fallback"], false);
    let nodes = execution["nodes"]["CPUExecutionProvider"].as_u64().unwrap();
    assert!(nodes > 0, "{execution}");
    let metrics = Metrics::of(&server);
    let labels = [("model", "mlp"), ("version", "1"), ("provider", "CPUExecutionProvider")];
    assert_eq!(metrics.sum("ortus_model_nodes", &labels), nodes);
    assert_eq!(metrics.sum("ortus_model_degraded", &[("model", "mlp")]), 0);
    assert_eq!(server.get("/readyz").text().unwrap(), "ok");
    assert_eq!(server.get_json("/healthz").get("degraded"), None);
}

#[test]
fn the_system_says_which_providers_work_and_why_others_do_not() {
    let server = Server::start(&["mlp"], &[]);
    let providers = providers(&server);
    let names: Vec<&str> = providers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]);
    assert_eq!(providers[2].1, None);
    for reason in providers.iter().filter_map(|(_, reason)| reason.as_ref()) {
        assert!(!reason.is_empty() && !reason.contains(".cc:") && !reason.contains("/onnxruntime"), "{reason}");
    }
    let execution = &server.get_json("/v1/models/mlp")["execution"];
    assert_eq!(execution["asked"][0], "CUDAExecutionProvider");
    // What the system says is missing is missing in the model, for the same reason.
    if let Some(reason) = &providers[1].1 {
        assert_eq!(execution["missing"][0]["provider"], "CUDAExecutionProvider");
        assert_eq!(execution["missing"][0]["reason"].as_str(), Some(reason.as_str()));
    }
    let gpus = server.get_json("/v1/system")["devices"].as_array().unwrap().len();
    assert_eq!(server.get("/metrics").text().unwrap().contains("ortus_gpu_memory_total_bytes"), gpus > 0);
}

#[test]
fn a_device_that_does_not_work_is_an_error_or_a_fallback_that_is_named() {
    let server =
        Server::start(&["mlp"], &[("ORTUS_DEVICE__DEVICE_TYPE", "tensorrt"), ("ORTUS_DEVICE__ALLOW_FALLBACK", "true")]);
    let providers = providers(&server);
    let Some(reason) = &providers[0].1 else {
        eprintln!("SKIPPED: TensorRT works here");
        return;
    };
    let model = server.get_json("/v1/models/mlp");
    assert_eq!(model["execution"]["is_fallback"], true, "{model}");
    assert_eq!(model["execution"]["missing"][0]["provider"], "TensorrtExecutionProvider", "{model}");
    assert_eq!(Metrics::of(&server).sum("ortus_model_degraded", &[("model", "mlp")]), 1);
    let ready = server.get("/readyz");
    assert_eq!(ready.status(), 200);
    let text = ready.text().unwrap();
    assert!(
        text.starts_with("ok\nmodel mlp version 1 runs on ") && text.contains("TensorrtExecutionProvider: "),
        "{text}"
    );
    let degraded = &server.get_json("/healthz")["degraded"][0];
    assert_eq!((&degraded["model"], &degraded["device"]), (&"mlp".into(), &model["device"]));
    // It answers.
    let (status, warmed) = server.post_json("/v1/models/mlp/warmup", &serde_json::json!({ "iterations": 1 }));
    assert_eq!(status, 200, "{warmed}");

    // Without leave to fall back it is an error that says what to do.
    let file = fixture("store/mlp/1/model.onnx");
    let output = command()
        .args(["inspect", file.to_str().unwrap()])
        .env("ORTUS_DEVICE__DEVICE_TYPE", "tensorrt")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("allow_fallback = true"), "{text}");
    assert!(text.contains("TensorrtExecutionProvider") && !reason.is_empty(), "{text}");
}
