//! What we call ourselves.

/// Who we are: `POD_NAME`, or the machine's name.
pub(crate) fn ours() -> String {
    std::env::var("POD_NAME")
        .or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}
