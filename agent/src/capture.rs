//! Where facts come from: the [`Source`] trait, what a source says, and the one place where the OS is chosen.
//!
//! A source looks at the system and says what it saw, in order, in [`Report`]s. It numbers nothing, stores nothing, and
//! knows neither ring nor gRPC. It runs on a thread of its own and may block.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use alibi_proto::{
    coverage::{Facet, Grade, Scope},
    flow::{Attribution, Direction, FlowState, Protocol, Traffic},
    process::ProcessImage,
    time::{Moment, Timestamp},
};
use serde::{Deserialize, Serialize};

mod linux;
mod poll;
mod replay;
