use super::*;

fn at(wall_ms: u64, boot_ms: u64) -> Moment {
    Moment {
        wall: Timestamp::from_nanos(1_764_000_000_000_000_000 + wall_ms * 1_000_000),
        boot_ns: boot_ms * 1_000_000,
    }
}

#[test]
fn a_packets_time_is_told_by_both_clocks() {
    let (earliest, now) = (at(10_000, 1_000), at(10_500, 1_500));
    let of = |wall_ms: u64| moment(Some(at(wall_ms, 0).wall), earliest, now);
    assert_eq!(of(10_200), at(10_200, 1_200));
    assert_eq!(of(10_503), at(10_503, 1_503));
    // The clock was set forward by an hour, or back.
    assert_eq!(of(10_200 - 3_600_000), at(10_000, 1_000));
    assert_eq!(of(10_200 + 3_600_000), at(11_500, 2_500));
    assert_eq!(moment(None, earliest, now), now);
}
