//! Who is trusted, and until when everything is valid.

use std::time::UNIX_EPOCH;

use mesh::tls::lifetime::Lifetime;

use crate::status::judge::{Area, Level, Line, duration};
use crate::status::picture::{NODE, Picture, Scrape};

/// An authority that ends within this is to be renewed, in seconds.
const AUTHORITY_SOON: i64 = 14 * 86_400;
/// A certificate that ends within this was not renewed, in seconds: the shortest life is two hours, of which forty
/// minutes are left when it should be.
const SOON: i64 = 30 * 60;

pub(super) fn judge(picture: &Picture, lines: &mut Vec<Line>) {
    trust(picture, lines);
    for scrape in &picture.scrapes {
        if let Some(left) = left(picture, scrape) {
            let line = of_pod(scrape, left);
            // Nodes are many.
            if line.level != Level::Good || scrape.component != NODE {
                lines.push(line);
            }
        }
    }
}

fn trust(picture: &Picture, lines: &mut Vec<Line>) {
    // Without the ConfigMap certificates come from elsewhere.
    let Some(trust) = &picture.trust else {
        return;
    };
    let subject = format!("configmap {}", trust.metadata.name);
    let bundle = trust.data.get("ca.crt").map_or("", String::as_str);
    let now = picture.now.as_second();
    let ends: Vec<i64> = certificates(bundle)
        .filter_map(|pem| Lifetime::of_pem(pem.as_bytes()))
        .filter_map(|life| life.not_after.duration_since(UNIX_EPOCH).ok())
        .filter_map(|end| i64::try_from(end.as_secs()).ok())
        .map(|end| end - now)
        .collect();
    // While authorities change there are two, and the older one may be at its end.
    let Some(left) = ends.iter().max() else {
        let what = "no authority in it";
        lines.push(Line::fault(
            Area::Certificates,
            Level::Bad,
            "TrustEmpty",
            subject,
            what,
        ));
        return;
    };
    if *left <= 0 {
        let what = format!("the authority ended {} ago", duration(-left));
        lines.push(Line::fault(
            Area::Certificates,
            Level::Bad,
            "CertificateExpired",
            subject,
            what,
        ));
    } else if *left < AUTHORITY_SOON {
        let what = format!("the authority ends in {}", duration(*left));
        lines.push(Line::fault(
            Area::Certificates,
            Level::Note,
            "AuthorityEndsSoon",
            subject,
            what,
        ));
    } else {
        let what = format!(
            "{} trusted, the last ends in {}",
            ends.len(),
            duration(*left)
        );
        lines.push(Line::good(Area::Certificates, subject, what));
    }
}

/// The certificates of a bundle, each by itself.
fn certificates(bundle: &str) -> impl Iterator<Item = &str> {
    bundle.split_inclusive("-----END CERTIFICATE-----")
}

/// Seconds until the certificate of a pod ends.
fn left(picture: &Picture, scrape: &Scrape) -> Option<i64> {
    let samples = scrape.samples.as_ref().ok()?;
    let end = samples
        .iter()
        .find(|sample| sample.name == "terway_tls_cert_not_after_seconds")?;
    // Whole seconds of this century fit.
    let end = std::time::Duration::try_from_secs_f64(end.value).ok()?;
    Some(i64::try_from(end.as_secs()).ok()? - picture.now.as_second())
}

fn of_pod(scrape: &Scrape, left: i64) -> Line {
    let subject = format!("pod {}", scrape.pod);
    if left <= 0 {
        let what = format!("its certificate ended {} ago", duration(-left));
        Line::fault(
            Area::Certificates,
            Level::Bad,
            "CertificateExpired",
            subject,
            what,
        )
    } else if left < SOON {
        let what = format!("its certificate ends in {}", duration(left));
        Line::fault(
            Area::Certificates,
            Level::Note,
            "CertificateEndsSoon",
            subject,
            what,
        )
    } else {
        let what = format!("certificate valid for {}", duration(left));
        Line::good(Area::Certificates, subject, what)
    }
}
