//! `config.example.toml`, written from the catalogue; a test holds the file equal to it.

use super::catalogue::{KEYS, SECTIONS};
use super::{Config, Setting};
use std::fmt::Write;

const HEAD: &str = "\
# Every setting of Ortus with its default. Copy what you change to ortus.toml, which `ortus serve` reads from the folder
# it is started in, or name another file with --config. A variable such as ORTUS_SERVER__LISTEN overrides the file (lists
# are split at commas), a flag such as --listen overrides both. `ortus config show` prints what is in force and why.
";

/// The example file: valid TOML that sets every key to its default.
pub(super) fn text() -> String {
    let defaults = Config::default();
    let mut text = HEAD.to_owned();
    for (section, about) in SECTIONS {
        let _ = writeln!(text, "\n# {about}\n[{section}]");
        for key in KEYS.iter().filter(|key| key.section == *section) {
            let _ = writeln!(text, "# {}", key.doc);
            let _ = match key.get(&defaults) {
                Setting::Unset => writeln!(text, "# {} =", key.name),
                value => writeln!(text, "{} = {value}", key.name),
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_is_what_the_catalogue_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml");
        if std::env::var_os("UPDATE_EXAMPLE").is_some() {
            std::fs::write(path, text()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert!(written == text(), "config.example.toml differs: run this test with UPDATE_EXAMPLE=1");
    }
}
