//! Processors: `/proc/cpuinfo`, `/proc/stat`, `/proc/uptime`, `/sys/devices/system/cpu` and the files `cpu.*` of a control group.

use std::fmt::Write;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Source;
use crate::control::CpuUse;

/// Unit of times in `/proc/stat`: a hundredth of a second, as microseconds.
const TICK_USEC: u64 = 10_000;

/// `/proc/cpuinfo`: the first of the host's processors, numbered from 0.
pub(super) fn cpuinfo(source: &Source<'_>) -> io::Result<String> {
    let processors = source.control.processors()?;
    Ok(cpuinfo_of(&source.control.host.cpuinfo, processors))
}

fn cpuinfo_of(host: &str, processors: u32) -> String {
    let is_processor = |block: &&str| block.lines().any(|line| line.starts_with("processor"));
    let mut text = String::new();
    for (number, block) in (0..processors).zip(host.split("\n\n").filter(is_processor)) {
        for line in block.lines().filter(|line| !line.is_empty()) {
            let value = match line.split(['\t', ':']).next().unwrap_or_default().trim() {
                "processor" | "core id" | "apicid" | "initial apicid" => number,
                "physical id" => 0,
                "siblings" | "cpu cores" => processors,
                _ => {
                    let _ = writeln!(text, "{line}");
                    continue;
                }
            };
            let name = line.split(':').next().unwrap_or_default();
            let _ = writeln!(text, "{name}: {value}");
        }
        text.push('\n');
    }
    text
}

/// `/proc/stat`: the sandbox's processor time, divided evenly among its processors. What it does not count is 0.
pub(super) fn stat(source: &Source<'_>) -> io::Result<String> {
    let (control, uptime) = (&source.control, source.uptime()?);
    let tasks = control.pids("pids.current")?.trim().parse().unwrap_or(1);
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Ok(stat_of(control.cpu_use()?, control.processors()?, uptime, since_epoch - uptime, tasks))
}

fn stat_of(used: CpuUse, processors: u32, uptime: f64, booted: f64, tasks: u64) -> String {
    let [user, system] = [used.user / TICK_USEC, used.system / TICK_USEC];
    let passed = whole(uptime * 100.0) * u64::from(processors);
    let idle = passed.saturating_sub(user + system);
    let line = |name: &str, share: u64| {
        format!("{name} {} 0 {} {} 0 0 0 0 0 0\n", user / share, system / share, idle / share)
    };
    let mut text = line("cpu ", 1);
    (0..processors).for_each(|number| text.push_str(&line(&format!("cpu{number}"), processors.into())));
    let booted = whole(booted);
    let _ = write!(
        text,
        "intr 0\nctxt 0\nbtime {booted}\nprocesses {tasks}\nprocs_running 1\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n"
    );
    text
}

/// `/proc/uptime`: time since the sandbox started, and what its processors idled of it.
pub(super) fn uptime(source: &Source<'_>) -> io::Result<String> {
    let uptime = source.uptime()?;
    let passed = whole(uptime * 1e6) * u64::from(source.control.processors()?);
    let idle = passed.saturating_sub(source.control.cpu_use()?.total());
    Ok(format!("{uptime:.2} {}.{:02}\n", idle / 1_000_000, idle / 10_000 % 100))
}

/// `online`, `possible` and `present` of `/sys/devices/system/cpu`.
pub(super) fn list(source: &Source<'_>) -> io::Result<String> {
    let last = source.control.processors()? - 1;
    Ok(if last == 0 { "0\n".into() } else { format!("0-{last}\n") })
}

pub(super) fn max(source: &Source<'_>) -> io::Result<String> {
    let max = source.control.cpu_max()?;
    Ok(match max.quota {
        Some(quota) => format!("{quota} {}\n", max.period),
        None => format!("max {}\n", max.period),
    })
}

pub(super) fn usage(source: &Source<'_>) -> io::Result<String> {
    let used = source.control.cpu_use()?;
    Ok(format!(
        "usage_usec {}\nuser_usec {}\nsystem_usec {}\nnr_periods {}\nnr_throttled {}\nthrottled_usec {}\n",
        used.total(),
        used.user,
        used.system,
        used.periods,
        used.throttled,
        used.throttled_usec
    ))
}

/// Returns a number that is not negative without its fraction.
fn whole(number: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    let whole = number as u64;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuinfo_has_the_sandboxs_processors_only() {
        let host = "processor\t: 5\nsiblings\t: 8\ncpu cores\t: 8\nmodel name\t: X\n\nprocessor\t: 6\n\n\n";
        let one = cpuinfo_of(host, 1);
        assert_eq!(one, "processor\t: 0\nsiblings\t: 1\ncpu cores\t: 1\nmodel name\t: X\n\n");
        assert_eq!(cpuinfo_of(host, 2).matches("processor").count(), 2);
    }

    #[test]
    fn stat_divides_time_among_processors() {
        let used = CpuUse { user: 4_000_000, system: 2_000_000, ..CpuUse::default() };
        let text = stat_of(used, 2, 100.0, 1000.5, 3);
        assert!(text.starts_with("cpu  400 0 200 19400 0 0 0 0 0 0\ncpu0 200 0 100 9700 0"), "{text}");
        assert!(text.contains("\nbtime 1000\nprocesses 3\n"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("cpu")).count(), 3);
    }
}
