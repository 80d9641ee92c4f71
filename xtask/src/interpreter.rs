//! The root file system that the interpreter's tests run in: Debian with all languages of `templates/code-interpreter-v1`.
//! It has that template's interpreters and the packages of its Python kernel, but not its data science packages.
//! It stays in `target/` and is made anew when its inputs change. Needs root.

use std::fs;
use std::path::{Path, PathBuf};

use crate::run::{self, Outcome};

const PACKAGES: &str = "ca-certificates,curl,procps,python3,python3-pip,python3-venv,nodejs,r-cran-irkernel,openjdk-21-jdk-headless";

/// The steps of `templates/base/setup.sh`, and plotly for the test of its charts.
const SETUP: &str = "\
set -eu
useradd --create-home --uid 1000 --shell /bin/bash user
printf '[global]\\nbreak-system-packages = true\\nroot-user-action = ignore\\n' > /etc/pip.conf
pip install --quiet --no-cache-dir --requirement /root/requirements-kernel.txt plotly==6.0.1
python3 -c 'import matplotlib.pyplot'
";

/// Makes the root file system if it is missing or out of date; returns its path.
pub(crate) fn root() -> Outcome<PathBuf> {
    let dir = run::target().join("interpreter");
    let (root, stamp) = (dir.join("root"), dir.join("stamp"));
    let template = run::root().join("templates/code-interpreter-v1");
    let read =
        |name: &str| fs::read_to_string(template.join(name)).map_err(|error| format!("{name}: {error}"));
    let (requirements, modules) = (read("requirements-kernel.txt")?, read("package.json")?);
    let wanted = [PACKAGES, SETUP, &requirements, &modules].join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|inputs| inputs == wanted) {
        return Ok(root);
    }
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    fs::create_dir_all(&dir).map_err(failed)?;
    if root.exists() {
        fs::remove_dir_all(&root).map_err(failed)?;
    }
    bootstrap(&root)?;
    install(&root, &requirements, &modules)?;
    fs::write(&stamp, wanted).map_err(failed)?;
    Ok(root)
}

fn bootstrap(root: &Path) -> Outcome {
    let mut debian = run::new("mmdebstrap");
    debian.args(["--quiet", "--mode=root", "--variant=minbase"]);
    debian.args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\""]);
    debian
        .arg(format!("--include={PACKAGES}"))
        .arg("trixie")
        .arg(root)
        .arg("http://deb.debian.org/debian")
        .run()
}

fn install(root: &Path, requirements: &str, modules: &str) -> Outcome {
    let home = root.join("opt/interpreter");
    let put = |path: PathBuf, content: &[u8]| {
        fs::write(&path, content).map_err(|e| format!("{}: {e}", path.display()))
    };
    fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
    put(root.join("root/requirements-kernel.txt"), requirements.as_bytes())?;
    put(home.join("package.json"), modules.as_bytes())?;
    // Tests run in the host's network: its name servers, and the certificate authorities that it trusts.
    for file in ["etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"] {
        if let Ok(content) = fs::read(Path::new("/").join(file)) {
            put(root.join(file), &content)?;
        }
    }
    run::new("chroot").arg(root).args(["sh", "-c", SETUP]).env("HOME", "/root").run()?;
    run::new("npm").args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(&home).run()
}
