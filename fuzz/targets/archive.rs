//! Archives of a model's folder, `.zip` and `.tar.gz`.
#![no_main]

use ortus::hub::{Archive, ArchiveLimits};
use std::fs;
use std::path::Path;

const LIMITS: ArchiveLimits = ArchiveLimits { files: 32, bytes: 1 << 16 };

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some(archive) = Archive::of(data) else { return };
    let root = tempfile::tempdir().unwrap();
    let (file, into) = (root.path().join("archive"), root.path().join("a/b/into"));
    fs::write(&file, data).unwrap();
    fs::create_dir_all(&into).unwrap();
    let _ = archive.unpack(&file, &into, &LIMITS);
    // What leads out of the folder ends beside it.
    for (folder, inside) in [("", &["a", "archive"][..]), ("a", &["b"]), ("a/b", &["into"])] {
        let mut names: Vec<_> =
            fs::read_dir(root.path().join(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, inside);
    }
    assert!(size(&into) <= LIMITS.bytes);
});

/// Bytes of all files, which are regular ones.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let data = entry.path().symlink_metadata().unwrap();
            assert!(data.is_dir() || data.is_file());
            if data.is_dir() { size(&entry.path()) } else { data.len() }
        })
        .sum()
}
