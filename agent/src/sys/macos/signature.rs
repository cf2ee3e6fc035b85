//! Who signed an executable, as the Security framework tells it by its public interface.
//!
//! It takes a path alone: that it is still that of the file which was hashed is for others to see. Of a bundle only the
//! executable is verified, and nothing is fetched from anywhere.

use std::{
    fs::File,
    path::Path,
    ptr::{self, NonNull},
};

use alibi_proto::executable::{Sha256, Signature, SignatureStatus, cut};
use objc2_core_foundation::{CFArray, CFDictionary, CFRetained, CFString, CFType, CFURL};
use objc2_security::{
    SecCSFlags, SecCertificate, SecCode, SecRequirement, SecStaticCode, kSecCSCheckAllArchitectures,
    kSecCSDoNotValidateResources, kSecCSSigningInformation, kSecCodeInfoCertificates, kSecCodeInfoIdentifier,
    kSecCodeInfoTeamIdentifier,
};
use sha2::Digest as _;

use crate::sys::Examined;

/// Signed by Apple, or with a certificate that Apple issued.
const OF_APPLE: &str = "anchor apple generic";

/// Reads who signed what is at the path. Programs tell no version here.
pub(in crate::sys) fn examine(_: &File, path: &Path) -> Examined {
    Examined { signature: signature_at(path), version: None }
}

fn signature_at(path: &Path) -> Signature {
    let code = match code_at(path) {
        Ok(code) => code,
        Err(status) => return Signature::not_checked(&format!("the system cannot look at it ({status})")),
    };
    let flags =
        SecCSFlags::NoNetworkAccess | SecCSFlags(kSecCSCheckAllArchitectures | kSecCSDoNotValidateResources);
    let (status, reason) = match (validity(&code, flags, None), requirement(OF_APPLE)) {
        (0, Some(of_apple)) => meaning(match validity(&code, flags, Some(&of_apple)) {
            0 => Answer::Trusted,
            status => Answer::NotOfApple(status),
        }),
        (0, None) => meaning(Answer::Other(0)),
        (status, _) => meaning(Answer::Other(status)),
    };
    let mut signature = Signature::of_status(status, reason);
    if status != SignatureStatus::Unsigned {
        name_signer(&code, &mut signature);
    }
    signature
}

/// What came of a verification; numbers are those of CSCommon.h.
enum Answer {
    Trusted,
    /// The signature is sound, but not of anybody whom Apple knows.
    NotOfApple(i32),
    Other(i32),
}

fn meaning(answer: Answer) -> (SignatureStatus, Option<String>) {
    let (status, reason, number) = match answer {
        Answer::Trusted => return (SignatureStatus::Trusted, None),
        // errSecCSUnsigned.
        Answer::Other(-67062) => return (SignatureStatus::Unsigned, None),
        // errSecCSReqFailed.
        Answer::NotOfApple(number @ -67050) => {
            (SignatureStatus::Untrusted, "no certificate that Apple issued is behind it", number)
        }
        // errSecCSSignatureFailed, BadDictionaryFormat, SignatureInvalid, InfoPlistFailed.
        Answer::Other(number @ (-67061 | -67058 | -67045 | -67030)) => (
            SignatureStatus::Invalid,
            "its content is not what was signed, or the signature is malformed",
            number,
        ),
        // errSecCSRevokedNotarization, and what CSSM says of certificates: expired, revoked, not trusted.
        Answer::Other(number @ (-66992 | -2_147_409_654 | -2_147_409_652 | -2_147_409_622)) => {
            (SignatureStatus::Untrusted, "a certificate, or its notarization, does not hold", number)
        }
        Answer::NotOfApple(number) | Answer::Other(number) => {
            (SignatureStatus::NotChecked, "the system gives an answer that is not known", number)
        }
    };
    (status, Some(format!("{reason} ({number})")))
}

#[expect(unsafe_code, reason = "it is a system call")]
fn code_at(path: &Path) -> Result<CFRetained<SecStaticCode>, i32> {
    let url = CFURL::from_file_path(path).ok_or(0)?;
    let mut code: *const SecStaticCode = ptr::null();
    // SAFETY: the pointer is to where that of the code goes.
    let status =
        unsafe { SecStaticCode::create_with_path(&url, SecCSFlags::empty(), NonNull::from(&mut code)) };
    let code = NonNull::new(code.cast_mut()).filter(|_| status == 0).ok_or(status)?;
    // SAFETY: it was made by this call, whose name says that it is given away.
    Ok(unsafe { CFRetained::from_raw(code) })
}

#[expect(unsafe_code, reason = "it is a system call")]
fn requirement(text: &'static str) -> Option<CFRetained<SecRequirement>> {
    let text = CFString::from_static_str(text);
    let mut made: *mut SecRequirement = ptr::null_mut();
    // SAFETY: the pointer is to where that of the requirement goes.
    let status =
        unsafe { SecRequirement::create_with_string(&text, SecCSFlags::empty(), NonNull::from(&mut made)) };
    // SAFETY: it was made by this call, whose name says that it is given away.
    NonNull::new(made).filter(|_| status == 0).map(|made| unsafe { CFRetained::from_raw(made) })
}

#[expect(unsafe_code, reason = "it is a system call")]
fn validity(code: &SecStaticCode, flags: SecCSFlags, requirement: Option<&SecRequirement>) -> i32 {
    // SAFETY: no pointers are given but those of what is borrowed.
    unsafe { code.check_validity(flags, requirement) }
}

/// Fills in who signed, where that is told. What is in a signature that does not hold is what it claims.
#[expect(unsafe_code, reason = "these are names that the system has")]
fn name_signer(code: &SecStaticCode, signature: &mut Signature) {
    let Some(information) = signing_information(code) else { return };
    // SAFETY: they are there as long as the framework is.
    let (identifier, team, certificates) =
        unsafe { (kSecCodeInfoIdentifier, kSecCodeInfoTeamIdentifier, kSecCodeInfoCertificates) };
    signature.identifier = information.get(identifier).and_then(|value| text(&value));
    signature.team = information.get(team).and_then(|value| text(&value));
    let Some(certificates) = information.get(certificates) else { return };
    let Some(certificates) = certificates.downcast_ref::<CFArray>() else { return };
    // SAFETY: whatever is in the array is such an object.
    let certificates: &CFArray<CFType> = unsafe { certificates.cast_unchecked() };
    // The first is the signer's, the next that of the issuer.
    let certificate = |at| certificates.get(at).and_then(|value| value.downcast::<SecCertificate>().ok());
    if let Some(signer) = certificate(0) {
        signature.subject = summary(&signer);
        // SAFETY: no pointers are given but that of what is borrowed.
        let encoded = unsafe { signer.data() };
        signature.certificate_sha256 =
            Some(Sha256::from_bytes(sha2::Sha256::digest(encoded.to_vec()).into()));
    }
    signature.issuer = certificate(1).and_then(|issuer| summary(&issuer));
}

#[expect(unsafe_code, reason = "it is a system call")]
fn signing_information(code: &SecStaticCode) -> Option<CFRetained<CFDictionary<CFString, CFType>>> {
    let mut information: *const CFDictionary = ptr::null();
    let flags = SecCSFlags(kSecCSSigningInformation);
    // SAFETY: the pointer is to where that of the information goes.
    let status = unsafe { SecCode::copy_signing_information(code, flags, NonNull::from(&mut information)) };
    let information = NonNull::new(information.cast_mut()).filter(|_| status == 0)?;
    // SAFETY: it was made by this call, whose name says that it is given away; its keys are texts, and its values objects.
    Some(unsafe { CFRetained::cast_unchecked(CFRetained::from_raw(information)) })
}

#[expect(unsafe_code, reason = "it is a system call")]
fn summary(certificate: &SecCertificate) -> Option<String> {
    // SAFETY: no pointers are given but that of what is borrowed.
    let summary = unsafe { certificate.subject_summary() }?;
    text(&summary)
}

fn text(value: &CFType) -> Option<String> {
    let text = cut(&value.downcast_ref::<CFString>()?.to_string());
    (!text.is_empty()).then_some(text)
}
