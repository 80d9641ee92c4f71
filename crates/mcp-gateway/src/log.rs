//! The log file, `/var/log/mcp-gateway/gateway.log`. Servers write to it as much as they like, so it begins anew when it is full.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;

use crate::error::Error;
use crate::limits::LOG_BYTES;

/// Directory of the log, named in the vendor's documentation.
const PATH: &str = "/var/log/mcp-gateway/gateway.log";

/// Sends log lines of this process to the file.
///
/// # Errors
/// The file cannot be made.
pub(crate) fn to_file() -> Result<(), Error> {
    let path = Path::new(PATH);
    std::fs::create_dir_all(path.parent().unwrap_or(path)).map_err(Error::io(PATH))?;
    let log = BoundedFile::open(path, LOG_BYTES).map_err(Error::io(PATH))?;
    tracing_subscriber::fmt().with_writer(log).with_ansi(false).with_max_level(tracing::Level::INFO).init();
    Ok(())
}

/// The file, for errors of a process that is about to log to it.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn file() -> Result<File, Error> {
    let path = Path::new(PATH);
    std::fs::create_dir_all(path.parent().unwrap_or(path)).map_err(Error::io(PATH))?;
    OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(PATH))
}

/// A file that is renamed when it is full.
#[derive(Clone)]
struct BoundedFile(Arc<Mutex<Inner>>);

struct Inner {
    path: PathBuf,
    file: File,
    written: u64,
    most: u64,
}

impl BoundedFile {
    fn open(path: &Path, most: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let written = file.metadata()?.len();
        Ok(Self(Arc::new(Mutex::new(Inner { path: path.to_owned(), file, written, most }))))
    }
}

impl Write for BoundedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock();
        if inner.written > inner.most {
            std::fs::rename(&inner.path, inner.path.with_extension("log.1"))?;
            inner.file = OpenOptions::new().create(true).append(true).open(&inner.path)?;
            inner.written = 0;
        }
        let count = inner.file.write(bytes)?;
        inner.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for BoundedFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("gateway.log");
        let mut log = BoundedFile::open(&path, 100).expect("opens");
        for _ in 0..100 {
            log.write_all(&[b'x'; 30]).expect("writes");
        }
        let sizes: Vec<u64> = std::fs::read_dir(dir.path())
            .expect("lists")
            .map(|one| one.expect("entry").metadata().expect("metadata").len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|size| *size <= 130), "{sizes:?}");
    }
}
