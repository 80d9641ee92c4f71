//! Changing CRIU's effective user id in the middle of a restore, so that the user namespace it creates has the owner we want.
//! CRIU restores user ids only if it was started as uid 0, and the kernel makes the effective user of the clone the namespace's owner.
//! So at CRIU's notification before the clone, while it waits for our reply, `ptrace` replaces one of its system calls by `setresuid`.

use std::io;

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Leaves an id as it is.
const KEEP: u64 = u64::MAX;

/// Sets the effective uid of the process `pid` to `owner`. The process keeps its capabilities if its secure bits say so. Must be called
/// on a thread that lives until it returns; no other process may trace the process.
///
/// # Errors
/// The process has ended or is traced already, or the kernel refused.
pub(super) fn set_effective_user(pid: i32, owner: u32) -> io::Result<()> {
    let pid = Pid::from_raw(pid);
    ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD)?;
    let result = inject_calls(pid, owner);
    ptrace::detach(pid, None)?;
    result
}

/// Makes the process execute two system calls. The process is waiting for a message: its own call is made to fail, the two calls are
/// executed, and then it is put before its own call again, which it repeats without noticing.
fn inject_calls(pid: Pid, owner: u32) -> io::Result<()> {
    ptrace::interrupt(pid)?;
    waitpid(pid, None)?;
    run_to_next_stop(pid)?;
    let own = registers::get(pid)?;
    registers::set(pid, registers::without_first_argument(own))?;
    run_to_next_stop(pid)?;
    let calls = [
        (libc::SYS_setresuid, [KEEP, owner.into(), KEEP]),
        // A change of the uid takes away the access to the process's own files in /proc, which CRIU needs.
        (libc::SYS_prctl, [libc::PR_SET_DUMPABLE.cast_unsigned().into(), 1, 0]),
    ];
    let made = calls.into_iter().try_for_each(|(number, args)| {
        registers::set(pid, registers::before_call(own, number, Some(args)))?;
        run_to_next_stop(pid)?;
        run_to_next_stop(pid)?;
        match registers::result(registers::get(pid)?) {
            0 => Ok(()),
            refused => Err(io::Error::from_raw_os_error(i32::try_from(-refused).unwrap_or(libc::EPERM))),
        }
    });
    registers::set(pid, registers::before_call(own, registers::number(own), None))?;
    made
}

/// Lets the process run to its next entry into, or return from, a system call.
fn run_to_next_stop(pid: Pid) -> io::Result<()> {
    loop {
        ptrace::syscall(pid, None)?;
        match waitpid(pid, None)? {
            WaitStatus::PtraceSyscall(_) => return Ok(()),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Err(io::ErrorKind::BrokenPipe.into()),
            _ => {}
        }
    }
}

/// The registers of a process that is stopped at a system call.
#[cfg(target_arch = "x86_64")]
mod registers {
    use super::{Pid, io, ptrace};

    type Registers = libc::user_regs_struct;
    /// Bytes of the instruction `syscall`.
    const CALL_LENGTH: u64 = 2;

    pub(super) fn get(pid: Pid) -> io::Result<Registers> {
        Ok(ptrace::getregs(pid)?)
    }

    pub(super) fn set(pid: Pid, registers: Registers) -> io::Result<()> {
        Ok(ptrace::setregs(pid, registers)?)
    }

    /// Returns the number of the call that it is stopped at.
    pub(super) fn number(own: Registers) -> i64 {
        own.orig_rax.cast_signed()
    }

    /// Returns the result of the call that it is stopped after.
    pub(super) fn result(own: Registers) -> i64 {
        own.rax.cast_signed()
    }

    /// Returns the registers with an invalid first argument.
    pub(super) fn without_first_argument(own: Registers) -> Registers {
        Registers { rdi: u64::MAX, ..own }
    }

    /// Returns the registers just before the call's instruction, with this number and these arguments.
    pub(super) fn before_call(own: Registers, number: i64, args: Option<[u64; 3]>) -> Registers {
        let [rdi, rsi, rdx] = args.unwrap_or([own.rdi, own.rsi, own.rdx]);
        let (rip, rax) = (own.rip - CALL_LENGTH, number.cast_unsigned());
        Registers { rip, rax, orig_rax: u64::MAX, rdi, rsi, rdx, ..own }
    }
}

/// The registers of a process that is stopped at a system call.
#[cfg(target_arch = "aarch64")]
mod registers {
    use nix::sys::ptrace::{getregset, regset, setregset};

    use super::{Pid, io};

    type Registers = libc::user_regs_struct;
    /// Bytes of the instruction `svc`.
    const CALL_LENGTH: u64 = 4;
    /// Register of the call's number.
    const NUMBER: usize = 8;

    pub(super) fn get(pid: Pid) -> io::Result<Registers> {
        Ok(getregset::<regset::NT_PRSTATUS>(pid)?)
    }

    pub(super) fn set(pid: Pid, registers: Registers) -> io::Result<()> {
        Ok(setregset::<regset::NT_PRSTATUS>(pid, registers)?)
    }

    /// Returns the number of the call that it is stopped at.
    pub(super) fn number(own: Registers) -> i64 {
        own.regs[NUMBER].cast_signed()
    }

    /// Returns the result of the call that it is stopped after.
    pub(super) fn result(own: Registers) -> i64 {
        own.regs[0].cast_signed()
    }

    /// Returns the registers with an invalid first argument.
    pub(super) fn without_first_argument(mut own: Registers) -> Registers {
        own.regs[0] = u64::MAX;
        own
    }

    /// Returns the registers just before the call's instruction, with this number and these arguments.
    pub(super) fn before_call(mut own: Registers, number: i64, args: Option<[u64; 3]>) -> Registers {
        if let Some(args) = args {
            own.regs[..3].copy_from_slice(&args);
        }
        own.regs[NUMBER] = number.cast_unsigned();
        own.pc -= CALL_LENGTH;
        own
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_waiting_process_gets_another_effective_user_and_continues() {
        let mut child = Command::new("cat")
            .args(["-", "/proc/self/status"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        set_effective_user(child.id().cast_signed(), 4242).unwrap();
        drop(child.stdin.take());
        let mut status = String::new();
        child.stdout.take().unwrap().read_to_string(&mut status).unwrap();
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        assert_eq!(uids.split_whitespace().collect::<Vec<_>>(), ["0", "4242", "0", "4242"]);
        assert!(child.wait().unwrap().success());
    }
}
