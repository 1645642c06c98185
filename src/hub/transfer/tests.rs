//! Transfers from a hub that misbehaves.

use super::super::testing::{FakeHub, Fault, Side, git_oid, sha256};
use super::super::{Client, FetchRequest, HubSettings, Inner, Secret, Source};
use super::*;
use crate::tasks::Tasks;
use std::sync::Arc;

const MODEL: &str = "model.onnx";
const SIZE: usize = 768 << 10;
/// Where it breaks off.
const CUT: usize = 256 << 10;

/// A fake hub with a large file, a hub that calls it, and a folder to work in.
struct Bench {
    fake: FakeHub,
    hub: Hub,
    work: WorkFolder,
    content: Vec<u8>,
    _root: tempfile::TempDir,
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}

fn bench_of(length: usize, change: impl FnOnce(&mut HubSettings)) -> Bench {
    let fake = FakeHub::start();
    let content = bytes(length, 0);
    fake.add("o/n", &[(MODEL, &content, true), ("config.json", b"{}", false), ("onnx/data/x.txt", b"x", true)]);
    let mut settings = HubSettings {
        hf_endpoint: fake.endpoint(),
        hf_token: Some(Secret::new("hf_secret".to_owned())),
        allowed_hosts: vec![fake.cdn_host()],
        idle_timeout: Duration::from_millis(400),
        reserve_bytes: 0,
        ..HubSettings::default()
    };
    change(&mut settings);
    let root = tempfile::tempdir().unwrap();
    let request = FetchRequest::new(Source::hugging_face("o/n").unwrap());
    let work = WorkFolder::open(root.path(), &request).unwrap();
    Bench { fake, hub: hub_of(settings), work, content, _root: root }
}

fn bench() -> Bench {
    bench_of(SIZE, |_| ())
}

/// A hub that does not wait long between its tries.
fn hub_of(settings: HubSettings) -> Hub {
    let mut client = Client::new(&settings).unwrap();
    client.delay = Duration::from_millis(2);
    Hub(Arc::new(Inner { settings, client, tasks: Tasks::new() }))
}

impl Bench {
    /// The large file, of which the size and the hash are known.
    fn model(&self) -> Wanted {
        Wanted { sha256: Some(sha256(&self.content)), bytes: Some(self.content.len() as u64), ..self.unknown() }
    }

    /// The large file, of which nothing is known.
    fn unknown(&self) -> Wanted {
        let url = format!("{}/o/n/resolve/main/{MODEL}", self.fake.endpoint());
        Wanted { url, path: MODEL.to_owned(), bytes: None, sha256: None, git_oid: None }
    }

    /// As [`Bench::unknown`], at a place whose tags are not hashes that are known to be such.
    fn elsewhere(&self) -> Wanted {
        Wanted { url: self.fake.put("/files/model.onnx", &self.content), ..self.unknown() }
    }

    async fn get(&self, wanted: Wanted) -> Result<Vec<ProvenanceFile>, HubError> {
        get_all(&self.hub, vec![wanted], &self.work, &Progress::default()).await
    }

    fn got(&self) -> Option<Vec<u8>> {
        fs::read(self.work.version().join(MODEL)).ok()
    }

    fn parts(&self) -> usize {
        let entries = fs::read_dir(self.work.parts()).unwrap();
        entries
            .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|ending| ending == "part"))
            .count()
    }

    fn calls(&self) -> Vec<super::super::testing::Seen> {
        self.fake.seen(Side::Cdn, MODEL)
    }

    fn fault(&self, times: usize, faults: &[Fault]) {
        self.fake.fault(Side::Cdn, MODEL, times, faults);
    }

    /// The file came whole, and nothing is left of the way.
    #[track_caller]
    fn is_whole(&self, result: &Result<Vec<ProvenanceFile>, HubError>, content: &[u8]) {
        let files = result.as_ref().unwrap();
        assert_eq!((files[0].bytes, files[0].sha256.as_str()), (content.len() as u64, sha256(content).as_str()));
        assert!(self.got().as_deref() == Some(content), "other bytes");
        assert_eq!(self.parts(), 0);
    }

    /// Nothing came under its final name.
    #[track_caller]
    fn is_refused(&self, result: &Result<Vec<ProvenanceFile>, HubError>, text: &str) {
        let error = result.as_ref().unwrap_err();
        assert!(error.to_string().contains(text), "{error:?}, expected {text:?}");
        assert!(!error.to_string().contains("hf_secret"));
        assert_eq!(self.got(), None);
    }
}

#[tokio::test]
async fn files_come_whole_and_are_not_got_twice() {
    let bench = bench();
    let url = |path: &str| format!("{}/o/n/resolve/main/{path}", bench.fake.endpoint());
    let wanted = || {
        let small = Wanted { bytes: Some(2), git_oid: Some(git_oid(b"{}")), ..bench.unknown() };
        vec![
            bench.model(),
            Wanted { url: url("config.json"), path: "config.json".to_owned(), ..small },
            Wanted { url: url("onnx/data/x.txt"), path: "a/b/x.txt".to_owned(), ..bench.unknown() },
        ]
    };
    let progress = Progress::default();
    let first = get_all(&bench.hub, wanted(), &bench.work, &progress).await.unwrap();
    let paths: Vec<_> = first.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, [MODEL, "config.json", "a/b/x.txt"]);
    assert_eq!(bench.got().unwrap(), bench.content);
    assert_eq!(fs::read(bench.work.version().join("a/b/x.txt")).unwrap(), b"x");
    let seen = progress.snapshot();
    assert_eq!(
        (seen.bytes_done, seen.bytes_total),
        (bench.content.len() as u64 + 3, Some(bench.content.len() as u64 + 3))
    );
    assert!(seen.files.iter().all(|file| file.done));

    let sent = bench.fake.cdn_sent();
    let second = get_all(&bench.hub, wanted(), &bench.work, &Progress::default()).await.unwrap();
    assert_eq!(first, second);
    // Of the file of which nothing was known before, the head is asked for, and as much as was on its way.
    assert!(bench.fake.cdn_sent() - sent <= 1);
    assert_eq!(bench.calls().len(), 1);
}

/// F12.
#[tokio::test]
async fn content_that_is_not_what_was_announced_is_refused() {
    let bench = bench();
    bench.fault(1, &[Fault::WrongContent]);
    bench.is_refused(&bench.get(bench.model()).await, "checksum");
    assert_eq!(bench.parts(), 0);
    // Where nothing was announced, the hub's own tag is the hash.
    bench.fault(1, &[Fault::WrongContent]);
    bench.is_refused(&bench.get(bench.unknown()).await, "checksum");
    let oid = Wanted { git_oid: Some("0".repeat(40)), sha256: None, ..bench.model() };
    bench.is_refused(&bench.get(oid).await, "checksum");
    // After the earlier bytes turned out to be wrong it begins anew.
    bench.fault(1, &[Fault::WrongContent, Fault::Cut(CUT)]);
    bench.is_whole(&bench.get(bench.model()).await, &bench.content);
}

/// F14.
#[tokio::test]
async fn bytes_of_two_states_of_a_file_are_never_joined() {
    let after = bytes(SIZE, 7);
    for ignores in [false, true] {
        let bench = bench();
        bench.fault(1, &[Fault::CutAndReplace(CUT, after.clone())]);
        if ignores {
            bench.fault(1, &[Fault::IgnoreIfRange]);
        }
        let wanted = bench.elsewhere();
        bench.is_whole(&bench.get(wanted).await, &after);

        let bench = super::tests::bench();
        bench.fault(1, &[Fault::CutAndReplace(CUT, after.clone())]);
        if ignores {
            bench.fault(1, &[Fault::IgnoreIfRange]);
        }
        bench.is_refused(&bench.get(bench.model()).await, "checksum");
    }
}

/// F15.
#[tokio::test]
async fn a_transfer_goes_on_where_it_was_cut() {
    let bench = bench();
    bench.fault(1, &[Fault::Cut(CUT)]);
    bench.fault(1, &[Fault::Status(500)]);
    bench.fault(1, &[Fault::Stall(CUT)]);
    bench.is_whole(&bench.get(bench.model()).await, &bench.content);
    let calls = bench.calls();
    assert_eq!(calls.iter().map(|call| call.status).collect::<Vec<_>>(), [200, 500, 206, 206]);
    let etag = format!("\"{}\"", sha256(&bench.content));
    for call in calls.iter().skip(1) {
        assert!(call.header("range").is_some_and(|range| range.starts_with("bytes=") && range != "bytes=0-"));
        assert_eq!(call.header("if-range"), Some(etag.as_str()));
        assert_eq!(call.header("authorization"), None);
    }
    assert!(bench.fake.cdn_sent() as f64 <= bench.content.len() as f64 * 1.2);
}

#[tokio::test]
async fn a_server_that_always_cuts_is_given_up() {
    let bench = bench();
    bench.fault(usize::MAX, &[Fault::Cut(0)]);
    bench.is_refused(&bench.get(bench.model()).await, "broke the connection off");
    assert_eq!(bench.calls().len(), 5);
}

/// F61.
#[tokio::test]
async fn nothing_beyond_the_announced_size_is_taken() {
    let bench = bench_of(200_000, |settings| settings.max_download_bytes = 1 << 20);
    let limit = 64 << 10;
    for faults in [vec![Fault::Longer(1)], vec![Fault::Longer(1), Fault::NoLength], vec![Fault::Endless]] {
        bench.fault(1, &faults);
        bench.is_refused(&bench.get(bench.model()).await, "size");
        assert_eq!(bench.parts(), 0);
    }
    // Without an announced size the bound is that of all files.
    for faults in [vec![Fault::Longer(2 << 20)], vec![Fault::Longer(2 << 20), Fault::NoLength], vec![Fault::Endless]] {
        bench.fault(1, &faults);
        bench.is_refused(&bench.get(bench.elsewhere()).await, "all files together have more than");
        assert_eq!(bench.parts(), 0);
    }
    assert_eq!(bench.calls().len(), 6, "none of it is tried again");
    bench.fault(1, &[Fault::WrongLength(limit)]);
    bench.is_refused(&bench.get(bench.model()).await, "size");
    bench.fault(1, &[Fault::WrongLength(-limit)]);
    bench.is_refused(&bench.get(bench.model()).await, "size");
    bench.fault(1, &[Fault::WrongLength(-limit)]);
    bench.is_refused(&bench.get(Wanted { bytes: None, ..bench.model() }).await, "checksum");
    bench.fault(1, &[Fault::NoLength]);
    bench.is_whole(&bench.get(bench.model()).await, &bench.content);
    let most = Wanted { bytes: Some(2 << 20), ..bench.model() };
    let error = bench.get(most).await.unwrap_err();
    assert!(matches!(error, HubError::TooLarge(_)));
}

/// F63.
#[tokio::test]
async fn a_whole_answer_to_a_range_is_not_appended() {
    for faults in [vec![Fault::IgnoreRange], vec![Fault::ShiftedRange(1)], vec![Fault::Status(416)]] {
        let bench = bench();
        bench.fault(1, &[Fault::Cut(CUT)]);
        bench.fault(1, &faults);
        bench.is_whole(&bench.get(bench.model()).await, &bench.content);
        let bench = super::tests::bench();
        bench.fault(1, &[Fault::Cut(CUT)]);
        bench.fault(1, &faults);
        bench.is_whole(&bench.get(bench.elsewhere()).await, &bench.content);
    }
}

#[tokio::test]
async fn without_a_strong_tag_or_a_hash_nothing_is_resumed() {
    for faults in [vec![Fault::NoEtag], vec![Fault::Etag("W/\"weak\"".to_owned())]] {
        let bench = bench();
        let cut = [faults.clone(), vec![Fault::Cut(CUT)]].concat();
        bench.fault(1, &cut);
        bench.fault(1, &faults);
        bench.is_whole(&bench.get(bench.elsewhere()).await, &bench.content);
        assert!(bench.calls().iter().all(|call| call.header("range").is_none()));
        // Where the hash is known, it tells.
        let bench = super::tests::bench();
        bench.fault(1, &cut);
        bench.fault(1, &faults);
        bench.is_whole(&bench.get(bench.model()).await, &bench.content);
        assert!(bench.calls()[1].header("range").is_some());
        assert_eq!(bench.calls()[1].header("if-range"), None);
    }
}

#[tokio::test]
async fn what_a_dropped_transfer_got_is_used_by_the_next() {
    for known in [true, false] {
        let bench = bench();
        let wanted = || if known { bench.model() } else { bench.elsewhere() };
        bench.fault(1, &[Fault::Slow(16 << 10, Duration::from_millis(25))]);
        let first = tokio::time::timeout(Duration::from_millis(700), bench.get(wanted())).await;
        assert!(first.is_err(), "it was dropped on its way");
        let sent = bench.fake.cdn_sent();
        assert!(sent > 0);
        bench.is_whole(&bench.get(wanted()).await, &bench.content);
        let calls = bench.calls();
        let range = calls[1].header("range").unwrap();
        let from: u64 = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
        assert!(from > 0 && calls[1].sent == bench.content.len() as u64 - from, "{range}");
        // Another file under the same name begins anew.
        assert_eq!(calls.len(), 2);
    }
    // A part of another file of the same name is not used.
    let bench = bench();
    bench.fault(1, &[Fault::Slow(16 << 10, Duration::from_millis(25))]);
    let other = Wanted { bytes: None, ..bench.model() };
    assert!(tokio::time::timeout(Duration::from_millis(600), bench.get(other)).await.is_err());
    bench.is_whole(&bench.get(bench.model()).await, &bench.content);
    assert_eq!(bench.calls()[1].header("range"), None);
}

/// F62.
#[tokio::test]
async fn cancelling_ends_within_a_second_and_writes_no_more() {
    let bench = bench_of(SIZE, |settings| settings.idle_timeout = Duration::from_secs(30));
    bench.fault(usize::MAX, &[Fault::Stall(CUT)]);
    let progress = Progress::default();
    let cancel = progress.cancelled().clone();
    let watch = async {
        while progress.snapshot().bytes_done < CUT as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
        Instant::now()
    };
    let (result, at) = tokio::join!(get_all(&bench.hub, vec![bench.model()], &bench.work, &progress), watch);
    assert_eq!(result, Err(HubError::Cancelled));
    assert!(at.elapsed() < Duration::from_secs(1));
    assert!(bench.hub.0.tasks.close(Duration::from_millis(50)).await, "no work goes on");
    let root = bench.work.root().to_owned();
    bench.work.remove();
    assert!(!root.exists());
}

/// F83.
#[tokio::test]
async fn a_rate_limit_ends_all_files_together() {
    let bench = bench();
    bench.fake.fault(Side::Hub, ".bin", usize::MAX, &[Fault::TooMany(None)]);
    let url = |at: usize| format!("{}/o/n/resolve/main/{at}.bin", bench.fake.endpoint());
    let wanted = (0..20).map(|at| Wanted { url: url(at), path: format!("{at}.bin"), ..bench.unknown() }).collect();
    let error = get_all(&bench.hub, wanted, &bench.work, &Progress::default()).await.unwrap_err();
    assert!(matches!(error, HubError::RateLimited(_)), "{error:?}");
    assert!(bench.fake.log().len() <= 12, "{}", bench.fake.log().len());
    // A page for people instead of the file.
    bench.fault(1, &[Fault::Html]);
    bench.is_refused(&bench.get(bench.model()).await, "a page for people");
}

/// F02.
#[tokio::test]
async fn names_that_lead_elsewhere_are_refused_before_anything_is_asked() {
    let bench = bench();
    for path in ["../x", "/x", "a/../x", "a\\x", "a\0", "", "a//b", "c:x", &"x/".repeat(9)] {
        let error = bench.get(Wanted { path: path.to_owned(), ..bench.model() }).await.unwrap_err();
        assert!(matches!(&error, HubError::Refused(text) if text.contains("unsafe file name")), "{path:?}: {error:?}");
    }
    let twice = get_all(&bench.hub, vec![bench.model(), bench.model()], &bench.work, &Progress::default()).await;
    assert!(matches!(twice, Err(HubError::Refused(_))));
    assert!(bench.fake.log().is_empty());
}

/// F13: the process ended between any two steps.
#[tokio::test]
async fn what_a_killed_process_left_is_used_or_replaced() {
    let bench = bench();
    let wanted = bench.model();
    bench.is_whole(&bench.get(wanted.clone()).await, &bench.content);
    let place = |ending: &str| {
        let name = sha256_hex(format!("version/{MODEL}").as_bytes());
        bench.work.parts().join(format!("{name}.{ending}"))
    };
    // Verified and synced, not yet renamed.
    fs::rename(bench.work.version().join(MODEL), place("part")).unwrap();
    bench.is_whole(&bench.get(wanted.clone()).await, &bench.content);
    assert_eq!(bench.calls().len(), 1);
    // Renamed, and then damaged.
    fs::write(bench.work.version().join(MODEL), b"short").unwrap();
    bench.is_whole(&bench.get(wanted.clone()).await, &bench.content);
    assert_eq!(bench.calls().len(), 2);
    // All bytes, not yet verified.
    fs::remove_file(place("done")).unwrap();
    fs::rename(bench.work.version().join(MODEL), place("part")).unwrap();
    let known = Sidecar { wanted: wanted.identity(), etag: None, bytes: Some(SIZE as u64), boot: None };
    write_note(&place("json"), &known).unwrap();
    bench.is_whole(&bench.get(wanted.clone()).await, &bench.content);
    assert_eq!(bench.calls().len(), 2);
    // The same, with wrong bytes among them.
    fs::remove_file(place("done")).unwrap();
    let mut wrong = bench.content.clone();
    wrong[1000] ^= 1;
    fs::write(place("part"), wrong).unwrap();
    write_note(&place("json"), &known).unwrap();
    bench.is_whole(&bench.get(wanted.clone()).await, &bench.content);
    assert_eq!(bench.calls().len(), 3);
    // Notes that cannot be read.
    for ending in ["json", "done"] {
        fs::write(place(ending), b"{").unwrap();
    }
    fs::write(place("part"), b"x").unwrap();
    bench.is_whole(&bench.get(wanted).await, &bench.content);
    // Bytes of another run of the system, which nothing can verify.
    let bench = super::tests::bench();
    let known =
        Sidecar { wanted: bench.elsewhere().identity(), etag: Some("\"x\"".to_owned()), bytes: None, boot: None };
    let name = sha256_hex(format!("version/{MODEL}").as_bytes());
    fs::write(bench.work.parts().join(format!("{name}.part")), b"lost").unwrap();
    write_note(&bench.work.parts().join(format!("{name}.json")), &known).unwrap();
    bench.is_whole(&bench.get(bench.elsewhere()).await, &bench.content);
    assert_eq!(bench.calls()[0].header("range"), None);
}

/// F16.
#[tokio::test]
async fn a_disk_without_room_is_said_before_and_during() {
    let bench = bench_of(SIZE, |settings| settings.reserve_bytes = u64::MAX / 2);
    bench.is_refused(&bench.get(bench.model()).await, "no space");
    assert!(bench.calls().is_empty());
    bench.is_refused(&bench.get(bench.unknown()).await, "no space");
    assert_eq!(bench.parts(), 0);

    let small = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        let run = std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(small.path()).output();
        run.is_ok_and(|output| output.status.success())
    };
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs"]) {
        eprintln!("SKIPPED: a full disk needs a file system of its own, which only root may mount");
        return;
    }
    let bench = super::tests::bench();
    let request = FetchRequest::new(Source::hugging_face("o/n").unwrap());
    let work = WorkFolder::open(small.path(), &request).unwrap();
    let mut said = Vec::new();
    // With the size known before; known from the answer; not known at all, which fails in the middle.
    for (wanted, faults) in
        [(bench.model(), vec![]), (bench.elsewhere(), vec![]), (bench.elsewhere(), vec![Fault::NoLength])]
    {
        bench.fault(1, &faults);
        said.push(get_all(&bench.hub, vec![wanted], &work, &Progress::default()).await);
        assert_eq!(fs::read_dir(work.parts()).unwrap().count(), 0, "what is of no use is gone");
        assert_eq!(fs::read_dir(work.version()).unwrap().count(), 0);
    }
    drop(work);
    assert!(mount(&["umount"]));
    assert!(said.iter().all(|result| matches!(result, Err(HubError::NoSpace(_)))), "{said:?}");
}
