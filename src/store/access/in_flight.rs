//! What other steps of a batch are in the middle of.
//!
//! Steps of one batch see each other's changes. A layer that is being made or deleted has an incomplete record, and is not
//! found by steps that look for complete ones; the record of a container appears and disappears between two saves of
//! its step. So that is noted here.

use std::cell::RefCell;
use std::rc::Rc;

/// A container that a step is making or deleting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Flight {
    Creation { id: String, names: Vec<String> },
    Deletion { id: String },
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Rc<RefCell<Vec<Flight>>>);

impl InFlight {
    /// The ID of the container that is being made and matches.
    fn creation(&self, matches: impl Fn(&str, &[String]) -> bool) -> Option<String> {
        let flights = self.0.borrow();
        flights.iter().find_map(|flight| match flight {
            Flight::Creation { id, names } if matches(id, names) => Some(id.clone()),
            _ => None,
        })
    }

    /// Whether a container with this ID is being made or deleted.
    pub(crate) fn has(&self, container: &str) -> bool {
        self.creation(|id, _| id == container).is_some() || self.deletes(container)
    }

    /// The container that is being made with this name.
    pub(crate) fn creates_named(&self, wanted: &str) -> Option<String> {
        self.creation(|_, names| names.iter().any(|name| name == wanted))
    }

    /// Whether this container is being deleted.
    pub(crate) fn deletes(&self, container: &str) -> bool {
        let flights = self.0.borrow();
        flights
            .iter()
            .any(|flight| matches!(flight, Flight::Deletion { id } if id == container))
    }
}

/// Notes what a step is doing until this is dropped.
#[must_use = "the note is removed when this is dropped"]
pub(crate) struct Note {
    flights: Rc<RefCell<Vec<Flight>>>,
    flight: Flight,
}

impl Drop for Note {
    fn drop(&mut self) {
        let mut flights = self.flights.borrow_mut();
        if let Some(at) = flights.iter().position(|flight| *flight == self.flight) {
            flights.swap_remove(at);
        }
    }
}

impl InFlight {
    /// Notes what a step is doing.
    pub(crate) fn note(&self, flight: Flight) -> Note {
        self.0.borrow_mut().push(flight.clone());
        Note {
            flights: Rc::clone(&self.0),
            flight,
        }
    }
}
