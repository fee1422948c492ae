//! What the benches measure with.

use std::time::Instant;

/// The middle one of the values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds for one of so many, the mean.
#[allow(dead_code, reason = "not each bench uses it")]
pub fn mean_ns(count: u32, one: impl FnMut()) -> f64 {
    let begun = Instant::now();
    std::iter::repeat_with(one)
        .take(count as usize)
        .for_each(drop);
    begun.elapsed().as_nanos() as f64 / f64::from(count)
}

/// A figure of this process's memory in /proc (`VmRSS`, `VmHWM`), in kB.
#[allow(dead_code, reason = "not each bench uses it")]
pub fn memory(figure: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix(figure));
    let kb = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
    kb.and_then(|kb| kb.parse().ok()).expect("a figure in kB")
}
