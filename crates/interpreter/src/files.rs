//! Writes the drivers, which are part of the binary, to a directory where the languages' interpreters read them.
//! `prepare` does it once, in the template's build. `serve` writes only files that are missing or differ.
//! The npm modules beside them are installed by the template's `package.json`.

use std::path::Path;
use std::process::Command;

use crate::error::Error;

/// The directory of drivers and npm modules in the template.
pub(crate) const HOME: &str = "/opt/interpreter";

const FILES: &[(&str, &str)] = &[
    ("python/zygote.py", include_str!("drivers/zygote.py")),
    ("python/kernel.py", include_str!("drivers/kernel.py")),
    ("node/main.cjs", include_str!("drivers/node/main.cjs")),
    ("node/cells.cjs", include_str!("drivers/node/cells.cjs")),
    ("node/display.cjs", include_str!("drivers/node/display.cjs")),
    ("node/random.cjs", include_str!("drivers/node/random.cjs")),
    ("java/Driver.java", include_str!("drivers/Driver.java")),
];

/// Writes the drivers, and compiles the Java driver if there is a compiler.
pub(crate) fn prepare(home: &Path) -> Result<(), Error> {
    write(home)?;
    match compile(home) {
        // A template may do without Java; requests for it fail then.
        Err(Error::Start { .. }) => Ok(()),
        done => done,
    }
}

/// Writes the files that are missing or differ.
pub(crate) fn write(home: &Path) -> Result<(), Error> {
    for (name, content) in FILES {
        let path = home.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|present| present == *content) {
            continue;
        }
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(Error::file(dir))?;
        }
        std::fs::write(&path, content).map_err(Error::file(&path))?;
    }
    Ok(())
}

/// Compiles the Java driver, unless that was done already.
pub(crate) fn compile(home: &Path) -> Result<(), Error> {
    let dir = home.join("java");
    let (source, class) = (dir.join("Driver.java"), dir.join("Driver.class"));
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified());
    if matches!((changed(&class), changed(&source)), (Ok(class), Ok(source)) if class >= source) {
        return Ok(());
    }
    let mut javac = Command::new("javac");
    javac.args(["-nowarn", "-encoding", "UTF-8", "-d"]).arg(&dir).arg(&source);
    let done = javac.output().map_err(|source| Error::Start { program: "javac".to_owned(), source })?;
    if done.status.success() {
        return Ok(());
    }
    Err(Error::Compile(String::from_utf8_lossy(&done.stderr).into_owned()))
}
