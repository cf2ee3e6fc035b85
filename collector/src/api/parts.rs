//! Work about many hosts, on all processors.

use std::thread;

/// Fewer hosts than this are worth no thread.
const PART_MIN: usize = 512;
/// An analyst waits for one question, and others may ask meanwhile.
const PARTS_MAX: usize = 4;

/// What comes of each, in their order.
pub(super) fn in_parts<T: Send, R: Send>(each: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let parts = (each.len() / PART_MIN).min(processors).clamp(1, PARTS_MAX);
    let size = each.len().div_ceil(parts);
    let mut rest = each;
    let mut done = Vec::with_capacity(rest.len());
    thread::scope(|scope| {
        let work = &work;
        let mut others = Vec::with_capacity(parts);
        while rest.len() > size {
            let part = rest.split_off(rest.len() - size);
            others.push(scope.spawn(move || part.into_iter().map(work).collect::<Vec<R>>()));
        }
        done.extend(rest.into_iter().map(work));
        for other in others.into_iter().rev() {
            match other.join() {
                Ok(part) => done.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_done_once_and_in_order() {
        for count in [0, 1, PART_MIN, 2 * PART_MIN, 2 * PART_MIN + 1, 10 * PART_MIN + 7] {
            let done = in_parts((0..count).collect(), |number| number * 2);
            assert!(done.iter().copied().eq((0..count).map(|number| number * 2)), "{count}");
        }
    }
}
