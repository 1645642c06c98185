//! What the system says of this process.

/// Bytes of this process that are in RAM; `None` where the system does not say (no `/proc`). Reads a file of the kernel's.
pub fn resident_bytes() -> Option<u64> {
    parse_resident(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_size_is_read_in_bytes() {
        assert_eq!(parse_resident("Name:\tortus\nVmHWM:\t 90 kB\nVmRSS:\t   12345 kB\n"), Some(12345 * 1024));
        for other in ["", "VmRSS:\n", "VmRSS: 12 MB\n", "VmRSS: 99999999999999999999 kB"] {
            assert_eq!(parse_resident(other), None);
        }
    }
}
