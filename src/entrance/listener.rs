//! Listens, accepts and drains.
//!
//! Invariants: never more than `max_connections` at a time; every connection has a time for its first bytes, for each
//! head, for each body, and for taking an answer; a TLS handshake has the time of a head and delays nobody else; a full file table slows accepting down and ends nothing; a drain ends
//! within `shutdown_grace`, whatever clients do, and breaks off no request: connections are closed by agreement
//! (`Connection: close`), or after they were silent. The same for every door; knows no route and no body.

use crate::tasks::{Lanes, Tasks, cores};
use crate::telemetry::Stats;
use crate::telemetry::stats::Rejected;
use crate::tls::{Acceptor, Certificate, TlsStream};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

/// Connections that the system may hold ready for us.
const BACKLOG: u32 = 1024;
/// How long a draining connection may be without a request before it is cut. Not at once: a balancer may have sent one that
/// is on its way, and would see it break off.
const DRAIN_IDLE: Duration = Duration::from_millis(500);
/// Threads that connections live on.
const MAX_LANES: usize = 8;
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes that a connection reads at a time at most, once a client sends that much: of 602 KB bodies at 32 clients a third
/// more than with 32 KiB. A head that grows so large before it is complete is refused there, and one above
/// `max_header_bytes` when it is (`middleware`); so this, times the connections, is what unfinished heads can hold.
const READ_AHEAD: usize = 128 << 10;

/// What a door does with a request.
pub trait Service: Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static;

    /// Answers a request, which came from this address as far as it is known; a refusal is an answer, too.
    fn call(
        &self,
        request: Request<Incoming>,
        from: Option<IpAddr>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Which versions of HTTP are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Http1And2,
    /// From the first byte on.
    Http2,
}

impl Speaks {
    /// What is offered to TLS clients, by their ALPN names.
    fn protocols(self) -> &'static [&'static str] {
        match self {
            Speaks::Http1And2 => &["h2", "http/1.1"],
            Speaks::Http2 => &["h2"],
        }
    }
}

/// What bounds the connections of one listener.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConnectionLimits {
    pub max_connections: usize,
    /// Time for a connection's first bytes, and for a request's head.
    pub header_read_timeout: Duration,
    /// Bytes of a request's head.
    pub max_header_bytes: usize,
    pub max_headers: usize,
    /// Requests at a time on one HTTP/2 connection.
    pub max_http2_streams: u32,
    /// How long a client may take no byte of its answer.
    pub write_timeout: Duration,
    /// How long a stopping server goes on accepting, so that balancers notice that it is not ready.
    pub drain_delay: Duration,
    /// How long a drain may take, from the signal to the exit.
    pub shutdown_grace: Duration,
}

/// A port that is ours, from which nothing is accepted yet.
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    /// Where connections live: requests of tiny models are answered there from end to end.
    lanes: Lanes,
    speaks: Speaks,
    limits: ConnectionLimits,
    /// `None`: without TLS.
    tls: Option<Acceptor>,
    tasks: Tasks,
}

impl Listener {
    /// Binds `address`; with `certificate` connections are encrypted. Must be called within the async runtime.
    ///
    /// # Errors
    /// Where the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        speaks: Speaks,
        limits: ConnectionLimits,
        certificate: Option<&Certificate>,
        tasks: Tasks,
    ) -> io::Result<Listener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restarted server takes its port again though old connections linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let lanes = Lanes::start(&tasks, cores().min(MAX_LANES))?;
        let acceptor = |certificate: &Certificate| certificate.acceptor(speaks.protocols()).map_err(io::Error::other);
        let tls = certificate.map(acceptor).transpose()?;
        Ok(Listener { listener, address, lanes, speaks, limits, tls, tasks })
    }

    /// The address in use: with the port that the system chose where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the tasks are asked to stop, then drains: goes on accepting for `drain_delay` (readiness is false by
    /// then, and each answer is the last of its connection), finishes the requests it has, and cuts what is left `shutdown_grace` after
    /// the signal. `stats` counts connections that bring no HTTP.
    pub async fn serve(self, service: impl Service, stats: Stats) {
        let stopping = self.tasks.stopping().clone();
        let permits = Arc::new(Semaphore::new(self.limits.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
        let connections = Arc::new(Connections {
            speaks: self.speaks,
            limits: self.limits,
            tasks: self.tasks.clone(),
            tls: self.tls,
            service,
            stats,
            times: Times { head: self.limits.header_read_timeout, write: self.limits.write_timeout },
            is_closing: AtomicBool::new(false),
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
        });
        let accepting = accept(&self.listener, &self.lanes, &permits, &connections);
        let drain_delay = self.limits.drain_delay.min(self.limits.shutdown_grace);
        let until_drain = async {
            stopping.cancelled().await;
            let stopped_at = Instant::now();
            connections.is_closing.store(true, Ordering::Release);
            tokio::time::sleep(drain_delay).await;
            stopped_at
        };
        let stopped_at = tokio::select! {
            biased;
            stopped_at = until_drain => stopped_at,
            () = accepting => Instant::now(),
        };
        take_waiting(self.listener, &self.lanes, &permits, &connections);
        connections.drain.cancel();
        // Each connection holds a permit until its task ends: all of them are there when all have ended.
        let all = u32::try_from(self.limits.max_connections.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let deadline = stopped_at + self.limits.shutdown_grace;
        if tokio::time::timeout_at(deadline, permits.acquire_many(all)).await.is_err() {
            let left = (all as usize).saturating_sub(permits.available_permits());
            tracing::warn!(connections = left, "{left} connections did not end within shutdown_grace_ms and are cut");
            connections.cut.cancel();
            // Dropping a connection is a matter of polling its task once.
            let _ = tokio::time::timeout(Duration::from_secs(1), permits.acquire_many(all)).await;
        }
    }
}

/// What all connections share.
struct Connections<S> {
    speaks: Speaks,
    limits: ConnectionLimits,
    tasks: Tasks,
    tls: Option<Acceptor>,
    service: S,
    stats: Stats,
    times: Times,
    /// The answers to come are the last of their connections, and say so. A flag of its own, since the token has a lock.
    is_closing: AtomicBool,
    /// Finish what you have.
    drain: CancellationToken,
    /// End at once.
    cut: CancellationToken,
}

/// What a peer has for its part of the talk.
#[derive(Clone, Copy)]
struct Times {
    /// For its first bytes, and for a TLS handshake.
    head: Duration,
    /// Without taking a byte.
    write: Duration,
}

/// For one connection.
fn builder(speaks: Speaks, limits: &ConnectionLimits, tasks: &Tasks) -> Builder<StreamExecutor> {
    let max_header_bytes = limits.max_header_bytes;
    let mut builder = Builder::new(StreamExecutor { tasks: tasks.clone(), lane_is_taken: Arc::default() });
    if speaks == Speaks::Http2 {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_headers(limits.max_headers)
        .max_buf_size(max_header_bytes.max(READ_AHEAD))
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_http2_streams)
        .max_header_list_size(u32::try_from(max_header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(H2_PING_INTERVAL)
        .keep_alive_timeout(H2_PING_TIMEOUT);
    builder
}

/// Runs the requests of one HTTP/2 connection. One at a time has the connection's lane, which spares it two hops between threads;
/// others that come meanwhile run off it, for one connection may bring many at a time.
#[derive(Clone)]
struct StreamExecutor {
    tasks: Tasks,
    lane_is_taken: Arc<AtomicBool>,
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, future: F) {
        let name = "http2 stream";
        match OnLane::take(&self.lane_is_taken) {
            Some(place) => self.tasks.spawn_here(name, async move {
                let _place = place;
                future.await;
            }),
            None => self.tasks.spawn(name, async move {
                future.await;
            }),
        };
    }
}

/// The connection's lane is this request's, until this is dropped.
struct OnLane(Arc<AtomicBool>);

impl OnLane {
    fn take(is_taken: &Arc<AtomicBool>) -> Option<OnLane> {
        // Of no other memory: the flag only spreads work.
        (!is_taken.swap(true, Ordering::Relaxed)).then(|| OnLane(is_taken.clone()))
    }
}

impl Drop for OnLane {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Accepts for ever. At `max_connections` it waits; the system's backlog holds who comes meanwhile.
async fn accept<S: Service>(
    listener: &TcpListener,
    lanes: &Lanes,
    permits: &Arc<Semaphore>,
    connections: &Arc<Connections<S>>,
) {
    let mut failures = Failures::default();
    loop {
        // Closed never; if it were, nothing could be accepted any more.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                failures.count = 0;
                // The lane's own reactor watches the socket from here on.
                let Ok(stream) = stream.into_std() else { continue };
                serve_on_lane(stream, lanes, connections, permit);
            }
            // The client was gone before we took it.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
            }
            Err(error) => failures.wait(&error).await,
        }
    }
}

fn serve_on_lane<S: Service>(
    stream: std::net::TcpStream,
    lanes: &Lanes,
    connections: &Arc<Connections<S>>,
    permit: OwnedSemaphorePermit,
) {
    let connections = connections.clone();
    lanes.spawn("connection", async move {
        let Ok(stream) = TcpStream::from_std(stream) else { return };
        // Answers are small and complete: waiting for more to send would only delay them. Fails on a dead socket only.
        let _ = stream.set_nodelay(true);
        let from = stream.peer_addr().ok().map(|address| address.ip());
        match &connections.tls {
            None => serve_connection(stream, from, connections, permit).await,
            Some(acceptor) => {
                if let Some(stream) = encrypted(acceptor, stream, &connections).await {
                    serve_connection(stream, from, connections, permit).await;
                }
            }
        }
    });
}

/// Closes the listener, after accepting what the system holds ready: closing resets those, whose requests may already be sent.
fn take_waiting<S: Service>(
    listener: TcpListener,
    lanes: &Lanes,
    permits: &Arc<Semaphore>,
    connections: &Arc<Connections<S>>,
) {
    let Ok(listener) = listener.into_std() else { return };
    while let Ok(permit) = permits.clone().try_acquire_owned() {
        // It does not block: that nobody waits is an error, too.
        let Ok((stream, _)) = listener.accept() else { return };
        if stream.set_nonblocking(true).is_ok() {
            serve_on_lane(stream, lanes, connections, permit);
        }
    }
}

/// Accepting fails in a row where the process is out of file descriptors or memory: it passes, and to retry at once
/// would only burn a core and fill the log.
#[derive(Default)]
struct Failures {
    count: u32,
    logged_at: Option<Instant>,
}

impl Failures {
    async fn wait(&mut self, error: &io::Error) {
        self.count = self.count.saturating_add(1);
        if self.logged_at.is_none_or(|at| at.elapsed() >= Duration::from_secs(10)) {
            self.logged_at = Some(Instant::now());
            tracing::warn!(%error, "cannot accept connections, trying again: {error}");
        }
        tokio::time::sleep(Duration::from_millis(10 << self.count.min(6))).await;
    }
}

/// The stream after its handshake; `None` where there is none in time.
async fn encrypted<S>(acceptor: &Acceptor, stream: TcpStream, shared: &Connections<S>) -> Option<TlsStream<TcpStream>> {
    let handshake = async {
        if is_plain_http(&stream).await? {
            refuse_plain(stream).await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP on a TLS port"));
        }
        acceptor.accept(stream).await
    };
    // A handshake that never becomes complete is no request: it must not hold the drain up.
    let drained = async {
        shared.drain.cancelled().await;
        tokio::time::sleep(DRAIN_IDLE).await;
    };
    tokio::select! {
        // As in `serve_connection`; dropping a handshake closes its connection, which is what the other branches are for.
        biased;
        () = shared.cut.cancelled() => None,
        result = tokio::time::timeout(shared.times.head, handshake) => match result {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed: {error}");
                None
            }
            Err(_) => {
                tracing::debug!("a TLS handshake took longer than header_read_timeout_ms");
                None
            }
        },
        () = drained => None,
    }
}

/// Whether what comes first is a letter, as methods of HTTP begin; TLS begins with a control character. Takes nothing.
async fn is_plain_http(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(stream.peek(&mut first).await? == 1 && first.iter().all(u8::is_ascii_alphabetic))
}

/// Says what is wrong to who speaks without TLS: browsers and clients would show an empty answer, or bytes of an alert.
async fn refuse_plain(mut stream: TcpStream) -> io::Result<()> {
    // Closing on what was not read resets the connection, and the answer with it.
    let _ = stream.try_read(&mut [0; 4096]);
    stream.write_all(PLAIN_REFUSAL).await?;
    stream.shutdown().await
}

const PLAIN_REFUSAL: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 54\r\nConnection: close\r\n\r\n\
    This port speaks HTTPS; use an address with https://.\n";

async fn serve_connection<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: Option<IpAddr>,
    shared: Arc<Connections<S>>,
    permit: OwnedSemaphorePermit,
) {
    let activity = Arc::new(Activity::default());
    let service = hyper::service::service_fn({
        let (shared, activity) = (shared.clone(), activity.clone());
        move |request: Request<Incoming>| {
            let (shared, guard) = (shared.clone(), InFlight::new(&activity));
            let is_http2 = request.version() == Version::HTTP_2;
            if is_http2 {
                activity.is_http2.store(true, Ordering::Release);
            }
            async move {
                let mut response = shared.service.call(request, from).await;
                // HTTP/2 has a frame for it, which `graceful_shutdown` sends.
                if shared.is_closing.load(Ordering::Acquire) && !is_http2 {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| CountedBody { body, _guard: guard }))
            }
        }
    });
    let io = TokioIo::new(Guarded::new(stream, shared.times, activity.clone()));
    let builder = builder(shared.speaks, &shared.limits, &shared.tasks);
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    tokio::select! {
        // The cut comes first: it must win over a connection that is always ready. Dropping any branch loses nothing,
        // since the connection lives on outside.
        biased;
        () = shared.cut.cancelled() => return,
        result = connection.as_mut() => return finished(result, &shared.stats),
        () = shared.drain.cancelled() => {}
    }
    // One of HTTP/1 would be closed at once where no request is being answered, and one that is on its way be lost.
    if activity.is_http2.load(Ordering::Acquire) {
        connection.as_mut().graceful_shutdown();
    }
    tokio::select! {
        biased;
        () = shared.cut.cancelled() => {}
        result = connection.as_mut() => finished(result, &shared.stats),
        // A head that never becomes complete is no request: it must not hold the drain up.
        () = idle(&activity) => {}
    }
    drop(permit);
}

/// Returns when there has been no request, and nothing to send, for [`DRAIN_IDLE`].
async fn idle(activity: &Activity) {
    let mut idle_since = Instant::now();
    while idle_since.elapsed() < DRAIN_IDLE {
        if activity.is_busy() {
            idle_since = Instant::now();
        }
        tokio::time::sleep(DRAIN_IDLE / 10).await;
    }
}

fn finished(result: Result<(), Box<dyn std::error::Error + Send + Sync>>, stats: &Stats) {
    let Err(error) = result else { return };
    if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
        stats.record_rejected(Rejected::Malformed);
        // It has no request's line of the log, since it became none.
        tracing::info!(code = Rejected::Malformed.name(), %error, "a connection was closed: {error}");
    } else {
        // Clients that vanish are daily business.
        tracing::debug!(%error, "a connection ended early: {error}");
    }
}

/// What a connection has to do.
#[derive(Default)]
struct Activity {
    /// Requests, from their heads until the last bytes of their answers are handed over for sending.
    in_flight: AtomicUsize,
    /// Bytes are to be sent which the peer does not take yet.
    is_sending: AtomicBool,
    is_http2: AtomicBool,
}

impl Activity {
    fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0 || self.is_sending.load(Ordering::Acquire)
    }
}

struct InFlight(Arc<Activity>);

impl InFlight {
    fn new(activity: &Arc<Activity>) -> InFlight {
        activity.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(activity.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

struct CountedBody<B> {
    body: B,
    _guard: InFlight,
}

impl<B: Body<Data = Bytes> + Unpin> Body for CountedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket whose peer must send its first bytes and take its answers in time. Heads are timed by hyper, but only once
/// it knows which version of HTTP it speaks.
struct Guarded<S> {
    stream: S,
    /// How much of the HTTP/2 preface has come; `None` once the version is clear.
    preface: Option<usize>,
    first_bytes: Pin<Box<Sleep>>,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    activity: Arc<Activity>,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl<S> Guarded<S> {
    fn new(stream: S, times: Times, activity: Arc<Activity>) -> Guarded<S> {
        let first_bytes = Box::pin(tokio::time::sleep(times.head));
        Guarded { stream, preface: Some(0), first_bytes, write_timeout: times.write, stalled: None, activity }
    }

    /// Ends the write where the peer takes nothing for too long.
    fn watch<T>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            if self.stalled.take().is_some() {
                self.activity.is_sending.store(false, Ordering::Release);
            }
            return poll;
        }
        self.activity.is_sending.store(true, Ordering::Release);
        let write_timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_timeout)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some(seen) = self.preface else { return poll };
        if poll.is_pending() {
            return match self.first_bytes.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Pending => Poll::Pending,
            };
        }
        let got = buffer.filled().get(before..).unwrap_or_default();
        let rest = PREFACE.get(seen..).unwrap_or_default();
        let is_open = got.len() < rest.len() && rest.starts_with(got);
        self.preface = is_open.then_some(seen + got.len());
        poll
    }
}

/// Head and body of an answer that are written as one piece: the system takes one piece sooner than a list of them.
const JOINED_WRITE: usize = 2048;

/// The pieces in one, where they are small.
fn joined(data: &[io::IoSlice<'_>]) -> Option<([u8; JOINED_WRITE], usize)> {
    let length: usize = data.iter().map(|piece| piece.len()).sum();
    if data.len() < 2 || length > JOINED_WRITE {
        return None;
    }
    let mut bytes = [0; JOINED_WRITE];
    let mut rest = bytes.as_mut_slice();
    for piece in data {
        let (place, after) = rest.split_at_mut_checked(piece.len())?;
        place.copy_from_slice(piece);
        rest = after;
    }
    Some((bytes, length))
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, data);
        self.watch(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = match joined(data) {
            Some((bytes, length)) => {
                Pin::new(&mut self.stream).poll_write(context, bytes.get(..length).unwrap_or_default())
            }
            None => Pin::new(&mut self.stream).poll_write_vectored(context, data),
        };
        self.watch(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS says goodbye, for which a peer that takes nothing leaves no room.
        let poll = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, poll)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread::ThreadId;
    use tokio::sync::oneshot;

    /// A request: says which thread it is on, and goes on until its other end is dropped.
    fn request(executor: &StreamExecutor) -> (mpsc::Receiver<ThreadId>, oneshot::Sender<()>) {
        let (said, thread) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        executor.execute(async move {
            said.send(std::thread::current().id()).unwrap();
            let _ = ended.await;
        });
        (thread, end)
    }

    #[test]
    fn one_request_of_a_connection_at_a_time_has_its_lane() {
        let home = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let lane = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let tasks = Tasks::new();
        // Where what is handed on runs.
        home.block_on(async { tasks.spawn("home", async {}).await }).unwrap();
        let executor = StreamExecutor { tasks, lane_is_taken: Arc::default() };
        let here = std::thread::current().id();
        lane.block_on(async {
            let (first, end_first) = request(&executor);
            let (second, _end_second) = request(&executor);
            assert_ne!(second.recv().unwrap(), here, "the lane is taken");
            tokio::task::yield_now().await;
            assert_eq!(first.recv().unwrap(), here);
            drop(end_first);
            while executor.lane_is_taken.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
            let (third, _end_third) = request(&executor);
            tokio::task::yield_now().await;
            assert_eq!(third.recv().unwrap(), here, "the lane is free again");
        });
    }
}
