//! [`EchoSocketLimit`]: a maximum number of ICMP echo sockets for each control group, counted by two BPF programs.
//! See `Documentation/bpf/map_cgroup_storage.rst`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::raw::syscall;

const MAP_CREATE: usize = 0;
const PROGRAM_LOAD: usize = 5;
const PROGRAM_ATTACH: usize = 8;
const PROGRAM_QUERY: usize = 16;
/// A map with one value for each control group that a program with the map is attached to.
const CGROUP_STORAGE: u32 = 19;
const CGROUP_SOCKET_PROGRAM: u32 = 9;
/// When a program runs: a socket is made, or closed.
const SOCKET_CREATE: u32 = 2;
const SOCKET_RELEASE: u32 = 34;
const ALLOW_MULTI: u32 = 2;
const GET_LOCAL_STORAGE: i32 = 81;
/// Offset of `protocol` in `struct bpf_sock`.
const PROTOCOL: i16 = 12;

/// Loaded programs that refuse (`EPERM`) ICMP echo sockets beyond a maximum in a control group of version 2.
#[derive(Debug)]
pub struct EchoSocketLimit {
    create: OwnedFd,
    release: OwnedFd,
}

impl EchoSocketLimit {
    /// Loads the programs.
    ///
    /// # Errors
    /// The kernel has no BPF for control groups, or the caller is not root.
    pub fn load(max: u16) -> io::Result<Self> {
        // map_type, key_size, value_size, max_entries. A key of 8 bytes: both programs share the value.
        let mut map = [CGROUP_STORAGE, 8, 8, 0];
        let map = descriptor(bpf(MAP_CREATE, &mut map)?);
        Ok(Self {
            create: load(&count(&map, &on_create(max)), SOCKET_CREATE)?,
            release: load(&count(&map, &on_release()), SOCKET_RELEASE)?,
        })
    }

    /// Applies the limit to a control group, unless this or an earlier process has done so. It ends with the group.
    ///
    /// # Errors
    /// The kernel refused, for example because a group above has a program that excludes others.
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> io::Result<()> {
        // The counting of releases first: the limit must never apply without it.
        for (program, kind) in [(&self.release, SOCKET_RELEASE), (&self.create, SOCKET_CREATE)] {
            if attached(cgroup, kind)? == 0 {
                // target_fd, attach_bpf_fd, attach_type, attach_flags
                let mut request =
                    [number(cgroup.as_raw_fd()), number(program.as_raw_fd()), kind, ALLOW_MULTI];
                bpf(PROGRAM_ATTACH, &mut request)?;
            }
        }
        Ok(())
    }
}

/// Returns how many programs of a kind are attached to the control group itself.
fn attached(cgroup: BorrowedFd<'_>, kind: u32) -> io::Result<u32> {
    // target_fd, attach_type, query_flags, attach_flags, prog_ids (two words), prog_cnt, padding
    let mut query = [number(cgroup.as_raw_fd()), kind, 0, 0, 0, 0, 0, 0];
    bpf(PROGRAM_QUERY, &mut query)?;
    Ok(query[6])
}

fn number(descriptor: i32) -> u32 {
    descriptor.cast_unsigned()
}

/// One instruction of the kernel's `struct bpf_insn`.
fn instruction(code: u8, target: u8, source: u8, offset: i16, value: i32) -> u64 {
    let registers = target | (source << 4);
    let [low, high] = offset.to_ne_bytes();
    let [a, b, c, d] = value.to_ne_bytes();
    u64::from_ne_bytes([code, registers, low, high, a, b, c, d])
}

const MOVE: u8 = 0xb7;
const EXIT: u8 = 0x95;

fn set(register: u8, value: i32) -> u64 {
    instruction(MOVE, register, 0, 0, value)
}

/// Adds register 1 to the value that register 0 points to; leaves the value before in register 1.
fn fetch_add() -> u64 {
    const ATOMIC: u8 = 0xdb;
    const FETCH: i32 = 1;
    instruction(ATOMIC, 0, 1, 0, FETCH)
}

/// Returns a program that allows sockets of other protocols, and runs `rest` for echo sockets with register 0 pointing to the
/// group's count.
fn count(map: &OwnedFd, rest: &[u64]) -> Vec<u64> {
    const LOAD_32: u8 = 0x61;
    const IF_EQUAL: u8 = 0x15;
    const LOAD_64: u8 = 0x18;
    const MAP: u8 = 1;
    const CALL: u8 = 0x85;
    let mut program = vec![
        instruction(LOAD_32, 2, 1, PROTOCOL, 0),
        instruction(IF_EQUAL, 2, 0, 3, libc::IPPROTO_ICMP),
        instruction(IF_EQUAL, 2, 0, 2, libc::IPPROTO_ICMPV6),
        set(0, 1),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(LOAD_64, 1, MAP, 0, map.as_raw_fd()),
        0,
        set(2, 0),
        instruction(CALL, 0, 0, 0, GET_LOCAL_STORAGE),
    ];
    program.extend_from_slice(rest);
    program
}

fn on_create(max: u16) -> [u64; 9] {
    const IF_LESS_SIGNED: u8 = 0xc5;
    [
        set(1, 1),
        fetch_add(),
        instruction(IF_LESS_SIGNED, 1, 0, 4, max.into()),
        // A refused socket is not released, so it is taken off the count here.
        set(1, -1),
        fetch_add(),
        set(0, 0),
        instruction(EXIT, 0, 0, 0, 0),
        set(0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn on_release() -> [u64; 4] {
    [set(1, -1), fetch_add(), set(0, 1), instruction(EXIT, 0, 0, 0, 0)]
}

fn load(program: &[u64], kind: u32) -> io::Result<OwnedFd> {
    const GPL: &[u8] = b"GPL\0";
    let halves = |address: usize| {
        let bytes = (address as u64).to_ne_bytes();
        let half = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        [half(0), half(4)]
    };
    let ([code, code_rest], [license, license_rest]) =
        (halves(program.as_ptr() as usize), halves(GPL.as_ptr() as usize));
    let length = u32::try_from(program.len()).map_err(io::Error::other)?;
    // prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name (four words),
    // prog_ifindex, expected_attach_type
    let mut request = [0; 18];
    request[..6].copy_from_slice(&[CGROUP_SOCKET_PROGRAM, length, code, code_rest, license, license_rest]);
    request[17] = kind;
    Ok(descriptor(bpf(PROGRAM_LOAD, &mut request)?))
}

fn descriptor(raw: usize) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor, and nothing else has it.
    unsafe { OwnedFd::from_raw_fd(raw as i32) }
}

fn bpf<const WORDS: usize>(command: usize, request: &mut [u32; WORDS]) -> io::Result<usize> {
    /// `union bpf_attr` contains 64-bit words.
    #[repr(C, align(8))]
    struct Aligned<const WORDS: usize>([u32; WORDS]);
    let mut aligned = Aligned(*request);
    let address = std::ptr::from_mut(&mut aligned) as usize;
    // SAFETY: the request is a local variable of the size that the kernel is told; addresses in it are of slices that the
    // callers hold.
    let answer = unsafe { syscall(libc::SYS_bpf, [command, address, WORDS * 4, 0, 0, 0]) };
    *request = aligned.0;
    answer.map_err(|error| io::Error::from_raw_os_error(error.0))
}
