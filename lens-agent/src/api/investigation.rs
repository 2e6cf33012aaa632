//! Investigations that somebody asks for.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Api;
use crate::investigate::Strategy;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvestigationRequest {
    /// Why; a model is told.
    #[serde(default)]
    pub reason: Option<Arc<str>>,
    /// How.
    #[serde(default)]
    pub strategy: Strategy,
    /// By which provider only; by all that are configured, one after the other, if none is named.
    #[serde(default)]
    pub provider: Option<Arc<str>>,
}

/// How far an investigation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// Not over.
    Running,
    /// Over.
    Done,
}

/// An investigation that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Investigation {
    /// Unique for ever; sorts by time.
    pub id: Arc<str>,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// What was asked for.
    #[serde(flatten)]
    pub request: InvestigationRequest,
    /// How far it is.
    pub progress: Progress,
    /// The open incidents that it was about.
    pub incidents: Vec<Arc<str>>,
    /// The newest answer to each of them.
    pub insights: Vec<Arc<str>>,
    /// Why a model came to no answer; code's own answers stand.
    pub troubles: Vec<String>,
}

/// An investigation under way. It is over when this is dropped, whatever happens: nobody waits for
/// one that broke off.
#[derive(Debug)]
pub struct Asked {
    /// What was asked for.
    pub request: InvestigationRequest,
    /// The incidents that it is about.
    pub incidents: Vec<Arc<str>>,
    /// What went wrong.
    pub troubles: Vec<String>,
    api: Api,
    id: Arc<str>,
    ended: bool,
}

impl Asked {
    pub(super) fn new(api: Api, investigation: &Investigation) -> Self {
        Self {
            request: investigation.request.clone(),
            incidents: Vec::new(),
            troubles: Vec::new(),
            api,
            id: investigation.id.clone(),
            ended: false,
        }
    }

    /// It came to its end.
    pub fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut troubles = std::mem::take(&mut self.troubles);
        if !self.ended {
            troubles.push("it broke off".to_owned());
        }
        let incidents = std::mem::take(&mut self.incidents);
        self.api.investigated(&self.id, incidents, troubles);
    }
}
