//! `cargo xtask fuzz`: every parser of untrusted input gets random input for as many minutes as asked, and what has `unsafe` code runs once
//! under valgrind. Each round has other random numbers. A failure prints its smallest input.

use std::time::{Duration, Instant};

use crate::run::{self, Outcome};
use crate::setup;

/// Random tests: what they read, and a filter of nextest.
const PARSERS: [(&str, &str); 20] = [
    ("DNS questions of sandboxes", "package(net) & test(any_message_of_a_sandbox)"),
    ("DNS questions for the server's domain", "package(zone) & test(no_message_makes_it_panic)"),
    ("ClientHello and HTTP heads of sandboxes", "package(net) & test(no_bytes_make_it_panic)"),
    ("hosts and headers of clients", "package(edge) & test(any_host_and_headers)"),
    ("PROXY protocol", "package(edge) & test(no_bytes_make_it_panic)"),
    ("frames of guest agents", "package(guest-api) & test(frames_may_arrive)"),
    ("bytes as tar streams", "package(oci) & test(random::no_bytes_make_it_panic)"),
    ("tar streams", "package(oci) & test(no_stream_writes_outside)"),
    ("histories of layers, against GNU tar", "package(oci) & test(layers_tell_the_history)"),
    ("names in tar streams", "package(oci) & test(no_part_leads_outside)"),
    ("manifests and configurations of images", "package(oci) & test(no_document_makes_it_panic)"),
    ("image references", "package(oci) & test(a_full_form_reads_as_itself)"),
    ("Dockerfiles", "package(template) & test(no_text_makes_it_panic)"),
    ("values of header rules", "package(egress-rules) & test(text_without_prefixes)"),
    ("paths in volumes", "package(volumes) & test(no_path_leads_above)"),
    ("paths of envd", "package(envd) & test(is_always_absolute)"),
    ("multipart forms of envd", "package(envd) & test(content_survives)"),
    ("requests of SFTP clients", "package(sftp) & test(anything_may_be_sent)"),
    ("Java's stores of authorities", "package(envd) & test(anything_may_be_in_its_place)"),
    ("ranges of envd", "package(envd) & test(parts_lie_within)"),
];
/// Requests, envelopes, bodies and links of envd: derived from a corpus.
const ENVD: &str = "package(envd) & (test(/^fuzz::/) | test(/^untrusted::/))";
/// Crates with `unsafe` code whose tests valgrind can run. It lacks the mount calls that the engines' tests make, and rustix's reading of the
/// vDSO crashes in it. `heap` measures the C library's own allocator, which valgrind replaces.
const UNSAFE: [&str; 2] = ["sys", "confinement"];

/// Runs all of it. Words: `--minutes N` for each parser (default 10).
pub(crate) fn all(words: &[String]) -> Outcome {
    let minutes = match words {
        [] => 10,
        [option, number] if option == "--minutes" => {
            number.parse().map_err(|_| format!("{number} is no number of minutes"))?
        }
        _ => return Err("usage: cargo xtask fuzz [--minutes N]".to_owned()),
    };
    setup::for_testing()?;
    setup::packages(&["valgrind"])?;
    for (what, filter) in PARSERS {
        let cases = fuzz(filter, "PROPTEST_CASES", Duration::from_secs(60 * minutes))?;
        println!("{what}: {cases} inputs, no failure");
    }
    let cases = fuzz(ENVD, "COFFERDAM_FUZZ_CASES", Duration::from_secs(60 * minutes))?;
    println!("requests and bodies of envd: {cases} inputs for each of its tests, no failure");
    valgrind()
}

/// Repeats a test with other random numbers until the time is over; returns the number of inputs.
fn fuzz(filter: &str, variable: &str, duration: Duration) -> Outcome<u64> {
    let (begun, mut cases, mut total) = (Instant::now(), 1000_u64, 0);
    while begun.elapsed() < duration {
        let round = Instant::now();
        let mut test = run::cargo(["nextest", "run", "--workspace", "--no-fail-fast", "-E", filter]);
        test.env(variable, cases.to_string()).env("NEXTEST_STATUS_LEVEL", "fail").run()?;
        total += cases;
        // Rounds of about half a minute; nextest ends tests that last longer than two.
        let seconds = round.elapsed().as_secs_f64().max(0.1);
        if seconds < 20.0 {
            cases = cases.saturating_mul(if seconds < 5.0 { 4 } else { 2 });
        }
    }
    Ok(total)
}

fn valgrind() -> Outcome {
    const RUNNER: &str =
        "valgrind --quiet --error-exitcode=99 --child-silent-after-fork=yes --trace-children=no";
    for package in UNSAFE {
        let mut test = run::cargo([
            "test",
            "--package",
            package,
            "--lib",
            "--quiet",
            "--",
            "--test-threads=1",
            "--skip",
            "heap",
        ]);
        test.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", RUNNER).run()?;
        println!("{package}: no error under valgrind");
    }
    Ok(())
}
