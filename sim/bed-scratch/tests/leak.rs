use bed_scratch::bed::hand::Manner;
use bed_scratch::never_open;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ordered() { let r = never_open::leaky(Manner::Ordered, 300, 600, 30_000).await.unwrap(); eprintln!("{r:?} rate {}", r.rate()); assert_eq!(r.denied_delivered, 0); }
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replace() { let r = never_open::leaky(Manner::ReplaceTable, 300, 600, 30_000).await.unwrap(); eprintln!("{r:?} rate {}", r.rate()); }
