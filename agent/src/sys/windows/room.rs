//! Room on the disk before it is needed.

use std::{fs::File, io, os::windows::io::AsRawHandle as _};

use windows_sys::Win32::{
    Foundation::{
        ERROR_CALL_NOT_IMPLEMENTED, ERROR_INVALID_FUNCTION, ERROR_INVALID_PARAMETER, ERROR_NOT_SUPPORTED,
    },
    Storage::FileSystem::{FILE_ALLOCATION_INFO, FileAllocationInfo, SetFileInformationByHandle},
};

/// What a file system says that cannot; and wine, which lacks this.
const CANNOT: [u32; 4] =
    [ERROR_INVALID_FUNCTION, ERROR_NOT_SUPPORTED, ERROR_INVALID_PARAMETER, ERROR_CALL_NOT_IMPLEMENTED];

/// The room is kept as long as the file is open: what is unused then, the system frees.
pub(in crate::sys) fn set_room_aside(file: &File, bytes: u64) -> io::Result<()> {
    // Less room than it has content would cut the file.
    if file.metadata()?.len() >= bytes {
        return Ok(());
    }
    match allocate(file, bytes) {
        Err(problem) if problem.raw_os_error().is_some_and(|code| CANNOT.contains(&code.cast_unsigned())) => {
            Ok(())
        }
        done => done,
    }
}

#[expect(unsafe_code, reason = "SetFileInformationByHandle has no safe form")]
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let room = FILE_ALLOCATION_INFO { AllocationSize: i64::try_from(bytes).unwrap_or(i64::MAX) };
    let room_bytes = u32::try_from(size_of::<FILE_ALLOCATION_INFO>()).unwrap_or(u32::MAX);
    // SAFETY: the file is open, and the structure is of the kind and of the size that is said.
    let done = unsafe {
        SetFileInformationByHandle(
            file.as_raw_handle(),
            FileAllocationInfo,
            (&raw const room).cast(),
            room_bytes,
        )
    };
    if done == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn a_file_keeps_its_content_and_its_length_beside_the_room() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100]).unwrap();
        // What is there already, and more than that.
        set_room_aside(&file, 50).unwrap();
        set_room_aside(&file, 1 << 16).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100);
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content, [7; 100]);
    }
}
