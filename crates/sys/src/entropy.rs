//! Giving the kernel randomness that counts, and having it used at once.
//! For a machine that was copied: every copy's generator would go on with the same numbers.
//! Numbers that programs have fetched before are not recalled.

use std::fs::File;
use std::io;

use rustix::ioctl::{NoArg, Setter, ioctl, opcode};

/// Most bytes that go in with one call.
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

/// Mixes `seed` in, counted at its full length, and makes the generator start anew from all there is. Needs root. `device` is
/// `/dev/urandom`, open for writing.
///
/// # Errors
/// The kernel refuses, or had too little randomness even so.
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
    fn these_are_the_kernels_numbers() {
        assert_eq!((ADD_ENTROPY, RESEED), (0x4008_5203, 0x5207));
    }

    #[test]
    fn the_kernel_takes_a_seed() {
        let device = File::options().write(true).open("/dev/urandom").unwrap();
        reseed(&device, &[7; 100]).unwrap();
    }
}
