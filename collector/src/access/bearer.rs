//! How a token's secret comes with a request: `Authorization: Bearer …` (RFC 6750), in base64url without padding.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::credential::Secret;

/// The value of the header.
pub fn write(secret: &[u8; 32]) -> String {
    format!("Bearer {}", URL_SAFE_NO_PAD.encode(secret))
}

/// The secret in a header; none if it is none.
pub fn read(header: &str) -> Option<Secret> {
    let (scheme, encoded) = header.split_once(' ')?;
    let bytes =
        URL_SAFE_NO_PAD.decode(encoded.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("bearer"))?;
    Some(Secret::from_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_nothing_else_does() {
        let header = write(&[7; 32]);
        assert_eq!(read(&header).map(|secret| *secret.as_bytes()), Some([7; 32]));
        assert!(read(&header.replace("Bearer", "bearer")).is_some());
        for bad in [
            "",
            "Bearer",
            "Bearer x",
            "Basic x",
            &header[..header.len() - 2],
            &header.replace("Bearer", "Basic"),
        ] {
            assert!(read(bad).is_none(), "{bad}");
        }
    }
}
