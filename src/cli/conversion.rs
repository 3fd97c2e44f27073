//! Errors of conversions as the user sees them.

use super::failure::{Code, Failure};
use crate::bundle;
use crate::convert::{self, Fault};

/// A conversion that stopped, with what to do in the words of the command line.
pub(super) fn failure(error: convert::Error) -> Failure {
    let failure = Failure::from_error(Code::Invalid, &error);
    let failure = match &error {
        convert::Error::Bundle(bundle::Error::Exists { .. }) => {
            failure.replace_hint(
                "--force replaces a bundle, --context N rewrites one for another context; or choose another --output",
            )
        }
        convert::Error::OtherBundle { .. } => {
            failure.replace_hint("--force converts everything anew and replaces the bundle")
        }
        convert::Error::Bundle(bundle::Error::Content { .. }) => failure
            .hint("the bundle there is damaged; --force converts everything anew and replaces it"),
        convert::Error::Context { .. } => failure.hint("give a --context in that range"),
        _ => failure,
    };
    with_fault(failure, &error)
}

/// Sets the code by who can do something about the error.
pub fn with_fault(failure: Failure, error: &convert::Error) -> Failure {
    match error.fault() {
        Fault::Input => failure,
        Fault::Space => failure.with_code(Code::Resources),
        Fault::Unexpected => failure.with_code(Code::Unexpected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn no_room_exits_5() {
        let (path, needed, free) = (PathBuf::from("out"), 2, 1);
        for error in [
            convert::Error::Space {
                path: path.clone(),
                needed,
                free,
            },
            convert::Error::Memory { path, needed, free },
        ] {
            let failure = failure(error);
            assert_eq!(failure.code, Code::Resources);
            assert!(failure.message.starts_with("out: "), "{}", failure.message);
            assert!(failure.hint.is_some());
        }
    }
}
