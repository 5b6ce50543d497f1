//! Tar archives (ustar) with nothing in them that changes from one day to the next: no time, no owner but root.

use anyhow::{Context as _, Result, bail};

/// Archives are made of blocks of so many bytes.
pub(crate) const BLOCK: usize = 512;
/// Longest path, in bytes. Longer ones could be split, but none of ours is.
const PATH_MAX: usize = 100;
/// Greatest file, in bytes: what eleven octal digits hold.
const SIZE_MAX: u64 = (1 << 33) - 1;

/// Type of an entry.
///
/// Source: POSIX.1-2017, pax, "ustar Interchange Format", typeflag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
}

/// An archive that is being made.
#[derive(Debug, Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    /// Adds a folder; its path has no slash at either end.
    ///
    /// # Errors
    /// When the path is too long.
    pub(crate) fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        let header = header(&format!("{path}/"), mode, 0, Kind::Directory)?;
        self.bytes.extend(header);
        Ok(())
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When the path is too long, or the content too large.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let size = u64::try_from(content.len())?;
        self.bytes.extend(header(path, mode, size, Kind::File)?);
        self.bytes.extend(content);
        let padded = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.resize(padded, 0);
        Ok(())
    }

    /// The archive, with its two empty blocks at the end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let whole = self.bytes.len() + 2 * BLOCK;
        self.bytes.resize(whole, 0);
        self.bytes
    }
}

fn header(path: &str, mode: u32, size: u64, kind: Kind) -> Result<Vec<u8>> {
    // The sum is taken over a header with spaces in its place.
    let blank = fields(path, mode, size, kind, "        ")?;
    let sum: u64 = blank.iter().map(|byte| u64::from(*byte)).sum();
    fields(path, mode, size, kind, &format!("{sum:06o}\0 "))
}

/// Source: POSIX.1-2017, pax, "ustar Interchange Format".
fn fields(path: &str, mode: u32, size: u64, kind: Kind, sum: &str) -> Result<Vec<u8>> {
    if size > SIZE_MAX {
        bail!("{path} is too large for an archive");
    }
    let typeflag = match kind {
        Kind::File => "0",
        Kind::Directory => "5",
    };
    let mut header = Vec::with_capacity(BLOCK);
    for (text, width) in [
        (path, PATH_MAX),
        (&format!("{mode:07o}"), 8),
        ("0000000", 8), // user
        ("0000000", 8), // group
        (&format!("{size:011o}"), 12),
        ("00000000000", 12), // time
        (sum, 8),
        (typeflag, 1),
        ("", 100), // target of a link
        ("ustar\x0000", 8),
        ("", 32), // name of the user
        ("", 32), // name of the group
        ("0000000", 8),
        ("0000000", 8),
        ("", 155), // first part of a long path
        ("", 12),
    ] {
        let filling = width.checked_sub(text.len());
        let filling = filling.with_context(|| format!("{text:?} is too long for an archive"))?;
        header.extend(text.bytes());
        header.extend(std::iter::repeat_n(0, filling));
    }
    Ok(header)
}

#[cfg(test)]
pub(crate) mod reading {
    use super::BLOCK;

    /// An entry as it stands in an archive.
    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Entry {
        pub(crate) path: String,
        pub(crate) mode: u32,
        pub(crate) mtime: u64,
        pub(crate) is_directory: bool,
        pub(crate) content: Vec<u8>,
    }

    fn octal(field: &[u8]) -> u64 {
        let text = std::str::from_utf8(field).unwrap();
        u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).unwrap()
    }

    /// All entries; panics where the archive is none.
    pub(crate) fn entries(archive: &[u8]) -> Vec<Entry> {
        assert_eq!(archive.len() % BLOCK, 0);
        let (mut at, mut entries) = (0, Vec::new());
        while archive[at] != 0 {
            let header = &archive[at..at + BLOCK];
            let sum: u64 = header[..148]
                .iter()
                .chain(&header[156..])
                .map(|byte| u64::from(*byte))
                .sum();
            assert_eq!(octal(&header[148..156]), sum + 8 * 32, "sum of a header");
            assert_eq!(&header[257..265], b"ustar\x0000");
            let size = usize::try_from(octal(&header[124..136])).unwrap();
            let content = archive[at + BLOCK..at + BLOCK + size].to_vec();
            let path = std::str::from_utf8(&header[..100]).unwrap();
            entries.push(Entry {
                path: path.trim_end_matches('\0').to_owned(),
                mode: u32::try_from(octal(&header[100..108])).unwrap(),
                mtime: octal(&header[136..148]),
                is_directory: header[156] == b'5',
                content,
            });
            at += BLOCK + size.next_multiple_of(BLOCK);
        }
        assert_eq!(archive[at..], [0; 2 * BLOCK], "end of the archive");
        entries
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::reading::entries;
    use super::*;

    fn archive() -> Vec<u8> {
        let mut tar = Tar::default();
        tar.directory("etc", 0o755).unwrap();
        tar.file("etc/passwd", 0o644, b"root").unwrap();
        tar.file("full", 0o755, &[7; BLOCK]).unwrap();
        tar.finish()
    }

    #[test]
    fn archive_holds_what_was_put_into_it() {
        let entries = entries(&archive());

        let seen: Vec<_> = entries
            .iter()
            .map(|e| (e.path.as_str(), e.mode, e.is_directory, e.content.len()))
            .collect();
        assert_eq!(
            seen,
            [
                ("etc/", 0o755, true, 0),
                ("etc/passwd", 0o644, false, 4),
                ("full", 0o755, false, BLOCK),
            ]
        );
    }

    #[test]
    fn archive_is_read_by_the_machines_tar() {
        let mut child = Command::new("tar")
            .args(["-tvf", "-", "--numeric-owner", "--utc"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&archive()).unwrap();

        let out = child.wait_with_output().unwrap();

        assert!(out.status.success());
        let lines: Vec<Vec<String>> = String::from_utf8(out.stdout)
            .unwrap()
            .lines()
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect();
        let wanted = [
            ["drwxr-xr-x", "0/0", "0", "1970-01-01", "00:00", "etc/"],
            [
                "-rw-r--r--",
                "0/0",
                "4",
                "1970-01-01",
                "00:00",
                "etc/passwd",
            ],
            ["-rwxr-xr-x", "0/0", "512", "1970-01-01", "00:00", "full"],
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn path_that_does_not_fit_is_refused() {
        let mut tar = Tar::default();

        assert!(tar.file(&"x".repeat(101), 0o644, b"").is_err());
    }
}
