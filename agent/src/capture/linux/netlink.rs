//! Netlink: what the kernel tells without a program loaded into it.

pub(super) mod message;
pub(super) mod socket;
#[cfg(test)]
pub(super) mod testing;
