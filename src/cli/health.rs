//! `ortus health`: asks a running server how it is, for the health check of a container, which has no other HTTP client.

use super::args::HealthArgs;
use super::error::CliError;
use super::store::load_config;
use crate::config::{Config, Flags};
use reqwest::Url;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

pub(super) fn health(args: HealthArgs) -> Result<String, CliError> {
    let (path, well) = if args.ready { ("/readyz", "ready") } else { ("/livez", "alive") };
    let base = match args.url {
        Some(url) => url,
        None => own_url(&load_config(args.config, Flags::default())?),
    };
    let url = Url::parse(&base)
        .and_then(|url| url.join(path))
        .map_err(|error| CliError::Health(format!("{base:?} is no address such as http://127.0.0.1:8080: {error}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Output)?;
    let status = runtime
        .block_on(status(&url, Duration::from_millis(args.timeout_ms)))
        .map_err(|error| CliError::Health(format!("{url} does not answer: {}", innermost(&error))))?;
    if status.is_success() {
        return Ok(well.to_owned());
    }
    Err(CliError::Health(format!("{url} answers {status}: the server is not {well}")))
}

/// Where a server of this configuration is to be found from here.
fn own_url(config: &Config) -> String {
    let listen = config.http.listen;
    // The address that stands for all of them is none to call.
    let ip = if listen.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { listen.ip() };
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{}", SocketAddr::new(ip, listen.port()))
}

async fn status(url: &Url, timeout: Duration) -> reqwest::Result<reqwest::StatusCode> {
    // Fails where there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        // Its certificate is made out to the name by which others know it, not to this machine's own address.
        .tls_danger_accept_invalid_certs(is_this_machine(url))
        .build()?;
    Ok(client.get(url.clone()).send().await?.status())
}

fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What the system said, without the layers around it.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_certificate_goes_unchecked() {
        for (url, is_this) in [
            ("https://127.0.0.1:8080", true),
            ("https://[::1]:8080", true),
            ("https://localhost", true),
            ("https://127.0.0.1.example.org", false),
            ("https://localhost.example.org", false),
            ("https://10.0.0.1", false),
            ("https://127.0.0.1@example.org", false),
        ] {
            assert_eq!(is_this_machine(&Url::parse(url).unwrap()), is_this, "{url}");
        }
    }
}
