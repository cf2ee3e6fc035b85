//! Frames as they travel: the payload as it comes, or columns that are compressed here, so that what is behind the
//! decompression is met.
#![no_main]

use alibi_proto::{
    frame::{Frame, Packer},
    id::Seq,
};

libfuzzer_sys::fuzz_target!(init: alibi_fuzz::seed("frame"), |data: &[u8]| {
    let Some((&[how, low, high], bytes)) = data.split_first_chunk() else { return };
    let count = u32::from(u16::from_le_bytes([low, high]));
    let payload = if how & 1 == 0 { bytes.to_vec() } else { alibi_fuzz::payload(bytes) };
    let frame = Frame { first_seq: Seq(1), count, payload };
    let Ok(records) = frame.unpack() else { return };
    assert_eq!(records.iter().len(), count as usize);
    let each: Vec<&[u8]> = records.iter().collect();
    let packed = Frame { payload: Packer::default().pack(&each), ..frame };
    assert_eq!(packed.unpack().as_ref(), Ok(&records));
});
