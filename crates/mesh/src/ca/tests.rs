use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Authority, CaError, Issued, Leaf, Request};
use crate::identity::Identity;
use crate::tls::{TlsConfig, TlsMaterial};

const DAY: Duration = Duration::from_hours(24);

#[test]
fn issued_certificate_names_its_identity() {
    let authority = Authority::new(DAY).unwrap();
    let identity = Identity::node("c1", "i-1");

    let issued = authority
        .issue(&Leaf::new(&identity, DAY).host("10.0.0.1"))
        .unwrap();

    let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    assert_eq!(Identity::of_certificate(&der), Ok(identity));
}

#[test]
fn authority_that_is_read_back_issues_what_its_bundle_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, out) = (dir.path().join("ca"), dir.path().join("gw"));
    Authority::init(&ca, DAY).unwrap();

    let leaf = Leaf::new(&Identity::gateway("g1"), DAY);
    Authority::load(&ca)
        .unwrap()
        .issue(&leaf)
        .unwrap()
        .write(&out)
        .unwrap();

    let material = TlsMaterial::load(&TlsConfig::in_dir(&out)).unwrap();
    assert_eq!(material.identity(), Identity::gateway("g1"));
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        let mode = std::fs::metadata(out.join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(
        std::fs::read_dir(&out).unwrap().count(),
        3,
        "left-over files"
    );
}

#[test]
fn request_is_signed_for_its_key_and_named_by_the_leaf() {
    let authority = Authority::new(DAY).unwrap();
    let identity = Identity::node("c1", "i-1");
    let request = Request::new().unwrap();

    let certificate = authority
        .sign(&request.der, &Leaf::new(&identity, DAY))
        .unwrap();

    let dir = tempfile::tempdir().unwrap();
    let issued = Issued {
        ca: authority.certificate().to_owned(),
        certificate,
        key: request.key,
    };
    issued.write(dir.path()).unwrap();
    // Loading compares the key with the certificate.
    let material = TlsMaterial::load(&TlsConfig::in_dir(dir.path())).unwrap();
    assert_eq!(material.identity(), identity);
}

#[test]
fn request_that_its_key_did_not_sign_is_refused() {
    let authority = Authority::new(DAY).unwrap();
    let good = Request::new().unwrap().der;
    let leaf = Leaf::new(&Identity::node("c1", "i-1"), DAY);

    assert!(authority.sign(&good, &leaf).is_ok());
    // The signed part follows a header of three bytes and has one of two; the signature ends the whole. What lies
    // between names the algorithm.
    let signed = 0..5 + usize::from(good[4]);
    let signature = good.len() - 60..good.len();
    for at in signed.chain(signature) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let signed = authority.sign(&bad, &leaf);
        assert!(
            matches!(signed, Err(CaError::BadRequest { .. })),
            "byte {at} of {}",
            good.len()
        );
    }
    assert!(authority.sign(&[], &leaf).is_err());
}

#[test]
fn request_with_a_key_of_another_kind_is_refused() {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let request = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap();

    let signed = Authority::new(DAY)
        .unwrap()
        .sign(request.der(), &Leaf::new(&Identity::gateway("g"), DAY));

    assert!(matches!(signed, Err(CaError::BadRequest { .. })));
}

#[test]
fn authority_taken_from_its_texts_issues_what_its_bundle_accepts() {
    let made = Authority::new(DAY).unwrap();
    let taken = Authority::from_pem(made.certificate().to_owned(), made.key().clone()).unwrap();
    let dir = tempfile::tempdir().unwrap();

    let issued = taken
        .issue(&Leaf::new(&Identity::gateway("g1"), DAY))
        .unwrap();
    issued.write(dir.path()).unwrap();

    assert!(TlsMaterial::load(&TlsConfig::in_dir(dir.path())).is_ok());
    assert!(Authority::from_pem("x".to_owned(), made.key().clone()).is_err());
}

#[test]
fn second_authority_in_one_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Authority::init(dir.path(), DAY).unwrap();
    let before = std::fs::read(dir.path().join("ca.crt")).unwrap();

    let again = Authority::init(dir.path(), DAY);

    assert!(matches!(again, Err(CaError::Exists { .. })));
    assert_eq!(std::fs::read(dir.path().join("ca.crt")).unwrap(), before);
}

#[test]
fn host_that_is_no_name_is_refused() {
    let authority = Authority::new(DAY).unwrap();

    for host in ["", "a b", "-a", "a..b", "10.0.0.0/8", "ü"] {
        let issued = authority.issue(&Leaf::new(&Identity::etcd("e1"), DAY).host(host));
        assert!(matches!(issued, Err(CaError::BadName { .. })), "{host:?}");
    }
}
