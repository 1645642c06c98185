//! Archives that are right, and those made to do harm.

use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::BTreeMap;

const LIMITS: ArchiveLimits = ArchiveLimits { files: 64, bytes: 1 << 20 };

/// One entry of a `.zip`, all of which can be wrong.
struct Zipped<'a> {
    name: &'a [u8],
    content: &'a [u8],
    /// Of the content unpacked, as the directory has it.
    bytes: usize,
    mode: u32,
    flags: u16,
    method: u16,
    crc: Option<u32>,
}

fn zipped<'a>(name: &'a str, content: &'a [u8]) -> Zipped<'a> {
    Zipped { name: name.as_bytes(), content, bytes: content.len(), mode: 0o100_644, flags: 0, method: 0, crc: None }
}

fn zip_of(entries: &[Zipped<'_>]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let put = |into: &mut Vec<u8>, shorts: &[u16]| shorts.iter().for_each(|short| into.extend(short.to_le_bytes()));
    for entry in entries {
        let mut crc = flate2::Crc::new();
        crc.update(entry.content);
        let crc = entry.crc.unwrap_or(crc.sum());
        let at = file.len() as u32;
        let mut common = Vec::new();
        put(&mut common, &[20, entry.flags, entry.method, 0, 0]);
        for long in [crc, entry.content.len() as u32, entry.bytes as u32] {
            common.extend(long.to_le_bytes());
        }
        put(&mut common, &[entry.name.len() as u16, 0]);
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend(entry.name);
        file.extend(entry.content);
        directory.extend(b"PK\x01\x02");
        put(&mut directory, &[3 << 8]);
        directory.extend(&common);
        put(&mut directory, &[0, 0, 0]);
        directory.extend((entry.mode << 16).to_le_bytes());
        directory.extend(at.to_le_bytes());
        directory.extend(entry.name);
    }
    let at = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06");
    put(&mut file, &[0, 0, entries.len() as u16, entries.len() as u16]);
    for long in [directory.len() as u32, at] {
        file.extend(long.to_le_bytes());
    }
    put(&mut file, &[0]);
    file
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

/// A header whose name no check of the `tar` crate has seen, and the content.
fn tarred(name: &[u8], kind: ::tar::EntryType, content: &[u8]) -> Vec<u8> {
    let mut header = ::tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o777);
    if kind.is_symlink() || kind.is_hard_link() {
        header.set_link_name_literal("/etc/passwd").unwrap();
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn tar_of(entries: &[Vec<u8>]) -> Vec<u8> {
    gz(&[entries.concat(), vec![0; 1024]].concat())
}

/// What is unpacked, with `/`; nothing may lie beside the folder.
fn unpack(bytes: &[u8], limits: &ArchiveLimits) -> Result<BTreeMap<String, Vec<u8>>, HubError> {
    let root = tempfile::tempdir().unwrap();
    let (file, into) = (root.path().join("archive"), root.path().join("a/b/into"));
    fs::create_dir_all(&into).unwrap();
    fs::write(&file, bytes).unwrap();
    let result = Archive::of(bytes).expect("an archive").unpack(&file, &into, limits);
    let names = |folder: &Path| list(folder).unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(&root.path().join("a")), ["b"]);
    assert_eq!(names(&root.path().join("a/b")), ["into"]);
    assert_eq!(names(root.path()).len(), 2);
    let mut found = BTreeMap::new();
    collect(&into, "", &mut found);
    assert!(found.values().map(Vec::len).sum::<usize>() as u64 <= limits.bytes);
    result.map(|()| found)
}

fn collect(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for (name, is_folder) in list(folder).unwrap() {
        let (path, shown) = (folder.join(&name), format!("{prefix}{name}"));
        if is_folder {
            collect(&path, &format!("{shown}/"), found);
            continue;
        }
        let data = path.symlink_metadata().unwrap();
        assert!(data.is_file(), "{shown}");
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&data.permissions()) & 0o111, 0, "{shown}");
        found.insert(shown, fs::read(path).unwrap());
    }
}

#[track_caller]
fn unpacks(bytes: &[u8], expected: &[&str]) {
    let found = unpack(bytes, &LIMITS).unwrap();
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let error = unpack(bytes, &LIMITS).unwrap_err();
    assert!(matches!(error, HubError::Refused(_)), "{error:?}");
    assert!(error.to_string().contains(expected), "{error}");
}

/// The same files as `.zip` and as `.tar.gz`.
fn both(names: &[&str]) -> [Vec<u8>; 2] {
    let zip: Vec<_> = names.iter().map(|name| zipped(name, if name.ends_with('/') { b"" } else { b"12" })).collect();
    let kind = |name: &str| if name.ends_with('/') { ::tar::EntryType::Directory } else { ::tar::EntryType::Regular };
    let tar: Vec<_> = names
        .iter()
        .map(|name| tarred(name.as_bytes(), kind(name), if name.ends_with('/') { b"" } else { b"12" }))
        .collect();
    [zip_of(&zip), tar_of(&tar)]
}

#[test]
fn a_folder_is_unpacked_and_its_top_is_taken_off() {
    for (names, expected) in [
        (&["model.onnx", "config.json"][..], &["config.json", "model.onnx"][..]),
        (&["./model.onnx", "./onnx/x.json", "./"], &["model.onnx", "onnx/x.json"]),
        (&["digits/", "digits/model.onnx", "digits/a/b.json"], &["a/b.json", "model.onnx"]),
        // The folder holds one of its own name.
        (&["m/m/model.onnx", "m/x.json"], &["m/model.onnx", "x.json"]),
        (&["m/model.toml", "m/model.onnx", "__MACOSX/m/._model.onnx", "m/.DS_Store"], &["model.onnx", "model.toml"]),
        (
            &["m/config.pbtxt", "m/1/model.onnx", "m/1/w.bin", "m/labels.txt"],
            &["config.pbtxt", "labels.txt", "model.onnx", "w.bin"],
        ),
        (&["7/model.onnx"], &["model.onnx"]),
        // No versions: one has no graph, and where the graph is known folders may be named as they like.
        (
            &["1/vocab.txt", "model.onnx", "2/x.onnx", "3/x.onnx"],
            &["1/vocab.txt", "2/x.onnx", "3/x.onnx", "model.onnx"],
        ),
        // Names that only look odd.
        (&["model.onnx", "a b/ü…x.json", "c..d"], &["a b/ü…x.json", "c..d", "model.onnx"]),
    ] {
        for archive in both(names) {
            unpacks(&archive, expected);
        }
    }
}

#[test]
fn what_writers_of_archives_make_is_read() {
    let mut zip = ::zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    let options = ::zip::write::SimpleFileOptions::default();
    zip.add_directory("m", options).unwrap();
    zip.start_file("m/model.onnx", options.compression_method(::zip::CompressionMethod::Deflated)).unwrap();
    zip.write_all(&[7; 100_000]).unwrap();
    zip.start_file("m/config.json", options.large_file(true).compression_method(::zip::CompressionMethod::Stored))
        .unwrap();
    zip.write_all(b"{}").unwrap();
    zip.set_comment("c0ffee").unwrap();
    let zip = zip.finish().unwrap().into_inner();
    let mut tar = ::tar::Builder::new(Vec::new());
    let long = format!("m/{}/model.json", "n".repeat(180));
    for (name, content) in [("m/model.onnx", &[7; 100_000][..]), ("m/config.json", b"{}"), (long.as_str(), b"")] {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, name, content).unwrap();
    }
    tar.append_pax_extensions([("path", "m/renamed.json".as_bytes()), ("mtime", b"1.5"), ("size", b"2")]).unwrap();
    let mut tar = tar.into_inner().unwrap();
    tar.truncate(tar.len() - 1024);
    tar.extend(tarred(b"m/other", ::tar::EntryType::Regular, b"{}"));
    let found = unpack(&zip, &LIMITS).unwrap();
    assert_eq!((found["model.onnx"].as_slice(), found["config.json"].as_slice()), (&[7; 100_000][..], &b"{}"[..]));
    let found = unpack(&tar_of(&[tar]), &LIMITS).unwrap();
    assert_eq!((found["model.onnx"].as_slice(), found["renamed.json"].as_slice()), (&[7; 100_000][..], &b"{}"[..]));
    assert_eq!(found.len(), 4);
}

/// F06.
#[test]
fn names_that_lead_elsewhere_are_refused() {
    let long = "n".repeat(99);
    let deep = "a/".repeat(8) + "b";
    let names = [
        "../x",
        "a/../../x",
        "a/..",
        "..",
        "/x",
        "//x",
        "a//x",
        "a/./x",
        ".\\x",
        "..\\..\\x",
        "a\\x",
        "C:/x",
        "C:x",
        "a\nb",
        "a\u{7f}",
        "a/\u{1b}[2J",
        &deep,
        "./../x",
        "././/x",
    ];
    for name in names {
        for archive in both(&["model.onnx", name]) {
            refused(&archive, "no plain relative name");
        }
    }
    refused(&zip_of(&[zipped("model.onnx", b""), zipped("a\0/../b", b"")]), "no plain relative name");
    refused(&zip_of(&[zipped("", b"")]), "no plain relative name");
    refused(&zip_of(&[zipped(&long.repeat(12), b"")]), "no plain relative name");
    refused(&zip_of(&[Zipped { name: b"\xff\xfe.onnx", ..zipped("", b"") }]), "not UTF-8");
    refused(&tar_of(&[tarred(b"\xff\xfe.onnx", ::tar::EntryType::Regular, b"")]), "not UTF-8");
    // A harmless name in the header, another before it.
    for (kind, name) in [(b'L', &b"../../x\0"[..]), (b'L', b"a\0/../b\0"), (b'x', b"21 path=../../../x.a\n")] {
        let record = tarred(b"n", ::tar::EntryType::new(kind), name);
        let archive = tar_of(&[record, tarred(b"model.onnx", ::tar::EntryType::Regular, b"12")]);
        refused(&archive, "no plain relative name");
    }
}

/// F06.
#[test]
fn only_files_and_folders_are_unpacked() {
    use ::tar::EntryType;
    for (kind, expected) in [
        (EntryType::Symlink, "a symbolic link"),
        (EntryType::Link, "a link"),
        (EntryType::GNULongLink, "a link"),
        (EntryType::Char, "a device"),
        (EntryType::Block, "a device"),
        (EntryType::Fifo, "a named pipe"),
        (EntryType::GNUSparse, "a sparse file"),
        (EntryType::new(b'V'), "of an unknown kind"),
    ] {
        refused(&tar_of(&[tarred(b"model.onnx", kind, b"")]), expected);
        // Also where the name alone would have been left out.
        refused(&tar_of(&[tarred(b".hidden", kind, b"")]), expected);
    }
    let sparse = tarred(b"n", EntryType::XHeader, b"22 GNU.sparse.major=1\n");
    refused(&tar_of(&[sparse, tarred(b"model.onnx", EntryType::Regular, b"")]), "a sparse file");
    for (mode, expected) in [(0o120_777, "a symbolic link"), (0o020_666, "a device"), (0o010_666, "a device, pipe")] {
        refused(&zip_of(&[Zipped { mode, ..zipped("model.onnx", b"/etc/passwd") }]), expected);
    }
}

/// F79.
#[test]
fn programs_pickles_and_hidden_files_are_left_out() {
    let names = [
        "model.onnx",
        "run.py",
        "x.so",
        "a/x.PKL",
        "w.pth",
        "w.pt",
        ".git/config",
        ".gitattributes",
        "a/.ortus/x",
        "setup.sh",
        PROVENANCE,
    ];
    for archive in both(&names) {
        unpacks(&archive, &["model.onnx"]);
    }
    for archive in both(&["run.py", ".hidden"]) {
        refused(&archive, "no file of a model");
    }
    refused(&zip_of(&[]), "no file of a model");
    // What is left out is not read either.
    unpacks(&zip_of(&[Zipped { flags: 1, ..zipped("run.py", b"") }, zipped("model.onnx", b"")]), &["model.onnx"]);
}

#[test]
fn one_name_is_written_once() {
    for names in [
        ["model.onnx", "model.onnx"],
        ["model.onnx", "./model.onnx"],
        ["a", "a/b"],
        ["a/b", "a"],
        ["a", "a/"],
        ["a/", "a"],
    ] {
        for archive in both(&names) {
            refused(&archive, "twice, or is a file and a folder");
        }
    }
    // Names that differ are two files.
    for archive in both(&["model.onnx", "a.json", "A.json"]) {
        unpacks(&archive, &["A.json", "a.json", "model.onnx"]);
    }
}

#[test]
fn several_versions_are_refused() {
    for archive in both(&["m/1/model.onnx", "m/2/model.onnx", "m/config.pbtxt"]) {
        refused(&archive, "holds 2 versions");
    }
    for archive in both(&["m/1/model.onnx", "m/1/config.json", "m/config.json"]) {
        refused(&archive, "beside the version and in it");
    }
}

/// F06.
#[test]
fn bombs_end_at_the_limit() {
    // 8 MiB of zeros: 8 KiB packed.
    let zeros = vec![0; 8 << 20];
    let mut deflated = flate2::write::DeflateEncoder::new(Vec::new(), Compression::fast());
    deflated.write_all(&zeros).unwrap();
    let deflated = deflated.finish().unwrap();
    let too_large = |bytes: &[u8]| {
        let error = unpack(bytes, &LIMITS).unwrap_err();
        assert!(matches!(error, HubError::TooLarge(_)), "{error:?}");
        assert!(error.to_string().contains("unpacks to more than 1048576 bytes"), "{error}");
    };
    let bomb = |bytes| Zipped { method: 8, bytes, ..zipped("model.onnx", &deflated) };
    too_large(&zip_of(&[bomb(zeros.len())]));
    // One that says it were small, and sixteen that share what they unpack.
    too_large(&zip_of(&[bomb(10)]));
    let part = vec![0; 100_000];
    let names: Vec<String> = (0..16).map(|index| format!("{index}.onnx")).collect();
    too_large(&zip_of(&names.iter().map(|name| zipped(name, &part)).collect::<Vec<_>>()));
    let regular = ::tar::EntryType::Regular;
    too_large(&tar_of(&[tarred(b"model.onnx", regular, &zeros)]));
    // In a file that is left out, after the end, and in what describes an entry.
    too_large(&tar_of(&[tarred(b"x.py", regular, &zeros)]));
    too_large(&tar_of(&[tarred(b"model.onnx", regular, b""), vec![0; 1024], zeros.clone()]));
    let error = unpack(&tar_of(&[tarred(b"n", ::tar::EntryType::GNULongName, &zeros)]), &LIMITS).unwrap_err();
    assert!(error.to_string().contains("longer than 64 KiB"), "{error}");
    // An archive within stays closed.
    let inner = zip_of(&[bomb(zeros.len())]);
    assert_eq!(unpack(&zip_of(&[zipped("inner.zip", &inner), zipped("model.onnx", b"")]), &LIMITS).unwrap().len(), 2);
}

#[test]
fn too_many_entries_are_refused_before_they_are_read() {
    let names: Vec<String> = (0..100_000).map(|index| format!("{index}.json")).collect();
    let regular = ::tar::EntryType::Regular;
    let tar: Vec<_> = names.iter().map(|name| tarred(name.as_bytes(), regular, b"")).collect();
    let zip: Vec<_> = names.iter().take(60_000).map(|name| zipped(name, b"")).collect();
    for archive in [zip_of(&zip), tar_of(&tar)] {
        let error = unpack(&archive, &LIMITS).unwrap_err();
        assert!(matches!(error, HubError::TooLarge(_)) && error.to_string().contains("64 entries"), "{error:?}");
    }
    // A directory that says it had more than any memory.
    let mut large = b"PK\x03\x04".to_vec();
    large.extend(b"PK\x06\x06");
    large.extend([0; 20]);
    for number in [1_u64 << 60, 1 << 60, 46 << 54, 4_u64.wrapping_sub(46 << 54)] {
        large.extend(number.to_le_bytes());
    }
    large.extend(b"PK\x06\x07\0\0\0\0");
    large.extend(4_u64.to_le_bytes());
    large.extend(1_u32.to_le_bytes());
    large.extend(b"PK\x05\x06");
    large.extend([0xff; 16]);
    large.extend([0; 2]);
    assert!(matches!(unpack(&large, &LIMITS), Err(HubError::Corrupt(_) | HubError::TooLarge(_))));
}

#[test]
fn archives_that_lie_or_are_cut_short_are_refused() {
    let corrupt = |bytes: &[u8]| {
        let result = unpack(bytes, &LIMITS);
        assert!(matches!(result, Err(HubError::Corrupt(_))), "{result:?}");
    };
    corrupt(&zip_of(&[Zipped { bytes: 1, ..zipped("model.onnx", b"12") }]));
    corrupt(&zip_of(&[Zipped { bytes: 3, ..zipped("model.onnx", b"12") }]));
    corrupt(&zip_of(&[Zipped { crc: Some(7), ..zipped("model.onnx", b"12") }]));
    corrupt(&zip_of(&[Zipped { method: 8, ..zipped("model.onnx", b"\xff\xff\xff") }]));
    let [zip, tar] = both(&["model.onnx", "config.json"]);
    for length in (4..zip.len()).step_by(7) {
        corrupt(&zip[..length]);
    }
    for length in (4..tar.len()).step_by(7) {
        corrupt(&tar[..length]);
    }
    // After the end, where some readers look first.
    corrupt(&[zip.as_slice(), b"PK\x05\x06"].concat());
    corrupt(&[b"PK\x03\x04".as_slice(), &zip].concat());
    corrupt(&gz(b"no tar at all"));
    // A size that no stream has, and records that describe nothing.
    let mut header = ::tar::Header::new_gnu();
    header.as_mut_bytes()[..1].copy_from_slice(b"m");
    header.set_size(u64::MAX);
    header.set_cksum();
    assert!(unpack(&tar_of(&[header.as_bytes().to_vec()]), &LIMITS).is_err());
    corrupt(&tar_of(&[tarred(b"n", ::tar::EntryType::GNULongName, b"model.onnx\0")]));
    corrupt(&tar_of(&[tarred(b"n", ::tar::EntryType::XGlobalHeader, b"17 path=model.o\n")]));
    corrupt(&tar_of(&[tarred(b"n", ::tar::EntryType::XHeader, b"99 path=model.o\n")]));
    let mut damaged = tarred(b"model.onnx", ::tar::EntryType::Regular, b"12");
    damaged[0] ^= 1;
    corrupt(&tar_of(&[damaged]));
}

#[test]
fn encrypted_and_unknown_compressions_are_refused() {
    for flags in [1, 0x41, 0x2000] {
        refused(&zip_of(&[Zipped { flags, ..zipped("model.onnx", b"12") }]), "is encrypted");
    }
    for method in [1, 9, 12, 14, 93, 99] {
        refused(&zip_of(&[Zipped { method, ..zipped("model.onnx", b"12") }]), "pack it with deflate");
    }
}

#[test]
fn unpacking_can_be_cancelled() {
    let root = tempfile::tempdir().unwrap();
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    for (index, archive) in both(&["model.onnx"]).into_iter().enumerate() {
        let (file, into) = (root.path().join("archive"), root.path().join(index.to_string()));
        fs::write(&file, &archive).unwrap();
        fs::create_dir(&into).unwrap();
        let result = Archive::of(&archive).unwrap().unpack_until(&file, &into, &LIMITS, &cancelled);
        assert_eq!(result, Err(HubError::Cancelled));
    }
}

#[test]
fn archives_are_known_by_their_first_bytes() {
    assert_eq!(Archive::of(&zip_of(&[])), Some(Archive::Zip));
    assert_eq!(Archive::of(&zip_of(&[zipped("a", b"")])), Some(Archive::Zip));
    assert_eq!(Archive::of(&gz(b"")), Some(Archive::TarGz));
    for other in [&b""[..], b"PK", b"\x08\x07onnx", b"\x1f\x8b", b"ustar"] {
        assert_eq!(Archive::of(other), None);
    }
}
