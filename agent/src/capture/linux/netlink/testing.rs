//! What tests of several sensors need.

use std::{
    fs::File,
    os::fd::AsFd as _,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace that goes when this does.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        // A test that fails must not fail again here; what stays has the process id in its name.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Runs `test` on a thread in a fresh network namespace, whose loopback is still down. Needs root and `ip`.
pub(in crate::capture::linux) fn in_fresh_namespace(test: impl FnOnce() + Send) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let namespace = Namespace(format!("alibi{}u{number}", std::process::id()));
    ip(&format!("netns add {}", namespace.0));
    let file = File::open(format!("/run/netns/{}", namespace.0)).unwrap();
    let inside = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        test();
    };
    let result = thread::scope(|scope| scope.spawn(inside).join());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in this thread's network namespace.
pub(in crate::capture::linux) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
