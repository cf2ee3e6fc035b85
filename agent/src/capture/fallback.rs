//! The best source that works, and why none better does.

use alibi_proto::host::SourceDescription;

use super::{CaptureError, Outlet, Source};

/// Of a reason, what stands in the scope.
const REASON_CHARS_MAX: usize = 160;

/// The way to open a source.
pub(super) type Open<'a> = Box<dyn FnOnce() -> Result<Box<dyn Source>, CaptureError> + 'a>;

/// The first that opens, best first; its description says why those before it did not.
///
/// # Errors
/// That of the last, when none opens.
pub(super) fn first_that_opens(ways: Vec<(&'static str, Open<'_>)>) -> Result<Box<dyn Source>, CaptureError> {
    let mut better = Vec::new();
    let mut last = CaptureError::NotHere("auto");
    for (name, open) in ways {
        match open() {
            Ok(source) if better.is_empty() => return Ok(source),
            Ok(source) => return Ok(Box::new(Fallback { source, better })),
            // A source of another system is no loss here.
            Err(problem @ CaptureError::NotHere(_)) => last = problem,
            Err(problem) => {
                tracing::warn!(source = name, %problem, "this source cannot be used here");
                better.push(format!("{name} cannot be used: {}", shortened(&problem.to_string())));
                last = problem;
            }
        }
    }
    Err(last)
}

/// A source that is not the best, and says why.
struct Fallback {
    source: Box<dyn Source>,
    better: Vec<String>,
}

impl Source for Fallback {
    fn describe(&self) -> SourceDescription {
        let mut description = self.source.describe();
        for facet in &mut description.facets {
            for reason in &self.better {
                facet.scope.cannot_see.push_str("; ");
                facet.scope.cannot_see.push_str(reason);
            }
        }
        description
    }

    fn run(self: Box<Self>, outlet: Outlet) -> Result<(), CaptureError> {
        self.source.run(outlet)
    }
}

/// The first line, as far as it fits.
fn shortened(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    match line.char_indices().nth(REASON_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use alibi_proto::{
        coverage::{Facet, Grade, Scope},
        host::FacetCoverage,
    };

    use super::*;

    struct Good;

    impl Source for Good {
        fn describe(&self) -> SourceDescription {
            let scope = Scope { source: "good".into(), covers: "some".into(), cannot_see: "much".into() };
            let facet = FacetCoverage { facet: Facet::Processes, grade: Grade::Complete, scope };
            SourceDescription { name: "good".into(), facets: vec![facet], caveat: None }
        }

        fn run(self: Box<Self>, _outlet: Outlet) -> Result<(), CaptureError> {
            Ok(())
        }
    }

    fn bad(problem: &str) -> Open<'static> {
        let problem = problem.to_owned();
        Box::new(move || Err(CaptureError::Ebpf { what: "on_exec".into(), problem }))
    }

    fn cannot_see(ways: Vec<(&'static str, Open<'_>)>) -> String {
        first_that_opens(ways).unwrap().describe().facets[0].scope.cannot_see.clone()
    }

    #[test]
    fn a_source_that_is_not_the_best_says_why_in_one_line() {
        let good = || -> Open<'static> { Box::new(|| Ok(Box::new(Good))) };
        assert_eq!(cannot_see(vec![("first", good()), ("second", bad("x"))]), "much");
        let text = cannot_see(vec![("first", bad("EPERM\nverifier: 1: R1=ctx")), ("second", good())]);
        assert!(text.starts_with("much; first cannot be used: "), "{text}");
        assert!(text.contains("EPERM") && !text.contains("R1=ctx"), "{text}");
        let here: Open<'static> = Box::new(|| Err(CaptureError::NotHere("ebpf")));
        assert_eq!(cannot_see(vec![("ebpf", here), ("second", good())]), "much");
    }

    #[test]
    fn where_nothing_opens_the_last_reason_stands() {
        let problem =
            first_that_opens(vec![("first", bad("x")), ("second", bad("no rights"))]).err().unwrap();
        assert!(problem.to_string().contains("no rights"), "{problem}");
    }
}
