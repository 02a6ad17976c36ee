// The Go peer of the interoperability tests: hashicorp/yamux and libp2p/go-yamux behind the command
// language of ../../README.md. One process holds one session.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"hash"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	hashicorp "github.com/hashicorp/yamux"
	libp2p "github.com/libp2p/go-yamux/v5"
)

var errUnsupported = errors.New("unsupported")

// session and stream are what the commands need; the two implementations follow.
type session interface {
	Open() (stream, error)
	Accept() (stream, error)
	Ping() (time.Duration, error)
	GoAway() error
	Close() error
	CloseChan() <-chan struct{}
	NumStreams() int
}

type stream interface {
	io.ReadWriter
	Finish() error
	Close() error
	Reset() error
}

type hashicorpSession struct{ *hashicorp.Session }
type hashicorpStream struct{ *hashicorp.Stream }

func (s hashicorpSession) Open() (stream, error) {
	opened, err := s.OpenStream()
	return hashicorpStream{opened}, err
}

func (s hashicorpSession) Accept() (stream, error) {
	accepted, err := s.AcceptStream()
	return hashicorpStream{accepted}, err
}

func (s hashicorpStream) Finish() error { return s.Stream.Close() } // a FIN; reading goes on
func (s hashicorpStream) Reset() error  { return errUnsupported }

type libp2pSession struct{ *libp2p.Session }
type libp2pStream struct{ *libp2p.Stream }

func (s libp2pSession) Open() (stream, error) {
	opened, err := s.OpenStream(context.Background())
	return libp2pStream{opened}, err
}

func (s libp2pSession) Accept() (stream, error) {
	accepted, err := s.AcceptStream()
	return libp2pStream{accepted}, err
}

func (s libp2pStream) Finish() error { return s.CloseWrite() }

func newSession(implementation string, conn net.Conn, role string, window uint32) (session, error) {
	if implementation == "hashicorp" {
		config := hashicorp.DefaultConfig()
		config.LogOutput = os.Stderr
		if window > 0 {
			config.MaxStreamWindowSize = window
		}
		if role == "client" {
			made, err := hashicorp.Client(conn, config)
			return hashicorpSession{made}, err
		}
		made, err := hashicorp.Server(conn, config)
		return hashicorpSession{made}, err
	}
	config := libp2p.DefaultConfig()
	config.LogOutput = os.Stderr
	if window > 0 {
		config.MaxStreamWindowSize = window
		config.InitialStreamWindowSize = window
	}
	if role == "client" {
		made, err := libp2p.Client(conn, config, nil)
		return libp2pSession{made}, err
	}
	made, err := libp2p.Server(conn, config, nil)
	return libp2pSession{made}, err
}

// ---------------------------------------------------------------------------------- transports

// webSocketConn is a byte stream over binary messages, cut as `messages=` says.
type webSocketConn struct {
	*websocket.Conn
	reader  io.Reader
	mutex   sync.Mutex
	pending []byte
	next    func() int // length of the next message; nil: one for each Write
	flush   *time.Timer
}

func newWebSocketConn(conn *websocket.Conn, messages string) *webSocketConn {
	made := &webSocketConn{Conn: conn}
	switch messages {
	case "bytes":
		made.next = func() int { return 1 }
	case "random":
		made.next = func() int { return 1 + rand.Intn(20_000) }
	case "large":
		made.next = func() int { return 1 << 20 }
	}
	return made
}

func (c *webSocketConn) Read(into []byte) (int, error) {
	for {
		if c.reader == nil {
			kind, reader, err := c.NextReader()
			if websocket.IsCloseError(err, 1000, 1001, 1005) {
				return 0, io.EOF
			}
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("a text message")
			}
			c.reader = reader
		}
		n, err := c.reader.Read(into)
		if err == io.EOF {
			c.reader, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *webSocketConn) Write(data []byte) (int, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.next == nil {
		return len(data), c.WriteMessage(websocket.BinaryMessage, data)
	}
	c.pending = append(c.pending, data...)
	for size := c.next(); len(c.pending) >= size; size = c.next() {
		if err := c.WriteMessage(websocket.BinaryMessage, c.pending[:size]); err != nil {
			return 0, err
		}
		c.pending = c.pending[size:]
	}
	if len(c.pending) > 0 && c.flush == nil {
		c.flush = time.AfterFunc(2*time.Millisecond, c.flushPending)
	}
	return len(data), nil
}

func (c *webSocketConn) flushPending() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.flush = nil
	if len(c.pending) > 0 {
		_ = c.WriteMessage(websocket.BinaryMessage, c.pending)
		c.pending = nil
	}
}

func (c *webSocketConn) Close() error {
	closing := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = c.WriteControl(websocket.CloseMessage, closing, time.Now().Add(time.Second))
	return c.Conn.Close()
}

func (c *webSocketConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// listen gives the port, and a function that waits for the one connection.
func listen(transport, messages string) (int, func() (net.Conn, error), error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, nil, err
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if transport == "tcp" {
		return port, func() (net.Conn, error) {
			defer listener.Close()
			return listener.Accept()
		}, nil
	}
	connected := make(chan net.Conn, 1)
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conn, err := upgrader.Upgrade(w, r, nil); err == nil {
			connected <- newWebSocketConn(conn, messages)
		}
	}))
	return port, func() (net.Conn, error) { return <-connected, nil }, nil
}

func dial(transport, address, messages string) (net.Conn, error) {
	if transport == "tcp" {
		return net.Dial("tcp", address)
	}
	conn, response, err := websocket.DefaultDialer.Dial("ws://"+address, nil)
	if err != nil {
		if response != nil {
			err = fmt.Errorf("%w: %s", err, response.Status)
		}
		return nil, err
	}
	return newWebSocketConn(conn, messages), nil
}

// ------------------------------------------------------------------------------------- payloads

// pattern is an endless payload: byte i is (i + seed) mod 251.
type pattern struct{ at int }

const period = 251

var patternBlock = func() []byte {
	block := make([]byte, 65_536+period)
	for i := range block {
		block[i] = byte(i % period)
	}
	return block
}()

func (p *pattern) take(count int) []byte {
	count = min(count, 65_536)
	start := p.at % period
	p.at += count
	return patternBlock[start : start+count]
}

func digest(sum hash.Hash) string { return hex.EncodeToString(sum.Sum(nil)) }

// ---------------------------------------------------------------------------------------- peer

type peer struct {
	implementation string
	conn           net.Conn
	session        session
	ready          chan struct{}
	failure        error
	mutex          sync.Mutex
	streams        map[string]stream
	out            sync.Mutex

	accepted, finished, failed, received atomic.Int64
}

type arguments struct {
	words   []string
	options map[string]string
}

func (a arguments) word(i int) string {
	if i < len(a.words) {
		return a.words[i]
	}
	return ""
}

func (a arguments) number(i int) int {
	n, _ := strconv.Atoi(a.word(i))
	return n
}

func (a arguments) option(name string, otherwise int) int {
	if n, err := strconv.Atoi(a.options[name]); err == nil {
		return n
	}
	return otherwise
}

func (p *peer) reply(id, text string) {
	p.out.Lock()
	defer p.out.Unlock()
	fmt.Printf("%s %s\n", id, text)
}

func (p *peer) begin(conn net.Conn, role string, options arguments) {
	p.conn = conn
	p.session, p.failure = newSession(p.implementation, conn, role, uint32(options.option("window", 0)))
	close(p.ready)
}

func (p *peer) stream(name string) (stream, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if found, ok := p.streams[name]; ok {
		return found, nil
	}
	return nil, fmt.Errorf("no stream named %s", name)
}

func (p *peer) keep(name string, made stream) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.streams[name] = made
}

// run carries out one command and gives what follows "ok" in the reply.
func (p *peer) run(command string, a arguments) (string, error) {
	switch command {
	case "about":
		return "implementation=" + p.implementation + " language=go", nil
	case "listen":
		port, wait, err := listen(a.word(0), a.options["messages"])
		if err != nil {
			return "", err
		}
		go func() {
			if conn, err := wait(); err == nil {
				p.begin(conn, a.word(1), a)
			}
		}()
		return fmt.Sprintf("port=%d", port), nil
	case "dial":
		conn, err := dial(a.word(0), a.word(2), a.options["messages"])
		if err != nil {
			return "", err
		}
		p.begin(conn, a.word(1), a)
		return "", p.failure
	case "die":
		return "", syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	<-p.ready
	if p.failure != nil {
		return "", p.failure
	}
	switch command {
	case "session":
		return "", nil
	case "closed":
		<-p.session.CloseChan()
		return "", nil
	case "close-session":
		return "", p.session.Close()
	case "goaway":
		return "", p.session.GoAway()
	case "ping":
		taken, err := p.session.Ping()
		return fmt.Sprintf("ms=%.3f", float64(taken.Microseconds())/1000), err
	case "stats":
		return fmt.Sprintf("streams=%d accepted=%d finished=%d failed=%d bytes=%d",
			p.session.NumStreams(), p.accepted.Load(), p.finished.Load(), p.failed.Load(),
			p.received.Load()), nil
	case "open":
		made, err := p.session.Open()
		if err == nil {
			p.keep(a.word(0), made)
		}
		return "", err
	case "accept":
		made, err := p.session.Accept()
		if err == nil {
			p.keep(a.word(0), made)
		}
		return "", err
	case "serve":
		go p.serve(a)
		return "", nil
	case "exchange":
		return p.exchange(a.number(0), a.number(1), a.option("concurrent", 1))
	case "text", "ws-close":
		return "", p.spoil(command, a.number(0))
	}
	return p.runOnStream(command, a)
}

func (p *peer) runOnStream(command string, a arguments) (string, error) {
	on, err := p.stream(a.word(0))
	if err != nil {
		return "", err
	}
	switch command {
	case "write":
		sum, err := write(on, a.number(1), a.option("chunk", 65_536), a.option("seed", 0))
		return fmt.Sprintf("bytes=%d sha256=%s", a.number(1), sum), err
	case "read":
		return read(on, a.word(1), a.option("rate", 0))
	case "finish":
		return "", on.Finish()
	case "close":
		return "", on.Close()
	case "reset":
		return "", on.Reset()
	}
	return "", fmt.Errorf("no command %s", command)
}

// spoil breaks the rules of a tunnel's WebSocket: a text message, or a close with any code.
func (p *peer) spoil(command string, code int) error {
	conn, ok := p.conn.(*webSocketConn)
	if !ok {
		return errUnsupported
	}
	if command == "text" {
		conn.mutex.Lock()
		defer conn.mutex.Unlock()
		return conn.WriteMessage(websocket.TextMessage, []byte("text"))
	}
	closing := websocket.FormatCloseMessage(code, "as asked")
	return conn.WriteControl(websocket.CloseMessage, closing, time.Now().Add(time.Second))
}

func write(to io.Writer, count, chunk, seed int) (string, error) {
	sum := sha256.New()
	payload := pattern{seed}
	for left := count; left > 0; {
		var data []byte
		if chunk <= 65_536 {
			data = payload.take(min(chunk, left))
		} else {
			for len(data) < min(chunk, left) {
				data = append(data, payload.take(min(chunk, left)-len(data))...)
			}
		}
		if _, err := to.Write(data); err != nil {
			return "", err
		}
		sum.Write(data)
		left -= len(data)
	}
	return digest(sum), nil
}

func read(from io.Reader, wanted string, rate int) (string, error) {
	limit, until := strconv.Atoi(wanted)
	sum := sha256.New()
	total, end := 0, "more"
	buffer := make([]byte, 65_536)
	for until != nil || total < limit {
		into := buffer
		if until == nil {
			into = into[:min(len(into), limit-total)]
		}
		if rate > 0 {
			into = into[:min(len(into), max(1, rate/10))]
		}
		n, err := from.Read(into)
		sum.Write(into[:n])
		total += n
		if err == io.EOF {
			end = "eof"
			break
		}
		if err != nil {
			return "", fmt.Errorf("after %d bytes: %w", total, err)
		}
		if rate > 0 {
			time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
		}
	}
	return fmt.Sprintf("bytes=%d sha256=%s end=%s", total, digest(sum), end), nil
}

// serve accepts streams from now on and treats each as the mode says.
func (p *peer) serve(a arguments) {
	for {
		accepted, err := p.session.Accept()
		if err != nil {
			return
		}
		p.accepted.Add(1)
		go func() {
			if err := p.treat(accepted, a); err != nil {
				fmt.Fprintln(os.Stderr, "stream failed:", err)
				p.failed.Add(1)
			} else {
				p.finished.Add(1)
			}
		}()
	}
}

func (p *peer) treat(on stream, a arguments) error {
	switch a.word(0) {
	case "hold":
		return nil
	case "greet":
		if _, err := write(on, a.number(1), 65_536, 0); err != nil {
			return err
		}
		return on.Close()
	case "sink":
		n, err := io.Copy(io.Discard, on)
		p.received.Add(n)
		return errors.Join(err, on.Close())
	}
	n, err := io.Copy(struct{ io.Writer }{on}, struct{ io.Reader }{on})
	p.received.Add(n)
	if err != nil {
		return err
	}
	return errors.Join(on.Finish(), on.Close())
}

// exchange opens streams to an echoing peer and compares what comes back.
func (p *peer) exchange(streams, count, concurrent int) (string, error) {
	places := make(chan struct{}, concurrent)
	failures := make(chan error, streams)
	for i := range streams {
		places <- struct{}{}
		go func() {
			failures <- p.exchangeOne(count, i)
			<-places
		}()
	}
	failed := 0
	var first error
	for range streams {
		if err := <-failures; err != nil {
			failed, first = failed+1, err
		}
	}
	if first != nil {
		return "", fmt.Errorf("%d of %d streams: %w", failed, streams, first)
	}
	return fmt.Sprintf("streams=%d bytes=%d", streams, streams*count), nil
}

func (p *peer) exchangeOne(count, seed int) error {
	on, err := p.session.Open()
	if err != nil {
		return err
	}
	defer on.Close()
	sent := make(chan error, 1)
	var sum string
	go func() {
		var err error
		sum, err = write(on, count, 65_536, seed)
		sent <- errors.Join(err, on.Finish())
	}()
	got, err := read(on, "eof", 0)
	if err = errors.Join(<-sent, err); err != nil {
		return err
	}
	if wanted := fmt.Sprintf("bytes=%d sha256=%s end=eof", count, sum); got != wanted {
		return fmt.Errorf("echo differs: %s, not %s", got, wanted)
	}
	return nil
}

func main() {
	implementation := flag.String("implementation", "hashicorp", "hashicorp or libp2p")
	flag.Parse()
	p := &peer{implementation: *implementation, ready: make(chan struct{}), streams: map[string]stream{}}
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		words := strings.Fields(commands.Text())
		if len(words) < 2 {
			continue
		}
		a := arguments{options: map[string]string{}}
		for _, word := range words[2:] {
			if name, value, found := strings.Cut(word, "="); found {
				a.options[name] = value
			} else {
				a.words = append(a.words, word)
			}
		}
		go func() {
			if text, err := p.run(words[1], a); err != nil {
				p.reply(words[0], "error "+strings.ReplaceAll(err.Error(), "\n", "; "))
			} else {
				p.reply(words[0], strings.TrimSpace("ok "+text))
			}
		}()
	}
}
