//! Clocks.

use super::{ConvertError, Result, all, bad, wires};
use crate::{
    clock::{BootBegin, BootReadings, ClockHistory, Difference, Piece, Reading, Readings},
    host::ClockStatus,
    id::{Epoch, Seq},
    question::AnswerClock,
    time::{Moment, Timestamp},
    window::Window,
    wire,
};

impl From<BootBegin> for wire::BootBegin {
    fn from(begin: BootBegin) -> Self {
        Self { boot_id: begin.boot_id, first_seq: begin.first.0 }
    }
}

impl From<wire::BootBegin> for BootBegin {
    fn from(begin: wire::BootBegin) -> Self {
        Self { boot_id: begin.boot_id, first: Seq(begin.first_seq) }
    }
}

impl From<ClockStatus> for wire::ClockStatus {
    fn from(status: ClockStatus) -> Self {
        let ClockStatus { offset_ns, bound_ns, measured } = status;
        Self { offset_ns, bound_ns, measured_ns: measured.as_nanos() }
    }
}

impl From<wire::ClockStatus> for ClockStatus {
    fn from(status: wire::ClockStatus) -> Self {
        let wire::ClockStatus { offset_ns, bound_ns, measured_ns } = status;
        Self { offset_ns, bound_ns, measured: Timestamp::from_nanos(measured_ns) }
    }
}

impl From<AnswerClock> for wire::AnswerClock {
    fn from(clock: AnswerClock) -> Self {
        let AnswerClock { offset_ns, bound_ns, window } = clock;
        Self { offset_ns, bound_ns, from_ns: window.from().as_nanos(), to_ns: window.to().as_nanos() }
    }
}

impl TryFrom<wire::AnswerClock> for AnswerClock {
    type Error = ConvertError;

    fn try_from(clock: wire::AnswerClock) -> Result<Self> {
        let wire::AnswerClock { offset_ns, bound_ns, from_ns, to_ns } = clock;
        let window = Window::new(Timestamp::from_nanos(from_ns), Timestamp::from_nanos(to_ns))
            .or_else(|error| bad("clock.from_ns", format!("is refused: {error}")))?;
        Ok(Self { offset_ns, bound_ns, window })
    }
}

impl From<ClockHistory> for wire::ClockHistory {
    fn from(history: ClockHistory) -> Self {
        Self {
            epoch: history.epoch.0,
            begins: wires(history.begins),
            boots: wires(history.boots),
            pieces: wires(history.pieces),
        }
    }
}

impl TryFrom<wire::ClockHistory> for ClockHistory {
    type Error = ConvertError;

    fn try_from(history: wire::ClockHistory) -> Result<Self> {
        Ok(Self {
            epoch: Epoch(history.epoch),
            begins: history.begins.into_iter().map(Into::into).collect(),
            boots: all(history.boots)?,
            pieces: all(history.pieces)?,
        })
    }
}

impl From<BootReadings> for wire::ClockBoot {
    fn from(boot: BootReadings) -> Self {
        let readings = boot.readings.all().iter().map(|reading| wire::ClockReading {
            from_boot_ns: reading.from_boot_ns,
            to_boot_ns: reading.to_boot_ns,
            least_ns: reading.difference.least(),
            most_ns: reading.difference.most(),
            measured_ns: reading.measured.as_nanos(),
        });
        Self { readings: readings.collect(), boot_id: boot.boot_id, shared_ns: boot.shared }
    }
}

impl TryFrom<wire::ClockBoot> for BootReadings {
    type Error = ConvertError;

    fn try_from(boot: wire::ClockBoot) -> Result<Self> {
        let reading = |reading: wire::ClockReading| {
            if reading.to_boot_ns < reading.from_boot_ns {
                return bad("reading.to_boot_ns", "is before from_boot_ns");
            }
            Ok(Reading {
                from_boot_ns: reading.from_boot_ns,
                to_boot_ns: reading.to_boot_ns,
                difference: difference(reading.least_ns, reading.most_ns)?,
                measured: Timestamp::from_nanos(reading.measured_ns),
            })
        };
        let readings: Vec<Reading> = boot.readings.into_iter().map(reading).collect::<Result<_>>()?;
        Ok(Self { boot_id: boot.boot_id, shared: boot.shared_ns, readings: Readings::from(readings) })
    }
}

impl From<Piece> for wire::ClockPiece {
    fn from(piece: Piece) -> Self {
        Self {
            first_ns: piece.first.wall.as_nanos(),
            first_boot_ns: piece.first.boot_ns,
            last_ns: piece.last.wall.as_nanos(),
            last_boot_ns: piece.last.boot_ns,
            least_ns: piece.wall.least(),
            most_ns: piece.wall.most(),
            boot_id: piece.boot_id,
        }
    }
}

impl TryFrom<wire::ClockPiece> for Piece {
    type Error = ConvertError;

    fn try_from(piece: wire::ClockPiece) -> Result<Self> {
        let moment = |wall, boot_ns| Moment { wall: Timestamp::from_nanos(wall), boot_ns };
        Ok(Self {
            boot_id: piece.boot_id,
            first: moment(piece.first_ns, piece.first_boot_ns),
            last: moment(piece.last_ns, piece.last_boot_ns),
            wall: difference(piece.least_ns, piece.most_ns)?,
        })
    }
}

fn difference(least: i64, most: i64) -> Result<Difference> {
    if least <= most { Ok(Difference::between(least, most)) } else { bad("most_ns", "is less than least_ns") }
}
