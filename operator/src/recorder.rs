//! Writes events. The same note about the same object is one event, which is counted up; another note is another event.
//! `kube`'s own recorder tells events apart by their reasons and drops every note but the first: of two nodes that were
//! replaced, one would be told of, twice.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event as Written, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    runtime::events::{Event, EventType},
};
use serde_json::json;

use crate::clock;

/// Who tells, in every event.
const CONTROLLER: &str = "tieredcache-operator";
/// What was told longer ago is told as something new, as `client-go` has it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(360);
/// So many events are remembered; the one that was told longest ago is forgotten for the next.
const REMEMBERED_MAX: usize = 4096;

/// Tells of what happens to objects. Clones share what was told.
#[derive(Clone)]
pub(crate) struct Recorder {
    client: Client,
    /// The replica that tells.
    instance: String,
    told: Arc<Mutex<Told>>,
}

/// What was told a short while ago.
#[derive(Debug, Default)]
struct Told(HashMap<Key, Series>);

/// What makes an event the same as another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// UID of what it is about.
    about: String,
    reason: String,
    note: String,
}

/// An event that is there, and how often it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Series {
    name: String,
    count: i32,
    last: Timestamp,
}

// === impl Recorder ===

impl Recorder {
    /// A recorder that has told nothing yet.
    pub(crate) fn new(client: Client, instance: String) -> Self {
        Self { client, instance, told: Arc::default() }
    }

    /// Writes the event.
    ///
    /// # Errors
    /// If the API server does not take it.
    pub(crate) async fn publish(&self, event: &Event, about: &ObjectReference) -> Result<(), kube::Error> {
        let now = clock::now();
        let key = Key::of(event, about);
        let api: Api<Written> = Api::namespaced(self.client.clone(), about.namespace.as_deref().unwrap_or("default"));
        let before = self.told().of(&key, now);
        if let Some(Series { name, count, .. }) = before {
            let series = EventSeries { count: count + 1, last_observed_time: MicroTime(now) };
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"series": series}))).await {
                Ok(_) => {
                    self.told().remember(key, Series { name, count: count + 1, last: now });
                    return Ok(());
                }
                // Somebody has deleted it.
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let written = self.written(event, about, now);
        api.create(&PostParams::default(), &written).await?;
        let name = written.metadata.name.unwrap_or_default();
        self.told().remember(key, Series { name, count: 1, last: now });
        Ok(())
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self, event: &Event, about: &ObjectReference, now: Timestamp) -> Written {
        let name = format!("{}.{:x}", about.name.as_deref().unwrap_or(CONTROLLER), now.as_nanosecond());
        let type_ = match event.type_ {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        };
        Written {
            metadata: ObjectMeta { namespace: about.namespace.clone(), name: Some(name), ..ObjectMeta::default() },
            type_: Some(type_.to_owned()),
            reason: Some(event.reason.clone()),
            action: Some(event.action.clone()),
            note: event.note.clone(),
            regarding: Some(about.clone()),
            related: event.secondary.clone(),
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Written::default()
        }
    }
}

// === impl Told ===

impl Told {
    fn of(&self, key: &Key, now: Timestamp) -> Option<Series> {
        self.0.get(key).filter(|series| !series.is_forgotten(now)).cloned()
    }

    fn remember(&mut self, key: Key, series: Series) {
        let now = series.last;
        self.0.insert(key, series);
        if self.0.len() > REMEMBERED_MAX {
            self.0.retain(|_, series| !series.is_forgotten(now));
        }
        if self.0.len() > REMEMBERED_MAX {
            let oldest = self.0.iter().min_by_key(|(_, series)| series.last).map(|(key, _)| key.clone());
            oldest.map(|oldest| self.0.remove(&oldest));
        }
    }
}

// === impl Key ===

impl Key {
    fn of(event: &Event, about: &ObjectReference) -> Self {
        Self {
            about: about.uid.clone().unwrap_or_default(),
            reason: event.reason.clone(),
            note: event.note.clone().unwrap_or_default(),
        }
    }
}

// === impl Series ===

impl Series {
    fn is_forgotten(&self, now: Timestamp) -> bool {
        Duration::try_from(now.duration_since(self.last)).unwrap_or_default() >= FORGOTTEN_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn key(note: &str) -> Key {
        let event = Event {
            type_: EventType::Normal,
            reason: "ReplacingNode".to_owned(),
            note: Some(note.to_owned()),
            action: "RollOut".to_owned(),
            secondary: None,
        };
        Key::of(&event, &ObjectReference { uid: Some("u".to_owned()), ..ObjectReference::default() })
    }

    fn series(name: &str, last: Timestamp) -> Series {
        Series { name: name.to_owned(), count: 1, last }
    }

    #[test]
    fn another_note_is_another_event_and_the_same_one_is_counted_up_for_six_minutes() {
        let mut told = Told::default();
        told.remember(key("sessions-1"), series("one", at(0)));
        assert_eq!(told.of(&key("sessions-0"), at(1)), None);
        assert_eq!(told.of(&key("sessions-1"), at(359)), Some(series("one", at(0))));
        assert_eq!(told.of(&key("sessions-1"), at(360)), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_is_forgotten_first() {
        let mut told = Told::default();
        for number in 0..=i64::try_from(REMEMBERED_MAX).unwrap() {
            told.remember(key(&number.to_string()), series("one", at(number / 100)));
        }
        assert_eq!(told.0.len(), REMEMBERED_MAX);
        let last = REMEMBERED_MAX.to_string();
        assert!(told.0.contains_key(&key(&last)));
    }
}
