//! The command line. There are no configuration files or environment variables: all other settings
//! arrive by `POST /init`.
//! It is parsed by hand, because a parser library would be a tenth of the binary.

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use thiserror::Error;

/// The command to run.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Print the version and exit.
    Version,
    /// Write an archive of the files that a path or pattern names to standard output, for `COPY --from` of builds.
    Pack(OsString),
    /// Serve SFTP on standard input and output.
    Sftp,
    /// Connect to this host and port, and copy from standard input and to standard output.
    Connect(String, u16),
    /// Listen on this address and port, for `ssh -R`.
    Listen(IpAddr, u16),
    /// Take a connection, by its number, of the process that listens.
    Take(u32, u64),
    /// Serve requests.
    Serve(Args),
}

/// Arguments of [`Command::Serve`].
#[derive(Debug, PartialEq, Eq)]
pub struct Args {
    /// The socket to listen on.
    pub listen: Listen,
    /// Directory under which `/init` writes its files (`etc/`, `run/e2b`, trust store).
    /// Host name and clock are set only when it is `/`.
    pub system_root: PathBuf,
    /// Address of the server's connections, which need no token. No code in the sandbox may be able to use it.
    pub server: Option<IpAddr>,
}

/// The socket to listen on.
#[derive(Debug, PartialEq, Eq)]
pub enum Listen {
    /// An inherited TCP socket that listens already.
    Fd(RawFd),
    /// A port on every IPv4 address; 0 chooses a free one. The address is printed.
    Port(u16),
}

/// Why the command line is invalid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ArgsError {
    /// An unknown flag.
    #[error(
        "unknown argument {0:?}; usage: envd --listen-fd N | --port N [--server IP] [--system-root DIR] | --version | pack PATH | sftp | connect HOST PORT | listen IP PORT | take PID NUMBER"
    )]
    Unknown(OsString),
    /// A flag without its value.
    #[error("{0} needs a value")]
    NoValue(&'static str),
    /// A value that cannot be parsed.
    #[error("{0}: malformed value {1:?}")]
    Malformed(&'static str, OsString),
    /// No socket to listen on.
    #[error("one of --listen-fd and --port is needed")]
    NoListener,
}

/// Parses the arguments after the program's name.
pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Command, ArgsError> {
    let mut listen = None;
    let mut system_root = PathBuf::from("/");
    let mut server = None;
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--version" | "-version" | "-V") => return Ok(Command::Version),
            Some("pack") => return args.next().map(Command::Pack).ok_or(ArgsError::NoValue("pack")),
            Some("sftp") => return Ok(Command::Sftp),
            Some("connect") => {
                let host = parsed("connect", args.next())?;
                return Ok(Command::Connect(host, parsed("connect", args.next())?));
            }
            Some("listen") => {
                let address = parsed("listen", args.next())?;
                return Ok(Command::Listen(address, parsed("listen", args.next())?));
            }
            Some("take") => {
                let listening = parsed("take", args.next())?;
                return Ok(Command::Take(listening, parsed("take", args.next())?));
            }
            Some("--listen-fd") => listen = Some(Listen::Fd(parsed("--listen-fd", args.next())?)),
            Some("--port" | "-port") => listen = Some(Listen::Port(parsed("--port", args.next())?)),
            Some("--server") => server = Some(parsed("--server", args.next())?),
            Some("--system-root") => {
                system_root = args.next().ok_or(ArgsError::NoValue("--system-root"))?.into();
            }
            _ => return Err(ArgsError::Unknown(arg)),
        }
    }
    let listen = listen.ok_or(ArgsError::NoListener)?;
    Ok(Command::Serve(Args { listen, system_root, server }))
}

fn parsed<T: std::str::FromStr>(flag: &'static str, value: Option<OsString>) -> Result<T, ArgsError> {
    let value = value.ok_or(ArgsError::NoValue(flag))?;
    match value.to_str().and_then(|text| text.parse().ok()) {
        Some(number) => Ok(number),
        None => Err(ArgsError::Malformed(flag, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_strs(args: &[&str]) -> Result<Command, ArgsError> {
        parse(args.iter().map(OsString::from))
    }

    #[test]
    fn reads_every_flag() {
        let Ok(Command::Serve(args)) =
            parse_strs(&["--port", "0", "--system-root", "/tmp/x", "--server", "169.254.0.22"])
        else {
            panic!("must parse");
        };
        assert_eq!(args.listen, Listen::Port(0));
        assert_eq!(args.system_root, PathBuf::from("/tmp/x"));
        assert_eq!(args.server, Some(IpAddr::from([169, 254, 0, 22])));
        assert_eq!(parse_strs(&["--version"]), Ok(Command::Version));
        assert_eq!(parse_strs(&["sftp"]), Ok(Command::Sftp));
        assert_eq!(parse_strs(&["connect", "a.example", "80"]), Ok(Command::Connect("a.example".into(), 80)));
        assert_eq!(parse_strs(&["connect", "a.example"]), Err(ArgsError::NoValue("connect")));
    }

    #[test]
    fn rejects_invalid_arguments() {
        assert_eq!(parse_strs(&[]), Err(ArgsError::NoListener));
        assert_eq!(parse_strs(&["--listen-fd"]), Err(ArgsError::NoValue("--listen-fd")));
        assert_eq!(parse_strs(&["--port", "x"]), Err(ArgsError::Malformed("--port", "x".into())));
        assert_eq!(parse_strs(&["--what"]), Err(ArgsError::Unknown("--what".into())));
    }
}
