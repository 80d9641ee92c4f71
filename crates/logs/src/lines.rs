//! Splits a byte stream into lines.

/// Splits a process's output into lines, however the output is divided into chunks.
#[derive(Debug, Default)]
pub struct LineSplitter {
    rest: Vec<u8>,
}

impl LineSplitter {
    /// Bytes without a line end after which they are passed on as a line.
    pub const MAX_LINE: usize = 16 << 10;

    /// Adds a chunk and calls `line` for each line that it completes.
    pub fn push(&mut self, chunk: &[u8], mut line: impl FnMut(&str)) {
        self.rest.extend_from_slice(chunk);
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|byte| *byte == b'\n') {
            line(&String::from_utf8_lossy(&self.rest[start..start + length]));
            start += length + 1;
        }
        self.rest.drain(..start);
        if self.rest.len() > Self::MAX_LINE {
            self.finish(line);
        }
    }

    /// Calls `line` with the text after the last line end, if there is any.
    pub fn finish(&mut self, mut line: impl FnMut(&str)) {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            line(&String::from_utf8_lossy(&rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_are_chunked() {
        let mut splitter = LineSplitter::default();
        let mut seen = Vec::new();
        for chunk in [&b"on"[..], b"e\ntwo\n\xc3", b"\xa9\nlast"] {
            splitter.push(chunk, |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["one", "two", "é"]);
        splitter.finish(|line| seen.push(line.to_owned()));
        assert_eq!(seen.last().unwrap(), "last");
    }
}
