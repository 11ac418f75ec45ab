//! The sartor command.
fn main() {}
