//! What went wrong, as JSON: `{"error": "..."}`.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;

/// The body of every answer that is no success.
#[derive(Debug, Serialize)]
struct Problem {
    error: String,
}

/// An answer that says what to do instead.
pub(super) fn problem(status: StatusCode, error: impl Into<String>) -> Response {
    let error = error.into();
    (status, Json(Problem { error })).into_response()
}
