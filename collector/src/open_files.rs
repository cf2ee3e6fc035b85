//! How many files, connections included, this process may have open.

/// Lets it have as many as the system allows it; most systems allow a fraction at first, for programs that could not deal with
/// more. How many that is, where it is known. One that stays too low is told when it is reached.
#[cfg(unix)]
pub fn allow_all() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// What macOS allows at most (OPEN_MAX), where it says that there is no limit.
    const WITHOUT_LIMIT: u64 = 10_240;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    for wanted in [maximum, Some(maximum.unwrap_or(WITHOUT_LIMIT).min(WITHOUT_LIMIT))] {
        let is_more = wanted.is_none_or(|wanted| current.is_some_and(|current| wanted > current));
        if is_more && setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum }).is_ok() {
            return wanted;
        }
    }
    current
}

/// This system has no such limit.
#[cfg(not(unix))]
pub fn allow_all() -> Option<u64> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use rustix::process::{Resource, getrlimit};

    #[test]
    fn all_that_is_allowed_is_taken() {
        let before = getrlimit(Resource::Nofile);
        let allowed = super::allow_all();
        assert_eq!(getrlimit(Resource::Nofile).current, allowed);
        assert!(allowed.is_none_or(|allowed| before.current.is_some_and(|before| allowed >= before)));
    }
}
