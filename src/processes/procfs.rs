//! What is known of processes on Linux only, from `/proc`. Elsewhere every answer is "unknown".

use std::fs;
use std::process;

/// The name of this process in `top`, `pgrep` and the kernel log.
const NAME: &str = "/proc/self/comm";

/// Empty if the name is not known.
pub(super) fn name() -> Vec<u8> {
    let line = fs::read(NAME).unwrap_or_default();
    line.trim_ascii_end().to_vec()
}

/// A process that was started as `/proc/self/exe` is called `exe` otherwise.
pub(super) fn set_name(name: &[u8]) {
    if !name.is_empty() {
        // If this fails, the process has another name and works just as well.
        let _ = fs::write(NAME, name);
    }
}

/// Whether a child of this process has ended, without reaping it. Unknown if the child was reaped.
pub(super) fn has_ended(child: u32) -> Option<bool> {
    let (state, parent) = stat(child)?;
    (parent == process::id()).then_some(matches!(&*state, "Z" | "X"))
}

/// Whether a signal has stopped a process, as happens to one in the background that reads from its terminal.
pub(super) fn is_stopped(process: u32) -> bool {
    stat(process).is_some_and(|(state, _)| state == "T")
}

/// The state of a process, and its parent.
fn stat(process: u32) -> Option<(String, u32)> {
    let stat = fs::read(format!("/proc/{process}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name in parentheses before these fields may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    Some((fields.next()?.into(), fields.next()?.parse().ok()?))
}

/// The resident memory of a process.
pub(super) fn resident_bytes(process: u32) -> Option<u64> {
    let status = fs::read(format!("/proc/{process}/status")).ok()?;
    // The name may end within a character.
    let status = String::from_utf8_lossy(&status);
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}
