//! [`Report`]: what came of the exam, as JSON and as text.

use std::collections::BTreeMap;
use std::fmt;

use cofferdam_client::EngineInfo;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::failure::Failure;

/// What came of one attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It was held off.
    Held,
    /// It got through.
    Broken,
    /// It needs something that is not there.
    Skipped,
    /// It could not be carried out: a fault of the exam.
    Error,
}

/// One attack and its outcome.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CaseResult {
    pub(super) family: String,
    pub(super) id: String,
    /// User inside the sandbox that attacked.
    #[serde(default)]
    pub(super) user: String,
    /// What the attack tries.
    pub(super) tries: String,
    /// What getting through would be: READ, WRITE, CRASH, STALL, ESCAPE or LEAK.
    pub(super) proof: String,
    pub(super) outcome: Outcome,
    /// How it was held off, or how it got through.
    pub(super) detail: String,
}

impl CaseResult {
    /// The result of a check on the host.
    pub(super) fn of_host(id: &str, tries: &str, proof: &str, held: bool) -> Self {
        Self {
            family: "host".to_owned(),
            id: id.to_owned(),
            user: String::new(),
            tries: tries.to_owned(),
            proof: proof.to_owned(),
            outcome: if held { Outcome::Held } else { Outcome::Broken },
            detail: String::new(),
        }
    }
}

/// Reads the probes' output.
///
/// # Errors
/// A line is not a result: an attack may have disturbed the output, so the exam is worth nothing.
pub(super) fn parse(lines: &str, user: &str) -> Result<Vec<CaseResult>, Failure> {
    let result = |line: &str| -> Result<CaseResult, Failure> {
        let mut result: CaseResult = serde_json::from_str(line)
            .map_err(|error| Failure::new(format!("the probes printed {line:?}: {error}")))?;
        user.clone_into(&mut result.user);
        Ok(result)
    };
    lines.lines().map(result).collect()
}

/// The whole exam.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Version of this program, which contains the cases.
    version: String,
    /// When the exam ended, RFC 3339.
    date: String,
    engine: String,
    isolation: String,
    kernel: String,
    tried: usize,
    held: usize,
    broken: usize,
    skipped: usize,
    errors: usize,
    /// SHA-256 of the cases' JSON: whoever compares two reports sees at once whether they are the same.
    digest: String,
    cases: Vec<CaseResult>,
}

impl Report {
    pub(super) fn new(engine: &EngineInfo, cases: Vec<CaseResult>) -> Self {
        let count = |outcome| cases.iter().filter(|case| case.outcome == outcome).count();
        let now = time::OffsetDateTime::now_utc().format(&time::format_description::well_known::Rfc3339);
        let digest = Sha256::digest(serde_json::to_vec(&cases).unwrap_or_default());
        let skipped = count(Outcome::Skipped);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            date: now.unwrap_or_default(),
            engine: engine.name.clone(),
            isolation: engine.isolation.clone(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            tried: cases.len() - skipped,
            held: count(Outcome::Held),
            broken: count(Outcome::Broken),
            skipped,
            errors: count(Outcome::Error),
            digest: hex::encode(digest),
            cases,
        }
    }

    /// Whether every attack was carried out and held off.
    pub(super) fn has_passed(&self) -> bool {
        self.broken == 0 && self.errors == 0 && self.held > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut families: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
        for case in &self.cases {
            families.entry(&case.family).or_default()[case.outcome as usize] += 1;
        }
        writeln!(f, "{:12} {:>6} {:>6} {:>7} {:>6}", "family", "held", "broken", "skipped", "errors")?;
        for (family, [held, broken, skipped, errors]) in families {
            writeln!(f, "{family:12} {held:>6} {broken:>6} {skipped:>7} {errors:>6}")?;
        }
        for case in &self.cases {
            if matches!(case.outcome, Outcome::Broken | Outcome::Error) {
                let what = if case.outcome == Outcome::Broken { "GOT THROUGH" } else { "ERROR" };
                writeln!(
                    f,
                    "{what} [{}] {}/{} as {}: {}: {}",
                    case.proof, case.family, case.id, case.user, case.tries, case.detail
                )?;
            }
        }
        write!(
            f,
            "{} of {} attacks held off, {} got through, {} errors, {} skipped; engine {} ({}), Linux {}, cofferdam {}, {}, digest {}",
            self.held,
            self.tried,
            self.broken,
            self.errors,
            self.skipped,
            self.engine,
            self.isolation,
            self.kernel,
            self.version,
            self.date,
            &self.digest[..16],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[Outcome]) -> Report {
        let engine: EngineInfo = serde_json::from_value(serde_json::json!({
            "name": "container", "isolation": "shared_kernel", "summary": "", "capabilities": {}, "running": 0
        }))
        .unwrap();
        let case = |outcome: &Outcome| CaseResult {
            outcome: *outcome,
            ..CaseResult::of_host("x", "x", "READ", true)
        };
        Report::new(&engine, outcomes.iter().map(case).collect())
    }

    #[test]
    fn only_attacks_that_were_carried_out_and_held_off_pass() {
        assert!(report(&[Outcome::Held, Outcome::Skipped]).has_passed());
        for failed in [
            &[Outcome::Held, Outcome::Broken][..],
            &[Outcome::Held, Outcome::Error],
            &[Outcome::Skipped],
            &[],
        ] {
            assert!(!report(failed).has_passed(), "{failed:?}");
        }
        let text = report(&[Outcome::Held, Outcome::Broken]).to_string();
        assert!(text.contains("GOT THROUGH") && text.contains("1 of 2 attacks held off"), "{text}");
    }

    #[test]
    fn output_that_is_no_result_is_an_error() {
        let line = r#"{"family":"f","id":"i","tries":"t","proof":"READ","outcome":"held","detail":""}"#;
        assert_eq!(parse(line, "root").unwrap()[0].user, "root");
        assert!(parse("Traceback", "root").is_err());
    }
}
