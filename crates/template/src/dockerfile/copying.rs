//! `COPY` and `ADD`: files of the build context, documents in the Dockerfile, archives and files of the web.

use parse_dockerfile::{Flag, HereDoc, Source};

use super::words::{quoted, quoted_with_variables, word};
use super::{DockerfileError, Planned, Reader};
use crate::steps::file_mode;

impl Reader<'_> {
    /// `ADD`: like `COPY`, but archives are unpacked and files of the web fetched.
    pub(super) fn add(
        &mut self,
        at: usize,
        options: &[Flag<'_>],
        sources: &[Source<'_>],
        to: &str,
    ) -> Result<(), DockerfileError> {
        let is_url = |path: &str| path.starts_with("http://") || path.starts_with("https://");
        let is_special = |source: &Source<'_>| matches!(source, Source::Path(path) if is_url(&path.value) || is_archive(&path.value));
        if let Some(flag) = options.first().filter(|_| sources.iter().any(is_special)) {
            let what = format!("ADD --{} of archives and URLs is not supported: use RUN", flag.name.value);
            return self.error(at, what);
        }
        let mut copied = Vec::new();
        for source in sources {
            match source {
                Source::Path(path) if is_url(&path.value) && is_repository(&path.value) => {
                    return self.error(at, GIT);
                }
                Source::Path(path) if is_url(&path.value) => {
                    self.add_step("RUN", [fetched(&path.value, to).as_str(), "root"]);
                }
                Source::Path(path) if is_archive(&path.value) => {
                    let dir = format!("/tmp/.add-{}", self.stage().steps.len());
                    let (from, archive) = (vec![path.value.to_string()], format!("{dir}/archive"));
                    let unchanged =
                        Planned::Copy { stage: None, from, to: archive.clone(), owner: None, mode: None };
                    self.stage().steps.push(unchanged);
                    let to = quoted(to);
                    let unpack = format!("mkdir -p {to} && tar -xf {archive} -C {to} && rm -r {dir}");
                    self.add_step("RUN", [unpack.as_str(), "root"]);
                }
                Source::Path(path) if path.value.contains("://") => {
                    return self.error(at, "ADD of a URL that is not http or https: use RUN");
                }
                Source::Path(path) if path.value.starts_with("git@") => {
                    return self.error(at, GIT);
                }
                _ => copied.push(source),
            }
        }
        if copied.is_empty() { Ok(()) } else { self.copy(at, options, &copied, to) }
    }

    pub(super) fn copy(
        &mut self,
        at: usize,
        options: &[Flag<'_>],
        sources: &[&Source<'_>],
        to: &str,
    ) -> Result<(), DockerfileError> {
        let (mut owner, mut mode, mut stage) = (None, None, None);
        for flag in options {
            let value = flag.value.as_ref().map(|value| value.value.to_string());
            match flag.name.value.as_ref() {
                "chown" => owner = value,
                "chmod" if value.as_deref().is_some_and(|mode| file_mode(mode).is_some()) => mode = value,
                "chmod" => return self.error(at, "COPY --chmod: write the mode like 755 or u+x,go-w"),
                "link" => {}
                "from" => stage = Some(self.source_stage(at, value.as_deref().unwrap_or_default())?),
                other => return self.error(at, format!("COPY --{other} is not supported")),
            }
        }
        let mut from = Vec::new();
        for source in sources {
            match source {
                Source::Path(path) => from.push(self.stage().expanded(&word(&path.value))),
                Source::HereDoc(document) => {
                    self.document(document, &word(to), owner.as_deref(), mode.as_deref());
                }
                _ => return self.error(at, "COPY cannot be read"),
            }
        }
        let to = &word(to);
        // The destination of several files is a directory.
        let to = if from.len() > 1 && !to.ends_with('/') { format!("{to}/") } else { to.to_owned() };
        if !from.is_empty() {
            self.stage().steps.push(Planned::Copy { stage, from, to, owner, mode });
        }
        Ok(())
    }

    /// Adds a step for a file whose content is in the Dockerfile.
    fn document(&mut self, document: &HereDoc<'_>, to: &str, owner: Option<&str>, mode: Option<&str>) {
        // In a directory, its delimiter is its name.
        let after = self.text.get(document.span.end..).unwrap_or("");
        let delimiter = after.trim_start_matches('\n').lines().next().unwrap_or("").trim();
        let to = if to.ends_with('/') { format!("{to}{delimiter}") } else { to.to_owned() };
        let to = quoted(&to);
        // Variables in it are expanded unless the delimiter is quoted.
        let text =
            if document.expand { quoted_with_variables(&document.value) } else { quoted(&document.value) };
        let mut command = format!("mkdir -p \"$(dirname {to})\" && printf %s {text} > {to}");
        if let Some(owner) = owner {
            command += &format!(" && chown {} {to}", quoted(owner));
        }
        if let Some(mode) = mode {
            command += &format!(" && chmod -- {} {to}", quoted(mode));
        }
        self.add_step("RUN", [command.as_str(), "root"]);
    }
}

const GIT: &str = "ADD of a git repository is not supported: use RUN git clone";

/// Whether a URL is a git repository's, as Docker tells.
fn is_repository(url: &str) -> bool {
    url.split(['?', '#']).next().is_some_and(|path| path.trim_end_matches('/').ends_with(".git"))
}

/// Whether `ADD` unpacks a file of this name. Docker looks into the file.
fn is_archive(path: &str) -> bool {
    let endings = [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"];
    endings.iter().any(|ending| path.to_ascii_lowercase().ends_with(ending))
}

/// Returns a command that fetches a URL to `to`, below it if it is a directory, with whatever the image has.
fn fetched(url: &str, to: &str) -> String {
    let name = url.split(['?', '#']).next().unwrap_or(url).rsplit('/').next().unwrap_or_default();
    let to = if to.ends_with('/') { format!("{to}{name}") } else { to.to_owned() };
    let (url, to) = (quoted(url), quoted(&to));
    format!(
        "mkdir -p \"$(dirname {to})\" && {{ if command -v curl >/dev/null; then curl -fsSL -o {to} {url}; \
         elif command -v wget >/dev/null; then wget -q -O {to} {url}; \
         elif command -v python3 >/dev/null; then python3 -c 'import sys, urllib.request as r; r.urlretrieve(*sys.argv[1:])' {url} {to}; \
         else echo 'ADD of a URL needs curl, wget or python3 in the image' >&2; false; fi; }} && chmod 600 {to}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetched_file_is_in_the_directory_for_its_owner_only() {
        use std::io::{Read, Write};
        use std::os::unix::fs::PermissionsExt;

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/a/tool?x=it's", listener.local_addr().unwrap());
        let serve = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let read = client.read(&mut [0; 4096]).unwrap();
            assert!(read > 0);
            client
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntool")
                .unwrap();
        });
        let dir = tempfile::tempdir().unwrap();
        let to = format!("{}/new dir/", dir.path().display());
        let done = std::process::Command::new("sh").args(["-c", &fetched(&url, &to)]).status().unwrap();
        assert!(done.success());
        serve.join().unwrap();
        let file = dir.path().join("new dir/tool");
        assert_eq!(std::fs::read(&file).unwrap(), b"tool");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
