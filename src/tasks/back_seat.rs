//! Heavy work that lets requests go first: threads at a lower priority, and back.
//!
//! Invariant: no thread is left at the lower priority, since it would serve requests later. Linux lets a process raise a
//! priority that it lowered only with a right (`CAP_SYS_NICE`, `RLIMIT_NICE`); without it nothing is lowered.

/// While this lives, the thread that made it and the threads it starts get a thirtieth of a core that others want.
#[must_use = "dropped at once it lowers nothing"]
pub struct BackSeat {
    #[cfg(target_os = "linux")]
    usual: i32,
    #[cfg(target_os = "linux")]
    lowered: i32,
}

/// Steps of niceness. Fifteen are a weight of 36 beside 1024: enough to go on with under full load.
#[cfg(target_os = "linux")]
const STEPS: i32 = 15;
#[cfg(target_os = "linux")]
const NICEST: i32 = 19;

impl BackSeat {
    /// `None` where the system does not let threads come back.
    #[cfg(target_os = "linux")]
    pub fn take() -> Option<BackSeat> {
        use rustix::process::{getpriority_process, setpriority_process};
        if !may_come_back() {
            return None;
        }
        // Of this thread alone: on Linux the calls are about threads.
        let usual = getpriority_process(None).ok()?;
        let lowered = (usual + STEPS).min(NICEST);
        setpriority_process(None, lowered).ok()?;
        Some(BackSeat { usual, lowered })
    }

    #[cfg(not(target_os = "linux"))]
    pub fn take() -> Option<BackSeat> {
        None
    }
}

/// Whether a priority that was lowered can be raised again: tried once, on a thread that ends with it.
#[cfg(target_os = "linux")]
#[expect(clippy::disallowed_methods, reason = "a thread of three calls, joined at once")]
fn may_come_back() -> bool {
    use rustix::process::{getpriority_process, setpriority_process};
    static MAY: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let tried = || -> Option<()> {
        let usual = getpriority_process(None).ok()?;
        setpriority_process(None, (usual + 1).min(NICEST)).ok()?;
        setpriority_process(None, usual).ok()
    };
    *MAY.get_or_init(|| std::thread::spawn(tried).join().is_ok_and(|tried| tried.is_some()))
}

#[cfg(target_os = "linux")]
impl Drop for BackSeat {
    fn drop(&mut self) {
        use rustix::process::{Pid, getpriority_process, setpriority_process};
        // All threads of the process: a library's own are among those that were started meanwhile. Another's that are
        // lowered at this moment come back early, which costs nothing but their manners.
        let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let ids = threads.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        for id in ids.filter(|id| getpriority_process(Some(*id)) == Ok(self.lowered)) {
            // Fails only for a thread that has ended.
            let _ = setpriority_process(Some(id), self.usual);
        }
        let _ = setpriority_process(None, self.usual);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use rustix::process::{Pid, getpriority_process};

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the threads are what is tested")]
    fn a_thread_and_those_it_starts_come_back() {
        let here = getpriority_process(None).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let started = std::thread::spawn(move || {
            let seat = BackSeat::take();
            let lowered = getpriority_process(None).unwrap();
            let child = std::thread::spawn(move || {
                let id = std::fs::read_link("/proc/thread-self").unwrap();
                let id: i32 = id.file_name().unwrap().to_str().unwrap().parse().unwrap();
                tell.send((Pid::from_raw(id).unwrap(), getpriority_process(None).unwrap())).unwrap();
                let _ = ended.recv();
            });
            let (id, inherited) = told.recv().unwrap();
            let was_taken = seat.is_some();
            drop(seat);
            let back = (getpriority_process(None).unwrap(), getpriority_process(Some(id)).unwrap());
            end.send(()).ok();
            child.join().unwrap();
            (was_taken, lowered, inherited, back)
        });
        let (was_taken, lowered, inherited, back) = started.join().unwrap();
        assert_eq!(back, (here, here));
        // Without the right nothing is lowered.
        let expected = if was_taken { here + STEPS } else { here };
        assert_eq!((lowered, inherited), (expected, expected));
    }
}
