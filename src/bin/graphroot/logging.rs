//! What the library reports while it works, on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::defaults::Given;

/// Starts the log: errors only, everything with `debug`, or what `RUST_LOG` says.
pub(crate) fn start(debug: bool) {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(ansi);
    // Whoever comes first has started the log; there is nobody else in this program.
    let _first = if !wanted.is_empty() {
        let filter = EnvFilter::new(wanted);
        log.with_env_filter(filter)
            .with_span_events(FmtSpan::CLOSE)
            .try_init()
    } else if debug {
        log.with_max_level(LevelFilter::DEBUG)
            .with_span_events(FmtSpan::CLOSE)
            .try_init()
    } else {
        log.with_max_level(LevelFilter::ERROR).without_time().try_init()
    };
}

/// Says where the store is.
pub(crate) fn say_options(given: &Given) {
    tracing::debug!("Root: {}", given.graph);
    tracing::debug!("Run Root: {}", given.run);
    tracing::debug!("Driver Name: {}", given.driver);
    tracing::debug!("Driver Options: [{}]", given.driver_options.join(" "));
}
