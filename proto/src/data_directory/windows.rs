//! Windows: who may open a directory is said by its list of rights (DACL), which what is made in it inherits.
//!
//! A list of our own is put in place of the one that would be inherited: of the system and the administrators, when this
//! program has their rights, and else of its user alone. It is there from the beginning, so that there is no moment in
//! which others may enter.

use std::{
    ffi::c_void,
    io, iter,
    mem::{self, size_of},
    os::windows::ffi::OsStrExt as _,
    path::Path,
    ptr::{null, null_mut},
};

use windows_sys::{
    Win32::{
        Foundation::{CloseHandle, HANDLE, LocalFree},
        Security::{
            ACL,
            Authorization::{
                ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW,
                SDDL_REVISION_1, SE_FILE_OBJECT, SetNamedSecurityInfoW,
            },
            DACL_SECURITY_INFORMATION, GetSecurityDescriptorDacl, GetSecurityDescriptorOwner,
            GetTokenInformation, OWNER_SECURITY_INFORMATION, PROTECTED_DACL_SECURITY_INFORMATION, PSID,
            SECURITY_ATTRIBUTES, TOKEN_ELEVATION, TOKEN_INFORMATION_CLASS, TOKEN_QUERY, TOKEN_USER,
            TokenElevation, TokenUser,
        },
        Storage::FileSystem::CreateDirectoryW,
        System::Threading::{GetCurrentProcess, OpenProcessToken},
    },
    core::PWSTR,
};

/// System and administrators, to whom it belongs.
const OF_ADMINISTRATORS: &str = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)";
/// Theirs, too, and read by every user of the machine.
const READ_BY_USERS: &str = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FRFX;;;BU)";

/// Makes a directory, and those above it that are missing, of the same few.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    // The parent of a relative path may be empty: here.
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_private(parent)?;
    }
    create_with(path, &Descriptor::of_the_few()?)
}

/// Makes a directory of administrators that every user may read, and those above it that are missing, of the few.
pub(super) fn create_public(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_private(parent)?;
    }
    create_with(path, &Descriptor::parse(READ_BY_USERS)?)
}

/// Takes a directory from all but the few, with what is in it and inherits its rights.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    give_to(path, &Descriptor::of_the_few()?)
}

/// Whether this program has an administrator's rights, or the system's.
pub(super) fn is_elevated() -> bool {
    Token::of_this_process().and_then(|token| token.is_elevated()).unwrap_or(false)
}

#[expect(unsafe_code, reason = "the standard library makes directories with inherited rights only")]
fn create_with(path: &Path, descriptor: &Descriptor) -> io::Result<()> {
    let attributes = SECURITY_ATTRIBUTES {
        nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
        lpSecurityDescriptor: descriptor.0,
        bInheritHandle: 0,
    };
    // SAFETY: the path ends in NUL, and the descriptor lives as long as the call.
    match unsafe { CreateDirectoryW(wide(path).as_ptr(), &raw const attributes) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[expect(unsafe_code, reason = "the standard library does not know these rights")]
fn give_to(path: &Path, descriptor: &Descriptor) -> io::Result<()> {
    let (owner, list) = (descriptor.owner()?, descriptor.list()?);
    let mut what = DACL_SECURITY_INFORMATION | PROTECTED_DACL_SECURITY_INFORMATION;
    if !owner.is_null() {
        what |= OWNER_SECURITY_INFORMATION;
    }
    // SAFETY: the path ends in NUL; owner and list are parts of the descriptor, which lives as long as the call.
    let code = unsafe {
        SetNamedSecurityInfoW(wide(path).as_ptr(), SE_FILE_OBJECT, what, owner, null_mut(), list, null())
    };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.cast_signed())) }
}

/// A security descriptor that the system has allocated.
struct Descriptor(*mut c_void);

impl Descriptor {
    fn of_the_few() -> io::Result<Self> {
        let token = Token::of_this_process()?;
        if token.is_elevated()? {
            return Self::parse(OF_ADMINISTRATORS);
        }
        Self::parse(&format!("D:P(A;OICI;FA;;;{})", token.user()?))
    }

    #[expect(unsafe_code, reason = "the system parses the language of such lists")]
    fn parse(text: &str) -> io::Result<Self> {
        let mut descriptor = null_mut();
        // SAFETY: the text ends in NUL, and what is allocated is freed when dropped.
        let parsed = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                wide(Path::new(text)).as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                null_mut(),
            )
        };
        if parsed == 0 { Err(io::Error::last_os_error()) } else { Ok(Self(descriptor)) }
    }

    /// Null where it names none.
    #[expect(unsafe_code, reason = "reading a part of what the system has allocated")]
    fn owner(&self) -> io::Result<PSID> {
        let (mut owner, mut defaulted) = (null_mut(), 0);
        // SAFETY: the descriptor is valid until dropped.
        match unsafe { GetSecurityDescriptorOwner(self.0, &raw mut owner, &raw mut defaulted) } {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(owner),
        }
    }

    #[expect(unsafe_code, reason = "reading a part of what the system has allocated")]
    fn list(&self) -> io::Result<*const ACL> {
        let (mut list, mut present, mut defaulted) = (null_mut(), 0, 0);
        // SAFETY: the descriptor is valid until dropped.
        let read =
            unsafe { GetSecurityDescriptorDacl(self.0, &raw mut present, &raw mut list, &raw mut defaulted) };
        if read == 0 { Err(io::Error::last_os_error()) } else { Ok(list) }
    }
}

impl Drop for Descriptor {
    #[expect(unsafe_code, reason = "the system has allocated it")]
    fn drop(&mut self) {
        // SAFETY: it was allocated for us alone, by LocalAlloc.
        unsafe { LocalFree(self.0) };
    }
}

/// What says who runs this program.
struct Token(HANDLE);

impl Token {
    #[expect(unsafe_code, reason = "the standard library does not know tokens")]
    fn of_this_process() -> io::Result<Self> {
        let mut token = null_mut();
        // SAFETY: the handle of the own process needs no closing, and the token is closed when dropped.
        match unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) } {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(Self(token)),
        }
    }

    /// Whether it has the rights of an administrator, or the system's.
    fn is_elevated(&self) -> io::Result<bool> {
        let mut elevation = TOKEN_ELEVATION::default();
        self.read(TokenElevation, (&raw mut elevation).cast(), size_of::<TOKEN_ELEVATION>())?;
        Ok(elevation.TokenIsElevated != 0)
    }

    /// The user, as a security identifier in words.
    #[expect(unsafe_code, reason = "the system writes it in words")]
    fn user(&self) -> io::Result<String> {
        // More than the longest identifier takes, and aligned for what stands before it.
        let mut room = [0_u64; 32];
        self.read(TokenUser, room.as_mut_ptr().cast(), mem::size_of_val(&room))?;
        let mut text: PWSTR = null_mut();
        // SAFETY: the system has filled in a TOKEN_USER, which points into the same room.
        let sid = unsafe { (*room.as_ptr().cast::<TOKEN_USER>()).User.Sid };
        // SAFETY: as above; the text is freed below.
        if unsafe { ConvertSidToStringSidW(sid, &raw mut text) } == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it ends in NUL.
        let units = (0..).map(|index| unsafe { *text.add(index) }).take_while(|unit| *unit != 0);
        let user = String::from_utf16_lossy(&units.collect::<Vec<_>>());
        // SAFETY: it was allocated for us alone, and is not used after this.
        unsafe { LocalFree(text.cast()) };
        Ok(user)
    }

    #[expect(unsafe_code, reason = "the standard library does not know tokens")]
    fn read(&self, class: TOKEN_INFORMATION_CLASS, into: *mut c_void, bytes: usize) -> io::Result<()> {
        let (bytes, mut filled) = (u32::try_from(bytes).unwrap_or(0), 0);
        // SAFETY: the token is open, and `into` has room for so many bytes.
        match unsafe { GetTokenInformation(self.0, class, into, bytes, &raw mut filled) } {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

impl Drop for Token {
    #[expect(unsafe_code, reason = "the standard library does not know tokens")]
    fn drop(&mut self) {
        // SAFETY: it is open, and nobody else has it.
        unsafe { CloseHandle(self.0) };
    }
}

fn wide(path: &Path) -> Vec<u16> {
    path.as_os_str().encode_wide().chain(iter::once(0)).collect()
}

#[cfg(test)]
mod tests {
    use windows_sys::Win32::Security::Authorization::{
        ConvertSecurityDescriptorToStringSecurityDescriptorW, GetNamedSecurityInfoW,
    };

    use super::*;

    /// The list of rights that a path has, in words.
    #[expect(unsafe_code, reason = "reading what the code under test has written")]
    fn rights_of(path: &Path) -> String {
        let (mut descriptor, mut text, mut units) = (null_mut(), null_mut(), 0);
        // SAFETY: the path ends in NUL; what is allocated is freed, or small and left to the end of the test.
        let code = unsafe {
            GetNamedSecurityInfoW(
                wide(path).as_ptr(),
                SE_FILE_OBJECT,
                DACL_SECURITY_INFORMATION,
                null_mut(),
                null_mut(),
                null_mut(),
                null_mut(),
                &raw mut descriptor,
            )
        };
        assert_eq!(code, 0);
        let descriptor = Descriptor(descriptor);
        // SAFETY: as above.
        let written = unsafe {
            ConvertSecurityDescriptorToStringSecurityDescriptorW(
                descriptor.0,
                SDDL_REVISION_1,
                DACL_SECURITY_INFORMATION,
                &raw mut text,
                &raw mut units,
            )
        };
        assert_ne!(written, 0);
        // SAFETY: the system has written so many.
        let units = unsafe { std::slice::from_raw_parts(text, units as usize) };
        String::from_utf16_lossy(units).trim_end_matches('\0').to_owned()
    }

    #[test]
    fn what_is_made_and_what_was_there_is_for_the_few() {
        let directory = tempfile::tempdir().unwrap();
        let made = directory.path().join("made/in/one");
        create_private(&made).unwrap();
        create_private(&made).unwrap();
        let found = directory.path().join("found");
        std::fs::create_dir(&found).unwrap();
        make_private(&found).unwrap();
        // What was there stays as open under Wine as Unix has it: it takes over no list that is to be protected.
        assert!(rights_of(&found).contains(";FA;;;"));
        for path in [&made, made.parent().unwrap()] {
            let rights = rights_of(path);
            // Wine keeps no more than what Unix has: the owner stands there for the administrators.
            let user = Token::of_this_process().unwrap().user().unwrap();
            let few = ["SY", "BA", &user];
            let whose: Vec<_> = rights
                .split('(')
                .skip(1)
                .filter_map(|entry| entry.strip_suffix(')')?.rsplit(';').next())
                .collect();
            assert!(!whose.is_empty(), "{}: {rights}", path.display());
            assert!(whose.iter().all(|who| few.contains(who)), "{}: {rights}", path.display());
        }
        std::fs::write(made.join("file"), "x").unwrap();
        assert_eq!(std::fs::read(made.join("file")).unwrap(), b"x", "we are among them");
    }

    #[test]
    fn the_user_has_an_identifier() {
        let user = Token::of_this_process().unwrap().user().unwrap();
        assert!(user.starts_with("S-1-5-"), "{user}");
    }
}
