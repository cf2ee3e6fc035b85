//! Who signed an executable: Authenticode, in the file itself or in a catalog of the system, as most of what Windows comes
//! with is signed.
//!
//! Everything is asked of the file that is open, so it is true of what was hashed. Nothing is fetched from anywhere: no
//! revocation list, no certificate, no root. That nobody is signed in, and that no window is opened, is said in every call.

use std::{
    fs::File,
    io::{self, Seek as _},
    os::windows::io::AsRawHandle as _,
    path::Path,
    ptr,
};

use alibi_proto::executable::{Sha256, Signature, SignatureStatus, cut};
use sha2::Digest as _;
use windows_sys::{
    Win32::{
        Foundation::{ERROR_NOT_FOUND, GetLastError, HANDLE, INVALID_HANDLE_VALUE},
        Security::{
            Cryptography::{
                CERT_CONTEXT, CERT_NAME_ISSUER_FLAG, CERT_NAME_SIMPLE_DISPLAY_TYPE,
                Catalog::{
                    CATALOG_INFO, CryptCATAdminAcquireContext2, CryptCATAdminCalcHashFromFileHandle2,
                    CryptCATAdminEnumCatalogFromHash, CryptCATAdminReleaseCatalogContext,
                    CryptCATAdminReleaseContext, CryptCATCatalogInfoFromContext,
                },
                CertGetNameStringW,
            },
            WinTrust::{
                DRIVER_ACTION_VERIFY, WINTRUST_ACTION_GENERIC_VERIFY_V2, WINTRUST_CATALOG_INFO,
                WINTRUST_DATA, WINTRUST_DATA_0, WINTRUST_DATA_UNION_CHOICE, WINTRUST_FILE_INFO,
                WTD_CACHE_ONLY_URL_RETRIEVAL, WTD_CHOICE_CATALOG, WTD_CHOICE_FILE, WTD_DISABLE_MD2_MD4,
                WTD_REVOCATION_CHECK_NONE, WTD_REVOKE_NONE, WTD_STATEACTION_CLOSE, WTD_STATEACTION_VERIFY,
                WTD_UI_NONE, WTD_UICONTEXT_EXECUTE, WTHelperGetProvCertFromChain,
                WTHelperGetProvSignerFromChain, WTHelperProvDataFromStateData, WinVerifyTrust,
            },
        },
    },
    core::PCWSTR,
};

use super::text::{narrow, wide};
use crate::sys::{Examined, nt, version_resource};

/// What members of catalogs are found by: the newer ones, and those before.
const ALGORITHMS: [&str; 2] = ["SHA256", "SHA1"];
/// No hash of these is longer.
const HASH_BYTES_MAX: usize = 64;
/// A longer name of a certificate is cut by the system.
const NAME_UNITS_MAX: u32 = 512;

/// Reads who signed the file, and what it says of itself.
pub(in crate::sys) fn examine(file: &File, path: &Path) -> Examined {
    Examined { signature: signature_of(file, path), version: version_resource::version_of(file) }
}

fn signature_of(file: &File, path: &Path) -> Signature {
    let Some(path) = path.to_str().map(wide) else {
        return Signature::not_checked("its path is no Unicode");
    };
    let own = in_file(file, &path);
    if own.status != SignatureStatus::Unsigned {
        return own;
    }
    let mut problem = None;
    for algorithm in ALGORITHMS {
        match in_catalog(file, &path, algorithm) {
            Ok(Some(signature)) => return signature,
            Ok(None) => {}
            Err(source) => problem = Some(source),
        }
    }
    match problem {
        None => own,
        Some(problem) => Signature::not_checked(&format!(
            "it has none of its own, and the catalogs of the system cannot be asked: {problem}"
        )),
    }
}

fn in_file(file: &File, path: &[u16]) -> Signature {
    let mut subject = WINTRUST_FILE_INFO {
        cbStruct: size_of_u32::<WINTRUST_FILE_INFO>(),
        pcwszFilePath: path.as_ptr(),
        hFile: file.as_raw_handle() as HANDLE,
        pgKnownSubject: ptr::null_mut(),
    };
    verify(WTD_CHOICE_FILE, WINTRUST_DATA_0 { pFile: &raw mut subject })
}

/// The signature of the first catalog of the system that has the file; none if none has it.
fn in_catalog(mut file: &File, path: &[u16], algorithm: &str) -> io::Result<Option<Signature>> {
    file.rewind()?;
    let catalogs = Catalogs::open(algorithm)?;
    let mut hash = catalogs.hash(file)?;
    let Some(catalog) = catalogs.with_member(&hash)? else { return Ok(None) };
    let catalog_path = catalog.path()?;
    let tag: String = hash.iter().map(|byte| format!("{byte:02X}")).collect();
    let tag = wide(&tag);
    let mut subject = WINTRUST_CATALOG_INFO {
        cbStruct: size_of_u32::<WINTRUST_CATALOG_INFO>(),
        pcwszCatalogFilePath: catalog_path.as_ptr(),
        pcwszMemberTag: tag.as_ptr(),
        pcwszMemberFilePath: path.as_ptr(),
        hMemberFile: file.as_raw_handle() as HANDLE,
        pbCalculatedFileHash: hash.as_mut_ptr(),
        cbCalculatedFileHash: u32::try_from(hash.len()).unwrap_or(0),
        hCatAdmin: catalogs.0,
        ..WINTRUST_CATALOG_INFO::default()
    };
    Ok(Some(verify(WTD_CHOICE_CATALOG, WINTRUST_DATA_0 { pCatalog: &raw mut subject })))
}

/// Has the system verify a signature. What `subject` points to must be that of `choice`, and be there until this returns: it
/// is, in both places that call this.
#[expect(unsafe_code, reason = "it is a system call")]
fn verify(choice: WINTRUST_DATA_UNION_CHOICE, subject: WINTRUST_DATA_0) -> Signature {
    let mut action = WINTRUST_ACTION_GENERIC_VERIFY_V2;
    let mut data = WINTRUST_DATA {
        cbStruct: size_of_u32::<WINTRUST_DATA>(),
        dwUIChoice: WTD_UI_NONE,
        fdwRevocationChecks: WTD_REVOKE_NONE,
        dwUnionChoice: choice,
        Anonymous: subject,
        dwStateAction: WTD_STATEACTION_VERIFY,
        dwProvFlags: WTD_CACHE_ONLY_URL_RETRIEVAL | WTD_REVOCATION_CHECK_NONE | WTD_DISABLE_MD2_MD4,
        dwUIContext: WTD_UICONTEXT_EXECUTE,
        ..WINTRUST_DATA::default()
    };
    // SAFETY: both pointers are to what the call expects for this action, and what they point to lives until it returns.
    let (code, error) = unsafe {
        let code = WinVerifyTrust(INVALID_HANDLE_VALUE, &raw mut action, (&raw mut data).cast());
        (code, GetLastError())
    };
    let (status, reason) = nt::trust(code.cast_unsigned(), error);
    let mut signature = Signature::of_status(status, reason);
    if status != SignatureStatus::Unsigned {
        name_signer(data.hWVTStateData, &mut signature);
    }
    data.dwStateAction = WTD_STATEACTION_CLOSE;
    // SAFETY: as above; this gives back what the first call has set aside, whatever came of it.
    unsafe { WinVerifyTrust(INVALID_HANDLE_VALUE, &raw mut action, (&raw mut data).cast()) };
    signature
}

/// Fills in the first signer of what was verified, if the system got so far as to see one.
#[expect(unsafe_code, reason = "it is what a system call has left")]
fn name_signer(state: HANDLE, signature: &mut Signature) {
    if state.is_null() {
        return;
    }
    // SAFETY: the state is that of a verification which has not been closed; each pointer is looked at before it is used, and
    // what it points to belongs to the state.
    let certificate = unsafe {
        let provider = WTHelperProvDataFromStateData(state);
        if provider.is_null() {
            return;
        }
        let signer = WTHelperGetProvSignerFromChain(provider, 0, 0, 0);
        if signer.is_null() {
            return;
        }
        let certificate = WTHelperGetProvCertFromChain(signer, 0);
        if certificate.is_null() || (*certificate).pCert.is_null() {
            return;
        }
        &*(*certificate).pCert
    };
    signature.subject = name_in(certificate, 0);
    signature.issuer = name_in(certificate, CERT_NAME_ISSUER_FLAG);
    if !certificate.pbCertEncoded.is_null() {
        let length = usize::try_from(certificate.cbCertEncoded).unwrap_or(0);
        // SAFETY: the certificate says that so many bytes are there.
        let encoded = unsafe { std::slice::from_raw_parts(certificate.pbCertEncoded, length) };
        signature.certificate_sha256 = Some(Sha256::from_bytes(sha2::Sha256::digest(encoded).into()));
    }
}

/// The name of the owner of a certificate, or of the issuer, as the system shows it.
#[expect(unsafe_code, reason = "it is a system call")]
fn name_in(certificate: &CERT_CONTEXT, flags: u32) -> Option<String> {
    let mut name = [0; NAME_UNITS_MAX as usize];
    // SAFETY: the certificate is borrowed; there is room for so many units at the pointer.
    unsafe {
        CertGetNameStringW(
            certificate,
            CERT_NAME_SIMPLE_DISPLAY_TYPE,
            flags,
            ptr::null(),
            name.as_mut_ptr(),
            NAME_UNITS_MAX,
        )
    };
    let name = cut(&narrow(&name));
    (!name.is_empty()).then_some(name)
}

/// The catalogs of the system, for one sort of hash.
struct Catalogs(isize);

impl Catalogs {
    #[expect(unsafe_code, reason = "it is a system call")]
    fn open(algorithm: &str) -> io::Result<Self> {
        let (mut catalogs, algorithm) = (0, wide(algorithm));
        let algorithm: PCWSTR = algorithm.as_ptr();
        // SAFETY: the text ends with 0, and the other pointers are to what lives until the call returns.
        let done = unsafe {
            CryptCATAdminAcquireContext2(&raw mut catalogs, &DRIVER_ACTION_VERIFY, algorithm, ptr::null(), 0)
        };
        if done == 0 { Err(io::Error::last_os_error()) } else { Ok(Self(catalogs)) }
    }

    /// What a file is found by: of a program not of all its bytes, since a signature in it is left out.
    #[expect(unsafe_code, reason = "it is a system call")]
    fn hash(&self, file: &File) -> io::Result<Vec<u8>> {
        let mut hash = vec![0; HASH_BYTES_MAX];
        let mut length = HASH_BYTES_MAX as u32;
        let handle = file.as_raw_handle() as HANDLE;
        // SAFETY: the file is open, and there is room for `length` bytes.
        let done = unsafe {
            CryptCATAdminCalcHashFromFileHandle2(self.0, handle, &raw mut length, hash.as_mut_ptr(), 0)
        };
        if done == 0 {
            return Err(io::Error::last_os_error());
        }
        hash.truncate(usize::try_from(length).unwrap_or(0));
        Ok(hash)
    }

    #[expect(unsafe_code, reason = "it is a system call")]
    fn with_member(&self, hash: &[u8]) -> io::Result<Option<Catalog<'_>>> {
        let length = u32::try_from(hash.len()).unwrap_or(0);
        // SAFETY: the hash has so many bytes; that there was no catalog before this one may be said so.
        let catalog =
            unsafe { CryptCATAdminEnumCatalogFromHash(self.0, hash.as_ptr(), length, 0, ptr::null_mut()) };
        if catalog != 0 {
            return Ok(Some(Catalog { catalogs: self, catalog }));
        }
        let problem = io::Error::last_os_error();
        let is_none = problem.raw_os_error() == Some(ERROR_NOT_FOUND.cast_signed());
        if is_none { Ok(None) } else { Err(problem) }
    }
}

impl Drop for Catalogs {
    #[expect(unsafe_code, reason = "it is a system call")]
    fn drop(&mut self) {
        // SAFETY: it was opened, and is used by nobody any more.
        unsafe { CryptCATAdminReleaseContext(self.0, 0) };
    }
}

/// One catalog.
struct Catalog<'a> {
    catalogs: &'a Catalogs,
    catalog: isize,
}

impl Catalog<'_> {
    /// Where its file is; ends with 0.
    #[expect(unsafe_code, reason = "it is a system call")]
    fn path(&self) -> io::Result<[u16; 260]> {
        let mut info = CATALOG_INFO { cbStruct: size_of_u32::<CATALOG_INFO>(), ..CATALOG_INFO::default() };
        // SAFETY: the catalog is open, and the pointer is to such a structure, which says its size.
        let done = unsafe { CryptCATCatalogInfoFromContext(self.catalog, &raw mut info, 0) };
        if done == 0 || info.wszCatalogFile.last() != Some(&0) {
            return Err(io::Error::last_os_error());
        }
        Ok(info.wszCatalogFile)
    }
}

impl Drop for Catalog<'_> {
    #[expect(unsafe_code, reason = "it is a system call")]
    fn drop(&mut self) {
        // SAFETY: it was found among these catalogs, and is used by nobody any more.
        unsafe { CryptCATAdminReleaseCatalogContext(self.catalogs.0, self.catalog, 0) };
    }
}

fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What a signed program would be told as has to be seen on a Windows with one; here only that nothing which is not
    /// signed passes for signed, and that nothing passes for unsigned which was not looked at.
    #[test]
    fn what_is_not_signed_is_not_told_as_signed() {
        let directory = tempfile::tempdir().unwrap();
        let this = std::env::current_exe().unwrap();
        let script = directory.path().join("script.bat");
        fs::write(&script, "rem nothing").unwrap();
        for path in [&this, &script] {
            let examined = examine(&File::open(path).unwrap(), path);
            let signature = examined.signature;
            match signature.status {
                SignatureStatus::Unsigned => assert_eq!(signature.reason, None),
                SignatureStatus::NotChecked => assert!(signature.reason.is_some()),
                _ => panic!("{signature:?}"),
            }
            assert_eq!((signature.subject, examined.version), (None, None));
        }
    }

    #[test]
    fn a_program_of_the_system_says_what_it_is() {
        let system = std::env::var_os("SystemRoot").unwrap();
        let path = Path::new(&system).join(r"System32\kernel32.dll");
        let version = examine(&File::open(&path).unwrap(), &path).version.unwrap();
        assert!(version.company.is_some() || version.product.is_some(), "{version:?}");
        assert!(version.file_version.is_some_and(|version| version.contains('.')));
    }
}
