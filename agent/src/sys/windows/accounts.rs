//! Users: their security identifiers (SID), and what those are called.

use std::{
    os::windows::io::{AsRawHandle as _, FromRawHandle as _, OwnedHandle},
    ptr,
};

use windows_sys::Win32::{
    Foundation::{HANDLE, LocalFree},
    Security::{
        Authorization::{ConvertSidToStringSidW, ConvertStringSidToSidW},
        GetTokenInformation, LookupAccountSidW, PSID, TOKEN_QUERY, TOKEN_USER, TokenUser,
    },
    System::Threading::OpenProcessToken,
};

use super::{
    image::open_process,
    text::{narrow, wide},
};

/// A user, and a domain, have names of at most 256 characters.
const NAME_UNITS_MAX: usize = 257;

/// The SID of who process `pid` runs for.
pub(in crate::sys) fn user_of_process(pid: u32) -> Option<String> {
    let process = open_process(pid)?;
    let token = token_of(&process)?;
    sid_of(&token)
}

#[expect(unsafe_code, reason = "the standard library does not ask for it")]
fn token_of(process: &OwnedHandle) -> Option<OwnedHandle> {
    let mut token: HANDLE = ptr::null_mut();
    // SAFETY: the process is open, and the pointer is to where the handle goes.
    let done = unsafe { OpenProcessToken(process.as_raw_handle() as HANDLE, TOKEN_QUERY, &raw mut token) };
    // SAFETY: it is a handle that nobody else has.
    (done != 0 && !token.is_null()).then(|| unsafe { OwnedHandle::from_raw_handle(token.cast()) })
}

#[expect(unsafe_code, reason = "the standard library does not ask for it")]
fn sid_of(token: &OwnedHandle) -> Option<String> {
    // The structure, and the SID that it points to, which has at most 68 bytes.
    let mut room = [0_u64; 16];
    let bytes = u32::try_from(size_of_val(&room)).unwrap_or(0);
    let mut needed = 0;
    // SAFETY: the token is open; there is room for `bytes` at the pointer.
    let done = unsafe {
        GetTokenInformation(
            token.as_raw_handle() as HANDLE,
            TokenUser,
            room.as_mut_ptr().cast(),
            bytes,
            &raw mut needed,
        )
    };
    if done == 0 {
        return None;
    }
    // SAFETY: the call has filled in such a structure, and the room is aligned for one.
    let user = unsafe { room.as_ptr().cast::<TOKEN_USER>().read() };
    let mut text: *mut u16 = ptr::null_mut();
    // SAFETY: the SID is in `room`, which is there still; the pointer is to where the text goes.
    let done = unsafe { ConvertSidToStringSidW(user.User.Sid, &raw mut text) };
    if done == 0 {
        return None;
    }
    let text = Local(text.cast());
    // SAFETY: it is a text that ends with 0.
    Some(unsafe { text.as_text() })
}

/// What the SID is called, as `DOMAIN\name`. May ask a domain controller, and wait for it.
#[expect(unsafe_code, reason = "the standard library does not ask for it")]
pub(in crate::sys) fn look_up_user(sid: &str) -> Option<String> {
    // Where nothing is parsed, some take it for the SID of nobody.
    let sid = wide(sid.strip_prefix("S-").and(Some(sid))?);
    let mut parsed: PSID = ptr::null_mut();
    // SAFETY: the text ends with 0; the pointer is to where that of the SID goes.
    let done = unsafe { ConvertStringSidToSidW(sid.as_ptr(), &raw mut parsed) };
    if done == 0 {
        return None;
    }
    let parsed = Local(parsed);
    let (mut name, mut domain) = ([0_u16; NAME_UNITS_MAX], [0_u16; NAME_UNITS_MAX]);
    let (mut name_units, mut domain_units) = (NAME_UNITS_MAX as u32, NAME_UNITS_MAX as u32);
    let mut sort = 0;
    // SAFETY: the SID is there until the end; there is room for so many units at both pointers.
    let done = unsafe {
        LookupAccountSidW(
            ptr::null(),
            parsed.0,
            name.as_mut_ptr(),
            &raw mut name_units,
            domain.as_mut_ptr(),
            &raw mut domain_units,
            &raw mut sort,
        )
    };
    let (name, domain) = (narrow(&name), narrow(&domain));
    match (done != 0 && !name.is_empty(), domain.is_empty()) {
        (false, _) => None,
        (true, true) => Some(name),
        (true, false) => Some(format!(r"{domain}\{name}")),
    }
}

/// What the system has set aside, and is given back.
struct Local(*mut std::ffi::c_void);

impl Local {
    /// # Safety
    /// It must be a text that ends with 0.
    #[expect(unsafe_code, reason = "only the system knows how long it is")]
    unsafe fn as_text(&self) -> String {
        let text = self.0.cast::<u16>();
        // SAFETY: the caller says that there is a 0.
        let length = (0..).take_while(|at| unsafe { *text.add(*at) } != 0).count();
        // SAFETY: so many units were just read.
        String::from_utf16_lossy(unsafe { std::slice::from_raw_parts(text, length) })
    }
}

impl Drop for Local {
    #[expect(unsafe_code, reason = "the system has its own heap")]
    fn drop(&mut self) {
        // SAFETY: it was set aside by a call that says to give it back so, and nobody else does.
        unsafe { LocalFree(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_runs_for_an_sid() {
        let sid = user_of_process(std::process::id()).unwrap();
        assert!(sid.starts_with("S-1-5-"), "{sid}");
        assert_eq!(user_of_process(0), None);
    }

    #[test]
    fn the_system_has_a_name_and_what_is_no_sid_has_none() {
        let name = look_up_user("S-1-5-18").unwrap();
        assert!(name.contains('\\'), "{name}");
        for nobody in ["", "1000", "S-1-5-21-1-2-3-4"] {
            assert_eq!(look_up_user(nobody), None, "{nobody}");
        }
    }
}
