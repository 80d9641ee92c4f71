//! Keeps a few large memory blocks for the next one who wants such a block.
//! The C library maps and unmaps each buffer of a transfer anew, and the kernel clears every page of it:
//! measured, that halves the speed of an upload. When a transfer is over the blocks are given back.

#![allow(unsafe_code, reason = "an allocator is unsafe by its nature")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Requests from here on are large: buffers of transfers, which the C library would map.
const LARGE: usize = 60 * 1024;

/// What a large request gets. A transfer's buffer with some room.
const BLOCK: usize = 288 * 1024;

/// The C library's alignment.
const ALIGN: usize = 16;

/// Free blocks. Whoever takes a pointer out of a slot owns the block.
static FREE: [AtomicPtr<u8>; 8] = [const { AtomicPtr::new(ptr::null_mut()) }; 8];

/// The system's allocator with a few large blocks in reserve.
#[derive(Debug)]
pub struct Reserve;

fn is_large(layout: Layout) -> bool {
    (LARGE..=BLOCK).contains(&layout.size()) && layout.align() <= ALIGN
}

const fn block() -> Layout {
    match Layout::from_size_align(BLOCK, ALIGN) {
        Ok(layout) => layout,
        Err(_) => panic!("a power of two, and far from overflow"),
    }
}

/// Gives the free blocks back.
pub fn trim() {
    for slot in &FREE {
        let free = slot.swap(ptr::null_mut(), Ordering::Acquire);
        if !free.is_null() {
            // SAFETY: blocks in slots come from `System` with exactly this layout, and the swap made us its owner.
            unsafe { System.dealloc(free, block()) };
        }
    }
}

// SAFETY: every pointer given out is `System`'s for a layout at least as large and as aligned as asked for.
// Whether a layout is large depends on nothing but the layout, so a block comes back the way it went out.
unsafe impl GlobalAlloc for Reserve {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: passed on as it came.
            return unsafe { System.alloc(layout) };
        }
        for slot in &FREE {
            let free = slot.swap(ptr::null_mut(), Ordering::Acquire);
            if !free.is_null() {
                return free;
            }
        }
        // SAFETY: the layout has a size.
        unsafe { System.alloc(block()) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if !is_large(layout) {
            // SAFETY: passed on as it came; `alloc` passed it on too.
            return unsafe { System.dealloc(pointer, layout) };
        }
        for slot in &FREE {
            if slot.compare_exchange(ptr::null_mut(), pointer, Ordering::Release, Ordering::Relaxed).is_ok() {
                return;
            }
        }
        // SAFETY: `alloc` gave it out for `block()`.
        unsafe { System.dealloc(pointer, block()) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, layout.align()) else { return ptr::null_mut() };
        match (is_large(layout), is_large(new)) {
            // SAFETY: passed on as it came.
            (false, false) => unsafe { System.realloc(pointer, layout, size) },
            (true, true) => pointer,
            _ => {
                // SAFETY: the new layout is not empty, because the caller's size is not.
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
    fn blocks_come_back_and_keep_their_content() {
        let layout = |size| Layout::from_size_align(size, 8).expect("valid");
        // SAFETY: each pointer is used within its layout and given back once, with the layout it has by then.
        unsafe {
            let small = Reserve.alloc(layout(1000));
            small.write_bytes(7, 1000);
            let large = Reserve.realloc(small, layout(1000), LARGE + 1);
            assert_eq!((*large, *large.add(999)), (7, 7));
            assert_eq!(Reserve.realloc(large, layout(LARGE + 1), BLOCK), large);
            let huge = Reserve.realloc(large, layout(BLOCK), BLOCK * 2);
            assert_eq!((*huge, *huge.add(999)), (7, 7));
            let again = Reserve.alloc(layout(LARGE));
            assert_eq!(again, large, "the block given back just now");
            Reserve.dealloc(again, layout(LARGE));
            Reserve.dealloc(huge, layout(BLOCK * 2));
        }
        trim();
    }
}
