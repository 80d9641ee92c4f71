//! Open files and directories, by the number that clients are given.

use std::collections::HashMap;
use std::fs::{File, ReadDir};

use crate::MAX_HANDLES;

/// What a handle stands for.
#[derive(Debug)]
pub(crate) enum Open {
    File(File),
    Directory(ReadDir),
}

#[derive(Debug, Default)]
pub(crate) struct Handles {
    next: u32,
    open: HashMap<u32, Open>,
}

impl Handles {
    /// Keeps something open; `None` if too much is already.
    pub(crate) fn insert(&mut self, open: Open) -> Option<u32> {
        if self.open.len() >= MAX_HANDLES {
            return None;
        }
        self.next = self.next.wrapping_add(1);
        self.open.insert(self.next, open);
        Some(self.next)
    }

    pub(crate) fn get(&mut self, handle: &[u8]) -> Option<&mut Open> {
        self.open.get_mut(&number(handle)?)
    }

    pub(crate) fn file(&mut self, handle: &[u8]) -> Option<&mut File> {
        match self.get(handle) {
            Some(Open::File(file)) => Some(file),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, handle: &[u8]) -> bool {
        number(handle).is_some_and(|number| self.open.remove(&number).is_some())
    }
}

fn number(handle: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(handle.try_into().ok()?))
}
