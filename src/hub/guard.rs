//! Which addresses may be called. Pure but for the resolver.
//!
//! Public addresses by HTTPS; everything else only where the operator names it: the endpoint's own scheme, host and port, and
//! hosts that `[hub] allowed_hosts` names in full. Where that list is not empty, nothing else is called at all.
//!
//! The address that is checked is the one that is connected to: the client gets its addresses from [`PublicOnly`], and
//! addresses written into a URL, for which no resolver is asked, are checked before the call. Which of two clients makes a
//! call follows from [`Verdict`], since a resolver is told a name and no port.

use super::{HubError, HubSettings};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use url::{Host, Url};

/// Longest URL that is called, in bytes.
const URL_MAX: usize = 8 << 10;

/// Knows what may be called.
#[derive(Debug)]
pub(super) struct Guard {
    endpoint: Option<Url>,
    rules: Vec<Rule>,
}

#[derive(Debug, PartialEq, Eq)]
enum Rule {
    /// A name or address, at one port or at all.
    Exact(String, Option<u16>),
    /// All names below, with the dot in front.
    Below(String),
}

/// How a URL may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Where its name leads to public addresses alone.
    Public,
    /// Wherever it leads: the operator named it.
    Named,
}

impl Guard {
    /// # Errors
    /// Where the endpoint is no URL by HTTP.
    pub(super) fn new(settings: &HubSettings) -> Result<Guard, HubError> {
        let endpoint = Url::parse(&settings.hf_endpoint).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https") && url.host().is_some() && url.username().is_empty()
        });
        if endpoint.is_none() {
            return Err(HubError::Invalid("hub.hf_endpoint: expected https:// and a host".to_owned()));
        }
        Ok(Guard { endpoint, rules: settings.allowed_hosts.iter().map(|text| Rule::parse(text)).collect() })
    }

    /// Whether `url` has the endpoint's scheme, host and port.
    pub(super) fn is_endpoint(&self, url: &Url) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.origin() == url.origin())
    }

    /// Whether, and how, `url` may be called.
    ///
    /// # Errors
    /// [`HubError::Refused`], the same whatever is there.
    pub(super) fn check(&self, url: &Url) -> Result<Verdict, HubError> {
        if url.as_str().len() > URL_MAX {
            return Err(HubError::Invalid(format!("url: expected at most {URL_MAX} bytes")));
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(HubError::Refused("address not allowed: only https:// is fetched".to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(HubError::Refused("address not allowed: a URL may name no user and no password".to_owned()));
        }
        let Some(host) = url.host() else { return Err(refused()) };
        if self.is_endpoint(url) {
            return Ok(Verdict::Named);
        }
        let (name, port) = (bare(&host), url.port_or_known_default());
        let named =
            |rule: &Rule| matches!(rule, Rule::Exact(host, at) if *host == name && (at.is_none() || *at == port));
        if self.rules.iter().any(named) {
            return Ok(Verdict::Named);
        }
        let below =
            |rule: &Rule| matches!(rule, Rule::Below(domain) if name.ends_with(domain) && name.len() > domain.len());
        let listed = self.rules.is_empty() || self.rules.iter().any(below);
        let public = match host {
            Host::Ipv4(address) => is_public(IpAddr::V4(address)),
            Host::Ipv6(address) => is_public(IpAddr::V6(address)),
            Host::Domain(_) => is_public_name(&name),
        };
        if listed && public && url.scheme() == "https" { Ok(Verdict::Public) } else { Err(refused()) }
    }
}

impl Rule {
    fn parse(text: &str) -> Rule {
        let text = text.trim().to_ascii_lowercase();
        if let Some(domain) = text.strip_prefix("*.") {
            return Rule::Below(format!(".{}", domain.trim_end_matches('.')));
        }
        // An IPv6 address has colons of its own: with a port it stands in brackets.
        let plain = |host: &str| host.trim_matches(['[', ']']).trim_end_matches('.').to_owned();
        if text.parse::<Ipv6Addr>().is_ok() || text.ends_with(']') {
            let host = plain(&text);
            return Rule::Exact(host.parse::<Ipv6Addr>().map_or(host, |address| address.to_string()), None);
        }
        match text.rsplit_once(':').and_then(|(host, port)| Some((plain(host), port.parse().ok()?))) {
            Some((host, port)) => {
                Rule::Exact(host.parse::<Ipv6Addr>().map_or(host, |address| address.to_string()), Some(port))
            }
            None => Rule::Exact(plain(&text), None),
        }
    }
}

/// A host as rules have it: lower case, without brackets and the dot at the end.
fn bare(host: &Host<&str>) -> String {
    match host {
        Host::Domain(name) => name.trim_end_matches('.').to_ascii_lowercase(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    }
}

fn refused() -> HubError {
    HubError::Refused(
        "address not allowed: only public addresses by https, and what [hub] allowed_hosts names, are fetched"
            .to_owned(),
    )
}

/// Whether a name may lead to the public: names of the machine and of local networks do not.
fn is_public_name(name: &str) -> bool {
    const LOCAL: [&str; 9] =
        ["localhost", "localdomain", "local", "internal", "intranet", "lan", "home.arpa", "in-addr.arpa", "ip6.arpa"];
    name.contains('.') && !LOCAL.iter().any(|end| name.strip_suffix(end).is_some_and(|rest| rest.ends_with('.')))
}

/// Whether an address is one of the public Internet, after IANA's registries of special addresses.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            const SPECIAL: [(u32, u32); 15] = [
                (0x0000_0000, 8),  // this network
                (0x0a00_0000, 8),  // private
                (0x6440_0000, 10), // shared, of carriers
                (0x7f00_0000, 8),  // loopback
                (0xa9fe_0000, 16), // link-local, metadata
                (0xac10_0000, 12), // private
                (0xc000_0000, 24), // protocol assignments
                (0xc000_0200, 24), // documentation
                (0xc058_6300, 24), // 6to4 relays
                (0xc0a8_0000, 16), // private
                (0xc612_0000, 15), // benchmarks
                (0xc633_6400, 24), // documentation
                (0xcb00_7100, 24), // documentation
                (0xe000_0000, 4),  // multicast
                (0xf000_0000, 4),  // reserved, broadcast
            ];
            let bits = address.to_bits();
            // Azure's wire server has a public address that answers inside its networks alone.
            address != Ipv4Addr::new(168, 63, 129, 16)
                && SPECIAL.iter().all(|(network, length)| (bits ^ network) >> (32 - length) != 0)
        }
        IpAddr::V6(address) => {
            // What stands for an IPv4 address (mapped, compatible, NAT64), loopback, local and multicast addresses all lie
            // outside of the block that is given out, 2000::/3.
            const SPECIAL: [(u128, u32); 4] = [
                (0x2001 << 112, 23),     // protocol assignments, Teredo, ORCHID
                (0x2001_0db8 << 96, 32), // documentation
                (0x2002 << 112, 16),     // 6to4
                (0x3fff << 112, 20),     // documentation
            ];
            let bits = address.to_bits();
            bits >> 125 == 1 && SPECIAL.iter().all(|(network, length)| (bits ^ network) >> (128 - length) != 0)
        }
    }
}

/// Finds the addresses of a name, and gives none where one of them is not public.
#[derive(Debug, Clone, Copy)]
pub(super) struct PublicOnly;

/// What [`PublicOnly`] says instead of addresses.
#[derive(Debug)]
pub(super) struct NotPublic;

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("address not allowed")
    }
}

impl std::error::Error for NotPublic {}

impl NotPublic {
    /// Whether this is why a call failed.
    pub(super) fn caused(error: &(dyn std::error::Error + 'static)) -> bool {
        let mut cause = Some(error);
        while let Some(at) = cause {
            if at.is::<NotPublic>() {
                return true;
            }
            cause = at.source();
        }
        false
    }

    pub(super) fn error() -> HubError {
        refused()
    }
}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if found.iter().any(|address| !is_public(address.ip())) {
                return Err(NotPublic.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guard(endpoint: &str, hosts: &[&str]) -> Guard {
        let allowed_hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        Guard::new(&HubSettings { hf_endpoint: endpoint.to_owned(), allowed_hosts, ..HubSettings::default() }).unwrap()
    }

    fn verdict(guard: &Guard, url: &str) -> Option<Verdict> {
        Url::parse(url).ok().and_then(|url| guard.check(&url).ok())
    }

    /// F03.
    #[test]
    fn what_is_not_public_is_refused_in_every_spelling() {
        let guard = guard("https://huggingface.co", &[]);
        for url in [
            "http://example.com/model.onnx",
            "https://localhost/x",
            "https://LOCALHOST./x",
            "https://a.localhost/x",
            "https://printer.local/x",
            "https://intranet/x",
            "https://metadata/x",
            "https://metadata.google.internal/computeMetadata/v1/",
            "https://instance-data.ec2.internal/x",
            "https://router.lan/x",
            "https://127.0.0.1/x",
            "https://127.1/x",
            "https://127.0.1/x",
            "https://2130706433/x",
            "https://0x7f000001/x",
            "https://0x7f.1/x",
            "https://017700000001/x",
            "https://0177.0.0.1/x",
            "https://127.0.0.1./x",
            "https://①②⑦.0.0.1/x",
            "https://127.255.255.254:8080/x",
            "https://0/x",
            "https://0.0.0.0/x",
            "https://0.1.2.3/x",
            "https://10.0.0.1/x",
            "https://10.255.255.255/x",
            "https://100.64.0.1/x",
            "https://100.127.255.255/x",
            "https://168.63.129.16/x",
            "https://169.254.169.254/latest/meta-data/",
            "https://0xa9fea9fe/latest/meta-data/",
            "https://2852039166/latest/meta-data/",
            "https://172.16.0.1/x",
            "https://172.31.255.255/x",
            "https://192.0.0.192/x",
            "https://192.0.2.1/x",
            "https://192.88.99.1/x",
            "https://192.168.1.1/x",
            "https://198.18.0.1/x",
            "https://198.19.255.255/x",
            "https://198.51.100.7/x",
            "https://203.0.113.9/x",
            "https://224.0.0.1/x",
            "https://239.255.255.255/x",
            "https://240.0.0.1/x",
            "https://255.255.255.255/x",
            "https://[::]/x",
            "https://[::1]/x",
            "https://[0:0:0:0:0:0:0:1]/x",
            "https://[::ffff:127.0.0.1]/x",
            "https://[::ffff:8.8.8.8]/x",
            "https://[::ffff:7f00:1]/x",
            "https://[::127.0.0.1]/x",
            "https://[64:ff9b::7f00:1]/x",
            "https://[64:ff9b:1::1]/x",
            "https://[100::1]/x",
            "https://[2001::1]/x",
            "https://[2001:10::1]/x",
            "https://[2001:db8::1]/x",
            "https://[2002:7f00:1::]/x",
            "https://[2002:a9fe:a9fe::]/x",
            "https://[3fff::1]/x",
            "https://[5f00::1]/x",
            "https://[fc00::1]/x",
            "https://[fd00:ec2::254]/latest/meta-data/",
            "https://[fe80::1]/x",
            "https://[fe80::1%25eth0]/x",
            "https://[fec0::1]/x",
            "https://[ff02::1]/x",
            "https://user@example.com/x",
            "https://user:password@example.com/x",
            "https://:password@example.com/x",
            "https://example.com@127.0.0.1/x",
            "file:///etc/passwd",
            "data:application/octet-stream,x",
            "ftp://example.com/x",
            "gopher://example.com/x",
            "ws://example.com/x",
            "javascript:1",
            "https:///x",
            "https://",
            "//example.com/x",
            "example.com/x",
            "https://huggingface.co:0x50/x",
            "http://huggingface.co/x",
        ] {
            assert_eq!(verdict(&guard, url), None, "{url}");
        }
        let long = format!("https://example.com/{}", "x".repeat(URL_MAX));
        assert_eq!(verdict(&guard, &long), None);
        for url in [
            "https://example.com/model.onnx",
            "https://example.com:8443/x?y=z",
            "https://EXAMPLE.com./x",
            "https://8.8.8.8/x",
            "https://1.1/x",
            "https://172.32.0.1/x",
            "https://100.128.0.1/x",
            "https://[2606:4700::1111]/x",
            "https://[2a00:1450:4001::1]/x",
            "https://bücher.example/x",
        ] {
            assert_eq!(verdict(&guard, url), Some(Verdict::Public), "{url}");
        }
        assert_eq!(verdict(&guard, "https://huggingface.co/x"), Some(Verdict::Named));
        assert_eq!(verdict(&guard, "https://huggingface.co:444/x"), Some(Verdict::Public));
    }

    #[test]
    fn what_the_operator_names_may_be_called_and_with_a_list_nothing_else() {
        let one = guard(
            "http://127.0.0.1:8100",
            &["mirror.intranet", "10.0.0.7:8443", "*.example.com", "::1", "[fd00::1]:80", "CDN.example.org."],
        );
        for url in [
            "http://127.0.0.1:8100/x",
            "http://mirror.intranet/x",
            "https://mirror.intranet:9000/x",
            "http://10.0.0.7:8443/x",
            "http://[::1]:1234/x",
            "http://[fd00::1]/x",
            "https://cdn.example.org/x",
        ] {
            assert_eq!(verdict(&one, url), Some(Verdict::Named), "{url}");
        }
        assert_eq!(verdict(&one, "https://a.example.com/x"), Some(Verdict::Public));
        for url in [
            "http://127.0.0.1:8101/x",
            "https://127.0.0.1:8100/x",
            "http://10.0.0.7/x",
            "http://a.example.com/x",
            "https://example.com/x",
            "https://aexample.com/x",
            "https://.example.com/x",
            "https://huggingface.co/x",
            "https://8.8.8.8/x",
            "http://user@mirror.intranet/x",
            "ftp://mirror.intranet/x",
        ] {
            assert_eq!(verdict(&one, url), None, "{url}");
        }
    }

    #[test]
    fn the_refusal_says_what_to_set_and_not_what_is_there() {
        let guard = guard("https://huggingface.co", &[]);
        let said = |url: &str| guard.check(&Url::parse(url).unwrap()).unwrap_err().to_string();
        let text = said("https://127.0.0.1:1/x");
        assert_eq!(text, said("https://169.254.169.254/x"));
        assert_eq!(text, said("https://metadata.google.internal/x"));
        assert!(text.starts_with("address not allowed") && text.contains("[hub] allowed_hosts"), "{text}");
    }

    /// F03.
    #[tokio::test]
    async fn a_name_that_leads_inside_is_refused_when_it_is_resolved() {
        let name: Name = "localhost".parse().unwrap();
        let error = PublicOnly.resolve(name).await.err().unwrap();
        assert!(NotPublic::caused(error.as_ref()), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_http_needs_a_name_of_the_operator(text in "(https?|ftp|file)://[a-z0-9.:@\\[\\]%/x-]{0,40}") {
            let guard = guard("https://huggingface.co", &["mirror.example"]);
            if let Ok(url) = Url::parse(&text)
                && guard.check(&url).is_ok()
            {
                prop_assert!(matches!(url.host_str(), Some("mirror.example" | "mirror.example." | "huggingface.co")), "{url}");
            }
        }

        #[test]
        fn all_spellings_of_an_address_get_one_verdict(bits in any::<u32>()) {
            let guard = guard("https://huggingface.co", &[]);
            let address = Ipv4Addr::from_bits(bits);
            let expected = is_public(IpAddr::V4(address)).then_some(Verdict::Public);
            for url in [
                format!("https://{address}/"),
                format!("https://{bits}/"),
                format!("https://{bits:#x}/"),
                format!("https://0{bits:o}/"),
            ] {
                prop_assert_eq!(verdict(&guard, &url), expected, "{}", url);
            }
            let mapped = format!("https://[{}]/", address.to_ipv6_mapped());
            prop_assert_eq!(verdict(&guard, &mapped), None);
        }
    }
}
