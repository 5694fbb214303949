//! Cases of the overlay driver alone.

mod home;
mod links;
mod place;
mod programs;
