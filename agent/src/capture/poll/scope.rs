//! What polling covers and what it cannot see, in words for the answer: system by system, since the tables differ.

use alibi_proto::coverage::{Facet, Scope};

use super::NAME;

/// Of one system.
struct Words {
    processes: [&'static str; 2],
    connections: [&'static str; 2],
    /// What has to be said of every facet: how far anybody has seen it work there. Empty on a system where it was seen.
    caveat: &'static str,
}

const WORDS: Words = if cfg!(target_os = "windows") {
    WINDOWS
} else if cfg!(target_os = "macos") {
    MACOS
} else {
    LINUX
};

const LINUX: Words = Words {
    processes: [
        "processes that the agent is allowed to see, at each look",
        "processes shorter than the period; a program that a process turns into (exec) after the look that found it; exit \
         codes; where the system hides other users' processes, those",
    ],
    connections: [
        "TCP sockets of the agent's own network namespace, at each look",
        "UDP; connections shorter than the period, except those that this host closed first, whose owner is unknown then; \
         other network namespaces (containers); raw sockets; the own traffic of virtual machines; bytes; why an attempt \
         failed; without administrator's rights the owners of other users' sockets",
    ],
    caveat: "",
};

const WINDOWS: Words = Words {
    processes: [
        "processes in the system's process table, at each look",
        "processes shorter than the period; exit codes; without administrator's rights the path, the arguments and the user \
         of other users' processes; processes within virtual machines and WSL 2",
    ],
    connections: [
        "TCP sockets in the system's tables (IP Helper), at each look",
        "UDP; connections shorter than the period, except those that this host closed first, whose owner is unknown then; \
         other network compartments (containers); raw sockets; the own traffic of virtual machines and WSL 2; bytes; why \
         an attempt failed",
    ],
    caveat: "this was compiled for Windows and has been run under Wine only, never on Windows itself",
};

const MACOS: Words = Words {
    processes: [
        "processes in the system's process table, at each look",
        "processes shorter than the period; a program that a process turns into (exec) after the look that found it; exit \
         codes; unless run as root the path, the arguments and the working directory of other users' processes",
    ],
    connections: [
        "TCP sockets that a process has open (libproc), at each look",
        "UDP; connections shorter than the period; unless run as root all sockets of other users' processes; sockets that \
         no process has open any more; raw sockets; the own traffic of virtual machines; bytes; why an attempt failed",
    ],
    caveat: "this was compiled for macOS and has never been run there",
};

/// What has to be said of polling as a whole on this system.
pub(super) fn caveat() -> Option<String> {
    (!WORDS.caveat.is_empty()).then(|| WORDS.caveat.to_owned())
}

pub(super) fn scope(facet: Facet) -> Scope {
    scope_in(&WORDS, facet)
}

fn scope_in(words: &Words, facet: Facet) -> Scope {
    let [covers, cannot_see] = match facet {
        Facet::Processes => words.processes,
        Facet::Connections => words.connections,
        Facet::Names => ["nothing", "name lookups"],
    };
    let separator = if words.caveat.is_empty() { "" } else { "; " };
    Scope {
        source: NAME.to_owned(),
        covers: covers.to_owned(),
        cannot_see: format!("{cannot_see}{separator}{}", words.caveat),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_that_nobody_has_seen_it_work_on_says_so_of_every_facet() {
        for facet in Facet::ALL {
            for (words, caveat) in
                [(&WINDOWS, "; this was compiled for Windows"), (&MACOS, "; this was compiled for macOS")]
            {
                let scope = scope_in(words, facet);
                assert!(scope.cannot_see.contains(caveat), "{scope:?}");
            }
            let scope = scope_in(&LINUX, facet);
            assert!(!scope.cannot_see.contains("compiled") && !scope.cannot_see.ends_with("; "), "{scope:?}");
        }
        let here = scope(Facet::Connections).cannot_see;
        assert_eq!(here.contains("never"), cfg!(not(target_os = "linux")), "{here}");
    }
}
