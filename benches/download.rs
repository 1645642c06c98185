//! How fast a file is fetched, written and hashed, beside what `curl` makes of the same file: `cargo bench --bench download`.
//!
//! A server of the standard library on the loopback device sends the same bytes to both; both write to the same disk. The
//! fetch also hashes and syncs, which curl does not: beside curl alone stands curl with a sync of its file. `MIB=2048` sets
//! the size, `DIR` the folder.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark is a program of its own"
)]

use ortus::hub::{FetchRequest, Hub, HubSettings, Progress, Source, WorkFolder};
use ortus::tasks::Tasks;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;

fn main() {
    // `cargo test --benches` and `--list` pass arguments of the test harness; there is nothing to list.
    if std::env::args().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    let mib: usize = std::env::var("MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(1024);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || serve(&stream.unwrap(), mib));
        }
    });
    let folder = std::env::var_os("DIR").map_or_else(std::env::temp_dir, Into::into);
    let root = tempfile::tempdir_in(folder).unwrap();
    let url = format!("http://{address}/model.onnx");
    let (mut ours, mut theirs, mut synced) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let file = root.path().join("curl");
        let begun = Instant::now();
        let status = Command::new("curl").args(["-sS", "-o"]).arg(&file).arg(&url).status();
        if !status.is_ok_and(|status| status.success()) {
            println!("curl is not there: nothing to compare with");
            return;
        }
        theirs.push(begun.elapsed());
        std::fs::File::open(&file).unwrap().sync_all().unwrap();
        synced.push(begun.elapsed());
        std::fs::remove_file(file).unwrap();
        ours.push(fetch(&url, &address.to_string(), root.path()));
    }
    let rate = |times: &mut Vec<Duration>| {
        times.sort();
        mib as f64 / times[times.len() / 2].as_secs_f64()
    };
    let (ours, theirs, synced) = (rate(&mut ours), rate(&mut theirs), rate(&mut synced));
    println!("{mib} MiB, median of {ROUNDS}: fetched {ours:.0} MiB/s");
    println!(
        "curl {theirs:.0} MiB/s, ratio {:.2}; curl and sync {synced:.0} MiB/s, ratio {:.2}",
        ours / theirs,
        ours / synced
    );
}

fn fetch(url: &str, address: &str, root: &std::path::Path) -> Duration {
    let settings = HubSettings { allowed_hosts: vec![address.to_owned()], reserve_bytes: 0, ..HubSettings::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let request = FetchRequest::new(Source::Url { url: url.to_owned() });
    let work = WorkFolder::fresh(root).unwrap();
    let begun = Instant::now();
    runtime.block_on(async {
        let hub = Hub::new(settings, Tasks::new()).unwrap();
        hub.fetch(&request, &work, &Progress::default()).await.unwrap();
    });
    let took = begun.elapsed();
    work.remove();
    took
}

fn serve(stream: &TcpStream, mib: usize) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
        line.clear();
    }
    // Looks like a graph, and not like zeros, which a file system may leave out.
    let block: Vec<u8> =
        (0..1_u32 << 20).map(|at| if at == 0 { 8 } else { (at.wrapping_mul(2_654_435_761) >> 24) as u8 }).collect();
    let mut stream = stream;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", mib << 20);
    let sent = stream.write_all(head.as_bytes());
    let _ = sent.and_then(|()| (0..mib).try_for_each(|_| stream.write_all(&block)));
}
