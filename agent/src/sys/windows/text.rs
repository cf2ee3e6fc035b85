//! Text as Windows has it: UTF-16 that ends with 0.

/// For a call.
pub(super) fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// From a buffer that a call has filled in: up to the first 0.
pub(super) fn narrow(buffer: &[u16]) -> String {
    let length = buffer.iter().position(|unit| *unit == 0).unwrap_or(buffer.len());
    String::from_utf16_lossy(&buffer[..length])
}
