//! What the library reports while it works, on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::defaults::GlobalArguments;

/// Starts the log: errors only, or everything with `debug`, or what `RUST_LOG` says (`LEVEL` or `TARGET=LEVEL`, with
/// commas between).
pub(crate) fn start(debug: bool) {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let level = if debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::ERROR
    };
    // A filter that cannot be read is as good as none.
    let filter = Some(wanted)
        .filter(|wanted| !wanted.is_empty())
        .and_then(|wanted| wanted.parse::<Targets>().ok())
        .unwrap_or_else(|| Targets::new().with_default(level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_span_events(FmtSpan::CLOSE);
    // Whoever comes first has started the log; there is nobody else in this program.
    let _first = tracing_subscriber::registry().with(filter).with(lines).try_init();
}

/// Says where the store is.
pub(crate) fn say_options(given: &GlobalArguments) {
    tracing::debug!("Root: {}", given.graph);
    tracing::debug!("Run Root: {}", given.run);
    tracing::debug!("Driver Name: {}", given.driver);
    tracing::debug!("Driver Options: [{}]", given.driver_options.join(" "));
}
