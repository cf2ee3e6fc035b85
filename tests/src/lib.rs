//! The lab: runs whole systems on one machine. Quick start, end-to-end tests, reference models.

pub mod agents;
pub mod capture;
pub mod connect_proxy;
pub mod disk;
pub mod faults;
pub mod fleet;
pub mod fuzz;
pub mod history;
pub mod killed;
pub mod live;
pub mod network;
pub mod places;
pub mod programs;
pub mod recording;
pub mod reference;
pub mod requirements;
pub mod ring;
pub mod scale;
pub mod standards;
pub mod system;
pub mod systemd;
pub mod traffic;
pub mod up;
pub mod workload;
