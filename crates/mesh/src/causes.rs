//! What an error says together with the errors that caused it: the outermost often says only "transport error".

use std::error::Error;
use std::iter::successors;

/// The error and its causes, outermost first.
pub fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| error.source())
}

/// What the error and its causes say, outermost first, joined by `: `. A cause that only repeats the error above it
/// is left out.
pub fn text(error: &(dyn Error + 'static)) -> String {
    let mut steps: Vec<String> = chain(error).map(ToString::to_string).collect();
    steps.dedup();
    steps.join(": ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{chain, text};

    #[derive(Debug, thiserror::Error)]
    #[error("read the file")]
    struct Outer(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("no such file")]
    struct Repeats(#[source] io::Error);

    #[test]
    fn text_names_every_cause() {
        let error = Outer(io::Error::other("no such file"));

        assert_eq!(text(&error), "read the file: no such file");
    }

    #[test]
    fn text_of_a_cause_that_repeats_is_said_once() {
        let error = Repeats(io::Error::other("no such file"));

        assert_eq!(text(&error), "no such file");
    }

    #[test]
    fn chain_begins_with_the_error_itself() {
        let error = Outer(io::Error::other("no such file"));

        let steps: Vec<String> = chain(&error).map(ToString::to_string).collect();
        assert_eq!(steps, ["read the file", "no such file"]);
    }
}
