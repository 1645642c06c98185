//! `config.pbtxt` beside a model.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| ortus::models::fuzz_config_pbtxt(text));
