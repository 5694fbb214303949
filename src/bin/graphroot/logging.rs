//! Log events of the library, written to standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::global_arguments::GlobalArguments;

/// Starts the log. `RUST_LOG` chooses what is shown (`LEVEL` or `TARGET=LEVEL`, separated by commas); without it errors
/// are shown, or everything up to the level of debugging with `debug`.
pub(crate) fn start(debug: bool) {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let level = if debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::ERROR
    };
    // An invalid filter is ignored.
    let filter = Some(wanted)
        .filter(|wanted| !wanted.is_empty())
        .and_then(|wanted| wanted.parse::<Targets>().ok())
        .unwrap_or_else(|| Targets::new().with_default(level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_span_events(FmtSpan::CLOSE);
    // Fails only if a subscriber is set already, which nothing else in this program does.
    let _already_set = tracing_subscriber::registry().with(filter).with(lines).try_init();
}

/// Logs where the store is, in the words of containers-storage.
pub(crate) fn log_options(given: &GlobalArguments) {
    tracing::debug!("Root: {}", given.graph);
    tracing::debug!("Run Root: {}", given.run);
    tracing::debug!("Driver Name: {}", given.driver);
    tracing::debug!("Driver Options: [{}]", given.driver_options.join(" "));
}
