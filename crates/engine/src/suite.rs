//! The behaviour every engine must show, written once.
//! An engine's tests call these functions with an engine of their own; nothing here knows which.
//! Each function leaves the machine as it found it.
