//! What TorchServe's clients, and those of KServe's V1 protocol, call: predictions in the forms of its default handlers, the
//! management of models, errors.

use crate::downloads::fake_hub::{FakeHub, Fault, Side};
use crate::downloads::{graph, large_graph};
use crate::server::{Server, copy_folder, raw, root, shared_models, store_of, wait_until};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

fn digits() -> Server {
    let store = store_of(&["mlp", "multi", "embedder"]);
    copy_folder(&root().join("models/digits"), &store.path().join("digits"));
    Server::on(store, &[])
}

fn seven() -> Vec<u8> {
    std::fs::read(root().join("models/digits/samples/seven.png")).unwrap()
}

/// Status and body of an answer.
fn send(server: &Server, method: Method, path: &str, head: &[(&str, &str)], body: impl Into<Vec<u8>>) -> (u16, Value) {
    let mut request = server.client.request(method, server.url(path)).body(body.into());
    for (name, value) in head {
        request = request.header(*name, *value);
    }
    let response = request.send().unwrap();
    let status = response.status().as_u16();
    let text = response.text().unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn call(server: &Server, method: Method, path: &str) -> (u16, Value) {
    send(server, method, path, &[], "")
}

/// A form with one file.
fn form(field: &str, content: &[u8]) -> (String, Vec<u8>) {
    let mut body =
        format!("--x\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"f\"\r\n\r\n").into_bytes();
    body.extend_from_slice(content);
    body.extend_from_slice(b"\r\n--x--\r\n");
    ("multipart/form-data; boundary=x".to_owned(), body)
}

#[track_caller]
fn check_error(answer: &(u16, Value), status: u16, kind: &str, part: &str) {
    let (got, body) = answer;
    assert_eq!((*got, &body["code"], &body["type"]), (status, &json!(status), &json!(kind)), "{body}");
    assert!(body["message"].as_str().unwrap().contains(part), "{body}");
    assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
}

/// The five best classes of the seven, best first, as the reference has them.
#[track_caller]
fn check_seven(answer: &Value) {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(root().join("tests/golden/digits.json")).unwrap()).unwrap();
    let case = golden["cases"].as_array().unwrap().iter().find(|case| case["id"] == "seven").unwrap();
    let classes = answer.as_object().unwrap();
    assert_eq!(classes.len(), 5, "{answer}");
    for expected in case["top5"].as_array().unwrap() {
        let got = classes[expected["label"].as_str().unwrap()].as_f64().unwrap();
        assert!((got - expected["score"].as_f64().unwrap()).abs() <= 0.001, "{answer} is not {expected}");
    }
}

#[test]
fn a_picture_is_classified_however_it_is_sent() {
    let server = digits();
    let path = "/predictions/digits";
    // Best first, also in the text.
    let text = server.post(path).body(seven()).send().unwrap().text().unwrap();
    assert!(text.starts_with("{\"7\":0.99"), "{text}");
    for head in [
        &[][..],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "application/octet-stream")],
        &[("content-type", "image/png")],
        &[("content-type", "text/plain")],
    ] {
        for (method, path) in [(Method::POST, path), (Method::PUT, path), (Method::POST, "/predictions/digits/1.0")] {
            let (status, answer) = send(&server, method, path, head, seven());
            assert_eq!(status, 200, "{head:?}: {answer}");
            check_seven(&answer);
        }
    }
    for field in ["data", "body"] {
        let (content_type, body) = form(field, &seven());
        let (status, answer) = send(&server, Method::POST, path, &[("content-type", &content_type)], body);
        assert_eq!(status, 200, "{answer}");
        check_seven(&answer);
    }
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(seven());
    let (status, answer) = server.post_json(path, &json!({"data": encoded}));
    assert_eq!(status, 200, "{answer}");
    check_seven(&answer);
    // An envelope, here and by KServe's V1 protocol, whatever the media type says.
    let envelope = json!({"instances": [{"data": encoded}, {"b64": encoded}]});
    for (path, content_type) in [
        (path, "application/json"),
        (path, "application/x-www-form-urlencoded"),
        ("/v1/models/digits:predict", "application/json"),
        ("/v1/models/digits:predict", "application/x-www-form-urlencoded"),
    ] {
        let (status, answer) = server.post_text(path, content_type, envelope.to_string().into_bytes());
        assert_eq!(status, 200, "{path}: {answer}");
        let predictions = answer["predictions"].as_array().unwrap();
        assert_eq!((predictions.len(), answer.as_object().unwrap().len()), (2, 1), "{answer}");
        predictions.iter().for_each(check_seven);
    }
    // As curl sends a file by default: with `Expect`, and in parts.
    let mut request =
        b"PUT /predictions/digits HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\
        Transfer-Encoding: chunked\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
            .to_vec();
    let picture = seven();
    request.extend(format!("{:x}\r\n", picture.len()).into_bytes());
    request.extend(picture);
    request.extend(b"\r\n0\r\n\r\n");
    let answer = raw(server.address, &request);
    assert!(answer.contains("HTTP/1.1 200 OK") && answer.contains("{\"7\":0.99"), "{answer}");
    server.assert_well();
}

#[test]
fn ping_says_whether_the_models_serve() {
    let hub = FakeHub::start();
    hub.add("org/plus", &[("model.onnx", &large_graph(1, 1_000_000), true)]);
    hub.fault(Side::Cdn, "", usize::MAX, &[Fault::Slow(20_000, Duration::from_millis(20))]);
    let (endpoint, cdn) = (hub.endpoint(), hub.cdn_host());
    let mut environment = vec![("HF_ENDPOINT", endpoint.as_str()), ("ORTUS_HUB__ALLOWED_HOSTS", cdn.as_str())];
    environment.extend([("ORTUS_HUB__RESERVE_MB", "0"), ("ORTUS_STORE__PULL", "hf://org/plus")]);
    let server = Server::launch(store_of(&[]), &environment);
    assert_eq!(call(&server, Method::GET, "/ping"), (503, json!({"status": "Unhealthy"})));
    server.wait_ready();
    assert_eq!(call(&server, Method::GET, "/ping"), (200, json!({"status": "Healthy"})));
}

#[test]
fn tensors_are_answered_as_the_native_routes_answer_them() {
    let server = digits();
    let row: Vec<f64> = (0..32).map(|place| f64::from(place) / 32.0).collect();
    let native = server.post_json("/v1/models/mlp/predict", &json!({"inputs": [row, row]})).1;
    let outputs = native["outputs"].as_object().unwrap();
    let (_, expected) = outputs.iter().next().unwrap();
    for body in [json!([row, row]), json!({"data": [row, row]}), json!({"x": [row, row]})] {
        assert_eq!(server.post_json("/predictions/mlp", &body), (200, expected.clone()));
        // As `curl -d` and `curl -T` send it.
        let text = body.to_string().into_bytes();
        let content_type = "application/x-www-form-urlencoded";
        assert_eq!(server.post_text("/predictions/mlp", content_type, text.clone()), (200, expected.clone()));
        assert_eq!(send(&server, Method::PUT, "/predictions/mlp", &[], text), (200, expected.clone()));
    }
    let envelope = json!({"instances": [row, row]});
    for path in ["/predictions/mlp", "/v1/models/mlp:predict"] {
        assert_eq!(server.post_json(path, &envelope), (200, json!({"predictions": expected})), "{path}");
    }
    // Several outputs have their names.
    let body = json!({"a": [[1.0, 2.0], [3.0, 4.5]], "b": [10, -2]});
    let native = server.post_json("/v1/models/multi/predict", &json!({"inputs": body})).1;
    assert_eq!(server.post_json("/predictions/multi", &body), (200, native["outputs"].clone()));
    // One vector, for one text.
    let native = server.post_json("/v1/models/embedder/predict", &json!({"inputs": "the cat"})).1;
    let text = b"the cat".to_vec();
    assert_eq!(
        send(&server, Method::POST, "/predictions/embedder", &[], text),
        (200, native["predictions"][0].clone())
    );
    for body in [&b"data=the+cat"[..], b"body=the%20cat"] {
        let answer = server.post_text("/predictions/embedder", "application/x-www-form-urlencoded", body.to_vec());
        assert_eq!(answer, (200, native["predictions"][0].clone()));
    }
    server.assert_well();
}

#[test]
fn texts_and_objects_have_the_forms_of_their_handlers() {
    let Some(shared) = shared_models() else { return };
    let store = tempfile::tempdir().unwrap();
    for name in ["minilm-mini-sentiment", "tiny-yolos"] {
        copy_folder(&shared.join("store").join(name), &store.path().join(name));
    }
    let server = Server::on(store, &[]);
    let text = b"a lovely film".to_vec();
    let (status, answer) = send(&server, Method::POST, "/predictions/minilm-mini-sentiment", &[], text);
    let native = server
        .post_json(
            "/v1/models/minilm-mini-sentiment/predict",
            &json!({"inputs": "a lovely film", "parameters": {"top_k": null}}),
        )
        .1;
    let classes = native["predictions"][0].as_array().unwrap();
    assert!(status == 200 && classes.len() > 1, "{answer}");
    let expected: serde_json::Map<String, Value> =
        classes.iter().map(|class| (class["label"].as_str().unwrap().to_owned(), class["score"].clone())).collect();
    assert_eq!(answer, Value::Object(expected));

    let picture = std::fs::read(shared.join("inputs/images/cat_q90.jpg")).unwrap();
    let native = server.post_text("/v1/models/tiny-yolos/predict", "image/jpeg", picture.clone()).1;
    let (status, answer) = send(&server, Method::POST, "/predictions/tiny-yolos", &[], picture);
    let found = native["predictions"][0].as_array().unwrap().iter().map(|object| {
        let (bounds, label) = (&object["box"], object["label"].as_str().unwrap());
        let corners = json!([bounds["xmin"], bounds["ymin"], bounds["xmax"], bounds["ymax"]]);
        json!({label: corners, "score": object["score"]})
    });
    assert_eq!((status, answer), (200, Value::Array(found.collect())));
}

#[test]
fn what_cannot_be_predicted_says_so_in_their_words() {
    let server = Server::start(&["mlp", "embedder"], &[("ORTUS_SERVER__MAX_BODY_BYTES", "10000")]);
    let post = |path: &str, body: &[u8]| send(&server, Method::POST, path, &[], body);
    check_error(&post("/predictions/none", b"x"), 404, "ModelNotFoundException", "there is no model 'none'");
    check_error(&post("/predictions/mlp/7", b"[]"), 404, "ModelVersionNotFoundException", "has no version 7");
    check_error(&post("/predictions/mlp/x", b"[]"), 404, "ModelVersionNotFoundException", "no such version");
    check_error(&post("/predictions/.hidden", b"x"), 404, "ModelNotFoundException", "there is no such model");
    check_error(&post("/predictions/mlp", b"\x89PNG"), 400, "BadRequestException", "not valid JSON");
    check_error(&post("/predictions/mlp", b""), 400, "BadRequestException", "not valid JSON");
    check_error(&post("/predictions/mlp", b"[[1, 2]]"), 422, "BadRequestException", "input 'x'");
    check_error(&post("/predictions/mlp", &[b' '; 10_001]), 413, "BadRequestException", "10000");
    check_error(&post("/predictions/embedder", b"\xff\xfe"), 400, "BadRequestException", "not UTF-8");
    check_error(&post("/explanations/mlp", b"x"), 501, "NotImplementedException", "Captum");
    check_error(&call(&server, Method::GET, "/predictions/mlp"), 405, "MethodNotAllowedException", "POST");
    check_error(&call(&server, Method::GET, "/predictions/mlp/1/2"), 404, "ResourceNotFoundException", "no such path");
    let (content_type, body) = form("image", b"x");
    let wrong = send(&server, Method::POST, "/predictions/mlp", &[("content-type", &content_type)], body);
    check_error(&wrong, 422, "BadRequestException", "image: a form has one field");
    for (path, status, part) in
        [("/v1/models/none:predict", 404, "there is no model"), ("/v1/models/mlp:predict", 400, "no key \"instances\"")]
    {
        let (got, body) = server.post_json(path, &json!({}));
        assert_eq!((got, body.as_object().unwrap().len()), (status, 1), "{body}");
        assert!(body["error"].as_str().unwrap().contains(part), "{body}");
    }
    // Counted as the predictions that they are.
    let metrics = server.get("/metrics").text().unwrap();
    let counted = "ortus_requests_total{model=\"mlp\",version=\"1\",protocol=\"v1\",code=\"422\"} 2";
    assert!(metrics.contains(counted), "{metrics}");
    server.assert_well();
}

#[test]
fn a_full_queue_is_503_in_their_words() {
    let server = Server::start(&["slow"], &[("ORTUS_BATCH__MAX_QUEUE", "1"), ("ORTUS_BATCH__INSTANCES", "1")]);
    let body = json!({"n": 200_000}).to_string();
    let refused = std::thread::scope(|scope| {
        let sent: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| send(&server, Method::POST, "/predictions/slow", &[], body.clone())))
            .collect();
        let answers = sent.into_iter().map(|thread| thread.join().unwrap());
        answers.filter(|(status, _)| *status == 503).collect::<Vec<_>>()
    });
    assert!(!refused.is_empty(), "nothing was refused");
    refused.iter().for_each(|answer| check_error(answer, 503, "ServiceUnavailableException", "queue"));
}

#[test]
fn models_are_described_scaled_chosen_and_unregistered() {
    let server = Server::with(&["versions", "mlp", "echo"]);
    let (status, page) = call(&server, Method::GET, "/models?limit=2");
    let names = |page: &Value| -> Vec<String> {
        page["models"].as_array().unwrap().iter().map(|one| one["modelName"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((status, names(&page), &page["nextPageToken"]), (200, vec!["echo".into(), "mlp".into()], &json!("2")));
    let (_, page) = call(&server, Method::GET, "/models?limit=2&next_page_token=2");
    assert_eq!((names(&page), page.get("nextPageToken")), (vec!["versions".to_owned()], None));
    assert_eq!(call(&server, Method::GET, "/models?next_page_token=18446744073709551615").1, json!({"models": []}));
    check_error(&call(&server, Method::GET, "/models?limit=x"), 400, "BadRequestException", "query");

    let (status, described) = call(&server, Method::GET, "/models/versions");
    let one = &described[0];
    assert_eq!((status, described.as_array().unwrap().len()), (200, 1), "{described}");
    let all = call(&server, Method::GET, "/models/versions/all").1;
    let known: Vec<&str> = all.as_array().unwrap().iter().map(|one| one["modelVersion"].as_str().unwrap()).collect();
    assert!(known.len() >= 2 && known.contains(&one["modelVersion"].as_str().unwrap()), "{all}");
    assert_eq!((&one["modelName"], &one["workers"][0]["status"]), (&json!("versions"), &json!("READY")), "{one}");
    assert_eq!(one["workers"].as_array().unwrap().len() as u64, one["maxWorkers"].as_u64().unwrap());
    assert!(one["jobQueueStatus"]["remainingCapacity"].as_u64().unwrap() > 0, "{one}");
    check_error(&call(&server, Method::GET, "/models/none"), 404, "ModelNotFoundException", "'none'");
    check_error(&call(&server, Method::GET, "/models/mlp/9"), 404, "ModelVersionNotFoundException", "no such version");

    let put = |path: &str| call(&server, Method::PUT, path);
    let (status, answer) = put("/models/mlp?min_worker=0&synchronous=true");
    assert_eq!((status, answer), (200, json!({"status": "Workers scaled to 0 for model: mlp"})));
    assert_eq!(call(&server, Method::GET, "/models/mlp").1[0]["workers"], json!([]));
    let (status, answer) = put("/models/mlp?min_worker=1000&synchronous=true");
    let text = answer["status"].as_str().unwrap();
    assert!(status == 200 && text.starts_with("Workers scaled to ") && text.contains("model's settings"), "{answer}");
    assert_eq!(put("/models/echo?min_worker=0"), (202, json!({"status": "Processing worker updates..."})));
    wait_until(|| server.get_json("/v1/models/echo")["state"] == "unloaded");
    assert_eq!(put("/models/echo").0, 202);
    wait_until(|| server.get_json("/v1/models/echo")["state"] == "ready");
    check_error(&put("/models/none"), 404, "ModelNotFoundException", "'none'");
    check_error(&put("/models/mlp/9?min_worker=1"), 404, "ModelVersionNotFoundException", "no such version");
    check_error(&put("/models/mlp?workers=1"), 400, "BadRequestException", "no parameter \"workers\"");
    check_error(&put("/models/versions/1?min_worker=0"), 409, "ConflictStatusException", "by itself");

    let (status, answer) = put("/models/versions/1/set-default");
    assert!(status == 200 && answer["status"].as_str().unwrap().contains("\"versions\" to \"1\""), "{answer}");
    assert_eq!(call(&server, Method::GET, "/models/versions").1[0]["modelVersion"], "1");
    check_error(&put("/models/versions/99/set-default"), 404, "ModelVersionNotFoundException", "no version 99");
    check_error(&put("/models/versions/all/set-default"), 404, "ModelVersionNotFoundException", "no such version");

    let delete = |path: &str| call(&server, Method::DELETE, path);
    assert_eq!(delete("/models/echo"), (200, json!({"status": "Model \"echo\" unregistered"})));
    check_error(&delete("/models/echo"), 404, "ModelNotFoundException", "'echo'");
    assert_eq!(delete("/models/versions/2.0").0, 200);
    assert!(!server.store.path().join("versions/2").exists() && server.store.path().join("versions/1").exists());
    server.assert_well();
}

#[test]
fn a_model_is_registered_from_an_address_and_archives_are_not_opened() {
    let hub = FakeHub::start();
    hub.add("org/plus", &[("model.onnx", &graph(1), true)]);
    let url = hub.put("/files/two.onnx", &graph(2));
    hub.put("/files/bad.onnx", b"no graph");
    let (endpoint, cdn) = (hub.endpoint(), hub.cdn_host());
    let environment = [
        ("HF_ENDPOINT", endpoint.as_str()),
        ("ORTUS_HUB__ALLOWED_HOSTS", cdn.as_str()),
        ("ORTUS_HUB__RESERVE_MB", "0"),
    ];
    let server = Server::on(store_of(&[]), &environment);
    let post = |query: &str| call(&server, Method::POST, &format!("/models?{query}"));
    let (status, answer) =
        post(&format!("url={url}&initial_workers=1&synchronous=true&batch_size=4&max_batch_delay=0"));
    let text = answer["status"].as_str().unwrap();
    assert!(status == 200 && text.starts_with("Model \"two\" Version: 1 registered with 1 initial"), "{answer}");
    assert_eq!(call(&server, Method::GET, "/models/two").1[0]["batchSize"], 4);
    let body = json!({"data": [0.0, 1.0]});
    assert_eq!(server.post_json("/predictions/two", &body), (200, json!([2.0, 3.0])));
    // Nothing is loaded where no workers are asked for; the first request does it.
    let (status, answer) = post("url=hf://org/plus&model_name=one");
    assert!(status == 200 && answer["status"].as_str().unwrap().contains("with 0 initial workers. Use"), "{answer}");
    assert_eq!(server.get_json("/v1/models/one")["state"], "unloaded");
    assert_eq!(server.post_json("/predictions/one", &body), (200, json!([1.0, 2.0])));
    assert_eq!(post(&format!("url={url}&model_name=three&initial_workers=1")).0, 202);
    wait_until(|| {
        server.get("/v1/models/three").status() == 200 && server.get_json("/v1/models/three")["state"] == "ready"
    });

    check_error(&post(&format!("url={url}")), 409, "ConflictStatusException", "there is a model of this name");
    let bad = url.replace("two.onnx", "bad.onnx");
    check_error(&post(&format!("url={bad}")), 400, "DownloadArchiveException", "");
    for (query, status, part) in [
        ("url=https://example.org/squeezenet1_1.mar", 400, "export the model to ONNX"),
        ("url=densenet161.mar", 400, "export the model to ONNX"),
        ("url=/etc/passwd", 400, "expected an address"),
        ("url=models/mlp", 400, "expected an address"),
        ("", 400, "expected an address"),
        ("url=file:///etc/passwd", 422, "files of the server are not served"),
        ("url=https://example.org/x.onnx&handler=/tmp/handler.py", 400, "Python is not run here"),
        ("url=https://example.org/x.onnx&model_name=../x", 422, "model_name"),
        ("url=https://example.org/x.onnx&initial_workers=-1", 400, "initial_workers"),
    ] {
        check_error(&post(query), status, "BadRequestException", part);
    }
    let refused = post("url=http://169.254.169.254/latest/x.onnx&model_name=meta");
    check_error(&refused, 400, "DownloadArchiveException", "not allowed");
    // What was done is written down with the model's name.
    let audit = std::fs::read_to_string(server.store.path().join(".ortus/audit.log")).unwrap();
    let entries: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_two = |entry: &&Value| entry["model"] == "two" && entry["action"] == "POST /models";
    assert_eq!(
        entries.iter().filter(of_two).map(|entry| &entry["status"]).collect::<Vec<_>>(),
        [&json!(200)],
        "{audit}"
    );
    server.assert_well();
}
