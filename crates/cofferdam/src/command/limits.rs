//! Limits of a team as options: of `serve`, for the default team and new ones, and of `team`, for one team.
//! A limit that is not given stays as it is; 0 means unlimited.

use clap::Args;
use cofferdam_client::TeamLimits;
use control::LimitsChange;

/// Limits of a team; 0 means unlimited.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// Maximum number of concurrent sandboxes of a team; 0 is unlimited.
    #[arg(long, value_name = "COUNT")]
    max_sandboxes: Option<u32>,
    /// Maximum time limit of a sandbox; 0 is unlimited.
    #[arg(long, value_name = "HOURS")]
    max_hours: Option<u32>,
    /// Maximum number of processors of a sandbox; 0 is unlimited.
    #[arg(long, value_name = "COUNT")]
    max_vcpu: Option<u32>,
    /// Maximum memory of a sandbox; 0 is unlimited.
    #[arg(long, value_name = "MIB")]
    max_memory: Option<u32>,
    /// Maximum disk space of a sandbox; 0 is unlimited.
    #[arg(long, value_name = "MIB")]
    max_disk: Option<u32>,
    /// Maximum number of concurrent template builds of a team; 0 is unlimited.
    #[arg(long, value_name = "COUNT")]
    max_builds: Option<u32>,
}

impl From<&Limits> for LimitsChange {
    fn from(limits: &Limits) -> Self {
        Self {
            concurrent_sandboxes: limits.max_sandboxes,
            max_length_hours: limits.max_hours,
            max_vcpu: limits.max_vcpu,
            max_memory_mib: limits.max_memory,
            max_disk_mib: limits.max_disk,
            concurrent_builds: limits.max_builds,
        }
    }
}

impl From<Limits> for TeamLimits {
    fn from(limits: Limits) -> Self {
        Self {
            concurrent_sandboxes: limits.max_sandboxes,
            max_length_hours: limits.max_hours,
            max_vcpu: limits.max_vcpu,
            max_memory_mib: limits.max_memory,
            max_disk_mib: limits.max_disk,
            concurrent_builds: limits.max_builds,
        }
    }
}
