//! Tests of the whole way from sources to [`Config`].

use super::*;
use std::time::Duration;

fn load(file: Option<&str>, environment: &[(&str, &str)], flags: Flags) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ortus.toml");
    if let Some(text) = file {
        std::fs::write(&path, text).unwrap();
    }
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Config::load(Sources { file: ConfigFile::Optional(path), environment, flags })
}

fn from_file(text: &str) -> Result<Config, ConfigError> {
    load(Some(text), &[], Flags::default())
}

fn flags(listen: &str) -> Flags {
    Flags { listen: Some(listen.to_owned()), ..Flags::default() }
}

/// What the error says, the temporary folder left out.
fn message(result: Result<Config, ConfigError>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message:?}");
    message.split_once("/ortus.toml:").map_or(message.clone(), |(_, rest)| format!("ortus.toml:{rest}"))
}

#[test]
fn without_sources_everything_is_default() {
    let config = load(None, &[], Flags::default()).unwrap();
    assert_eq!(config, Config::default());
    assert!(config.effective().iter().all(|entry| entry.origin == Origin::Default));
    assert_eq!(config.models, ModelSettings::default());
}

#[test]
fn later_sources_win_and_are_named() {
    let file = "# comment\n[server]\nlisten = \"127.0.0.1:1\"\n";
    let environment = [("ORTUS_SERVER__LISTEN", "127.0.0.1:2"), ("PATH", "x"), ("ORTUS_HOME", "y")];
    let check = |file: Option<&str>, environment: &[(&str, &str)], flags: Flags, port: u16, origin: &str| {
        let config = load(file, environment, flags).unwrap();
        assert_eq!(config.http.listen.port(), port);
        assert!(config.origins["server.listen"].to_string().ends_with(origin), "{:?}", config.origins["server.listen"]);
    };
    check(None, &[], Flags::default(), 8080, "default");
    check(Some(file), &[], Flags::default(), 1, "/ortus.toml:3");
    check(Some(file), &environment, Flags::default(), 2, "ORTUS_SERVER__LISTEN");
    check(Some(file), &environment, flags("127.0.0.1:3"), 3, "--listen");
    check(None, &[], flags("127.0.0.1:3"), 3, "--listen");
}

#[test]
fn all_flags_reach_their_keys() {
    let flags = Flags {
        listen: Some("[::1]:1".into()),
        grpc: Some("off".into()),
        models_dir: Some("/m".into()),
        log_level: Some("debug".into()),
        ..Flags::default()
    };
    let config = load(None, &[], flags).unwrap();
    assert_eq!((config.http.listen.to_string().as_str(), config.grpc_listen), ("[::1]:1", None));
    assert_eq!(config.store.models_dir, PathBuf::from("/m"));
    assert_eq!(config.log.level, "debug");
}

#[test]
fn values_reach_their_rooms() {
    let config = from_file(
        r#"
        server = { request_timeout_ms = 1_500, max_body_bytes = 0x100, cors_origins = ["https://a.example", "http://[::1]:3000"] }
        store.poll_interval_ms = 250
        [device]
        device_type = "cuda"
        device_index = 1
        allow_fallback = true
        [optimization]
        enable_optimization = false
        [batch]
        instances = 2
        [limits]
        drain_delay_ms = 0
        max_pixels = 10
        max_text_bytes = 30
        max_audio_seconds = 40
        max_model_bytes = 20
        [telemetry]
        log_format = "json"
        stats_window_s = 60
        "#,
    )
    .unwrap();
    assert_eq!(config.http.request_timeout, Duration::from_millis(1500));
    assert_eq!(config.http.max_body_bytes, 256);
    assert_eq!(config.http.cors_origins, ["https://a.example", "http://[::1]:3000"]);
    assert_eq!(config.http.limits.drain_delay, Duration::ZERO);
    assert_eq!(config.store.poll_interval, Some(Duration::from_millis(250)));
    assert_eq!(config.store.max_model_bytes, 20);
    assert_eq!(config.pipelines.max_pixels, 10);
    assert_eq!(config.pipelines.max_text_bytes, 30);
    assert_eq!(config.pipelines.max_audio_seconds, 40);
    assert_eq!(config.models.device.device_index, 1);
    assert!(config.models.device.allow_fallback);
    assert_eq!(config.models.instances, Some(2));
    assert_eq!(config.stats.window, Duration::from_secs(60));
    assert_eq!(config.log.format, crate::telemetry::LogFormat::Json);
    let level = serde_json::to_value(config.models.optimization_level).unwrap();
    assert_eq!(level, "none");
    let shown = config.effective();
    let find = |key: &str| shown.iter().find(|entry| entry.key == key).unwrap().value.clone();
    assert_eq!(find("device.device_type"), Setting::Text("cuda".to_owned()));
    assert_eq!(find("optimization.optimization_level"), Setting::Unset);
    assert_eq!(find("store.poll_interval_ms"), Setting::Integer(250));
    assert_eq!(find("batch.intra_threads"), Setting::Unset);
}

/// Every key is put by the file and by its variable, and what was put is what is shown.
#[test]
fn every_key_works_from_file_and_environment() {
    for key in catalogue::KEYS {
        // Half of a pair is refused: the next test sets both.
        if key.name.starts_with("tls_") {
            continue;
        }
        let default = key.get(&Config::default());
        let (file, plain, expected) = match (&default, key.name) {
            (_, "grpc_listen") => ("\"127.0.0.9:8\"", "127.0.0.9:8", Setting::Text("127.0.0.9:8".into())),
            (_, "listen") => ("\"127.0.0.9:9\"", "127.0.0.9:9", Setting::Text("127.0.0.9:9".into())),
            (_, "models_dir") => ("\"other\"", "other", Setting::Text("other".into())),
            (_, "device_type") => ("\"tensorrt\"", "tensorrt", Setting::Text("tensorrt".into())),
            (_, "memory_arena" | "memory_pattern") => ("false", "false", Setting::Boolean(false)),
            (_, "compile_mode") => ("\"max-autotune\"", "max-autotune", Setting::Text("max-autotune".into())),
            (_, "memory_fraction" | "trace_sample_ratio") => ("0.25", "0.25", Setting::Fraction(0.25)),
            (_, "objective") => ("\"latency\"", "latency", Setting::Text("latency".into())),
            (_, "trial_load") => ("\"off\"", "off", Setting::Text("off".into())),
            (_, "optimization_level") => ("\"basic\"", "basic", Setting::Text("basic".into())),
            (_, "otlp_endpoint") => ("\"http://a:4317\"", "http://a:4317", Setting::Text("http://a:4317".into())),
            (_, "log_format") => ("\"json\"", "json", Setting::Text("json".into())),
            (_, "log_level") => ("\"warn,a=debug\"", "warn,a=debug", Setting::Text("warn,a=debug".into())),
            (_, "cors_origins") => ("[\"http://a\"]", "http://a", Setting::List(vec!["http://a".into()])),
            (_, "allowed_hosts") => ("[\"a\", \"*\"]", "a,*", Setting::List(vec!["a".into(), "*".into()])),
            (_, "max_json_depth") => ("33", "33", Setting::Integer(33)),
            (_, "jobs_at_once" | "parallel_files" | "downloads_at_once") => ("33", "33", Setting::Integer(33)),
            (_, "hf_endpoint") => {
                ("\"https://hub.example\"", "https://hub.example", Setting::Text("https://hub.example".into()))
            }
            (_, "hf_token_file") => ("\"Cargo.toml\"", "Cargo.toml", Setting::Text("Cargo.toml".into())),
            (_, "cache_dir" | "keys_file" | "python") => ("\"/a/b\"", "/a/b", Setting::Text("/a/b".into())),
            (_, "pull") => ("[\"m=hf://o/n@v1\"]", "m=hf://o/n@v1", Setting::List(vec!["m=hf://o/n@v1".into()])),
            (_, "allowed_paths") => ("[\"/a\", \"/b\"]", "/a,/b", Setting::List(vec!["/a".into(), "/b".into()])),
            (_, "device_index") => ("7", "7", Setting::Integer(7)),
            (Setting::Boolean(true), _) => ("false", "false", Setting::Boolean(false)),
            (Setting::Boolean(false), _) => ("true", "true", Setting::Boolean(true)),
            (Setting::Integer(_), _) => ("9999", "9999", Setting::Integer(9999)),
            (Setting::Unset, _) => ("3", "3", Setting::Integer(3)),
            (Setting::Text(_) | Setting::List(_) | Setting::Fraction(_), name) => panic!("no sample for {name}"),
        };
        assert_ne!(default, expected, "{}", key.path());
        let config = from_file(&format!("[{}]\n{} = {file}\n", key.section, key.name)).unwrap();
        assert_eq!(key.get(&config), expected, "{}", key.path());
        let variable = format!("ORTUS_{}__{}", key.section, key.name).to_uppercase();
        let from_variable = load(None, &[(&variable, plain)], Flags::default()).unwrap();
        assert_eq!(key.get(&from_variable), expected, "{variable}");
        assert_eq!(from_variable.origins[&key.path()], Origin::Environment { variable });
        // Only what the key names has changed.
        let changed: Vec<_> = config.effective().into_iter().filter(|entry| entry.origin != Origin::Default).collect();
        assert_eq!(changed.len(), 1);
        assert_ne!(
            Config { origins: BTreeMap::new(), ..config },
            Config { origins: BTreeMap::new(), ..Config::default() }
        );
    }
}

#[test]
fn tls_takes_both_files_or_neither() {
    let both = from_file("[server]\ntls_cert = \"/c\"\ntls_key = \"/k\"\n").unwrap();
    assert_eq!(both.tls, Some(crate::tls::TlsSettings { cert: "/c".into(), key: "/k".into() }));
    let flags = Flags { tls_cert: Some("c".into()), tls_key: Some("k".into()), ..Flags::default() };
    let both = load(None, &[], flags).unwrap();
    assert_eq!(both.origins["server.tls_key"], Origin::Flag { name: "--tls-key".to_owned() });
    assert_eq!(both.tls.unwrap().key, std::path::Path::new("k"));
    assert_eq!(from_file("[server]\ntls_cert = \"\"\n").unwrap().tls, None);
    for (set, missing) in [("tls_cert", "tls_key"), ("tls_key", "tls_cert")] {
        let error = load(None, &[(&format!("ORTUS_SERVER__{}", set.to_uppercase()), "/x")], Flags::default());
        let error = message(error);
        assert!(error.starts_with(&format!("server.{set} is set and server.{missing} is not")), "{error}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_one() {
    let check = |text: &str, expected: &str| assert_eq!(message(from_file(text)), expected, "{text}");
    check(
        "[server]\n\nlisten = \"127.0.0.1:1\"\nlisen = 1\n",
        "ortus.toml:4: unknown key server.lisen; the nearest valid one is listen",
    );
    check(
        "[server]\ninstances = 1\n",
        "ortus.toml:2: unknown key server.instances; the nearest valid one is instances in [batch]",
    );
    check("\nlisten = 1\n", "ortus.toml:2: unknown key listen; the nearest valid one is listen in [server]");
    check("[sever]\nlisten = 1\n", "ortus.toml:1: unknown section [sever]; the nearest valid one is [server]");
    check("[[server]]\nlisten = 1\n", "ortus.toml:1: unknown key server; the nearest valid one is listen in [server]");
    check("batch.max_queu = 1\n", "ortus.toml:1: unknown key batch.max_queu; the nearest valid one is max_queue");
    check(
        "[server]\n\"a\\u001b\\nb\" = 1",
        "ortus.toml:2: unknown key server.\"a\\u{1b}\\nb\"; the nearest valid one is listen",
    );
    // The first fault of the file comes first, whatever the alphabet says.
    check("[store]\nzz = 1\n[batch]\nyy = 1\n", "ortus.toml:2: unknown key store.zz; the nearest valid one is pull");
}

#[test]
fn an_unknown_variable_is_named_with_the_nearest_one() {
    let check = |variable: &str, nearest: &str| {
        let expected = format!("unknown environment variable {variable}; the nearest valid one is {nearest}");
        assert_eq!(message(load(None, &[(variable, "1")], Flags::default())), expected);
    };
    check("ORTUS_SERVER__LISEN", "ORTUS_SERVER__LISTEN");
    check("ORTUS_SEVER__LISTEN", "ORTUS_SERVER__LISTEN");
    check("ORTUS_SERVER_LISTEN", "ORTUS_SERVER__LISTEN");
    check("ORTUS_SERVER__INSTANCES", "ORTUS_BATCH__INSTANCES");
    check("ORTUS_Server__listen", "ORTUS_SERVER__LISTEN");
    check("ORTUS_TELEMETRI__LOG_LEVLE", "ORTUS_TELEMETRY__LOG_LEVEL");
    assert!(load(None, &[("ORTUS_HOME", "1"), ("OTHER__KEY", "1")], Flags::default()).is_ok());
}

#[test]
fn a_wrong_value_is_named_with_its_line_and_what_was_expected() {
    let check = |section: &str, line: &str, expected: &str| {
        let message = message(from_file(&format!("[{section}]\n{line}\n")));
        assert_eq!(message, format!("ortus.toml:2: {section}.{expected}"));
    };
    check("batch", "instances = 0", "instances: expected a whole number from 1 to 256, got 0");
    check("batch", "instances = \"2\"", "instances: expected a whole number from 1 to 256, got \"2\"");
    check("batch", "instances = 1.5", "instances: expected a whole number from 1 to 256, got 1.5");
    check(
        "server",
        "listen = \"here\"",
        "listen: expected an IP address and port such as 127.0.0.1:8080 or [::1]:8080, got \"here\"",
    );
    check(
        "server",
        "listen = 8080",
        "listen: expected an IP address and port such as 127.0.0.1:8080 or [::1]:8080, got 8080",
    );
    check("server", "max_body_bytes = 0", "max_body_bytes: expected a whole number from 1 to 1099511627776, got 0");
    check(
        "server",
        "request_timeout_ms = -5",
        "request_timeout_ms: expected a whole number from 1 to 86400000, got -5",
    );
    check(
        "server",
        "request_timeout_ms = 99999999999999999999999",
        "request_timeout_ms: expected a whole number from 1 to 86400000, got 99999999999999999999999",
    );
    check(
        "server",
        "request_timeout_ms = 10:00:00",
        "request_timeout_ms: expected a whole number from 1 to 86400000, got a date or time",
    );
    check("store", "autoload = 1", "autoload: expected true or false, got 1");
    check("store", "models_dir = \"\"", "models_dir: expected the path of a folder, got \"\"");
    check(
        "device",
        "device_type = \"gpu\"",
        "device_type: expected one of \"auto\", \"cpu\", \"cuda\", \"tensorrt\", got \"gpu\"",
    );
    check(
        "limits",
        "max_header_bytes = 100",
        "max_header_bytes: expected a whole number from 8192 to 16777216, got 100",
    );
    let hosts = "allowed_hosts: expected a list of host names without scheme and port, such as \"models.example.com\", or \"*\"";
    check("server", "allowed_hosts = [\"http://a\"]", &format!("{hosts}, got [\"http://a\"]"));
    check("server", "allowed_hosts = \"a\"", &format!("{hosts}, got \"a\""));
    check("server", "allowed_hosts = [[1], 2]", &format!("{hosts}, got [a list, 2]"));
    let origins = "cors_origins: expected a list of origins such as \"https://app.example.com\" (scheme, host and port only), or only \"*\"";
    check("server", "cors_origins = [\"https://a/\"]", &format!("{origins}, got [\"https://a/\"]"));
    check("server", "cors_origins = [\"*\", \"https://a\"]", &format!("{origins}, got [\"*\", \"https://a\"]"));
    let levels = LogSettings::LEVELS;
    check("telemetry", "log_level = \"loud\"", &format!("log_level: expected {levels}, got \"loud\""));
}

#[test]
fn a_wrong_value_of_a_variable_or_flag_names_it() {
    let variable = load(None, &[("ORTUS_STORE__AUTOLOAD", "yes")], Flags::default());
    assert_eq!(message(variable), "ORTUS_STORE__AUTOLOAD: store.autoload: expected true or false, got \"yes\"");
    let empty = load(None, &[("ORTUS_BATCH__MAX_QUEUE", "")], Flags::default());
    assert_eq!(
        message(empty),
        "ORTUS_BATCH__MAX_QUEUE: batch.max_queue: expected a whole number from 1 to 1000000, got \"\""
    );
    let flag = message(load(None, &[], flags("localhost")));
    assert!(flag.starts_with("--listen: server.listen: expected an IP address"), "{flag}");
}

#[test]
fn a_file_that_is_not_toml_is_named_with_the_line() {
    let text = message(from_file("[server]\nlisten = \n"));
    assert!(text.starts_with("ortus.toml:2: not TOML: "), "{text}");
    let text = message(from_file("[server]\nlisten = \"127.0.0.1:1\"\nlisten = \"127.0.0.1:2\"\n"));
    assert!(text.starts_with("ortus.toml:3: not TOML: "), "{text}");
}

#[test]
fn a_named_file_must_be_there_and_small() {
    let folder = tempfile::tempdir().unwrap();
    let load = |path: PathBuf| {
        let environment = std::iter::empty();
        Config::load(Sources { file: ConfigFile::Named(path), environment, flags: Flags::default() })
    };
    assert!(matches!(load(folder.path().join("none.toml")), Err(ConfigError::NoFile { .. })));
    assert!(matches!(load(folder.path().to_owned()), Err(ConfigError::Read { .. })));
    let large = folder.path().join("large.toml");
    std::fs::write(&large, vec![b'\n'; (1 << 20) + 1]).unwrap();
    assert!(matches!(load(large), Err(ConfigError::TooLarge { .. })));
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert!(matches!(load(binary), Err(ConfigError::Read { .. })));
}

#[test]
fn f80_a_public_address_is_refused_without_keys_unless_the_user_insists() {
    let check = |listen: &str, public: bool| {
        let config = load(None, &[], flags(listen)).unwrap();
        assert_eq!(config.check_exposure(false, false).is_err(), public, "{listen}");
        assert!(config.check_exposure(false, true).is_ok(), "{listen}");
        assert!(config.check_exposure(true, false).is_ok(), "{listen}");
    };
    for loopback in ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
        check(loopback, false);
    }
    for public in ["0.0.0.0:80", "[::]:80", "192.168.1.2:80", "[::ffff:10.0.0.1]:80", "[fe80::1]:80"] {
        check(public, true);
    }
    let error = load(None, &[], flags("0.0.0.0:80")).unwrap().check_exposure(false, false).unwrap_err().to_string();
    assert!(
        error.contains("ortus key create") && error.contains("--insecure") && error.contains("127.0.0.1:80"),
        "{error}"
    );
}

#[test]
fn the_example_sets_every_key_to_its_default() {
    let config = from_file(&example::text()).unwrap();
    let fresh = Config::default();
    for (loaded, default) in config.effective().iter().zip(fresh.effective()) {
        assert_eq!(loaded.value, default.value, "{}", default.key);
        let is_set = loaded.origin != Origin::Default;
        assert_eq!(is_set, loaded.value != Setting::Unset, "{}", default.key);
    }
    assert_eq!(config.models, fresh.models);
}
