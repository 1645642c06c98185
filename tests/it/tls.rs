//! TLS at the HTTP door: which certificate is shown, how it is read again, and handshakes that misbehave.

use crate::server::{PATIENCE, Server, command, raw, store_of, wait_until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::blocking::{Client, ClientBuilder, Response};
use reqwest::tls::TlsInfo;
use reqwest::{Certificate, Version};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An authority of one test.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
struct Pair {
    cert: String,
    key: String,
    der: Vec<u8>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pair(&self) -> Pair {
        self.pair_until(Duration::from_secs(4_000_000_000))
    }

    /// One that ends so long after 1970.
    fn pair_until(&self, end: Duration) -> Pair {
        let key = KeyPair::generate().unwrap();
        let names = ["localhost", "127.0.0.1"].map(str::to_owned).to_vec();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + end;
        let cert = params.signed_by(&key, &self.0).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().to_vec() }
    }

    /// A client that trusts this authority and no other.
    fn client(&self, more: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root = Certificate::from_pem(self.0.pem().as_bytes()).unwrap();
        let redirect = reqwest::redirect::Policy::none();
        let builder = Client::builder().timeout(PATIENCE).tls_certs_only([root]).tls_info(true).redirect(redirect);
        more(builder).build().unwrap()
    }
}

impl Pair {
    fn write(&self, folder: &Path) {
        std::fs::write(folder.join("tls.crt"), &self.cert).unwrap();
        std::fs::write(folder.join("tls.key"), &self.key).unwrap();
    }
}

/// A server with TLS, its certificate's files, and what it logs.
struct Secure {
    server: Server,
    authority: Authority,
    pair: Pair,
    files: tempfile::TempDir,
}

impl Secure {
    fn start(models: &[&str], environment: &[(&str, &str)]) -> Secure {
        Secure::on(store_of(models), environment)
    }

    fn on(store: tempfile::TempDir, environment: &[(&str, &str)]) -> Secure {
        let authority = Authority::new();
        let pair = authority.pair();
        Secure::showing(authority, pair, store, environment)
    }

    fn showing(authority: Authority, pair: Pair, store: tempfile::TempDir, environment: &[(&str, &str)]) -> Secure {
        let files = tempfile::tempdir().unwrap();
        pair.write(files.path());
        let mut command = command();
        command
            .env("ORTUS_TELEMETRY__LOG_LEVEL", "info")
            .env("ORTUS_SERVER__TLS_CERT", files.path().join("tls.crt"))
            .env("ORTUS_SERVER__TLS_KEY", files.path().join("tls.key"))
            .stderr(Stdio::from(File::create(files.path().join("log")).unwrap()));
        let server = Server::launch_by(command, store, environment);
        let secure = Secure { server, authority, pair, files };
        let client = secure.client();
        wait_until(|| secure.get(&client, "/readyz").status() == 200);
        secure
    }

    /// Makes a connection for each request.
    fn client(&self) -> Client {
        self.authority.client(|builder| builder.pool_max_idle_per_host(0))
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.server.address)
    }

    fn get(&self, client: &Client, path: &str) -> Response {
        client.get(self.url(path)).send().unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.files.path().join("log")).unwrap()
    }

    /// Tells the server to read its files again; returns when it says so in words with `text`.
    fn reload(&self, text: &str) {
        let before = self.log().matches(text).count();
        self.server.signal("HUP");
        wait_until(|| self.log().matches(text).count() > before);
    }

    #[track_caller]
    fn assert_well(&self) {
        assert_eq!(self.get(&self.client(), "/readyz").status(), 200);
    }
}

#[test]
fn the_health_check_of_a_container_asks_over_tls() {
    let secure = Secure::start(&["mlp"], &[]);
    let by_address = command().args(["health", &secure.url(""), "--ready"]).output().unwrap();
    assert!(by_address.status.success(), "{}", String::from_utf8_lossy(&by_address.stderr));
    let by_settings = command()
        .args(["health", "--ready"])
        .env("ORTUS_SERVER__LISTEN", format!("0.0.0.0:{}", secure.server.address.port()))
        .env("ORTUS_SERVER__TLS_CERT", secure.files.path().join("tls.crt"))
        .env("ORTUS_SERVER__TLS_KEY", secure.files.path().join("tls.key"))
        .output()
        .unwrap();
    assert!(by_settings.status.success(), "{}", String::from_utf8_lossy(&by_settings.stderr));
}

/// The certificate that the connection of this answer began with.
fn shown(response: &Response) -> Vec<u8> {
    response.extensions().get::<TlsInfo>().unwrap().peer_certificate().unwrap().to_vec()
}

#[test]
fn http_1_and_2_are_spoken_over_tls_and_both_predict() {
    let secure = Secure::start(&["mlp"], &[]);
    type More = fn(ClientBuilder) -> ClientBuilder;
    let versions: [(More, Version); 2] =
        [(|builder| builder, Version::HTTP_2), (|builder| builder.http1_only(), Version::HTTP_11)];
    for (more, version) in versions {
        let client = secure.authority.client(more);
        let body = json!({"inputs": [vec![0.5; 32]]});
        let sent = client.post(secure.url("/v1/models/mlp/predict")).json(&body).send().unwrap();
        assert_eq!((sent.status().as_u16(), sent.version()), (200, version));
        assert_eq!(shown(&sent), secure.pair.der);
        let answer: Value = sent.json().unwrap();
        assert!(answer["outputs"].is_object(), "{answer}");
    }
    // Who does not trust the authority gets nowhere.
    let stranger = Authority::new().client(|builder| builder);
    assert!(stranger.get(secure.url("/livez")).send().is_err());
    secure.assert_well();
}

#[test]
fn a_reload_shows_the_next_certificate_and_keeps_open_connections() {
    let secure = Secure::start(&[], &[]);
    let kept = secure.authority.client(|builder| builder.http1_only());
    assert_eq!(shown(&secure.get(&kept, "/livez")), secure.pair.der);
    let next = secure.authority.pair();
    next.write(secure.files.path());
    secure.reload("the certificate was read again and serves new connections");
    assert_eq!(shown(&secure.get(&secure.client(), "/livez")), next.der);
    assert_eq!(shown(&secure.get(&kept, "/livez")), secure.pair.der, "the connection was kept");
    secure.reload("the certificate was read again and is the same");
}

#[test]
fn a_certificate_that_ends_soon_is_told_of_at_the_start_and_at_each_reload() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    // Half a day more, so that a slow machine sees the same number of days.
    let (soon, over, far) = (now + DAY * 9 + DAY / 2, now - DAY * 3 - DAY / 2, now + DAY * 90);
    let authority = Authority::new();
    let pair = authority.pair_until(soon);
    let secure = Secure::showing(authority, pair, store_of(&[]), &[]);
    // Who sees what an expired certificate covers does not look at it.
    let careless = Client::builder().timeout(PATIENCE).tls_danger_accept_invalid_certs(true).pool_max_idle_per_host(0);
    let careless = careless.build().unwrap();
    let told = || {
        let metrics = secure.get(&careless, "/metrics").text().unwrap();
        let line = metrics.lines().find(|line| line.starts_with("ortus_tls_certificate_expiry_timestamp_seconds "));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let page = || secure.get(&careless, "/ui/system").text().unwrap();
    wait_until(|| secure.log().contains("the certificate expires in 9 days; put the next one"));
    assert_eq!(told(), soon.as_secs());
    assert!(page().contains("▲ expires in 9 d"), "{}", page());

    secure.authority.pair_until(over).write(secure.files.path());
    secure.reload("the certificate has expired, 3 days ago: clients refuse it; put the next one");
    assert_eq!(told(), over.as_secs());
    assert!(page().contains("✕ expired 3 d"));
    assert!(secure.client().get(secure.url("/livez")).send().is_err(), "clients refuse it");

    secure.authority.pair_until(far).write(secure.files.path());
    let warned = secure.log().matches("put the next one").count();
    secure.reload("the certificate was read again and serves new connections");
    assert_eq!((told(), secure.log().matches("put the next one").count()), (far.as_secs(), warned));
    assert!(page().contains("expires in 8"));
    secure.assert_well();
    let plain = Server::with(&[]);
    assert!(!plain.get("/metrics").text().unwrap().contains("ortus_tls_"));
}

#[test]
fn a_pair_that_cannot_be_used_leaves_the_one_before_in_force_and_the_log_says_why() {
    let secure = Secure::start(&[], &[]);
    let (files, other) = (secure.files.path(), secure.authority.pair());
    let (cert, key) = (files.join("tls.crt"), files.join("tls.key"));
    let check = |text: &str| {
        secure.reload(&format!("the certificate stays as it was: server.{text}"));
        assert_eq!(shown(&secure.get(&secure.client(), "/livez")), secure.pair.der, "{text}");
    };
    std::fs::write(&cert, &other.cert).unwrap();
    check("tls_key does not belong to the first certificate of server.tls_cert");
    std::fs::write(&cert, "no PEM").unwrap();
    check("tls_cert: the file has no certificate");
    std::fs::write(&cert, "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n").unwrap();
    check("tls_cert: the file is not PEM");
    std::fs::remove_file(&cert).unwrap();
    check("tls_cert: the file cannot be read");
    std::fs::write(&cert, &other.cert).unwrap();
    std::fs::write(&key, &other.cert).unwrap();
    check("tls_key: the file has no private key");
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    check("tls_cert and server.tls_key cannot be used");
    // The whole pair is taken.
    other.write(files);
    secure.reload("the certificate was read again and serves new connections");
    let log = secure.log();
    assert!(!log.contains(&*files.to_string_lossy()), "a path in {log}");
}

#[test]
fn a_server_does_not_start_with_half_a_pair_or_a_broken_one() {
    let files = tempfile::tempdir().unwrap();
    let cert = files.path().join("tls.crt");
    std::fs::write(&cert, "no PEM").unwrap();
    let check = |arguments: &[&str], text: &str| {
        let store = store_of(&[]);
        let serve = ["serve", "--listen", "127.0.0.1:0", "--models"];
        let output = command().args(serve).arg(store.path()).args(arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty() && error.contains(text), "{error}");
    };
    let cert = cert.to_str().unwrap();
    check(&["--tls-cert", cert], "server.tls_key is not");
    check(&["--tls-key", cert], "server.tls_cert is not");
    check(&["--tls-cert", cert, "--tls-key", cert], "server.tls_cert: the file has no certificate");
}

#[test]
fn f40_junk_and_plain_http_on_the_tls_port_end_by_themselves() {
    let secure = Secure::start(&[], &[]);
    let address = secure.server.address;
    let plain = raw(address, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(plain.starts_with("HTTP/1.1 400 ") && plain.ends_with("https://.\n"), "{plain}");
    for junk in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x00\xff\x00\xff", b"\x80\x2e\x01\x03\x01", &[0x16; 70_000]] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(junk);
        // Closed, after an alert, or reset: not silent.
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Ok(_) => assert!(!rest.starts_with(b"HTTP"), "{rest:?}"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
        }
    }
    // Gone before a byte, and amid the first.
    TcpStream::connect(address).unwrap().shutdown(Shutdown::Both).unwrap();
    TcpStream::connect(address).unwrap().write_all(b"\x16").unwrap();
    secure.assert_well();
    let plain = Server::with(&[]);
    let hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03";
    let answer = raw(plain.address, hello);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    plain.assert_well();
}

#[test]
fn a_slow_handshake_is_cut_and_delays_nobody() {
    let secure = Secure::start(&[], &[("ORTUS_LIMITS__HEADER_READ_TIMEOUT_MS", "1500")]);
    let slow: Vec<TcpStream> = (0..64)
        .map(|index| {
            let mut stream = TcpStream::connect(secure.server.address).unwrap();
            // Silent, or silent after half a record.
            stream.write_all(if index % 2 == 0 { b"" } else { b"\x16\x03\x01" }).unwrap();
            stream
        })
        .collect();
    secure.assert_well();
    for mut stream in slow {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        // `Err` would be our own patience, or a reset.
        let ended = stream.read_to_end(&mut rest).map_err(|error| error.kind());
        assert!(matches!(ended, Ok(_) | Err(std::io::ErrorKind::ConnectionReset)), "{ended:?}");
    }
    secure.assert_well();
}

#[test]
fn a_drain_finishes_requests_over_tls_and_waits_for_no_handshake() {
    let mut secure = Secure::start(&["slow"], &[("ORTUS_SERVER__SHUTDOWN_GRACE_MS", "20000")]);
    let _half = {
        let mut stream = TcpStream::connect(secure.server.address).unwrap();
        stream.write_all(b"\x16\x03\x01").unwrap();
        stream
    };
    let idle = secure.authority.client(|builder| builder);
    assert_eq!(secure.get(&idle, "/livez").status(), 200);
    let (client, url) = (secure.client(), secure.url("/v1/models/slow/predict"));
    // Trips of a loop that take about a second.
    let body = json!({"inputs": {"n": 200_000}});
    #[expect(clippy::disallowed_methods, reason = "a scope would join before the server is told to stop")]
    let waiting = std::thread::spawn(move || client.post(url).json(&body).send().unwrap().status());
    wait_until(|| {
        secure.get(&secure.client(), "/metrics").text().unwrap().contains("ortus_inflight{model=\"slow\"} 1")
    });
    secure.server.terminate();
    assert_eq!(waiting.join().unwrap(), 200);
    assert!(secure.server.wait_exit().success());
    let log = secure.log();
    assert!(log.contains("stopped") && !log.contains("are cut"), "{log}");
}

#[test]
fn keys_and_tls_serve_a_public_address() {
    let store = store_of(&["echo"]);
    let made = command().args(["key", "create", "--role", "admin", "--models"]).arg(store.path()).output().unwrap();
    let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let (authority, files) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.pair().write(files.path());
    let files = files.path();
    let (cert, private) = (files.join("tls.crt"), files.join("tls.key"));
    let flags = ["--listen", "0.0.0.0:0", "--tls-cert", cert.to_str().unwrap(), "--tls-key", private.to_str().unwrap()];
    let server = Server::launch_at(command(), &flags, store, &[]);
    let client = authority.client(|builder| builder);
    let url = |path: &str| format!("https://localhost:{}{path}", server.address.port());
    assert_eq!(client.get(url("/v1/models")).send().unwrap().status(), 401);
    assert_eq!(client.get(url("/v1/models")).bearer_auth(&key).send().unwrap().status(), 200);
    signed_in(&client, &url, &key);
}

/// Signs in by the page: the cookie is for TLS alone, and forms work by it from our own pages only.
fn signed_in(client: &Client, url: &impl Fn(&str) -> String, key: &str) {
    let form = |path: &str, body: String| {
        client.post(url(path)).header("content-type", "application/x-www-form-urlencoded").body(body)
    };
    let own = url("");
    let answer = form("/ui/sign-in", format!("key={key}&back=/")).header("origin", &own).send().unwrap();
    assert_eq!(answer.status(), 303);
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.ends_with("; Secure"), "{cookie}");
    let session = cookie.split(';').next().unwrap();
    for (origin, to) in [(own.clone(), "/ui/models/echo?done=unload"), (own.replace("https", "http"), "/ui/sign-in")] {
        let unload = form("/ui/models/echo/unload", String::new()).header("origin", &origin).header("cookie", session);
        assert_eq!(unload.send().unwrap().headers()["location"], to, "{origin}");
    }
    let theme = form("/ui/theme", "theme=dark&back=/".to_owned()).header("origin", &own).send().unwrap();
    assert!(theme.headers()["set-cookie"].to_str().unwrap().ends_with("; Secure"));
    let page = client.get(url("/ui/models/echo")).header("cookie", session).send().unwrap().text().unwrap();
    assert!(page.contains("https://") && !page.contains("curl -H 'Content-Type: application/json' http://"), "{page}");
}

#[test]
fn a_hangup_ends_no_server_and_reads_keys_again() {
    let store = store_of(&[]);
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = command();
    command.env("ORTUS_TELEMETRY__LOG_LEVEL", "info").stderr(Stdio::from(log.reopen().unwrap()));
    let server = Server::launch_by(command, store, &[]);
    server.signal("HUP");
    wait_until(|| {
        let mut text = String::new();
        File::open(log.path()).unwrap().read_to_string(&mut text).unwrap();
        text.contains("no certificate is configured")
    });
    server.wait_ready();
    server.assert_well();
}

#[test]
fn grpc_is_encrypted_with_the_same_certificate() {
    let secure = Secure::start(&["mlp"], &[]);
    let client = secure.client();
    let url = format!("https://{}/grpc.health.v1.Health/Check", secure.server.grpc);
    let call = client.post(url).header("content-type", "application/grpc").header("te", "trailers").body(vec![0; 5]);
    let response = call.send().unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    let shown = response.extensions().get::<TlsInfo>().unwrap().peer_certificate().unwrap().to_vec();
    assert_eq!(shown, secure.pair.der);
    // A message of two bytes: serving.
    assert_eq!(response.bytes().unwrap()[..], [0, 0, 0, 0, 2, 8, 1]);
    let plain = raw(secure.server.grpc, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert!(plain.starts_with("HTTP/1.1 400"), "{plain}");
}
