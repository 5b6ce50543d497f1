//! The connection to one member.

use std::time::Duration;

use etcd_client as etcd;
use tonic::transport::Endpoint;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::CALL_DEADLINE;

/// Connecting may take so long, in milliseconds.
const CONNECT_MS: u64 = 300;

/// A connection on which nothing came for so long, in milliseconds, is asked whether it still lives,
/// and given up after as long again.
const KEEP_ALIVE_MS: u64 = 1_000;

/// Who is on the other end of a connection to etcd.
#[derive(Debug, Clone)]
pub enum Security {
    /// Both sides show certificates; the server's must carry the name or address it is dialled by.
    MutualTls(mesh::tls::TlsMaterial),
    /// Nobody is checked and nothing is hidden: for a test that started its own etcd.
    Insecure,
}

/// Settings that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// None given.
    #[error("no etcd endpoint is given")]
    NoEndpoints,
    /// This one is wrong.
    #[error("etcd endpoint {endpoint:?}: {why}")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A channel to the member at `url`; connects when first used.
pub(super) fn channel(url: &str, security: &Security) -> Result<etcd::Channel, SettingsError> {
    let wrong = |why: String| SettingsError::Endpoint {
        endpoint: url.to_owned(),
        why,
    };
    match security {
        Security::MutualTls(tls) => {
            let target = url
                .strip_prefix("https://")
                .ok_or_else(|| wrong("must begin with https:// where TLS is set up".to_owned()))?;
            let bad = |err: mesh::client::BadTarget| wrong(err.to_string());
            let expect = mesh::client::expect_name(target).map_err(bad)?;
            let params = mesh::client::Params {
                connect_ms: CONNECT_MS,
                deadline_ms: u64::try_from(CALL_DEADLINE.as_millis()).unwrap_or(u64::MAX),
                keepalive_ms: KEEP_ALIVE_MS,
                keepalive_timeout_ms: KEEP_ALIVE_MS,
            };
            let channel = mesh::client::Channel::tcp(target, tls.clone(), expect, &params)
                .map_err(bad)?
                .map_err(tower::BoxError::from);
            Ok(etcd::Channel::Custom(BoxCloneSyncService::new(channel)))
        }
        Security::Insecure => {
            if !url.starts_with("http://") {
                return Err(wrong(
                    "must begin with http:// where no TLS is set up".to_owned(),
                ));
            }
            let endpoint = Endpoint::from_shared(url.to_owned())
                .map_err(|err| wrong(err.to_string()))?
                .connect_timeout(Duration::from_millis(CONNECT_MS))
                .http2_keep_alive_interval(Duration::from_millis(KEEP_ALIVE_MS))
                .keep_alive_timeout(Duration::from_millis(KEEP_ALIVE_MS))
                .keep_alive_while_idle(true)
                .tcp_nodelay(true);
            Ok(etcd::Channel::Tonic(endpoint.connect_lazy()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn plain_channel_to_an_https_url_is_refused_with_the_url() {
        let err = channel("https://10.0.0.1:2379", &Security::Insecure).unwrap_err();

        assert!(err.to_string().contains("https://10.0.0.1:2379"), "{err}");
    }
}
