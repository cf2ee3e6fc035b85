//! Sizes, as a person writes them.

/// Reads a number of bytes: `500MB`, `100GiB`, or a plain number.
///
/// # Errors
/// When it is none.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        unit => return Err(format!("`{unit}` is no unit of bytes: write MB, GB, TB, MiB, GiB or TiB")),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("`{text}` is no number of bytes, such as 100GiB"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text} is more than any disk has"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, want) in [
            ("0", 0),
            ("4096", 4_096),
            ("1B", 1),
            ("500MB", 500_000_000),
            ("100 GiB", 100 << 30),
            ("2TiB", 2 << 40),
            ("3kB", 3_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(want), "{text}");
        }
        for wrong in ["", "GiB", "1.5GB", "-1", "10 gigs", "1GiBs", "99999999TiB", "99999999999999999999"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
