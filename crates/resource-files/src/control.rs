//! [`Control`]: the figures of one sandbox's control group, read from version 1 or version 2 and in the terms of version 2.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use engine_host::Hierarchies;
use engine_host::cgroup::Controller;

use crate::host::HostFacts;

/// Control group of one sandbox, and what its content needs of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Control<'a> {
    pub(crate) hierarchies: &'a Hierarchies,
    pub(crate) host: &'a HostFacts,
    pub(crate) name: &'a str,
}

/// `cpu.max`, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuMax {
    /// `None` without a limit.
    pub(crate) quota: Option<u64>,
    pub(crate) period: u64,
}

/// Processor time, microseconds, and how often it was withheld.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CpuUse {
    pub(crate) user: u64,
    pub(crate) system: u64,
    pub(crate) periods: u64,
    pub(crate) throttled: u64,
    pub(crate) throttled_usec: u64,
}

impl CpuUse {
    pub(crate) fn total(&self) -> u64 {
        self.user + self.system
    }
}

/// Fields of a file with a name and a number in each line.
pub(crate) type Fields = HashMap<String, u64>;

/// Parses lines of names and numbers. Other lines are skipped.
pub(crate) fn fields(text: &str) -> Fields {
    let pairs = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    });
    pairs.collect()
}

impl Control<'_> {
    /// Whether the controllers are in version 1.
    pub(crate) fn is_v1(&self) -> bool {
        !self.hierarchies.v1.is_empty()
    }

    /// Reads a file of version 2.
    pub(crate) fn unified(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.hierarchies.unified.join(self.name).join(file))
    }

    /// Reads a file of a version 1 controller.
    pub(crate) fn v1(&self, controller: Controller, file: &str) -> io::Result<String> {
        let root: Option<&PathBuf> =
            self.hierarchies.v1.iter().find(|(kind, _)| *kind == controller).map(|(_, root)| root);
        fs::read_to_string(root.ok_or(io::ErrorKind::NotFound)?.join(self.name).join(file))
    }

    fn number(&self, controller: Controller, v1: &str, unified: &str) -> io::Result<Option<u64>> {
        let text = if self.is_v1() { self.v1(controller, v1)? } else { self.unified(unified)? };
        Ok(text.trim().parse().ok())
    }

    /// Returns the memory limit, bytes; `None` without one.
    pub(crate) fn memory_limit(&self) -> io::Result<Option<u64>> {
        let limit = self.number(Controller::Memory, "memory.limit_in_bytes", "memory.max")?;
        Ok(limit.filter(|limit| *limit < self.host.memory))
    }

    /// Returns the memory in use, bytes, with page cache.
    pub(crate) fn memory_current(&self) -> io::Result<u64> {
        let current = self.number(Controller::Memory, "memory.usage_in_bytes", "memory.current")?;
        Ok(current.unwrap_or(0))
    }

    /// Returns the maximum of the memory in use, bytes.
    pub(crate) fn memory_peak(&self) -> io::Result<u64> {
        Ok(self.number(Controller::Memory, "memory.max_usage_in_bytes", "memory.peak")?.unwrap_or(0))
    }

    /// Returns `memory.stat` with the names of version 2.
    pub(crate) fn memory_stat(&self) -> io::Result<Fields> {
        if !self.is_v1() {
            return Ok(fields(&self.unified("memory.stat")?));
        }
        let mut stat = fields(&self.v1(Controller::Memory, "memory.stat")?);
        for (old, new) in [
            ("rss", "anon"),
            ("cache", "file"),
            ("rss_huge", "anon_thp"),
            ("mapped_file", "file_mapped"),
            ("dirty", "file_dirty"),
            ("writeback", "file_writeback"),
        ] {
            let value = stat.remove(old).unwrap_or(0);
            stat.insert(new.to_owned(), value);
        }
        let kernel = self.v1(Controller::Memory, "memory.kmem.usage_in_bytes").ok();
        let kernel = kernel.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        stat.insert("kernel".to_owned(), kernel);
        Ok(stat)
    }

    /// Returns how many processes the kernel has killed because the memory limit was reached, and how often the limit was reached.
    pub(crate) fn memory_events(&self) -> io::Result<(u64, u64)> {
        if self.is_v1() {
            let killed = fields(&self.v1(Controller::Memory, "memory.oom_control")?);
            let reached = self.v1(Controller::Memory, "memory.failcnt")?.trim().parse().unwrap_or(0);
            return Ok((killed.get("oom_kill").copied().unwrap_or(0), reached));
        }
        let events = fields(&self.unified("memory.events")?);
        let event = |name: &str| events.get(name).copied().unwrap_or(0);
        Ok((event("oom_kill"), event("max")))
    }

    /// Returns the limit on processor time.
    pub(crate) fn cpu_max(&self) -> io::Result<CpuMax> {
        const DEFAULT_PERIOD: u64 = 100_000;
        let (quota, period) = if self.is_v1() {
            let read = |file: &str| self.v1(Controller::Cpu, file);
            (read("cpu.cfs_quota_us")?.trim().parse().ok(), read("cpu.cfs_period_us")?.trim().parse().ok())
        } else {
            let text = self.unified("cpu.max")?;
            let (quota, period) = text.trim().split_once(' ').unwrap_or(("max", ""));
            (quota.parse().ok(), period.parse().ok())
        };
        Ok(CpuMax { quota, period: period.filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD) })
    }

    /// Returns the number of processors: what the limit allows, rounded up, at most the host's.
    pub(crate) fn processors(&self) -> io::Result<u32> {
        let max = self.cpu_max()?;
        let wanted = max.quota.map_or(u64::MAX, |quota| quota.div_ceil(max.period));
        Ok(u32::try_from(wanted).unwrap_or(u32::MAX).clamp(1, self.host.processors))
    }

    /// Returns the processor time that was used.
    pub(crate) fn cpu_use(&self) -> io::Result<CpuUse> {
        if !self.is_v1() {
            let stat = fields(&self.unified("cpu.stat")?);
            let field = |name: &str| stat.get(name).copied().unwrap_or(0);
            return Ok(CpuUse {
                user: field("user_usec"),
                system: field("system_usec"),
                periods: field("nr_periods"),
                throttled: field("nr_throttled"),
                throttled_usec: field("throttled_usec"),
            });
        }
        let nanoseconds = |file: &str| -> io::Result<u64> {
            Ok(self.v1(Controller::CpuAcct, file)?.trim().parse().unwrap_or(0) / 1000)
        };
        let stat = fields(&self.v1(Controller::Cpu, "cpu.stat")?);
        let field = |name: &str| stat.get(name).copied().unwrap_or(0);
        Ok(CpuUse {
            user: nanoseconds("cpuacct.usage_user")?,
            system: nanoseconds("cpuacct.usage_sys")?,
            periods: field("nr_periods"),
            throttled: field("nr_throttled"),
            throttled_usec: field("throttled_time") / 1000,
        })
    }

    /// Reads a file of the controller `pids`, which has the same names in both versions.
    pub(crate) fn pids(&self, file: &str) -> io::Result<String> {
        if self.is_v1() { self.v1(Controller::Pids, file) } else { self.unified(file) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Directories like those of a control group, with a limit of 1 GiB and 1.5 processors.
    pub(crate) fn fake(version: u32) -> (tempfile::TempDir, Hierarchies) {
        let dir = tempfile::tempdir().unwrap();
        let group = |hierarchy: &str, files: &[(&str, &str)]| {
            let group = dir.path().join(hierarchy).join("s10000000");
            fs::create_dir_all(&group).unwrap();
            files.iter().for_each(|(name, text)| fs::write(group.join(name), text).unwrap());
            dir.path().join(hierarchy)
        };
        if version == 2 {
            let unified = group(
                "unified",
                &[
                    ("memory.max", "1073741824\n"),
                    ("memory.current", "104857600\n"),
                    (
                        "memory.stat",
                        "anon 62914560\nfile 31457280\nactive_file 10485760\ninactive_file 20971520\n",
                    ),
                    ("memory.events", "low 0\nmax 7\noom 2\noom_kill 2\n"),
                    ("cpu.max", "30000 20000\n"),
                    (
                        "cpu.stat",
                        "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\nnr_periods 5\n",
                    ),
                    ("pids.current", "3\n"),
                    ("pids.max", "512\n"),
                ],
            );
            return (dir, Hierarchies { unified, v1: Vec::new() });
        }
        let memory = [
            ("memory.limit_in_bytes", "1073741824\n"),
            ("memory.usage_in_bytes", "104857600\n"),
            ("memory.stat", "cache 31457280\nrss 62914560\nactive_file 10485760\ninactive_file 20971520\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("memory.failcnt", "7\n"),
        ];
        let cpu = [
            ("cpu.cfs_quota_us", "30000\n"),
            ("cpu.cfs_period_us", "20000\n"),
            ("cpu.stat", "nr_periods 5\n"),
        ];
        let accounting = [("cpuacct.usage_user", "2000000000\n"), ("cpuacct.usage_sys", "1000000000\n")];
        let v1 = vec![
            (Controller::Cpu, group("cpu", &cpu)),
            (Controller::CpuAcct, group("cpuacct", &accounting)),
            (Controller::Memory, group("memory", &memory)),
            (Controller::Pids, group("pids", &[("pids.current", "3\n"), ("pids.max", "512\n")])),
        ];
        (dir, Hierarchies { unified: group_root(&v1), v1 })
    }

    fn group_root(v1: &[(Controller, PathBuf)]) -> PathBuf {
        v1[0].1.with_file_name("unified")
    }

    pub(crate) fn host() -> HostFacts {
        HostFacts {
            memory: 8 << 30,
            processors: 4,
            cpuinfo: "processor\t: 0\ncpu cores\t: 4\n\nprocessor\t: 1\n\nprocessor\t: 2\n\n".into(),
        }
    }

    #[test]
    fn both_versions_give_the_same_figures() {
        let host = host();
        for version in [1, 2] {
            let (_dir, hierarchies) = fake(version);
            let control = Control { hierarchies: &hierarchies, host: &host, name: "s10000000" };
            assert_eq!(control.memory_limit().unwrap(), Some(1 << 30));
            assert_eq!(control.memory_current().unwrap(), 100 << 20);
            assert_eq!(control.memory_stat().unwrap()["anon"], 60 << 20);
            assert_eq!(control.memory_events().unwrap(), (2, 7));
            assert_eq!(control.cpu_max().unwrap(), CpuMax { quota: Some(30_000), period: 20_000 });
            assert_eq!(control.processors().unwrap(), 2);
            assert_eq!(control.cpu_use().unwrap().total(), 3_000_000);
            assert_eq!(control.pids("pids.current").unwrap(), "3\n");
        }
    }
}
