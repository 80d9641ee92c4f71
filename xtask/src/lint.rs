//! Formatting, clippy, and the architecture we cannot run: it must at least compile.
//! Warnings are errors here, and only here, so that work in progress stays quick.
//! The other C library (musl) is checked for what runs inside sandboxes; nothing else is built for it.

use crate::run::{self, Outcome};
use crate::setup;

/// Everything.
pub(crate) fn all() -> Outcome {
    setup::for_testing()?;
    run::cargo(["fmt", "--all", "--check"]).run()?;
    run::cargo(["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]).run()?;
    for inside in ["envd", "guest-init", "interpreter"] {
        run::cargo(["check", "--quiet", "--package", inside, "--target", "aarch64-unknown-linux-musl"])
            .run()?;
    }
    run::cargo(["check", "--quiet", "--package", "cofferdam", "--target", "aarch64-unknown-linux-gnu"]).run()
}
