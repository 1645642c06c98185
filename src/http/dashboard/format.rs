//! Numbers as people read them. Pure.

use std::time::Duration;

/// `0.42 ms`, `12.3 ms`, `1.50 s`.
pub(super) fn time(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ms if ms >= 100_000.0 => format!("{:.0} s", ms / 1e3),
        ms if ms >= 1000.0 => format!("{:.2} s", ms / 1e3),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 10.0 => format!("{ms:.1} ms"),
        _ => format!("{ms:.2} ms"),
    }
}

/// The same of seconds as the API writes them; a dash where there is none.
pub(super) fn seconds(seconds: Option<f64>) -> String {
    match seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(duration) => time(duration),
        None => "–".to_owned(),
    }
}

/// `512 B`, `4.0 KiB`, `118 MiB`, `1.25 GiB`.
pub(super) fn bytes(bytes: u64) -> String {
    let number = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", number / 1024.0),
        1_048_576..1_073_741_824 => {
            let mebibytes = number / 1_048_576.0;
            if mebibytes >= 100.0 { format!("{mebibytes:.0} MiB") } else { format!("{mebibytes:.1} MiB") }
        }
        _ => format!("{:.2} GiB", number / 1_073_741_824.0),
    }
}

/// A number a second: `0/s`, `0.3/s`, `12/s`, `1,204/s`.
pub(super) fn rate(rate: f64) -> String {
    if rate >= 10.0 || rate == 0.0 { format!("{}/s", count(rate.round() as u64)) } else { format!("{rate:.1}/s") }
}

/// `12,345`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A moment of RFC 3339 to be read, to the second: `2026-01-31 12:34:56`. What is none comes back.
pub(super) fn moment(at: &str) -> String {
    match (at.get(..10), at.get(10..11), at.get(11..19)) {
        (Some(day), Some("T"), Some(clock)) => format!("{day} {clock}"),
        _ => at.to_owned(),
    }
}

/// `3 d 4 h`, `2 h 5 min`, `7 min`, `12 s`.
pub(super) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact_enough() {
        let times = [0.42, 12.34, 123.4, 1500.0, 125_000.0].map(|ms| time(Duration::from_secs_f64(ms / 1e3)));
        assert_eq!(times, ["0.42 ms", "12.3 ms", "123 ms", "1.50 s", "125 s"]);
        assert_eq!(seconds(None), "–");
        assert_eq!(
            [0, 1023, 4096, 5 << 20, 118 << 20, 5 << 28].map(bytes),
            ["0 B", "1023 B", "4.0 KiB", "5.0 MiB", "118 MiB", "1.25 GiB"]
        );
        assert_eq!([0.0, 0.26, 12.4, 1204.0].map(rate), ["0/s", "0.3/s", "12/s", "1,204/s"]);
        assert_eq!(["2026-01-31T12:34:56.789Z", "–"].map(moment), ["2026-01-31 12:34:56", "–"]);
        assert_eq!([7, 1000, 1_234_567].map(count), ["7", "1,000", "1,234,567"]);
        assert_eq!(
            [5, 61, 7300, 270_000].map(|s| age(Duration::from_secs(s))),
            ["5 s", "1 min", "2 h 1 min", "3 d 3 h"]
        );
    }
}
