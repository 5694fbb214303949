//! Which requests go through a proxy: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, as Go's `net/http` reads them. Pure.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use reqwest::Url;

/// Which requests to registries go through a proxy. Cheap to clone. `Debug` shows no password.
///
/// ```
/// use graphroot::oci::{Proxies, RegistryOptions};
/// let proxies = Proxies::from_variables(|name| match name {
///     "HTTPS_PROXY" => Some("http://user:secret@proxy.example:3128".to_owned()),
///     "NO_PROXY" => Some("10.0.0.0/8, .internal.example, registry.example:5000".to_owned()),
///     _ => None,
/// });
/// let options = RegistryOptions::default().proxies(proxies);
/// assert!(!format!("{options:?}").contains("secret"));
/// ```
#[derive(Clone, Default)]
pub struct Proxies {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    http: Option<Url>,
    https: Option<Url>,
    /// What is reached directly.
    direct: Vec<Direct>,
}

/// One entry of `NO_PROXY`.
#[derive(Debug, PartialEq, Eq)]
enum Direct {
    Everything,
    Network {
        address: IpAddr,
        bits: u32,
    },
    Address {
        address: IpAddr,
        port: Option<String>,
    },
    Domain {
        /// Begins with a dot.
        suffix: String,
        /// Whether the domain itself counts, beside what is in it.
        itself: bool,
        port: Option<String>,
    },
}

impl Proxies {
    /// None: every registry is reached directly.
    pub fn none() -> Self {
        Self::default()
    }

    /// Those of the environment of this process.
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Those that these variables name: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, or the same in lower case where those are
    /// not set or empty. A proxy is `[http://|https://|socks5://][USER:PASSWORD@]HOST[:PORT]`; one that cannot be read is
    /// none. HTTPS goes through it with `CONNECT`.
    ///
    /// `NO_PROXY` is a list of what is reached directly: `*`; `DOMAIN`, with what is in it; `.DOMAIN` or `*.DOMAIN`, what is
    /// in it; addresses and networks (`10.0.0.0/8`). A port may follow a domain or an address. `localhost` and addresses of
    /// this machine (127.0.0.0/8, `::1`) are reached directly whatever it says. `HTTP_PROXY` does not count in a CGI program
    /// (`REQUEST_METHOD` is set): a request could have set it.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| {
            let names = [name.to_owned(), name.to_ascii_lowercase()];
            let mut values = names.iter().filter_map(|name| variable(name));
            values.find(|value| !value.is_empty())
        };
        let proxy = |name: &str| {
            let url = proxy_url(&value(name)?);
            if url.is_none() {
                tracing::warn!(variable = name, "the proxy cannot be read");
            }
            url
        };
        let in_cgi = variable("REQUEST_METHOD").is_some_and(|method| !method.is_empty());
        Self {
            inner: Arc::new(Inner {
                http: proxy("HTTP_PROXY").filter(|_| !in_cgi),
                https: proxy("HTTPS_PROXY"),
                direct: value("NO_PROXY").map_or_else(Vec::new, |list| direct(&list)),
            }),
        }
    }

    /// Whether there is any.
    pub(crate) fn is_any(&self) -> bool {
        self.inner.http.is_some() || self.inner.https.is_some()
    }

    /// The proxy for a request.
    pub(crate) fn proxy_for(&self, url: &Url) -> Option<Url> {
        let proxy = match url.scheme() {
            "https" => self.inner.https.as_ref(),
            _ => self.inner.http.as_ref(),
        };
        let (host, port) = (url.host_str()?, url.port_or_known_default()?);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address: Option<IpAddr> = host.parse().ok();
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return None;
        }
        let (host, port) = (host.to_ascii_lowercase(), port.to_string());
        let mut direct = self.inner.direct.iter();
        match direct.any(|entry| entry.includes(&host, address, &port)) {
            true => None,
            false => proxy.cloned(),
        }
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |url: &Option<Url>| {
            let url = url.as_ref();
            url.map(|url| {
                format!(
                    "{}:{}",
                    url.host_str().unwrap_or_default(),
                    url.port_or_known_default().unwrap_or(0)
                )
            })
        };
        f.debug_struct("Proxies")
            .field("http", &shown(&self.inner.http))
            .field("https", &shown(&self.inner.https))
            .field("direct", &self.inner.direct)
            .finish()
    }
}

/// A proxy as it is written, without a scheme perhaps.
fn proxy_url(text: &str) -> Option<Url> {
    let is_proxy = |url: &Url| {
        matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h")
            && url.host_str().is_some_and(|host| !host.is_empty())
    };
    let full = match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    };
    let mut url = Url::parse(&full).ok().filter(is_proxy)?;
    // Go has names resolved by the proxy in either case.
    if url.scheme() == "socks5" {
        url.set_scheme("socks5h").ok()?;
    }
    Some(url)
}

/// The entries of a list.
fn direct(list: &str) -> Vec<Direct> {
    let entries = list.split(',').map(|entry| entry.trim().to_ascii_lowercase());
    let entries: Vec<Direct> = entries.filter_map(|entry| Direct::parse(&entry)).collect();
    match entries.contains(&Direct::Everything) {
        true => vec![Direct::Everything],
        false => entries,
    }
}

impl Direct {
    fn parse(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Self::Everything);
        }
        if let Some((address, bits)) = entry.split_once('/')
            && let (Ok(address), Ok(bits)) = (address.parse::<IpAddr>(), bits.parse::<u32>())
            && bits <= if address.is_ipv4() { 32 } else { 128 }
        {
            return Some(Self::Network { address, bits });
        }
        let (host, port) = match entry.rsplit_once(':') {
            // Several colons are an address, unless it is in brackets.
            Some((host, port)) if !host.contains(':') || host.starts_with('[') && host.ends_with(']') => {
                (host, Some(port.to_owned()).filter(|port| !port.is_empty()))
            }
            _ => (entry, None),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(host).parse() {
            return Some(Self::Address { address, port });
        }
        let host = host
            .strip_prefix('*')
            .filter(|rest| rest.starts_with('.'))
            .unwrap_or(host);
        match host {
            "" => None,
            _ if host.starts_with('.') => Some(Self::Domain {
                suffix: host.to_owned(),
                itself: false,
                port,
            }),
            _ => Some(Self::Domain {
                suffix: format!(".{host}"),
                itself: true,
                port,
            }),
        }
    }

    /// Whether it names this host and port.
    fn includes(&self, host: &str, address: Option<IpAddr>, to: &str) -> bool {
        let any_or = |port: &Option<String>| port.as_deref().is_none_or(|port| port == to);
        match self {
            Self::Everything => true,
            Self::Network {
                address: network,
                bits,
            } => address.is_some_and(|address| is_in(address, *network, *bits)),
            Self::Address { address: own, port } => address == Some(*own) && any_or(port),
            Self::Domain { suffix, itself, port } => {
                let is_itself = *itself && suffix.strip_prefix('.') == Some(host);
                address.is_none() && (host.ends_with(suffix.as_str()) || is_itself) && any_or(port)
            }
        }
    }
}

/// Whether an address is in a network of so many leading bits.
fn is_in(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let differing = address.to_bits() ^ network.to_bits();
            differing.leading_zeros() >= bits
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let differing = address.to_bits() ^ network.to_bits();
            differing.leading_zeros() >= bits
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Proxies {
        Proxies::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn proxy(proxies: &Proxies, url: &str) -> Option<String> {
        let found = proxies.proxy_for(&Url::parse(url).unwrap());
        found.map(|url| url.to_string())
    }

    #[test]
    fn what_is_reached_directly() {
        let direct = |list: &str, url: &str| {
            let all = [("HTTP_PROXY", "p"), ("HTTPS_PROXY", "p"), ("NO_PROXY", list)];
            proxy(&with(&all), url).is_none()
        };
        for url in [
            "http://localhost/",
            "https://localhost:5000/",
            "http://127.3.2.1/",
            "https://[::1]:1/",
        ] {
            assert!(direct("", url), "{url}");
        }
        for (list, url, expected) in [
            ("", "https://a.example/", false),
            ("*", "https://a.example/", true),
            ("x, *", "https://10.0.0.1/", true),
            ("a.example", "https://a.example/", true),
            ("A.Example", "https://b.a.example/", true),
            ("a.example", "https://ba.example/", false),
            (".a.example", "https://a.example/", false),
            (".a.example", "https://b.a.example/", true),
            ("*.a.example", "https://a.example/", false),
            ("*.a.example", "https://b.a.example/", true),
            ("*a.example", "https://ba.example/", false),
            ("a.example:443", "https://a.example/", true),
            ("a.example:443", "http://a.example/", false),
            ("a.example:5000", "https://a.example:5000/", true),
            (" , a.example ,", "https://a.example/", true),
            (":80", "http://a.example/", false),
            ("10.0.0.0/8", "https://10.1.2.3/", true),
            ("10.0.0.0/8", "https://11.1.2.3/", false),
            ("0.0.0.0/0", "https://11.1.2.3/", true),
            ("10.0.0.0/33", "https://10.0.0.0/", false),
            ("10.1.2.3:5000", "https://10.1.2.3:5000/", true),
            ("10.1.2.3:5000", "https://10.1.2.3/", false),
            ("fd00::/8", "https://[fd00::1]/", true),
            ("fd00::1", "https://[fd00::1]/", true),
            ("[fd00::1]:5000", "https://[fd00::1]:5000/", true),
            ("[fd00::1]:5000", "https://[fd00::1]/", false),
            ("fd00::/8", "https://10.0.0.1/", false),
            ("0.0.1", "https://10.0.0.1/", false),
        ] {
            assert_eq!(direct(list, url), expected, "{list}: {url}");
        }
    }

    #[test]
    fn a_proxy_is_for_one_scheme() {
        let all = [
            ("HTTP_PROXY", "plain.example:1"),
            ("https_proxy", "https://u:p@tls.example"),
        ];
        let proxies = with(&all);
        assert_eq!(
            proxy(&proxies, "http://a.example/").unwrap(),
            "http://plain.example:1/"
        );
        assert_eq!(
            proxy(&proxies, "https://a.example/").unwrap(),
            "https://u:p@tls.example/"
        );
        let both = with(&[("HTTP_PROXY", ""), ("http_proxy", "lower"), ("ALL_PROXY", "all")]);
        assert_eq!(proxy(&both, "http://a.example/").unwrap(), "http://lower/");
        assert_eq!(proxy(&both, "https://a.example/"), None);
        let cgi = with(&[
            ("HTTP_PROXY", "p"),
            ("HTTPS_PROXY", "s"),
            ("REQUEST_METHOD", "GET"),
        ]);
        assert_eq!(proxy(&cgi, "http://a.example/"), None);
        assert_eq!(proxy(&cgi, "https://a.example/").unwrap(), "http://s/");
        assert!(!with(&[("HTTP_PROXY", "ftp://x"), ("HTTPS_PROXY", "http://")]).is_any());
        assert!(!format!("{proxies:?}").contains("u:p"), "{proxies:?}");
    }
}
