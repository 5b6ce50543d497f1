//! Which shards a node asks first, and which replica a shard prefers: rendezvous hashing.
//!
//! Everybody computes the same order from the same names, without a table. The hash is written here, so
//! that it does not change with a library: replicas of two versions must agree.

use types::cloud::InstanceId;
use types::op::ShardId;

/// Largest weight that counts.
pub const MAX_WEIGHT: u32 = 64;

/// Shards in the order in which a node asks them. `vswitches` are those of the node's zone, in the order
/// of the policy, each with its shards: a vSwitch is used up before the next is begun (`ordered`), and
/// the shards of one vSwitch are spread over the nodes.
pub fn shards_for_node(instance: &InstanceId, vswitches: &[Vec<ShardId>]) -> Vec<ShardId> {
    let mut order = Vec::new();
    for shards in vswitches {
        let mut shards: Vec<(u64, &ShardId)> = shards
            .iter()
            .map(|shard| (score(instance.as_str(), &shard.to_string(), 1), shard))
            .collect();
        shards.sort_by(|a, b| b.cmp(a));
        order.extend(shards.into_iter().map(|(_, shard)| shard.clone()));
    }
    order
}

/// A candidate of [`preference`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its share compared with the others', 1 to [`MAX_WEIGHT`].
    pub weight: u32,
}

/// Candidates for `subject`, best first. One that leaves changes the order of no others.
pub fn preference<'a>(subject: &str, candidates: &[Candidate<'a>]) -> Vec<&'a str> {
    let mut order: Vec<(u64, &str)> = candidates
        .iter()
        .map(|candidate| {
            (
                score(subject, candidate.name, candidate.weight),
                candidate.name,
            )
        })
        .collect();
    order.sort_by(|a, b| b.cmp(a));
    order.into_iter().map(|(_, name)| name).collect()
}

/// The best of `weight` draws: a candidate of weight 3 wins three times as often as one of weight 1.
fn score(subject: &str, name: &str, weight: u32) -> u64 {
    (0..weight.clamp(1, MAX_WEIGHT))
        .map(|draw| {
            let mut hash = Fnv1a::new();
            hash.write(subject.as_bytes());
            // No name holds a zero byte, so two pairs of names never read the same.
            hash.write(&[0]);
            hash.write(name.as_bytes());
            hash.write(&[0]);
            hash.write(&draw.to_le_bytes());
            hash.finish()
        })
        .max()
        .unwrap_or(0)
}

/// FNV-1a, 64 bits, with the finalizer of SplitMix64, since FNV alone mixes the last bytes too little.
struct Fnv1a(u64);

impl Fnv1a {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(self) -> u64 {
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(vswitch: &str, count: u32) -> Vec<ShardId> {
        (0..count)
            .map(|n| format!("{vswitch}.{n}").parse().unwrap())
            .collect()
    }

    #[test]
    fn node_asks_the_first_vswitch_first() {
        let node: InstanceId = "i-a".parse().unwrap();

        let order = shards_for_node(&node, &[shards("vsw-b", 3), shards("vsw-a", 2)]);

        let vswitches: Vec<_> = order.iter().map(|s| s.vswitch.as_str()).collect();
        assert_eq!(vswitches, ["vsw-b", "vsw-b", "vsw-b", "vsw-a", "vsw-a"]);
    }

    #[test]
    fn nodes_spread_over_the_shards_of_a_vswitch() {
        let mut first = [0_u32; 4];

        for n in 0..1_000 {
            let node: InstanceId = format!("i-{n}").parse().unwrap();
            let order = shards_for_node(&node, &[shards("vsw-a", 4)]);
            first[usize::try_from(order[0].index).unwrap()] += 1;
        }

        assert!(first.iter().all(|n| (200..300).contains(n)), "{first:?}");
    }

    #[test]
    fn preference_without_a_candidate_keeps_the_order_of_the_others() {
        let all: Vec<String> = (0..5).map(|n| format!("replica-{n}")).collect();
        let candidates: Vec<_> = all
            .iter()
            .map(|name| Candidate { name, weight: 1 })
            .collect();

        let before = preference("vsw-a.0", &candidates);
        let after = preference("vsw-a.0", &candidates[1..]);

        let expected: Vec<_> = before.into_iter().filter(|n| *n != all[0]).collect();
        assert_eq!(after, expected);
    }

    #[test]
    fn preference_follows_the_weights() {
        let candidates = [
            Candidate {
                name: "a",
                weight: 1,
            },
            Candidate {
                name: "b",
                weight: 3,
            },
        ];

        let to_b = (0..4_000)
            .filter(|n| preference(&format!("vsw-a.{n}"), &candidates)[0] == "b")
            .count();

        assert!((2_850..3_150).contains(&to_b), "{to_b}");
    }

    // Replicas of two versions must agree, so these values are fixed for ever.
    #[test]
    fn score_is_the_same_in_every_build() {
        assert_eq!(score("vsw-a.0", "r1", 1), 16_979_293_685_956_526_911);
    }
}
