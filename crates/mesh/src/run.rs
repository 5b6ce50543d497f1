//! The life of a service, start to end.
//!
//! TLS provider, arguments and configuration (exit 64 when bad, before any port), telemetry and
//! the redacted effective configuration as one line, the app, then waiting: SIGTERM, SIGINT, the
//! admin port, or the death of a task. Then drain, hand-over, end of tasks, flush. A second SIGINT
//! ends at once.

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory, FromArgMatches, Parser};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{self, Invalid, Sources};
use crate::drain::Drain;
use crate::health::Health;
use crate::metrics::Registry;
use crate::server::rpc_metrics::RpcMetrics;
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;
use crate::{admin, drain, health, telemetry, tls};

/// Exit code for a bad command line or configuration.
///
/// Source: sysexits, EX_USAGE.
pub const EXIT_USAGE: u8 = 64;

/// Exit code after a second SIGINT.
///
/// Source: shells' convention, 128 + SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

/// What every service configures alike; a service embeds it in its own configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Logs and traces.
    pub telemetry: telemetry::Params,
    /// Health and metrics port.
    pub health: health::Params,
    /// Admin port.
    pub admin: admin::Params,
    /// Going away.
    pub drain: drain::Params,
}

/// A service's configuration.
///
/// Its serialised form is printed: a secret in it is a [`Secret`](crate::secret::Secret).
pub trait Settings: DeserializeOwned + Serialize + Send {
    /// What mesh needs. By habit the field is called `service`, so that keys read
    /// `service.telemetry.log_filter`.
    fn service(&self) -> &Params;

    /// Checks what types cannot say, before any port opens.
    ///
    /// # Errors
    /// [`Invalid`], naming the key.
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// What is known of a service before its configuration.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// Name of the binary, of the log lines and of the traces.
    pub name: &'static str,
    /// `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// Threads of the runtime, 1 or more. One thread costs least per call; take more where calls
    /// compute.
    pub threads: usize,
}

/// What the app is built from.
#[derive(Debug)]
pub struct Context<C> {
    /// The configuration.
    pub config: C,
    /// Where tasks are spawned; holds the drain as well.
    pub tasks: Tasks,
    /// Conditions of readiness.
    pub health: Health,
    /// Metrics.
    pub registry: Registry,
    /// Metrics of gRPC servers, registered.
    pub rpc: RpcMetrics,
    /// State dumps.
    pub admin: admin::Admin,
}

type HandOver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A built app: what remains to be done when it goes.
#[derive(Default)]
pub struct App {
    hand_over: Option<HandOver>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}

impl App {
    /// Nothing to hand over.
    pub fn new() -> Self {
        Self::default()
    }

    /// Does `work` after the last call has ended and before the tasks do: the time to give up
    /// leases. It has `drain.stop_ms`.
    #[must_use]
    pub fn on_hand_over(mut self, work: impl Future<Output = ()> + Send + 'static) -> Self {
        self.hand_over = Some(Box::pin(work));
        self
    }
}

#[derive(Debug, Parser)]
struct Args {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override of one key, such as `service.telemetry.log_filter=debug`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Check the configuration and exit
    #[arg(long)]
    check_config: bool,
}

/// Runs a service: the whole of its `main`.
pub fn main<C, F, B>(service: Service, build: F) -> ExitCode
where
    C: Settings,
    F: FnOnce(Context<C>) -> B,
    B: Future<Output = anyhow::Result<App>>,
{
    tls::install_provider();
    let matches = Args::command()
        .name(service.name)
        .version(service.version)
        .try_get_matches()
        .and_then(|matches| Args::from_arg_matches(&matches));
    let args = match matches {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let sources = Sources {
        file: args.config,
        variables: Vec::new(),
        sets: args.sets,
    };
    let config = match configure::<C>(&sources.with_environment()) {
        Ok(config) => config,
        Err(error) => {
            complain(service, &error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if args.check_config {
        // A closed standard output does not make the configuration bad.
        drop(writeln!(
            std::io::stdout(),
            "{}: configuration is good",
            service.name
        ));
        return ExitCode::SUCCESS;
    }
    match live(service, config, build) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(service, &error);
            ExitCode::FAILURE
        }
    }
}

/// Prints what clap says. Help and version are answers; anything else is bad usage.
pub fn usage(error: &clap::Error) -> ExitCode {
    // Nobody reads a closed stream.
    drop(error.print());
    if error.use_stderr() {
        ExitCode::from(EXIT_USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

fn complain(service: Service, error: &anyhow::Error) {
    // Nobody reads a closed stream.
    drop(writeln!(std::io::stderr(), "{}: {error:#}", service.name));
}

/// Reads and checks a configuration, without side effects.
///
/// # Errors
/// Whatever is wrong with it, naming the key.
pub fn configure<C: Settings>(sources: &Sources) -> anyhow::Result<C> {
    let config: C = config::load(sources)?;
    let params = config.service();
    params
        .telemetry
        .check()
        .context("configuration section \"service.telemetry\"")?;
    params
        .admin
        .check()
        .context("configuration key \"service.admin.listen\"")?;
    config.check()?;
    Ok(config)
}

fn live<C, F, B>(service: Service, config: C, build: F) -> anyhow::Result<()>
where
    C: Settings,
    F: FnOnce(Context<C>) -> B,
    B: Future<Output = anyhow::Result<App>>,
{
    let mut builder = if service.threads > 1 {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(service.threads);
        builder
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.enable_all().build().context("start the runtime")?;
    let ended = runtime.block_on(Box::pin(async move {
        let telemetry = Telemetry::install(&config.service().telemetry, service.name)
            .context("start telemetry")?;
        let ended = Box::pin(serve(service, config, build, &telemetry)).await;
        if let Err(error) = &ended {
            tracing::error!(error = format!("{error:#}"), "service failed");
        }
        telemetry.flush().await;
        ended
    }));
    // Threads that block in a system call are not waited for: what they did is durable or void.
    runtime.shutdown_background();
    ended
}

async fn serve<C, F, B>(
    service: Service,
    config: C,
    build: F,
    telemetry: &Telemetry,
) -> anyhow::Result<()>
where
    C: Settings,
    F: FnOnce(Context<C>) -> B,
    B: Future<Output = anyhow::Result<App>>,
{
    let shown = serde_json::to_value(&config).context("show the configuration")?;
    tracing::info!(service = service.name, version = service.version, config = %shown, "effective configuration");
    let mut signals = Signals::listen()?;
    let params = config.service().clone();
    let tasks = Tasks::new(Drain::new());
    let health = Health::new();
    let registry = Registry::new();
    telemetry.register(&registry);
    let admin = admin::Admin::new();
    if let Some(port) = health::Bound::open(&params.health).await? {
        tracing::info!(address = %port.address(), "health port listens");
        port.serve(health.clone(), registry.clone(), &tasks);
    }
    if let Some(port) = admin::Bound::open(&params.admin).await? {
        tracing::info!(address = %port.address(), "admin port listens");
        port.serve(admin.clone(), shown, telemetry.filter(), &tasks);
    }
    let rpc = RpcMetrics::register(&registry);
    let started = health.condition("start");
    let context = Context {
        config,
        tasks: tasks.clone(),
        health,
        registry,
        rpc,
        admin,
    };
    let app = tokio::select! {
        biased;
        why = signals.first() => {
            tracing::info!(why, "asked to end before the start was over");
            tasks.drain().stop();
            return Ok(());
        }
        death = tasks.died() => return Err(death.into()),
        app = build(context) => app.context("start")?,
    };
    started.met();
    tracing::info!("service is up");
    let ended = tokio::select! {
        biased;
        why = signals.first() => {
            tasks.drain().start(why);
            Ok(())
        }
        death = tasks.died() => {
            tasks.drain().start("a task died");
            Err(anyhow::Error::from(death))
        }
        () = tasks.drain().draining().cancelled() => Ok(()),
    };
    tokio::select! {
        biased;
        () = signals.interrupted() => exit_at_once(),
        () = go_away(app, params.drain, &tasks) => {}
    }
    ended
}

async fn go_away(app: App, params: drain::Params, tasks: &Tasks) {
    let drain = tasks.drain();
    tracing::info!(why = drain.why().unwrap_or_default(), "draining");
    if let Err(late) = drain
        .wait_unblocked(Duration::from_millis(params.grace_ms))
        .await
    {
        tracing::warn!(error = %late, "drain was cut short");
    }
    let limit = Duration::from_millis(params.stop_ms);
    if let Some(hand_over) = app.hand_over
        && tokio::time::timeout(limit, hand_over).await.is_err()
    {
        tracing::warn!("hand-over was cut short");
    }
    drain.stop();
    if !tasks.wait(limit).await {
        tracing::warn!(tasks = tasks.running(), "tasks did not end in time");
    }
    tracing::info!("service has ended");
}

#[expect(clippy::exit, reason = "a second SIGINT means: now")]
fn exit_at_once() {
    std::process::exit(EXIT_INTERRUPTED);
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn first(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    async fn interrupted(&mut self) {
        self.interrupt.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde::{Deserialize, Serialize};

    use super::{App, Context, Params, Service, Settings, configure, serve};
    use crate::config::{Invalid, Sources};
    use crate::telemetry;

    const SERVICE: Service = Service {
        name: "tester",
        version: "0",
        threads: 1,
    };

    /// Signals reach the whole process, so the tests that wait for them take turns.
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        service: Params,
        pods_max: u32,
    }

    impl Settings for Config {
        fn service(&self) -> &Params {
            &self.service
        }

        fn check(&self) -> Result<(), Invalid> {
            if self.pods_max > 100 {
                return Err(Invalid::new(
                    "pods_max",
                    format!("{} is above 100", self.pods_max),
                ));
            }
            Ok(())
        }
    }

    fn bad(set: &str) -> String {
        let sources = Sources {
            sets: vec![set.to_owned()],
            ..Sources::default()
        };
        format!("{:#}", configure::<Config>(&sources).unwrap_err())
    }

    #[test]
    fn configuration_that_makes_no_sense_names_its_key() {
        for (set, key) in [
            ("pods_max=101", "pods_max"),
            ("pods_min=1", "pods_min"),
            ("service.telemetry.sample_ratio=2", "sample_ratio"),
            ("service.admin.listen=0.0.0.0:1", "service.admin.listen"),
            ("service.health.listen=somewhere", "service.health.listen"),
            ("service.drain.grace=1", "service.drain.grace"),
        ] {
            let text = bad(set);
            assert!(text.contains(key), "{set}: {text}");
        }
    }

    async fn serve_until_it_ends<F, B>(build: F) -> anyhow::Result<()>
    where
        F: FnOnce(Context<Config>) -> B,
        B: Future<Output = anyhow::Result<App>>,
    {
        let params = telemetry::Params::default();
        let (_subscriber, telemetry) = telemetry::build(&params, "tester").unwrap();
        let serving = serve(SERVICE, Config::default(), build, &telemetry);
        tokio::time::timeout(Duration::from_secs(20), serving)
            .await
            .expect("it does not end")
    }

    #[tokio::test]
    async fn service_drains_on_sigterm_and_hands_over_before_its_tasks_end() {
        let _turn = TURN.lock().await;
        let handed_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&handed_over);

        let ended = serve_until_it_ends(|context| async move {
            let stopping = context.tasks.stopping();
            let still_runs = stopping.clone();
            context.tasks.spawn("loop", stopping.cancelled_owned());
            context.tasks.spawn_once("signal", async move {
                context.health.until_ready().await;
                kill(Pid::this(), Signal::SIGTERM).unwrap();
            });
            Ok(App::new().on_hand_over(async move {
                seen.store(!still_runs.is_cancelled(), Ordering::SeqCst);
            }))
        })
        .await;

        assert!(ended.is_ok(), "{ended:?}");
        assert!(handed_over.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn service_ends_with_a_reason_when_a_task_dies() {
        let _turn = TURN.lock().await;

        let ended = serve_until_it_ends(|context| async move {
            context
                .tasks
                .spawn_fallible("session", async { Err::<(), _>("the stream is gone") });
            Ok(App::new())
        })
        .await;

        let error = ended.unwrap_err().to_string();
        assert!(
            error.contains("session") && error.contains("the stream is gone"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn service_that_can_not_start_says_why() {
        let _turn = TURN.lock().await;

        let ended =
            serve_until_it_ends(|_| async { Err(anyhow::anyhow!("store is corrupt")) }).await;

        assert!(format!("{:#}", ended.unwrap_err()).contains("store is corrupt"));
    }
}
