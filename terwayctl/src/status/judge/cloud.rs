//! Credentials and what the cloud refuses, as the gateway counts it.

use std::collections::BTreeMap;

use crate::status::advice;
use crate::status::judge::{Area, Level, Line};
use crate::status::picture::Picture;
use crate::status::samples::Sample;

pub(super) fn judge(picture: &Picture, lines: &mut Vec<Line>) {
    let gateways = || {
        picture
            .scrapes
            .iter()
            .filter(|scrape| scrape.component == "gateway")
    };
    for scrape in gateways() {
        let subject = format!("pod {}", scrape.pod);
        match &scrape.samples {
            Ok(samples) => lines.push(credentials(subject, samples)),
            Err(why) => lines.push(Line::fault(
                Area::Cloud,
                Level::Unseen,
                "NotLookedAt",
                format!("metrics of {}", scrape.pod),
                why,
            )),
        }
    }
    let all = gateways()
        .filter_map(|scrape| scrape.samples.as_ref().ok())
        .flatten();
    faults(all, lines);
}

fn credentials(subject: String, samples: &[Sample]) -> Line {
    let usable = samples
        .iter()
        .find(|sample| sample.name == "terway_gateway_credentials_usable");
    let Some(usable) = usable else {
        return Line::good(
            Area::Cloud,
            subject,
            "does not say whether it has credentials",
        );
    };
    let source = usable.label("source");
    let (place, secret) = (usable.label("place"), usable.label("secret"));
    let of = if secret.is_empty() {
        String::new()
    } else {
        format!(", Secret {secret}")
    };
    if usable.value > 0.0 {
        return Line::good(Area::Cloud, subject, format!("has credentials ({source})"));
    }
    let what = format!("has no usable credentials ({source}: {place}{of})");
    Line::fault(Area::Cloud, Level::Bad, "CloudCredentials", subject, what)
}

/// Faults that people must mend, since the gateways were started: they have passed, or another line shows them.
fn faults<'a>(samples: impl Iterator<Item = &'a Sample>, lines: &mut Vec<Line>) {
    let mut counts: BTreeMap<&'static str, f64> = BTreeMap::new();
    for sample in samples.filter(|sample| sample.name == "terway_gateway_faults_total") {
        let reason = sample
            .label("reason")
            .replace("REASON_", "")
            .replace('_', "");
        if let Some(advice) = advice::of(&reason)
            && !advice.passes
            && advice.name != "NotFound"
            && sample.value > 0.0
        {
            *counts.entry(advice.name).or_default() += sample.value;
        }
    }
    for (name, count) in counts {
        let what = format!("seen {count} times since the gateways were started");
        lines.push(Line::fault(Area::Cloud, Level::Note, name, "gateway", what));
    }
}
