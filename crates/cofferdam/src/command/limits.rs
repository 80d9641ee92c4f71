//! Limits of a team as options: of `serve`, for teams it makes, and of `team`, for one.
//! What is not given stays as it is.
//! A limit of 0 is no limit.

use clap::Args;
use cofferdam_client::TeamLimits;
use control::LimitsChange;

/// Limits of a team; 0 is none.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// Most sandboxes of one team at once.
    #[arg(long, value_name = "COUNT")]
    max_sandboxes: Option<u32>,
    /// Longest life of a sandbox.
    #[arg(long, value_name = "HOURS")]
    max_hours: Option<u32>,
    /// Most processors of a sandbox.
    #[arg(long, value_name = "COUNT")]
    max_vcpu: Option<u32>,
    /// Most memory of a sandbox.
    #[arg(long, value_name = "MIB")]
    max_memory: Option<u32>,
    /// Most disk of a sandbox.
    #[arg(long, value_name = "MIB")]
    max_disk: Option<u32>,
    /// Most template builds of one team at once.
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
