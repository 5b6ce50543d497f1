//! Keeps credentials fresh: looks ahead of their end, and holds the old ones for as long as they are good.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ecs_api::sign::Credentials;
use mesh::backoff::{Backoff, Params as BackoffParams};
use mesh::health::Condition;
use rand::RngExt;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{CredentialError, Issued, Source};
use crate::metrics::Metrics;
use crate::place::Place;

/// Longest look at a source.
const LOOK_WITHIN: Duration = Duration::from_secs(30);
/// Shortest time between two looks: many calls that are refused together must not be many looks.
const APART: Duration = Duration::from_secs(1);
/// Waits after a look that failed.
const AGAIN: BackoffParams = BackoffParams {
    first_ms: 500,
    max_ms: 30_000,
};
/// Looks are early by up to this part of their wait, so that replicas do not come together.
const EARLY_PART: u128 = 10;

/// How often a source is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rhythm {
    /// A file, that somebody else renews.
    Every(Duration),
    /// So long before the end. What has no end is looked at once an hour.
    Ahead(Duration),
}

/// There is nothing to sign with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no credentials: {why}")]
pub struct NoCredentials {
    /// Which source, and what is wrong with it.
    pub why: String,
}

#[derive(Debug)]
enum Kept {
    Nothing { why: String },
    Good(Arc<Credentials>, Option<Instant>),
}

/// The credentials of this process.
#[derive(Debug)]
pub struct Keeper {
    source: Box<dyn Source>,
    place: Place,
    rhythm: Rhythm,
    kept: ArcSwap<Kept>,
    /// When the source was looked at last.
    looked: Mutex<Instant>,
    ready: Condition,
    metrics: Arc<Metrics>,
}

impl Keeper {
    /// Looks at the source once. If it has nothing, `ready` is unmet and says why, and so does every call.
    pub async fn open(
        source: Box<dyn Source>,
        place: Place,
        rhythm: Rhythm,
        ready: Condition,
        metrics: Arc<Metrics>,
    ) -> Self {
        let why = format!("{place}: not looked at yet");
        let keeper = Self {
            source,
            place,
            rhythm,
            kept: ArcSwap::from_pointee(Kept::Nothing { why }),
            looked: Mutex::new(Instant::now()),
            ready,
            metrics,
        };
        let mut looked = keeper.looked.lock().await;
        keeper.look().await;
        *looked = Instant::now();
        drop(looked);
        keeper
    }

    /// The credentials to sign with.
    ///
    /// # Errors
    /// [`NoCredentials`] when the source never gave any, or those it gave have ended.
    pub fn current(&self) -> Result<Arc<Credentials>, NoCredentials> {
        match &**self.kept.load() {
            Kept::Good(credentials, until) if until.is_none_or(|end| Instant::now() < end) => {
                Ok(Arc::clone(credentials))
            }
            Kept::Good(..) => Err(NoCredentials {
                why: format!("{}: they have ended and were not renewed", self.place),
            }),
            Kept::Nothing { why } => Err(NoCredentials { why: why.clone() }),
        }
    }

    /// The cloud refused `used`. Looks at the source at once; whether there are other credentials now.
    pub async fn renewed_since(&self, used: &Credentials) -> bool {
        let mut looked = self.looked.lock().await;
        if self.is_current(used) && looked.elapsed() >= self.apart() {
            self.look().await;
            *looked = Instant::now();
        }
        drop(looked);
        !self.is_current(used)
    }

    /// Files may be looked at for every refusal; who answers over a network may not.
    fn apart(&self) -> Duration {
        match self.rhythm {
            Rhythm::Every(_) => Duration::ZERO,
            Rhythm::Ahead(_) => APART,
        }
    }

    /// Renews until `stop` is cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut backoff = Backoff::try_new(AGAIN).unwrap_or_default();
        let mut good = self.current().is_ok();
        loop {
            let wait = if good {
                backoff.reset();
                self.next_look()
            } else {
                self.until_end(backoff.next_wait())
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let mut looked = self.looked.lock().await;
            good = self.look().await;
            *looked = Instant::now();
        }
    }

    /// When the source is to be looked at again after it gave something.
    fn next_look(&self) -> Duration {
        let due = match self.rhythm {
            Rhythm::Every(every) => every,
            Rhythm::Ahead(ahead) => match self.left() {
                None => Duration::from_hours(1),
                Some(left) if left > ahead * 2 => left.saturating_sub(ahead),
                // Short lives, and sources that give the old ones again.
                Some(left) => (left / 2).max(APART),
            },
        };
        let most = u64::try_from(due.as_millis() / EARLY_PART).unwrap_or(u64::MAX);
        let early = rand::rng().random_range(0..=most);
        self.until_end(due.saturating_sub(Duration::from_millis(early)))
    }

    /// Never sleeps over the end: readiness changes with it.
    fn until_end(&self, wait: Duration) -> Duration {
        match self.left() {
            Some(left) if !left.is_zero() => wait.min(left),
            Some(_) | None => wait,
        }
    }

    fn left(&self) -> Option<Duration> {
        match &**self.kept.load() {
            Kept::Good(_, until) => until.map(|end| end.saturating_duration_since(Instant::now())),
            Kept::Nothing { .. } => None,
        }
    }

    fn is_current(&self, used: &Credentials) -> bool {
        match &**self.kept.load() {
            Kept::Good(now, _) => same(now, used),
            Kept::Nothing { .. } => true,
        }
    }

    /// One look at the source; whether it gave something. The old ones stay until their end.
    async fn look(&self) -> bool {
        let fetched = tokio::time::timeout(LOOK_WITHIN, self.source.fetch()).await;
        let fetched = fetched.unwrap_or_else(|_| {
            Err(CredentialError::Unreachable {
                what: self.place.at.clone(),
                why: format!("no answer within {} s", LOOK_WITHIN.as_secs()),
            })
        });
        let good = match fetched {
            Ok(issued) => {
                self.keep(issued);
                true
            }
            Err(error) => {
                self.metrics.credentials(false);
                let why = format!("{}: {error}", self.place);
                if self.current().is_ok() {
                    tracing::warn!(why, "credentials kept, they could not be renewed");
                } else {
                    tracing::warn!(why, "there are no credentials");
                    self.kept.store(Arc::new(Kept::Nothing { why }));
                }
                false
            }
        };
        self.show();
        good
    }

    fn keep(&self, issued: Issued) {
        let Issued { credentials, left } = issued;
        let until = left.and_then(|left| Instant::now().checked_add(left));
        let known = match &**self.kept.load() {
            Kept::Good(now, _) => same(now, &credentials),
            Kept::Nothing { .. } => false,
        };
        if !known {
            tracing::info!(
                access_key_id = credentials.access_key_id,
                left_s = left.map(|left| left.as_secs()),
                "other credentials read"
            );
            self.metrics.credentials(true);
        }
        self.kept
            .store(Arc::new(Kept::Good(Arc::new(credentials), until)));
    }

    fn show(&self) {
        match self.current() {
            Ok(_) => self.ready.met(),
            Err(none) => self.ready.unmet(&none.to_string()),
        }
        let end = self.left().map(|left| {
            let ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            mesh::clock::wall_ms().saturating_add(ms) / 1_000
        });
        self.metrics
            .credentials_usable(&self.place, self.current().is_ok(), end);
    }
}

fn same(a: &Credentials, b: &Credentials) -> bool {
    a.access_key_id == b.access_key_id && a.secret() == b.secret() && a.token() == b.token()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex as StdMutex;

    use async_trait::async_trait;
    use mesh::drain::Drain;
    use mesh::health::Health;
    use mesh::tasks::Tasks;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const TEN: Duration = Duration::from_mins(10);
    /// When renewal is due.
    const AHEAD: Duration = Duration::from_mins(50);
    /// Five seconds before the end.
    const NEARLY: Duration = Duration::from_secs(3_595);

    /// Number and life of the credentials to give, or a failure.
    type Said = Option<(u32, Duration)>;

    /// Gives what it is told to; then fails.
    #[derive(Debug, Clone, Default)]
    struct Script {
        answers: Arc<StdMutex<VecDeque<Said>>>,
        asked: Arc<StdMutex<Vec<Instant>>>,
    }

    impl Script {
        fn say(&self, answer: Said) {
            self.answers.lock().unwrap().push_back(answer);
        }

        fn asked(&self) -> Vec<Instant> {
            self.asked.lock().unwrap().clone()
        }
    }

    #[async_trait]
    impl Source for Script {
        async fn fetch(&self) -> Result<Issued, CredentialError> {
            self.asked.lock().unwrap().push(Instant::now());
            let answer = self.answers.lock().unwrap().pop_front().flatten();
            let (n, left) = answer.ok_or_else(|| CredentialError::Unreachable {
                what: "the source".to_owned(),
                why: "it is away".to_owned(),
            })?;
            Ok(Issued {
                credentials: Credentials::temporary(&format!("id-{n}"), "hush", "token"),
                left: Some(left),
            })
        }
    }

    struct Lab {
        script: Script,
        keeper: Arc<Keeper>,
        health: Health,
        stop: CancellationToken,
    }

    impl Lab {
        /// A keeper that runs, after its first look.
        async fn new(first: Said) -> Self {
            let script = Script::default();
            script.say(first);
            let health = Health::new();
            let place = Place {
                key: "credentials.oidc",
                at: "https://sts.example".to_owned(),
                secret: Some("my-secret".to_owned()),
            };
            let keeper = Keeper::open(
                Box::new(script.clone()),
                place,
                Rhythm::Ahead(TEN),
                health.condition("credentials"),
                Arc::new(Metrics::default()),
            );
            let keeper = Arc::new(keeper.await);
            let stop = CancellationToken::new();
            let tasks = Tasks::new(Drain::new());
            tasks.spawn_once("keeper", Arc::clone(&keeper).run(stop.clone()));
            Self {
                script,
                keeper,
                health,
                stop,
            }
        }

        fn id(&self) -> Result<String, String> {
            let current = self.keeper.current();
            current
                .map(|credentials| credentials.access_key_id.clone())
                .map_err(|none| none.to_string())
        }

        fn complaint(&self) -> String {
            let unmet = self.health.unmet();
            unmet.into_iter().map(|(_, why)| why).collect()
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_are_renewed_ahead_of_their_end_and_not_much_sooner() {
        let lab = Lab::new(Some((1, HOUR))).await;
        let began = Instant::now();
        lab.script.say(Some((2, HOUR)));

        tokio::time::sleep(AHEAD + Duration::from_secs(1)).await;

        assert_eq!(lab.id(), Ok("id-2".to_owned()));
        let renewed = lab.script.asked()[1] - began;
        assert!(renewed >= AHEAD * 9 / 10, "{renewed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn failed_renewal_keeps_the_old_ones_to_their_end_and_then_says_why_there_are_none() {
        let lab = Lab::new(Some((1, HOUR))).await;

        tokio::time::sleep(NEARLY).await;
        let tries = lab.script.asked().len();
        let before = (lab.id(), lab.health.is_ready());
        tokio::time::sleep(Duration::from_mins(1)).await;
        let after = lab.id().unwrap_err();

        assert_eq!(before, (Ok("id-1".to_owned()), true));
        assert!((4..90).contains(&tries), "{tries} tries in ten minutes");
        for text in [after, lab.complaint()] {
            for word in ["credentials.oidc", "it is away", "my-secret"] {
                assert!(text.contains(word), "{word}: {text}");
            }
        }
        assert!(!lab.health.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn source_that_comes_back_makes_the_process_ready_again() {
        let lab = Lab::new(None).await;
        assert!(!lab.health.is_ready() && lab.id().is_err());

        lab.script.say(Some((1, HOUR)));
        tokio::time::timeout(Duration::from_mins(1), lab.health.until_ready())
            .await
            .unwrap();

        assert_eq!(lab.id(), Ok("id-1".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn refused_credentials_are_looked_up_at_once_but_not_by_everybody() {
        let lab = Lab::new(Some((1, HOUR))).await;
        let used = lab.keeper.current().unwrap();
        tokio::time::sleep(APART).await;
        lab.script.say(Some((2, HOUR)));

        let renewed = lab.keeper.renewed_since(&used).await;
        let again = lab.keeper.current().unwrap();
        let more = (0..10).map(|_| lab.keeper.renewed_since(&again));
        let more: Vec<bool> = futures::future::join_all(more).await;

        assert!(renewed && !more.contains(&true), "{more:?}");
        assert_eq!(lab.script.asked().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn source_that_gives_the_same_short_life_again_is_not_asked_without_pause() {
        let lab = Lab::new(Some((1, Duration::from_secs(8)))).await;
        for _ in 0..200 {
            lab.script.say(Some((1, Duration::from_secs(8))));
        }

        tokio::time::sleep(Duration::from_mins(1)).await;

        let asked = lab.script.asked().len();
        assert!((13..25).contains(&asked), "{asked} looks in a minute");
    }

    #[test]
    fn keeper_in_debug_output_hides_the_secret() {
        let kept = Kept::Good(
            Arc::new(Credentials::temporary("id-1", "hush", "hush")),
            None,
        );

        let text = format!("{kept:?}");

        assert!(text.contains("id-1") && !text.contains("hush"), "{text}");
    }
}
