//! The store of certificate authorities that Java reads on Debian, in the format JKS: Java looks at nothing else, no variable and no bundle.
//!
//! The format, in network byte order: `feedfeed`, version 2, the number of entries; each entry: its kind (2 is a trusted certificate), a
//! name, a date in milliseconds, the text "X.509", the certificate. Strings have their length before them in 2 bytes, certificates in 4.
//! At the end is a SHA-1 of the password, a fixed text and all of it (`sun.security.provider.JavaKeyStore`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

const MAGIC: [u8; 8] = [0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2];
const TRUSTED: [u8; 4] = [0, 0, 0, 2];
const X509: &[u8] = b"X.509";
/// Names of our entries begin with it.
const OURS: &[u8] = b"e2b-ca";
/// The password of every store that Debian makes.
const PASSWORD: &[u8] = b"changeit";
const WHITENER: &[u8] = b"Mighty Aphrodite";
const DIGEST: usize = 20;

/// Returns the store with these authorities (PEM) in place of those of an earlier call; `None` if nothing is to be changed, because they are in
/// it, or because it is not a store of authorities alone in this format with the usual password.
pub fn with_authorities(store: &[u8], pem: &str) -> Option<Vec<u8>> {
    let wanted = certificates(pem);
    let (body, digest) = store.split_at_checked(store.len().checked_sub(DIGEST)?)?;
    let (present, others): (Vec<Entry<'_>>, Vec<Entry<'_>>) =
        entries(body)?.into_iter().partition(|entry| entry.name.starts_with(OURS));
    let is_installed = present.iter().map(|entry| entry.certificate).eq(wanted.iter().map(Vec::as_slice));
    if is_installed || checksum(body) != digest {
        return None;
    }
    let mut new = MAGIC.to_vec();
    new.extend_from_slice(&u32::try_from(others.len() + wanted.len()).ok()?.to_be_bytes());
    for entry in others {
        new.extend_from_slice(entry.whole);
    }
    for (at, certificate) in wanted.iter().enumerate() {
        append(&mut new, &[OURS, b"-", at.to_string().as_bytes()].concat(), certificate)?;
    }
    let digest = checksum(&new);
    new.extend_from_slice(&digest);
    Some(new)
}

struct Entry<'store> {
    name: &'store [u8],
    certificate: &'store [u8],
    whole: &'store [u8],
}

/// Reads all entries; `None` if there is any that is no trusted certificate.
fn entries(body: &[u8]) -> Option<Vec<Entry<'_>>> {
    let mut rest = body.strip_prefix(&MAGIC)?;
    let count = u32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
    let mut entries = Vec::new();
    for _ in 0..count {
        let start = rest;
        rest = rest.strip_prefix(&TRUSTED)?;
        let name = text(&mut rest)?;
        take(&mut rest, 8)?;
        if text(&mut rest)? != X509 {
            return None;
        }
        let length = u32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
        let certificate = take(&mut rest, usize::try_from(length).ok()?)?;
        entries.push(Entry { name, certificate, whole: &start[..start.len() - rest.len()] });
    }
    rest.is_empty().then_some(entries)
}

fn take<'store>(rest: &mut &'store [u8], length: usize) -> Option<&'store [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

fn text<'store>(rest: &mut &'store [u8]) -> Option<&'store [u8]> {
    let length = u16::from_be_bytes(take(rest, 2)?.try_into().ok()?);
    take(rest, length.into())
}

fn append(store: &mut Vec<u8>, name: &[u8], certificate: &[u8]) -> Option<()> {
    const NO_DATE: [u8; 8] = [0; 8];
    store.extend_from_slice(&TRUSTED);
    for text in [name, X509] {
        store.extend_from_slice(&u16::try_from(text.len()).ok()?.to_be_bytes());
        store.extend_from_slice(text);
        if text == name {
            store.extend_from_slice(&NO_DATE);
        }
    }
    store.extend_from_slice(&u32::try_from(certificate.len()).ok()?.to_be_bytes());
    store.extend_from_slice(certificate);
    Some(())
}

fn checksum(body: &[u8]) -> [u8; DIGEST] {
    let mut hash = Sha1::new();
    for byte in PASSWORD {
        hash.update([0, *byte]);
    }
    hash.update(WHITENER);
    hash.update(body);
    hash.finalize().into()
}

/// The certificates of a PEM text, as DER.
fn certificates(pem: &str) -> Vec<Vec<u8>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    let blocks = pem.split(BEGIN).skip(1).filter_map(|block| block.split_once("-----END CERTIFICATE-----"));
    blocks
        .filter_map(|(block, _)| STANDARD.decode(block.split_ascii_whitespace().collect::<String>()).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pem(certificates: &[&[u8]]) -> String {
        let block = |der: &&[u8]| {
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
        };
        certificates.iter().map(block).collect()
    }

    fn store(entries: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut store = MAGIC.to_vec();
        store.extend_from_slice(&u32::try_from(entries.len()).unwrap().to_be_bytes());
        for (name, certificate) in entries {
            append(&mut store, name, certificate).unwrap();
        }
        let digest = checksum(&store);
        store.extend_from_slice(&digest);
        store
    }

    #[test]
    fn authorities_are_replaced_not_accumulated() {
        let debian = store(&[(b"debian:one.pem", b"ONE")]);
        let with = with_authorities(&debian, &pem(&[b"A", b"B"])).unwrap();
        assert_eq!(with, store(&[(b"debian:one.pem", b"ONE"), (b"e2b-ca-0", b"A"), (b"e2b-ca-1", b"B")]));
        assert_eq!(with_authorities(&with, &pem(&[b"A", b"B"])), None);
        let next = with_authorities(&with, &pem(&[b"C"])).unwrap();
        assert_eq!(next, store(&[(b"debian:one.pem", b"ONE"), (b"e2b-ca-0", b"C")]));
    }

    #[test]
    fn other_stores_are_left_alone() {
        let debian = store(&[(b"debian:one.pem", b"ONE")]);
        let mut other_password = debian.clone();
        *other_password.last_mut().unwrap() ^= 1;
        let mut with_a_key = debian.clone();
        with_a_key[15] = 1;
        for left in [&other_password[..], &with_a_key, &debian[..debian.len() - 1], b"", b"PKCS12, say"] {
            assert_eq!(with_authorities(left, &pem(&[b"A"])), None);
        }
    }

    proptest! {
        #[test]
        fn anything_may_be_in_its_place(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), valid in any::<bool>()) {
            if valid {
                bytes.splice(0..0, MAGIC);
                let digest = checksum(&bytes);
                bytes.extend_from_slice(&digest);
            }
            let _ = with_authorities(&bytes, "");
        }
    }
}
