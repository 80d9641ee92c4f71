//! Checks of sandbox sizes: what the wire contract allows at all, and what a team's limits allow.
//! A sandbox's size comes from its template, so both builds and creates check it: limits may change in between.

use store::{Build, Team};

use super::LimitError;

/// Maximum number of processors of a template.
const MAX_CPUS: u32 = 32;
/// Minimum memory of a template, MiB.
const MIN_MEMORY: u32 = 128;

/// Checks that the team's limits allow sandboxes of a build's size.
///
/// # Errors
/// [`LimitError::Size`] with the limit that is exceeded.
pub fn check_sandbox_size(team: &Team, build: &Build) -> Result<(), LimitError> {
    let limits = team.limits;
    check_limits(&[
        ("CPU count", build.cpu_count, limits.max_vcpu, ""),
        ("Memory", build.memory_mib, limits.max_memory_mib, " MiB"),
        ("Disk size", build.disk_mib, limits.max_disk_mib, " MiB"),
    ])
}

/// Checks wanted values against their limits; each item is a name, the wanted value, the limit (zero is none) and the unit.
fn check_limits(checks: &[(&str, u32, u32, &str)]) -> Result<(), LimitError> {
    match checks.iter().find(|(_, wanted, limit, _)| *limit > 0 && wanted > limit) {
        None => Ok(()),
        Some((what, _, limit, unit)) => Err(LimitError::Size(format!(
            "{what} can't be higher than {limit}{unit} (if you need to increase this limit, ask the operator of \
             this server)"
        ))),
    }
}

/// Checks that a team may build a template with this many processors and this much memory, in MiB.
///
/// # Errors
/// [`LimitError::Size`] with what would be allowed.
pub fn check_template_size(team: &Team, cpu_count: u32, memory_mib: u32) -> Result<(), LimitError> {
    let invalid = |text: String| Err(LimitError::Size(text));
    if cpu_count != 1 && (cpu_count == 0 || !cpu_count.is_multiple_of(2)) {
        return invalid("CPU count must be 1 or an even number".to_owned());
    }
    if cpu_count > MAX_CPUS {
        return invalid(format!("CPU count must be at most {MAX_CPUS}"));
    }
    if memory_mib < MIN_MEMORY {
        return invalid(format!("Memory must be at least {MIN_MEMORY} MiB"));
    }
    if !memory_mib.is_multiple_of(2) {
        return invalid("Memory must be divisible by 2".to_owned());
    }
    check_limits(&[
        ("CPU count", cpu_count, team.limits.max_vcpu, ""),
        ("Memory", memory_mib, team.limits.max_memory_mib, " MiB"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::{Standing, TeamLimits};

    fn team(limits: TeamLimits) -> Team {
        Team {
            id: ids::TeamId::generate(),
            name: "t".to_owned(),
            slug: "t".to_owned(),
            limits,
            egress: Default::default(),
            standing: Standing::Good,
            created_at: time::OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn template_sizes_are_those_of_the_wire_contract() {
        let team = team(TeamLimits { max_vcpu: 8, max_memory_mib: 8192, ..TeamLimits::default() });
        let text = |cpu, memory| check_template_size(&team, cpu, memory).map_err(|error| error.to_string());
        for good in [(1, 128), (2, 1024), (8, 8192)] {
            assert_eq!(text(good.0, good.1), Ok(()));
        }
        let starts = |cpu, memory, wanted: &str| {
            let text = text(cpu, memory).unwrap_err();
            assert!(text.starts_with(wanted), "{text}");
        };
        starts(3, 1024, "CPU count must be 1 or an even number");
        starts(0, 1024, "CPU count must be 1 or an even number");
        starts(34, 1024, "CPU count must be at most 32");
        starts(10, 1024, "CPU count can't be higher than 8 (if you need to increase this limit, ");
        starts(2, 127, "Memory must be at least 128 MiB");
        starts(2, 129, "Memory must be divisible by 2");
        starts(2, 8194, "Memory can't be higher than 8192 MiB");
    }
}
