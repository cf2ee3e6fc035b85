//! How common executables are.

use super::{ConvertError, Result};
use crate::{
    prevalence::{About, IdentifiedBy, Novelty, Times},
    time::Timestamp,
    wire,
};

impl From<IdentifiedBy> for wire::IdentifiedBy {
    fn from(by: IdentifiedBy) -> Self {
        match by {
            IdentifiedBy::Sha256 => Self::Sha256,
            IdentifiedBy::File => Self::File,
            IdentifiedBy::Path => Self::Path,
        }
    }
}

impl From<About> for wire::ExecutableAbout {
    fn from(about: About) -> Self {
        let About { package, signature, version } = about;
        Self {
            package: package.map(Into::into),
            signature: signature.map(Into::into),
            version: version.map(Into::into),
        }
    }
}

impl TryFrom<wire::ExecutableAbout> for About {
    type Error = ConvertError;

    fn try_from(about: wire::ExecutableAbout) -> Result<Self> {
        let wire::ExecutableAbout { package, signature, version } = about;
        Ok(Self {
            package: package.map(Into::into),
            signature: signature.map(TryInto::try_into).transpose()?,
            version: version.map(Into::into),
        })
    }
}

impl From<Times> for wire::SeenTimes {
    fn from(times: Times) -> Self {
        Self { first_ns: times.first.as_nanos(), last_ns: times.last.as_nanos() }
    }
}

impl From<wire::SeenTimes> for Times {
    fn from(times: wire::SeenTimes) -> Self {
        Self { first: Timestamp::from_nanos(times.first_ns), last: Timestamp::from_nanos(times.last_ns) }
    }
}

impl From<Novelty> for wire::Novelty {
    fn from(novelty: Novelty) -> Self {
        let kind = match novelty {
            Novelty::New => wire::NoveltyKind::New,
            Novelty::SeenBefore => wire::NoveltyKind::SeenBefore,
            Novelty::Unknown(_) => wire::NoveltyKind::Unknown,
        };
        Self { kind: kind.into(), reason: novelty.reason().map(str::to_owned) }
    }
}

impl From<wire::Novelty> for Novelty {
    /// A kind that is not known is none that proves anything.
    fn from(novelty: wire::Novelty) -> Self {
        match novelty.kind() {
            wire::NoveltyKind::New => Self::New,
            wire::NoveltyKind::SeenBefore => Self::SeenBefore,
            _ => Self::Unknown(novelty.reason.unwrap_or_default()),
        }
    }
}
