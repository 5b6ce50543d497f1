//! Random histories of two replicas, compared step by step with a plain list.

use super::*;

/// Histories per store, each of [`STEPS`] steps.
const HISTORIES: u64 = 12;
const STEPS: u32 = 60;

/// What the log must look like, by rules so simple that they can be believed.
struct Model {
    records: Vec<String>,
    /// Records in the snapshot.
    snapped: usize,
    owner: Option<usize>,
    /// Whether the newest fence of each replica is the shard's newest.
    valid: [bool; 2],
}

impl Model {
    fn take(&mut self, owner: Option<usize>) {
        self.owner = owner;
        self.valid = [false; 2];
    }

    fn check(&self, snapshot: Option<&[u8]>, tail: &[LogRecord]) {
        let text = snapshot.map(|s| String::from_utf8(s.to_vec()).unwrap());
        assert_eq!(
            text,
            (self.snapped > 0).then(|| self.records[..self.snapped].concat())
        );
        let expected: Vec<_> = (1_u64..)
            .zip(self.records.iter().cloned())
            .skip(self.snapped)
            .collect();
        assert_eq!(texts(tail), expected);
    }
}

/// A generator that gives the same numbers for the same seed on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % sides
    }
}

struct History<'f, F> {
    f: &'f F,
    shard: ShardId,
    dice: Dice,
    model: Model,
    replicas: [Replica; 2],
    /// The newest fence of each, still used after it has become worth nothing.
    fences: [Option<Fence>; 2],
}

// I1, I4, I9: whatever is lost, whoever still believes to own: the log is what was answered.
#[expect(clippy::print_stderr, reason = "seed and step of a history that fails")]
pub(crate) async fn random_histories_agree_with_a_plain_list(f: &mut impl LogFixture) {
    for seed in 1..=HISTORIES {
        let mut history = History {
            f: &*f,
            shard: format!("vsw-h.{seed}").parse().unwrap(),
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            model: Model {
                records: Vec::new(),
                snapped: 0,
                owner: None,
                valid: [false; 2],
            },
            replicas: [f.replica("ipam-0").await, f.replica("ipam-1").await],
            fences: [None, None],
        };
        for number in 0..STEPS {
            let who = usize::from(history.dice.below(2) == 1);
            // The test's output tells the seed and the step at which it stopped.
            eprintln!("history {seed} step {number}");
            history.step(who).await;
        }
        let read = f.log().read(&history.shard).await.unwrap();
        history
            .model
            .check(read.snapshot.as_ref().map(|s| &*s.state), &read.tail);
        let owner = read.owner.map(|o| o.replica);
        assert_eq!(
            owner,
            history.model.owner.map(|at| history.replicas[at].clone())
        );
    }
}

impl<F: LogFixture> History<'_, F> {
    async fn step(&mut self, who: usize) {
        match self.dice.below(20) {
            0..=2 => self.claim(who).await,
            3..=5 => self.snapshot(who).await,
            6 => self.hand_over(who, None).await,
            7 => self.hand_over(who, Some(1 - who)).await,
            8 => self.die(who).await,
            _ => self.append(who).await,
        }
    }

    async fn claim(&mut self, who: usize) {
        let answer = self.f.log().claim(&self.shard, &self.replicas[who]).await;
        if self.model.owner.is_some_and(|owner| owner != who) {
            assert!(matches!(answer, Err(ClaimError::Owned(_))), "{answer:?}");
            return;
        }
        let claim = answer.unwrap();
        self.model
            .check(claim.snapshot.as_ref().map(|s| &*s.state), &claim.tail);
        self.model.take(Some(who));
        self.model.valid[who] = true;
        self.fences[who] = Some(claim.fence);
    }

    async fn append(&mut self, who: usize) {
        let Some(mut fence) = self.fences[who].clone() else {
            return;
        };
        let texts: Vec<String> = (0..=self.dice.below(3))
            .map(|n| format!("{}{who}{n};", self.model.records.len()))
            .collect();
        let batch = batch(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let fate = self.dice.below(5);
        match fate {
            0 => self.f.lose_answer(0),
            1 => self.f.lose_request(),
            _ => {}
        }
        let log = self.f.log();
        let answer = log.append(&fence, &batch).await;
        let answer = if fate < 2 {
            assert!(matches!(answer, Err(AppendError::Unknown(_))), "{answer:?}");
            log.resolve(&fence, batch.id).await
        } else {
            answer.map(Outcome::Committed)
        };
        if !self.model.valid[who] {
            assert_eq!(answer, Err(AppendError::Fenced));
            return;
        }
        match answer.unwrap() {
            Outcome::Committed(head) => {
                assert_ne!(fate, 1);
                self.model.records.extend(texts);
                fence.head = head;
            }
            Outcome::NotCommitted(head) => {
                assert_eq!(fate, 1);
                fence.head = head;
            }
        }
        self.fences[who] = Some(fence);
    }

    async fn snapshot(&mut self, who: usize) {
        let Some(fence) = self.fences[who].clone() else {
            return;
        };
        let upto = self.dice.below(fence.head.seq.0 + 1);
        let count = usize::try_from(upto).unwrap();
        let state = Bytes::from(self.model.records[..count].concat());
        let answer = self.f.log().snapshot(&fence, Seq(upto), state).await;
        if upto == 0 || count <= self.model.snapped {
            return;
        }
        if self.model.valid[who] {
            answer.unwrap();
            self.model.snapped = count;
        } else {
            assert_eq!(answer, Err(AppendError::Fenced));
        }
    }

    async fn hand_over(&mut self, who: usize, to: Option<usize>) {
        let Some(fence) = self.fences[who].clone() else {
            return;
        };
        let log = self.f.log();
        let answer = match to {
            Some(to) => log.transfer(&fence, &self.replicas[to]).await,
            None => log.release(&fence).await,
        };
        if self.model.valid[who] {
            answer.unwrap();
            self.model.take(to);
        } else {
            assert_eq!(answer, Err(HandOverError::Fenced));
        }
    }

    /// The replica's session ends and a new one begins; its old fence stays in use.
    async fn die(&mut self, who: usize) {
        self.f.end(&self.replicas[who]).await;
        if self.model.owner == Some(who) {
            self.model.take(None);
        }
        let name = self.replicas[who].id.to_string();
        self.replicas[who] = self.f.replica(&name).await;
    }
}
