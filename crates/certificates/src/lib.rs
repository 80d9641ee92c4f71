//! Certificate authorities of our own, and certificates that they sign: keys on the curve P-256, X.509 in PEM and for rustls.
//! Also reads certificates and keys that others have made, for servers of rustls.

#![forbid(unsafe_code)]

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};

/// How long before its making a certificate is valid already, since clocks of clients may be slow.
const CLOCK_TOLERANCE: Duration = Duration::days(1);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A name is no DNS name, or an authority's file is damaged.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A file is not PEM, or holds something else.
    #[error("not a PEM file with {wanted}: {error}")]
    Pem {
        /// What was expected in it.
        wanted: &'static str,
        /// What is wrong.
        error: PemError,
    },
    /// The key has another algorithm than servers can use, or belongs to another certificate.
    #[error("certificate and key cannot be used together: {0}")]
    Unusable(#[from] rustls::Error),
}

/// Which names an authority's certificates may have.
#[derive(Debug, Clone, Copy)]
pub enum Names<'a> {
    /// All names and addresses.
    Any,
    /// A domain and its subdomains. Clients that trust the authority refuse other names and addresses from it.
    Domain(&'a str),
}

/// A certificate authority: signs certificates of servers.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl Authority {
    /// Makes an authority with a fresh key, valid from now for `lifetime`. `name` is what lists of authorities show.
    ///
    /// # Errors
    /// The domain of `names` is no DNS name, or there is no randomness.
    pub fn create(name: &str, names: Names<'_>, lifetime: Duration) -> Result<Self, CertificateError> {
        let key = KeyPair::generate()?;
        let mut params = params(Vec::new(), name, lifetime)?;
        // It signs no other authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.name_constraints = match names {
            Names::Any => None,
            Names::Domain(domain) => Some(only_below(domain)),
        };
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate_pem })
    }

    /// Opens an authority from the texts that [`Self::certificate_pem`] and [`Self::key_pem`] returned.
    ///
    /// # Errors
    /// A text is not PEM, or not of an authority.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, CertificateError> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { issuer, certificate_pem: certificate.to_owned() })
    }

    /// Returns the certificate, which clients must trust.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns the key. Whoever has it can pretend to be any server to clients that trust the authority.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes a server's certificate with a fresh key, valid from now for `lifetime`. Names may be wildcards, and IP addresses.
    ///
    /// # Errors
    /// A name is no DNS name, or there is no randomness.
    pub fn issue(&self, names: &[&str], lifetime: Duration) -> Result<Issued, CertificateError> {
        let key = KeyPair::generate()?;
        let subject = names.first().copied().unwrap_or_default();
        let mut params = params(names.iter().map(|name| (*name).to_owned()).collect(), subject, lifetime)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Python's strict verification demands it.
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate, key })
    }
}

/// A server's certificate and its key.
#[derive(Debug)]
pub struct Issued {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Issued {
    /// Returns the certificate as PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        self.certificate.pem()
    }

    /// Returns the key as PEM.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Returns both for a server of rustls.
    ///
    /// # Errors
    /// Never with keys of this crate.
    pub fn certified_key(&self, provider: &CryptoProvider) -> Result<CertifiedKey, CertificateError> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        Ok(CertifiedKey::from_der(vec![self.certificate.der().clone()], key, provider)?)
    }
}

/// Reads a certificate, followed by those of intermediate authorities, and its key from PEM texts.
///
/// # Errors
/// A text is not PEM, or the key is not that of the first certificate.
pub fn certified_key(
    chain: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, CertificateError> {
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| CertificateError::Pem { wanted: "a private key", error })?;
    Ok(CertifiedKey::from_der(certificates(chain)?, key, provider)?)
}

/// Reads all certificates of a PEM text, which has at least one.
///
/// # Errors
/// The text is damaged, or has no certificate.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let damaged = |error| CertificateError::Pem { wanted: "certificates", error };
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(damaged)?;
    if certificates.is_empty() {
        return Err(damaged(PemError::NoItemsFound));
    }
    Ok(certificates)
}

/// Returns from when until when the first certificate of a PEM text is valid.
///
/// # Errors
/// The text is damaged, or has no certificate.
pub fn validity(pem: &[u8]) -> Result<(OffsetDateTime, OffsetDateTime), CertificateError> {
    let first = certificates(pem)?.swap_remove(0);
    let (_, certificate) = x509_parser::parse_x509_certificate(&first)
        .map_err(|_| CertificateError::Make(rcgen::Error::CouldNotParseCertificate))?;
    let validity = certificate.validity();
    Ok((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
}

fn params(
    names: Vec<String>,
    common_name: &str,
    lifetime: Duration,
) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    // The field takes 64 characters; servers are known by the other names.
    let common_name: String = common_name.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_TOLERANCE;
    params.not_after = now + lifetime;
    Ok(params)
}

/// Permits a domain, and no address.
fn only_below(domain: &str) -> NameConstraints {
    let no_address = [CidrSubnet::from_v4_prefix([0; 4], 0), CidrSubnet::from_v6_prefix([0; 16], 0)];
    NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(domain.to_owned())],
        excluded_subtrees: no_address.map(GeneralSubtree::IpAddress).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{ServerName, UnixTime};
    use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

    use super::*;

    const YEAR: Duration = Duration::days(365);

    fn is_trusted(authority: &Authority, issued: &Issued, name: &str) -> bool {
        let root = certificates(authority.certificate_pem().as_bytes()).unwrap().remove(0);
        let anchors = [anchor_from_trusted_cert(&root).unwrap()];
        let certificate = EndEntityCert::try_from(issued.certificate.der()).unwrap();
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        let usage = KeyUsage::server_auth();
        let now = UnixTime::now();
        certificate.verify_for_usage(algorithms, &anchors, &[], now, usage, None, None).is_ok()
            && certificate.verify_is_valid_for_subject_name(&ServerName::try_from(name).unwrap()).is_ok()
    }

    #[test]
    fn an_authority_survives_its_files_and_signs_for_its_domain_alone() {
        let made = Authority::create("Test", Names::Domain("example.org"), 10 * YEAR).unwrap();
        let authority = Authority::from_pem(made.certificate_pem(), &made.key_pem()).unwrap();
        let issued = authority.issue(&["example.org", "*.example.org"], YEAR).unwrap();
        for name in ["example.org", "api.example.org", "49983-iabc.example.org"] {
            assert!(is_trusted(&made, &issued, name), "{name}");
        }
        assert!(!is_trusted(&made, &issued, "example.com"));
        for names in
            [&["example.com"][..], &["badexample.org"], &["192.0.2.1"], &["*.example.org", "127.0.0.1"]]
        {
            let issued = authority.issue(names, YEAR).unwrap();
            assert!(!is_trusted(&made, &issued, names[0].trim_start_matches("*.")), "{names:?}");
        }
    }

    #[test]
    fn an_authority_without_limits_signs_for_names_and_addresses() {
        let authority = Authority::create("Test", Names::Any, YEAR).unwrap();
        let issued = authority.issue(&["a.example", "192.0.2.1", "2001:db8::1"], YEAR).unwrap();
        for name in ["a.example", "192.0.2.1", "2001:db8::1"] {
            assert!(is_trusted(&authority, &issued, name), "{name}");
        }
    }

    #[test]
    fn the_validity_of_certificates_is_read() {
        let authority = Authority::create("Test", Names::Any, YEAR).unwrap();
        let (begin, end) = validity(authority.certificate_pem().as_bytes()).unwrap();
        let now = OffsetDateTime::now_utc();
        assert!(begin < now && end > now + Duration::days(364) && end < now + Duration::days(366));
        assert!(validity(b"nothing").is_err());
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let provider = rustls::crypto::ring::default_provider();
        let authority = Authority::create("Test", Names::Any, YEAR).unwrap();
        let [one, two] = ["one", "two"].map(|name| authority.issue(&[name], YEAR).unwrap());
        let read = |chain: &str, key: &str| certified_key(chain.as_bytes(), key.as_bytes(), &provider);
        assert!(read(&one.certificate_pem(), &one.key_pem()).is_ok());
        assert!(one.certified_key(&provider).is_ok());
        let error = read(&one.certificate_pem(), &two.key_pem()).unwrap_err().to_string();
        assert!(error.starts_with("certificate and key cannot be used together"), "{error}");
        let error = read(&one.key_pem(), &one.key_pem()).unwrap_err().to_string();
        assert!(error.starts_with("not a PEM file with certificates"), "{error}");
    }
}
