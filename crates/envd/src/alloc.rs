//! The global allocator, which caches a few large blocks of freed memory for reuse.
//! The C library maps and unmaps each large buffer of a transfer, and the kernel clears all its pages:
//! measured, that halves the speed of an upload. At the end of a transfer the cached blocks are freed.

#![allow(unsafe_code, reason = "allocators are unsafe")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Minimum size of a large allocation, bytes: buffers of transfers, which the C library would map.
const LARGE: usize = 60 * 1024;

/// Size of the block of every large allocation, bytes: a transfer's buffer and some room.
const BLOCK: usize = 288 * 1024;

/// Alignment of the C library's allocations.
const ALIGN: usize = 16;

/// Free blocks. The thread that takes a pointer out of a slot owns the block.
static FREE: [AtomicPtr<u8>; 8] = [const { AtomicPtr::new(ptr::null_mut()) }; 8];

/// The system's allocator with a cache of large blocks.
#[derive(Debug)]
pub struct BlockCache;

fn is_large(layout: Layout) -> bool {
    (LARGE..=BLOCK).contains(&layout.size()) && layout.align() <= ALIGN
}

const fn block() -> Layout {
    match Layout::from_size_align(BLOCK, ALIGN) {
        Ok(layout) => layout,
        Err(_) => panic!("the alignment is a power of two and the size is small"),
    }
}

/// Frees the cached blocks.
pub fn trim() {
    for slot in &FREE {
        let free = slot.swap(ptr::null_mut(), Ordering::Acquire);
        if !free.is_null() {
            // SAFETY: blocks in slots come from `System` with exactly this layout, and the swap made this thread the owner.
            unsafe { System.dealloc(free, block()) };
        }
    }
}

// SAFETY: every returned pointer is `System`'s for a layout at least as large and as aligned as requested.
// Whether a layout is large depends only on the layout, so `dealloc` takes the same path as `alloc` did.
unsafe impl GlobalAlloc for BlockCache {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: passed on unchanged.
            return unsafe { System.alloc(layout) };
        }
        for slot in &FREE {
            let free = slot.swap(ptr::null_mut(), Ordering::Acquire);
            if !free.is_null() {
                return free;
            }
        }
        // SAFETY: the layout's size is not zero.
        unsafe { System.alloc(block()) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if !is_large(layout) {
            // SAFETY: passed on unchanged; `alloc` passed it on too.
            return unsafe { System.dealloc(pointer, layout) };
        }
        for slot in &FREE {
            if slot.compare_exchange(ptr::null_mut(), pointer, Ordering::Release, Ordering::Relaxed).is_ok() {
                return;
            }
        }
        // SAFETY: `alloc` allocated it with the layout `block()`.
        unsafe { System.dealloc(pointer, block()) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, layout.align()) else { return ptr::null_mut() };
        match (is_large(layout), is_large(new)) {
            // SAFETY: passed on unchanged.
            (false, false) => unsafe { System.realloc(pointer, layout, size) },
            (true, true) => pointer,
            _ => {
                // SAFETY: the new layout's size is not zero, because the caller's is not.
                let moved = unsafe { self.alloc(new) };
                if !moved.is_null() {
                    // SAFETY: both are valid for the smaller size, and distinct; the old one was the caller's.
                    unsafe {
                        ptr::copy_nonoverlapping(pointer, moved, layout.size().min(size));
                        self.dealloc(pointer, layout);
                    }
                }
                moved
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_reused_and_keep_their_content() {
        let layout = |size| Layout::from_size_align(size, 8).expect("valid");
        // SAFETY: each pointer is used within its layout and freed once, with its current layout.
        unsafe {
            let small = BlockCache.alloc(layout(1000));
            small.write_bytes(7, 1000);
            let large = BlockCache.realloc(small, layout(1000), LARGE + 1);
            assert_eq!((*large, *large.add(999)), (7, 7));
            assert_eq!(BlockCache.realloc(large, layout(LARGE + 1), BLOCK), large);
            let huge = BlockCache.realloc(large, layout(BLOCK), BLOCK * 2);
            assert_eq!((*huge, *huge.add(999)), (7, 7));
            let again = BlockCache.alloc(layout(LARGE));
            assert_eq!(again, large, "the block that was just freed");
            BlockCache.dealloc(again, layout(LARGE));
            BlockCache.dealloc(huge, layout(BLOCK * 2));
        }
        trim();
    }
}
