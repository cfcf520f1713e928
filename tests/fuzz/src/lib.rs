//! What must hold for any input.

pub mod properties;
