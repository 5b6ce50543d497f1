//! What it costs to read a large cluster. A process of its own, so that its memory is that of the reader alone.
//!
//! `TERWAY_SCALE_PODS` says how many pods; 5,000 when it is not set, for a debug build.

#[cfg(test)]
#[expect(dead_code, reason = "most of it is for the other tests")]
#[path = "../fake/server.rs"]
mod fake;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use cluster::server::Server;
    use tokio_util::sync::CancellationToken;

    use crate::fake::Fake;

    /// Of the JSON of a pod.
    const POD_BYTES: usize = 2_500;

    /// Memory that this process has used at most, in bytes.
    fn high_water() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes: usize = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kilobytes << 10
    }

    /// Nanoseconds that this thread has run.
    fn cpu() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        stat.split(' ').next().unwrap().parse().unwrap()
    }

    #[expect(clippy::print_stdout, reason = "the figures are what people look for")]
    fn read(pods: usize, streamed: bool) -> usize {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        // The server has a thread of its own: what it costs is not counted.
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let fake = Fake::start().await;
                fake.set_release(34, (!streamed).then_some(422));
                fake.make_up(pods);
                tell.send(fake).unwrap();
                ended.await.unwrap();
            });
        });
        let fake = told.recv().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let before = high_water();
        let (began, used) = (Instant::now(), cpu());
        let objects = runtime.unwrap().block_on(async {
            mesh::tls::install_provider();
            let dir = tempfile::tempdir().unwrap();
            let server = Server::connect(Some(&fake.kubeconfig(dir.path())))
                .await
                .unwrap();
            let (source, mut documents) = server.documents(|_, kind| kind == "Pod");
            let drain = CancellationToken::new();
            let read = async {
                let mut objects = 0;
                while let Some(batch) = documents.next().await {
                    objects += batch.changes.len();
                    if batch.synced {
                        break;
                    }
                }
                drain.cancel();
                objects
            };
            tokio::join!(source.run(drain.clone()), read).1
        });
        let grown = high_water() - before;
        let way = if streamed { "streamed" } else { "in pages" };
        println!(
            "{objects} pods {way}: {} MiB more at the peak, {:.2} s of CPU, {:.2} s",
            grown >> 20,
            std::time::Duration::from_nanos(cpu() - used).as_secs_f64(),
            began.elapsed().as_secs_f64(),
        );
        assert_eq!(objects, pods);
        end.send(()).unwrap();
        server.join().unwrap();
        grown
    }

    #[test]
    fn large_cluster_is_read_in_little_memory() {
        let pods = std::env::var("TERWAY_SCALE_PODS").map_or(5_000, |text| text.parse().unwrap());
        assert!(crate::fake::made_up::pod(0).to_string().len() > POD_BYTES);

        let grown = read(pods, true);
        let more = read(pods, false);

        // A name and a hash of each pod, and pages and batches that are under way.
        let bound = (24 << 20) + pods * 250;
        assert!(grown <= bound, "{grown} streamed, bound {bound}");
        assert!(
            grown + more <= bound + (32 << 20),
            "{} in pages",
            grown + more
        );
    }
}
