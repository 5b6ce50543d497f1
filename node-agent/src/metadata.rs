//! Who am I: the instance's metadata service.
//!
//! Source: ECS OpenAPI facts, metadata service (token mode first; without it when the token API is not there).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use types::address::MacAddr;
use types::cloud::{InstanceId, InstanceType, RegionId, ZoneId};

/// Where the metadata service answers on every instance.
pub const ENDPOINT: &str = "http://100.100.100.200";
/// Life of a token that is asked for, in seconds.
const TOKEN_TTL_SECONDS: u32 = 21_600;
/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// What the agent needs to know of its instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The instance.
    pub instance: InstanceId,
    /// Its type, for people; quotas come from ipam.
    pub instance_type: InstanceType,
    /// Its zone.
    pub zone: ZoneId,
    /// Its region.
    pub region: RegionId,
    /// IPv4 address of the primary ENI.
    pub ipv4: Option<Ipv4Addr>,
    /// First IPv6 address of the primary ENI, if it has one.
    pub ipv6: Option<Ipv6Addr>,
}

/// The metadata service did not help.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// No answer in time; try again.
    #[error("metadata item {item} was not answered")]
    Unavailable {
        /// Path below `/latest/`.
        item: &'static str,
        /// What the client said.
        #[source]
        source: reqwest::Error,
    },
    /// An answer that is not a success.
    #[error("metadata item {item} was answered with status {status}")]
    Refused {
        /// Path below `/latest/`.
        item: &'static str,
        /// HTTP status.
        status: u16,
    },
    /// An answer that is not what it should be.
    #[error("metadata item {item}: {why}")]
    Malformed {
        /// Path below `/latest/`.
        item: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// Asks the service for everything in [`Facts`].
///
/// # Errors
/// [`MetadataError`] naming the item.
pub async fn read(endpoint: &str, timeout: Duration) -> Result<Facts, MetadataError> {
    let client = reqwest::Client::builder()
        .timeout(timeout)
        .no_proxy()
        .build()
        .map_err(|source| MetadataError::Unavailable {
            item: "(client)",
            source,
        })?;
    let service = Service {
        client,
        endpoint: endpoint.trim_end_matches('/'),
    };
    let token = service.token().await?;
    let token = token.as_deref();
    Ok(Facts {
        instance: service.item("meta-data/instance-id", token).await?,
        instance_type: service
            .item("meta-data/instance/instance-type", token)
            .await?,
        zone: service.item("meta-data/zone-id", token).await?,
        region: service.item("meta-data/region-id", token).await?,
        ipv4: Some(service.item("meta-data/private-ipv4", token).await?),
        ipv6: service.first_ipv6(token).await?,
    })
}

struct Service<'a> {
    client: reqwest::Client,
    endpoint: &'a str,
}

impl Service<'_> {
    /// A token, or `None` where the service has no tokens (403 or 404).
    async fn token(&self) -> Result<Option<String>, MetadataError> {
        let item = "api/token";
        let answer = self
            .client
            .put(format!("{}/latest/{item}", self.endpoint))
            .header("X-aliyun-ecs-metadata-token-ttl-seconds", TOKEN_TTL_SECONDS)
            .send()
            .await
            .map_err(|source| MetadataError::Unavailable { item, source })?;
        match answer.status().as_u16() {
            200 => Ok(Some(text(item, answer).await?)),
            403 | 404 => Ok(None),
            status => Err(MetadataError::Refused { item, status }),
        }
    }

    /// The primary ENI's first IPv6 address; an ENI without any is answered with 404.
    async fn first_ipv6(&self, token: Option<&str>) -> Result<Option<Ipv6Addr>, MetadataError> {
        let item = "meta-data/network/interfaces/macs/<mac>/ipv6s";
        let mac: MacAddr = self.item("meta-data/mac", token).await?;
        let path = format!("meta-data/network/interfaces/macs/{mac}/ipv6s");
        let answer = self.get(item, &path, token).await?;
        match answer.status().as_u16() {
            200 => {
                let list = text(item, answer).await?;
                let first = list.trim_matches(['[', ']', '\n', ' ']).split(',').next();
                Ok(first.and_then(|text| text.trim().parse().ok()))
            }
            404 => Ok(None),
            status => Err(MetadataError::Refused { item, status }),
        }
    }

    async fn get(
        &self,
        item: &'static str,
        path: &str,
        token: Option<&str>,
    ) -> Result<reqwest::Response, MetadataError> {
        let mut ask = self.client.get(format!("{}/latest/{path}", self.endpoint));
        if let Some(token) = token {
            ask = ask.header("X-aliyun-ecs-metadata-token", token);
        }
        ask.send()
            .await
            .map_err(|source| MetadataError::Unavailable { item, source })
    }

    async fn item<T>(&self, item: &'static str, token: Option<&str>) -> Result<T, MetadataError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let answer = self.get(item, item, token).await?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(MetadataError::Refused { item, status });
        }
        let text = text(item, answer).await?;
        text.trim()
            .parse()
            .map_err(|e: T::Err| MetadataError::Malformed {
                item,
                why: e.to_string(),
            })
    }
}

async fn text(item: &'static str, mut answer: reqwest::Response) -> Result<String, MetadataError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer
        .chunk()
        .await
        .map_err(|source| MetadataError::Unavailable { item, source })?
    {
        if bytes.len() + chunk.len() > MAX_ANSWER {
            return Err(MetadataError::Malformed {
                item,
                why: "longer than 64 KiB".to_owned(),
            });
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|e| MetadataError::Malformed {
        item,
        why: e.to_string(),
    })
}
