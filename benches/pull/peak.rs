//! How much memory processes have had at the most.

use std::process::{Child, ExitStatus};
use std::time::Duration;

use crate::support::Res;

/// The most memory that a process has had so far, in KiB; `None` if it is gone.
pub(crate) fn of(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Has the most memory of this process count from now on.
pub(crate) fn forget_own() -> Res<()> {
    Ok(std::fs::write("/proc/self/clear_refs", "5")?)
}

/// Waits for processes; returns whether all succeeded, and the most memory of all together, in KiB. What one takes in its last
/// milliseconds is missed.
pub(crate) fn wait(mut children: Vec<Child>) -> Res<(bool, u64)> {
    let mut most = vec![0; children.len()];
    loop {
        let mut ended: Vec<Option<ExitStatus>> = Vec::new();
        for (child, most) in children.iter_mut().zip(&mut most) {
            *most = of(&child.id().to_string()).unwrap_or(0).max(*most);
            ended.push(child.try_wait()?);
        }
        if let Some(all) = ended.into_iter().collect::<Option<Vec<_>>>() {
            return Ok((all.iter().all(ExitStatus::success), most.iter().sum()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
