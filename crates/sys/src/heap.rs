//! The allocator's unused memory, which glibc keeps after a burst of work until it is told to give it back.

/// Returns how many bytes of the heap are mapped but not in use. 0 with C libraries that cannot tell.
#[must_use]
pub fn unused_heap() -> u64 {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the function only reads the allocator's own state, under its locks.
        unsafe { libc::mallinfo2() }.fordblks as u64
    }
    #[cfg(not(target_env = "gnu"))]
    {
        0
    }
}

/// Gives unused memory back to the kernel. May take some milliseconds; allocations of other threads wait for parts of it.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function releases only pages that hold no allocation, under the allocator's locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_burst_is_given_back() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        };
        // Small blocks, because glibc maps large ones by themselves. Every hundredth stays, so that the top of the heap cannot shrink alone.
        let mut blocks: Vec<Vec<u8>> = (0..60_000).map(|_| vec![1; 1024]).collect();
        let mut at = 0;
        blocks.retain(|_| {
            at += 1;
            at % 100 == 0
        });
        let (unused, before) = (unused_heap(), resident());
        assert!(unused > 40 << 20, "{unused}");
        trim_heap();
        let after = resident();
        assert!(after + (30 << 20) < before, "{before} bytes became {after}");
    }
}
