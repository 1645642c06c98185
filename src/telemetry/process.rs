//! How much memory this process holds, and how much more it may take.
//!
//! Reads `/proc` and the control group's files: some ten microseconds each, no disk. Knows no model.

use std::path::{Path, PathBuf};

/// Bytes of this process that are in memory (RSS); `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    kib_line(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The most that was in memory of this process at a time (peak RSS), since [`reset_peak`] where that was called.
pub fn peak_bytes() -> Option<u64> {
    kib_line(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Lets the peak begin anew at what is in memory now; whether the system can do that.
pub fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Bytes that this process may still take: what the machine has to give, or what its control groups leave, whichever is
/// less. `None` where the system does not tell.
pub fn available_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| kib_line(&text, "MemAvailable:"));
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok();
    let group = groups.and_then(|text| group_folders(&text).iter().filter_map(|group| group.left()).min());
    machine.into_iter().chain(group).min()
}

/// `VmRSS:     1234 kB` in bytes.
fn kib_line(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A memory control group, by its folder; `files` are the names of its limit and its use.
#[derive(Debug, PartialEq)]
struct Group {
    folder: PathBuf,
    files: (&'static str, &'static str),
}

const V1: (&str, &str) = ("memory.limit_in_bytes", "memory.usage_in_bytes");
const V2: (&str, &str) = ("memory.max", "memory.current");

/// The group that `/proc/self/cgroup` names and those around it: every one of them may have a limit.
fn group_folders(text: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, files) = match controllers {
            "" => ("/sys/fs/cgroup", V2),
            names if names.split(',').any(|name| name == "memory") => ("/sys/fs/cgroup/memory", V1),
            _ => continue,
        };
        // Inside a container the path may be that of the machine outside, which is not there; the root is.
        for folder in Path::new(path.trim_start_matches('/')).ancestors() {
            groups.push(Group { folder: Path::new(root).join(folder), files });
        }
    }
    groups
}

impl Group {
    /// `None` where the group has no limit or does not exist.
    fn left(&self) -> Option<u64> {
        let read = |name: &str| std::fs::read_to_string(self.folder.join(name)).ok();
        // `max`, or in the old form a number larger than any memory, is no limit.
        let limit: u64 = read(self.files.0)?.trim().parse().ok().filter(|limit| *limit < 1 << 60)?;
        let used: u64 = read(self.files.1)?.trim().parse().ok()?;
        // Cached files are counted as used and are given up when memory is asked for.
        let files = read("memory.stat").and_then(|text| {
            let line = text.lines().find_map(|line| {
                line.strip_prefix("inactive_file ").or_else(|| line.strip_prefix("total_inactive_file "))
            });
            line?.trim().parse::<u64>().ok()
        });
        Some(limit.saturating_sub(used.saturating_sub(files.unwrap_or(0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_in_memory_and_may_take_more() {
        assert!(resident_bytes().unwrap() > 1 << 20);
        assert!(peak_bytes().unwrap() > 1 << 20);
        assert!(available_bytes().unwrap() > 0);
    }

    #[test]
    fn lines_and_groups_are_read() {
        assert_eq!(kib_line("A: 1 kB\nVmRSS:\t   12 kB\n", "VmRSS:"), Some(12 * 1024));
        assert_eq!(kib_line("VmRSS: many kB\n", "VmRSS:"), None);
        let folders = |text| -> Vec<(String, &str)> {
            group_folders(text).iter().map(|group| (group.folder.display().to_string(), group.files.0)).collect()
        };
        assert_eq!(
            folders("0::/a/b\n"),
            [
                ("/sys/fs/cgroup/a/b".to_owned(), "memory.max"),
                ("/sys/fs/cgroup/a".to_owned(), "memory.max"),
                ("/sys/fs/cgroup/".to_owned(), "memory.max"),
            ]
        );
        let old = "9:name=systemd:/\n4:memory:/x\n3:cpuset:/\n";
        assert_eq!(folders(old).first().unwrap(), &("/sys/fs/cgroup/memory/x".to_owned(), "memory.limit_in_bytes"));
        assert!(folders("nonsense").is_empty());
    }
}
