use mesh::ca::{Issued, Request};
use mesh::tls::TlsConfig;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::*;

const DAY: Duration = Duration::from_hours(24);

fn pair() -> Pair {
    let made = Ca::new(DAY * 90).unwrap();
    Pair {
        certificate: made.certificate().to_owned(),
        key: made.key().clone(),
    }
}

fn secret(data: BTreeMap<String, ByteString>) -> KubeSecret {
    KubeSecret {
        data: Some(data),
        ..KubeSecret::default()
    }
}

/// Whether somebody who trusts `bundle` can use what `signer` signs.
fn is_good(signer: &Signer, bundle: &str) -> bool {
    let request = Request::new().unwrap();
    let identity = Identity::node("c1", "i-1");
    let leaf = signer.sign(&request.der, &identity, &[], DAY).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let issued = Issued {
        ca: bundle.to_owned(),
        certificate: leaf.chain,
        key: request.key,
    };
    issued.write(dir.path()).unwrap();
    let loaded = TlsMaterial::load(&TlsConfig::in_dir(dir.path()));
    loaded.is_ok_and(|material| material.identity() == identity)
}

#[test]
fn secret_is_read_back_as_it_was_kept() {
    let step = UNIX_EPOCH.checked_add(Duration::from_millis(1_234_567));
    let kept = Kept {
        current: Some(pair()),
        next: Some(pair()),
        old: vec![format!("{}\n", pair().certificate.trim())],
        step,
    };

    assert_eq!(own(&secret(data(&kept))).unwrap(), kept);
    assert_eq!(own(&secret(BTreeMap::new())).unwrap(), Kept::default());
}

#[test]
fn secret_with_half_a_pair_is_refused() {
    let kept = Kept {
        current: Some(pair()),
        ..Kept::default()
    };
    for missing in [KEY, CERTIFICATE] {
        let mut data = data(&kept);
        data.remove(missing);

        let why = own(&secret(data.clone())).unwrap_err().to_string();
        assert!(why.contains(missing), "{why}");
        assert!(foreign(&secret(data)).is_err());
    }
}

#[test]
fn certificates_of_both_authorities_are_good_while_one_follows_the_other() {
    let (before, after) = (pair(), pair());
    let kept = Kept {
        current: Some(before.clone()),
        next: Some(after.clone()),
        ..Kept::default()
    };
    let switched = Kept {
        current: Some(after.clone()),
        next: None,
        old: vec![before.certificate.clone()],
        step: None,
    };
    let (old, new) = (
        Signer::new(before, kept.bundle()).unwrap(),
        Signer::new(after, switched.bundle()).unwrap(),
    );

    for bundle in [kept.bundle(), switched.bundle()] {
        assert!(is_good(&old, &bundle) && is_good(&new, &bundle));
    }
    assert!(!is_good(&old, &pair().certificate));
}

#[test]
fn certificate_ends_with_its_authority() {
    let made = Ca::new(DAY).unwrap();
    let pair = Pair {
        certificate: made.certificate().to_owned(),
        key: made.key().clone(),
    };
    let signer = Signer::new(pair.clone(), pair.certificate).unwrap();

    let request = Request::new().unwrap();
    let leaf = signer.sign(&request.der, &Identity::gateway("g"), &[], DAY * 30);

    assert_eq!(leaf.unwrap().not_after, signer.not_after);
}

#[test]
fn intermediate_of_somebody_else_is_shown_with_what_it_signs() {
    let authority = |of: Option<&Issuer<'_, KeyPair>>| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let name = if of.is_some() { "below" } else { "root" };
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let made = match of {
            Some(issuer) => params.signed_by(&key, issuer).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        (made.pem(), key.serialize_pem(), Issuer::new(params, key))
    };
    let (root, _, issuer) = authority(None);
    let (below, key, _) = authority(Some(&issuer));
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let data = [(CERTIFICATE, &below), (KEY, &key), (TRUST, &root)];
    let data = data.map(|(key, text)| (key.to_owned(), bytes(text)));

    let (pair, bundle) = foreign(&secret(data.into())).unwrap();
    let signer = Signer::new(pair, bundle).unwrap();

    assert_eq!(signer.bundle.trim(), root.trim());
    assert!(is_good(&signer, &root));
    assert!(!is_good(&signer, &self::pair().certificate));
}
