//! Reseeds the kernel's random number generator and makes it use the new seed at once.
//!
//! For guests that are restored from one snapshot: without it all of them would continue with the same random numbers. Numbers that
//! programs have read before are not affected.

use std::fs::File;
use std::io;

use rustix::ioctl::{NoArg, Setter, ioctl, opcode};

/// Maximum number of bytes in one call.
const CHUNK: usize = 64;

/// `struct rand_pool_info` with room for the bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; CHUNK],
}

/// `RNDADDENTROPY`; its type is written as two integers.
const ADD_ENTROPY: u32 = opcode::write::<[i32; 2]>(b'R', 0x03);
/// `RNDRESEEDCRNG`.
const RESEED: u32 = opcode::none(b'R', 0x07);

/// Adds `seed`, credited with its full length, and reseeds the generator. Needs root. `device` is `/dev/urandom`, open for writing.
///
/// # Errors
/// The device is another one, or the kernel refuses.
pub fn reseed(device: &File, seed: &[u8]) -> io::Result<()> {
    for chunk in seed.chunks(CHUNK) {
        let mut bytes = [0; CHUNK];
        bytes[..chunk.len()].copy_from_slice(chunk);
        let size = i32::try_from(chunk.len()).expect("a chunk is 64 bytes at most");
        let info = PoolInfo { entropy_bits: size * 8, size, bytes };
        // SAFETY: the call reads the two numbers and `size` bytes, all inside `info`.
        unsafe { ioctl(device, Setter::<{ ADD_ENTROPY }, PoolInfo>::new(info)) }?;
    }
    // SAFETY: the call takes no argument.
    Ok(unsafe { ioctl(device, NoArg::<{ RESEED }>::new()) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_numbers_are_those_of_the_kernel() {
        assert_eq!((ADD_ENTROPY, RESEED), (0x4008_5203, 0x5207));
    }

    /// The generator's state cannot be read, so this checks that the kernel accepts all chunks of a seed and only from its own device.
    #[test]
    fn the_kernel_accepts_a_seed() {
        let open = |path: &str| File::options().write(true).open(path).unwrap();
        let accepted = reseed(&open("/dev/urandom"), &[7; 2 * CHUNK + 1]);
        assert!(accepted.is_ok(), "{accepted:?}");
        let refused = reseed(&open("/dev/null"), &[7; 1]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOTTY), "{refused}");
    }
}
