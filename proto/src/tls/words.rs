//! What went wrong between the two ends, for a person.

use rustls::{AlertDescription, CertificateError, Error};

/// In words that say what to do, where that can be said.
pub fn in_words(error: &Error) -> String {
    match error {
        Error::AlertReceived(alert) => alert_in_words(*alert).to_owned(),
        Error::InvalidCertificate(problem) => certificate_in_words(problem),
        Error::NoCertificatesPresented => "it showed no certificate".to_owned(),
        Error::NoApplicationProtocol => "it speaks none of our protocols".to_owned(),
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => "it does not speak TLS".to_owned(),
        Error::PeerIncompatible(_) => "it does not speak TLS 1.3".to_owned(),
        other => other.to_string(),
    }
}

/// What the other end holds against us.
fn alert_in_words(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateRevoked => "it has revoked our certificate",
        AlertDescription::CertificateExpired => {
            "our certificate has run out, or is not valid yet by its clock"
        }
        AlertDescription::UnknownCA => "it does not know the CA of our certificate",
        AlertDescription::CertificateRequired => "it asks for a certificate, and we have none",
        AlertDescription::AccessDenied => "our certificate is for something else",
        AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate => {
            "it cannot use our certificate"
        }
        AlertDescription::NoApplicationProtocol => "it does not speak our protocol",
        AlertDescription::ProtocolVersion => "it does not speak TLS 1.3",
        AlertDescription::DecryptError => "it does not accept what our key has signed",
        _ => "it has broken off the handshake",
    }
}

/// What we hold against the other end.
fn certificate_in_words(problem: &CertificateError) -> String {
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has run out, by this machine's clock".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: is this machine's clock right?".to_owned()
        }
        CertificateError::Revoked => "its enrolment is revoked".to_owned(),
        CertificateError::UnknownIssuer => "its certificate is of a CA that is not known here".to_owned(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for somebody else".to_owned()
        }
        CertificateError::ApplicationVerificationFailure => {
            "its certificate is not for what it wants".to_owned()
        }
        other => format!("its certificate cannot be used: {other}"),
    }
}
