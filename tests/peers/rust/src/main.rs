//! The Rust peer of the interoperability tests: rust-yamux behind the command language of
//! ../../README.md. One process holds one session.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{poll_fn, Future};
use std::io::{self, BufRead, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Sink, Stream as _};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch, Mutex, Semaphore};
use tokio::task::spawn_local;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::WebSocketStream;
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Config, Connection, ConnectionError, Mode, Stream};

type Answer = Result<String, String>;
type Transport = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

const BLOCK: usize = 65_536;
const PERIOD: usize = 251;
const UNSUPPORTED: &str = "unsupported";

fn text(error: impl std::fmt::Display) -> String {
    error.to_string().replace('\n', "; ")
}

// ---------------------------------------------------------------------------------- transports

/// A byte stream over binary messages, cut as `messages=` says.
struct WebSocket {
    inner: WebSocketStream<TcpStream>,
    unread: Vec<u8>,
    at: usize,
    messages: String,
}

impl WebSocket {
    fn next_size(&self) -> usize {
        match self.messages.as_str() {
            "bytes" => 1,
            "random" => rand::random_range(1..20_000),
            _ => usize::MAX,
        }
    }
}

fn broken(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

impl AsyncRead for WebSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        while self.at == self.unread.len() {
            match futures::ready!(Pin::new(&mut self.inner).poll_next(cx)) {
                Some(Ok(Message::Binary(data))) => {
                    self.unread = data.to_vec();
                    self.at = 0;
                }
                Some(Ok(Message::Text(_))) => return Poll::Ready(Err(broken("a text message"))),
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(0)),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let count = into.len().min(self.unread.len() - self.at);
        into[..count].copy_from_slice(&self.unread[self.at..self.at + count]);
        self.at += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for WebSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        futures::ready!(Pin::new(&mut self.inner).poll_ready(cx)).map_err(broken)?;
        let count = data.len().min(self.next_size());
        let message = Message::binary(data[..count].to_vec());
        Pin::new(&mut self.inner).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx).map_err(broken)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx).map_err(broken)
    }
}

fn on_websocket(inner: WebSocketStream<TcpStream>, messages: String) -> Transport {
    Box::new(WebSocket { inner, unread: Vec::new(), at: 0, messages })
}

async fn accept(listener: TcpListener, kind: &str, messages: String) -> Result<Transport, String> {
    let (socket, _) = listener.accept().await.map_err(text)?;
    socket.set_nodelay(true).map_err(text)?;
    if kind == "tcp" {
        return Ok(Box::new(socket.compat()));
    }
    let inner = tokio_tungstenite::accept_async(socket).await.map_err(text)?;
    Ok(on_websocket(inner, messages))
}

async fn dial(kind: &str, address: &str, messages: String) -> Result<Transport, String> {
    let authority = address.split('/').next().unwrap_or(address);
    let socket = TcpStream::connect(authority).await.map_err(text)?;
    socket.set_nodelay(true).map_err(text)?;
    if kind == "tcp" {
        return Ok(Box::new(socket.compat()));
    }
    let url = format!("ws://{address}");
    let (inner, _) = tokio_tungstenite::client_async(url, socket).await.map_err(text)?;
    Ok(on_websocket(inner, messages))
}

// ------------------------------------------------------------------------------------- payloads

fn fill(data: &mut Vec<u8>, at: usize, count: usize) {
    data.clear();
    data.extend((0..count).map(|i| ((at + i) % PERIOD) as u8));
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn write<W: AsyncWrite + Unpin>(
    to: &mut W,
    count: usize,
    chunk: usize,
    seed: usize,
) -> Answer {
    let mut digest = Sha256::new();
    let mut data = Vec::new();
    let mut at = 0;
    while at < count {
        fill(&mut data, seed + at, chunk.min(count - at));
        to.write_all(&data).await.map_err(text)?;
        digest.update(&data);
        at += data.len();
    }
    to.flush().await.map_err(text)?;
    Ok(hex(digest))
}

async fn read<R: AsyncRead + Unpin>(from: &mut R, wanted: &str, rate: usize) -> Answer {
    let limit = wanted.parse::<usize>().unwrap_or(usize::MAX);
    let mut digest = Sha256::new();
    let mut buffer = vec![0; BLOCK];
    let (mut total, mut end) = (0, "more");
    while total < limit {
        let mut most = BLOCK.min(limit - total);
        if rate > 0 {
            most = most.min((rate / 10).max(1));
        }
        let count = from
            .read(&mut buffer[..most])
            .await
            .map_err(|error| format!("after {total} bytes: {}", text(error)))?;
        if count == 0 {
            end = "eof";
            break;
        }
        digest.update(&buffer[..count]);
        total += count;
        if rate > 0 {
            tokio::time::sleep(Duration::from_secs_f64(count as f64 / rate as f64)).await;
        }
    }
    Ok(format!("bytes={total} sha256={} end={end}", hex(digest)))
}

// ---------------------------------------------------------------------------------------- peer

type Opened = oneshot::Sender<Result<Stream, String>>;

enum Wish {
    Open(Opened),
    Close(oneshot::Sender<()>),
}

#[derive(Clone)]
struct Halves {
    read: Rc<Mutex<Option<ReadHalf<Stream>>>>,
    write: Rc<Mutex<Option<WriteHalf<Stream>>>>,
}

struct Peer {
    wishes: mpsc::UnboundedSender<Wish>,
    wishes_in: RefCell<Option<mpsc::UnboundedReceiver<Wish>>>,
    inbound: Mutex<mpsc::UnboundedReceiver<Stream>>,
    inbound_out: mpsc::UnboundedSender<Stream>,
    state: watch::Sender<u8>, // 0 no session yet, 1 live, 2 over
    streams: RefCell<HashMap<String, Halves>>,
    counts: [Cell<u64>; 4], // accepted, finished, failed, bytes
}

/// Drives the connection: rust-yamux moves only while somebody polls it for inbound streams.
async fn run_session(
    mut connection: Connection<Transport>,
    mut wishes: mpsc::UnboundedReceiver<Wish>,
    inbound: mpsc::UnboundedSender<Stream>,
) -> Result<(), ConnectionError> {
    let mut opening: Option<Opened> = None;
    let mut closing: Option<oneshot::Sender<()>> = None;
    poll_fn(|cx| loop {
        if closing.is_some() {
            let ended = futures::ready!(connection.poll_close(cx));
            let _ = closing.take().map(|done| done.send(()));
            return Poll::Ready(ended);
        }
        if let Some(wanted) = opening.take() {
            match connection.poll_new_outbound(cx) {
                Poll::Ready(made) => {
                    let _ = wanted.send(made.map_err(text));
                    continue;
                }
                Poll::Pending => opening = Some(wanted),
            }
        } else {
            match wishes.poll_recv(cx) {
                Poll::Ready(Some(Wish::Open(wanted))) => {
                    opening = Some(wanted);
                    continue;
                }
                Poll::Ready(Some(Wish::Close(done))) => {
                    closing = Some(done);
                    continue;
                }
                _ => {}
            }
        }
        match futures::ready!(connection.poll_next_inbound(cx)) {
            Some(Ok(stream)) => {
                let _ = inbound.send(stream);
            }
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => return Poll::Ready(Ok(())),
        }
    })
    .await
}

struct Arguments {
    words: Vec<String>,
    options: HashMap<String, String>,
}

impl Arguments {
    fn word(&self, i: usize) -> &str {
        self.words.get(i).map_or("", String::as_str)
    }
    fn number(&self, i: usize) -> usize {
        self.word(i).parse().unwrap_or(0)
    }
    fn option(&self, name: &str, otherwise: usize) -> usize {
        self.options.get(name).and_then(|value| value.parse().ok()).unwrap_or(otherwise)
    }
}

impl Peer {
    fn begin(&self, transport: Transport, role: &str) {
        let mode = if role == "client" { Mode::Client } else { Mode::Server };
        let mut config = Config::default();
        config.set_read_after_close(true);
        let connection = Connection::new(transport, config, mode);
        let wishes = self.wishes_in.borrow_mut().take().expect("one session in a process");
        let driver = run_session(connection, wishes, self.inbound_out.clone());
        let state = self.state.clone();
        spawn_local(async move {
            if let Err(error) = driver.await {
                eprintln!("session: {error}");
            }
            state.send_replace(2);
        });
        self.state.send_replace(1);
    }

    fn count(&self, which: usize, by: u64) {
        self.counts[which].set(self.counts[which].get() + by);
    }

    async fn wait_for(&self, state: u8) {
        let _ = self.state.subscribe().wait_for(|now| *now >= state).await;
    }

    async fn open(&self) -> Result<Stream, String> {
        let (made, waiting) = oneshot::channel();
        self.wishes.send(Wish::Open(made)).map_err(|_| "the session is over")?;
        waiting.await.map_err(|_| "the session is over".to_string())?
    }

    fn keep(&self, name: &str, stream: Stream) {
        let (read, write) = stream.split();
        let halves = Halves {
            read: Rc::new(Mutex::new(Some(read))),
            write: Rc::new(Mutex::new(Some(write))),
        };
        self.streams.borrow_mut().insert(name.to_string(), halves);
    }

    /// Carries out one command and gives what follows "ok" in the reply.
    async fn run(self: &Rc<Self>, command: &str, a: Arguments) -> Answer {
        let messages = a.options.get("messages").cloned().unwrap_or_default();
        if messages == "large" || a.option("window", 0) > 0 {
            return Err(UNSUPPORTED.into());
        }
        match command {
            "about" => return Ok("implementation=rust-yamux language=rust".into()),
            "listen" => {
                let listener = TcpListener::bind("127.0.0.1:0").await.map_err(text)?;
                let port = listener.local_addr().map_err(text)?.port();
                let this = self.clone();
                spawn_local(async move {
                    match accept(listener, a.word(0), messages).await {
                        Ok(transport) => this.begin(transport, a.word(1)),
                        Err(error) => eprintln!("accept: {error}"),
                    }
                });
                return Ok(format!("port={port}"));
            }
            "dial" => {
                self.begin(dial(a.word(0), a.word(2), messages).await?, a.word(1));
                return Ok(String::new());
            }
            // No exit handlers and no goodbye: as near to a kill as a process can do to itself.
            "die" => std::process::abort(),
            _ => {}
        }
        self.wait_for(1).await;
        match command {
            "session" => {}
            "closed" => self.wait_for(2).await,
            "close-session" => {
                let (done, waiting) = oneshot::channel();
                let _ = self.wishes.send(Wish::Close(done));
                let _ = waiting.await;
            }
            "stats" => {
                let names = ["accepted", "finished", "failed", "bytes"];
                let pairs = names.iter().zip(&self.counts);
                let pairs: Vec<_> = pairs.map(|(name, n)| format!("{name}={}", n.get())).collect();
                return Ok(pairs.join(" "));
            }
            "open" => self.keep(a.word(0), self.open().await?),
            "accept" => {
                let accepted = self.inbound.lock().await.recv().await;
                self.keep(a.word(0), accepted.ok_or("the session is over")?);
            }
            "serve" => {
                let this = self.clone();
                spawn_local(async move { this.serve(Rc::new(a)).await });
            }
            "exchange" => return self.exchange(a).await,
            "ping" | "goaway" | "text" | "ws-close" => return Err(UNSUPPORTED.into()),
            _ => return self.run_on_stream(command, a).await,
        }
        Ok(String::new())
    }

    async fn run_on_stream(&self, command: &str, a: Arguments) -> Answer {
        let found = self.streams.borrow().get(a.word(0)).cloned();
        let halves = found.ok_or_else(|| format!("no command {command}, or no such stream"))?;
        match command {
            "read" => {
                let mut half = halves.read.lock().await;
                let half = half.as_mut().ok_or("the stream was reset")?;
                read(half, a.word(1), a.option("rate", 0)).await
            }
            "write" => {
                let mut half = halves.write.lock().await;
                let half = half.as_mut().ok_or("the stream was reset")?;
                let count = a.number(1);
                let sum = write(half, count, a.option("chunk", BLOCK), a.option("seed", 0)).await?;
                Ok(format!("bytes={count} sha256={sum}"))
            }
            "finish" | "close" => {
                let mut half = halves.write.lock().await;
                half.as_mut().ok_or("the stream was reset")?.close().await.map_err(text)?;
                Ok(String::new())
            }
            "reset" => {
                // Dropping is how rust-yamux resets.
                drop(halves.read.lock().await.take());
                drop(halves.write.lock().await.take());
                Ok(String::new())
            }
            _ => Err(format!("no command {command}")),
        }
    }

    async fn serve(self: Rc<Self>, a: Rc<Arguments>) {
        while let Some(stream) = self.inbound.lock().await.recv().await {
            self.count(0, 1);
            let (this, a) = (self.clone(), a.clone());
            spawn_local(async move {
                match this.treat(stream, &a).await {
                    Ok(()) => this.count(1, 1),
                    Err(error) => {
                        eprintln!("stream failed: {error}");
                        this.count(2, 1);
                    }
                }
            });
        }
    }

    async fn treat(&self, mut stream: Stream, a: &Arguments) -> Result<(), String> {
        match a.word(0) {
            "hold" => std::future::pending().await, // dropping it would reset it
            "greet" => {
                write(&mut stream, a.number(1), BLOCK, 0).await?;
                stream.close().await.map_err(text)?;
                read(&mut stream, "eof", 0).await?;
                Ok(())
            }
            mode => {
                let mut buffer = vec![0; BLOCK];
                loop {
                    let count = stream.read(&mut buffer).await.map_err(text)?;
                    if count == 0 {
                        return stream.close().await.map_err(text);
                    }
                    self.count(3, count as u64);
                    if mode == "echo" {
                        stream.write_all(&buffer[..count]).await.map_err(text)?;
                    }
                }
            }
        }
    }

    /// Opens streams to an echoing peer and compares what comes back.
    async fn exchange(self: &Rc<Self>, a: Arguments) -> Answer {
        let (streams, count) = (a.number(0), a.number(1));
        let places = Arc::new(Semaphore::new(a.option("concurrent", 1)));
        let mut running = Vec::new();
        for i in 0..streams {
            let place = places.clone().acquire_owned().await.map_err(text)?;
            let this = self.clone();
            running.push(spawn_local(async move {
                let _place = place;
                this.exchange_one(count, i).await
            }));
        }
        let mut failures = Vec::new();
        for one in running {
            if let Err(error) = one.await.map_err(text)? {
                failures.push(error);
            }
        }
        match failures.first() {
            Some(first) => Err(format!("{} of {streams} streams: {first}", failures.len())),
            None => Ok(format!("streams={streams} bytes={}", streams * count)),
        }
    }

    async fn exchange_one(&self, count: usize, seed: usize) -> Result<(), String> {
        let (mut reader, mut writer) = self.open().await?.split();
        let sent = spawn_local(async move {
            let sum = write(&mut writer, count, BLOCK, seed).await?;
            writer.close().await.map_err(text)?;
            Ok::<_, String>((sum, writer))
        });
        let got = read(&mut reader, "eof", 0).await?;
        let (sum, _writer) = sent.await.map_err(text)??;
        if got == format!("bytes={count} sha256={sum} end=eof") {
            Ok(())
        } else {
            Err(format!("echo differs: {got}, not {count} bytes {sum}"))
        }
    }
}

fn commands() -> mpsc::UnboundedReceiver<String> {
    let (put, get) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if put.send(line).is_err() {
                break;
            }
        }
    });
    get
}

async fn serve_commands() {
    let (wishes, wishes_in) = mpsc::unbounded_channel();
    let (inbound_out, inbound) = mpsc::unbounded_channel();
    let peer = Rc::new(Peer {
        wishes,
        wishes_in: RefCell::new(Some(wishes_in)),
        inbound: Mutex::new(inbound),
        inbound_out,
        state: watch::Sender::new(0),
        streams: RefCell::default(),
        counts: Default::default(),
    });
    let mut lines = commands();
    while let Some(line) = lines.recv().await {
        let mut parts = line.split_whitespace().map(str::to_string);
        let (Some(number), Some(command)) = (parts.next(), parts.next()) else { continue };
        let mut a = Arguments { words: Vec::new(), options: HashMap::new() };
        for word in parts {
            match word.split_once('=') {
                Some((name, value)) => drop(a.options.insert(name.into(), value.into())),
                None => a.words.push(word),
            }
        }
        let peer = peer.clone();
        spawn_local(async move {
            let reply = match peer.run(&command, a).await {
                Ok(text) => format!("{number} ok {text}"),
                Err(error) => format!("{number} error {error}"),
            };
            let mut out = io::stdout().lock();
            let _ = writeln!(out, "{}", reply.trim_end());
            let _ = out.flush();
        });
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let everything: Pin<Box<dyn Future<Output = ()>>> = Box::pin(serve_commands());
    tokio::task::LocalSet::new().block_on(&runtime, everything);
}
