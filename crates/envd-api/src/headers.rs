//! HTTP headers of envd's protocol, in lower case.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Carries the sandbox's envd token, in requests.
pub const ACCESS_TOKEN: &str = "x-access-token";

/// Tells envd that a signed link authorizes a file request, and nothing else. The edge sets it where it removes the signature.
pub const BY_LINK: &str = "x-envd-by-link";

/// Asks for the end of a process's stream as soon as the process has exited, even if others that it started hold its output open, in
/// requests to start one.
pub const END_AT_EXIT: &str = "x-envd-end-at-exit";

/// Confirms in the response to `POST /init` that the kernel's random generator was reseeded.
pub const RESEEDED: &str = "x-envd-reseeded";

/// Names envd's [`VERSION`](crate::VERSION) in the response to `POST /init`.
pub const VERSION: &str = "x-envd-version";

/// Value of the `Authorization` header that names the user a request acts as. There is no password: the
/// access token authorizes the request.
#[must_use]
pub fn user_authorization(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:")))
}
