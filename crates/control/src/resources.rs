//! How much one sandbox, and how many builds, a team may have.
//! Sandboxes take their size from the template, so its build and each start are checked: limits may change in between.
//! Sizes the wire contract allows at all are checked here too.

use store::{Build, Standing, Team};

use crate::limits::Reservation;
use crate::{Control, ControlError};

/// Most processors of a template.
const MAX_CPUS: u32 = 32;
/// Least memory of a template, MiB.
const MIN_MEMORY: u32 = 128;

/// The right to one template build; given back when dropped.
#[derive(Debug)]
pub struct BuildPlace {
    _reservation: Reservation,
}

/// Whether sandboxes of this size may be had by the team.
pub(crate) fn check_resources(team: &Team, build: &Build) -> Result<(), ControlError> {
    let limits = team.limits;
    over_limit(&[
        ("CPU count", build.cpu_count, limits.max_vcpu, ""),
        ("Memory", build.memory_mib, limits.max_memory_mib, " MiB"),
        ("Disk size", build.disk_mib, limits.max_disk_mib, " MiB"),
    ])
}

fn over_limit(checks: &[(&str, u32, u32, &str)]) -> Result<(), ControlError> {
    match checks.iter().find(|(_, wanted, limit, _)| *limit > 0 && wanted > limit) {
        None => Ok(()),
        Some((what, _, limit, unit)) => Err(ControlError::Invalid(format!(
            "{what} can't be higher than {limit}{unit} (if you need to increase this limit, ask the operator of \
             this server)"
        ))),
    }
}

/// Whether traffic may wake a team's sandboxes: not while it is blocked or banned.
pub(crate) fn check_good_standing(team: &Team) -> Result<(), ControlError> {
    match team.standing {
        Standing::Good => Ok(()),
        Standing::Blocked(_) => Err(ControlError::Forbidden("team is blocked")),
        Standing::Banned => Err(ControlError::Forbidden("team is banned")),
    }
}

/// Whether a team may build a template of this size: processors, and memory in MiB.
///
/// # Errors
/// [`ControlError::Invalid`], with what would be allowed.
pub fn check_template_size(team: &Team, cpu_count: u32, memory_mib: u32) -> Result<(), ControlError> {
    let invalid = |text: String| Err(ControlError::Invalid(text));
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
    over_limit(&[
        ("CPU count", cpu_count, team.limits.max_vcpu, ""),
        ("Memory", memory_mib, team.limits.max_memory_mib, " MiB"),
    ])
}

impl Control {
    /// Takes a place among the team's template builds.
    ///
    /// # Errors
    /// [`ControlError::BuildLimit`] when it has as many under way as it may.
    pub fn reserve_build(&self, team: &Team) -> Result<BuildPlace, ControlError> {
        match self.builds.reserve(team.id, team.limits.concurrent_builds) {
            Ok(reservation) => Ok(BuildPlace { _reservation: reservation }),
            Err(ControlError::TeamLimit(limit)) => Err(ControlError::BuildLimit(limit)),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::TeamLimits;

    fn team(limits: TeamLimits) -> Team {
        Team {
            id: ids::TeamId::generate(),
            name: "t".to_owned(),
            slug: "t".to_owned(),
            limits,
            standing: Standing::Good,
            created_at: time::OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn templates_have_sizes_the_contract_knows() {
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
