//! What `sartor demo` is made of: the digits, a network for them, and pictures of them.

pub mod digits;
pub mod network;
pub mod pictures;
