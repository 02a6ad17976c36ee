// A relay that knows nothing of tunnelmux: agents connect with a
// WebSocket on /tunnel/connect, a yamux session runs on it with the relay as its server, and
// POST /internal/forward/http sends one HTTP/1.1 request on one stream and reads the response.
//
// It prints its port, and "connected TOKEN" and "gone TOKEN" as agents come and go.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"

	"tunnelmux-peers/tunnel"
)

type forwardRequest struct {
	SessionToken string            `json:"session_token"`
	Method       string            `json:"method"`
	Path         string            `json:"path"`
	Headers      map[string]string `json:"headers,omitempty"`
	Body         string            `json:"body,omitempty"`
}

type forwardError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

type forwardResponse struct {
	Status  int                 `json:"status"`
	Headers map[string][]string `json:"headers,omitempty"`
	Body    string              `json:"body,omitempty"`
	Error   *forwardError       `json:"error,omitempty"`
}

// relay holds the live sessions by their token.
type relay struct {
	mutex    sync.Mutex
	sessions map[string]*yamux.Session
}

// register closes and replaces an older session with the same token.
func (r *relay) register(token string, session *yamux.Session) {
	r.mutex.Lock()
	old := r.sessions[token]
	r.sessions[token] = session
	r.mutex.Unlock()
	if old != nil {
		_ = old.Close()
	}
}

func (r *relay) unregister(token string, session *yamux.Session) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.sessions[token] == session {
		delete(r.sessions, token)
	}
}

func (r *relay) lookup(token string) *yamux.Session {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.sessions[token]
}

func (r *relay) connect(w http.ResponseWriter, req *http.Request) {
	token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
	if token == "" {
		token = req.URL.Query().Get("token")
	}
	if token == "" {
		http.Error(w, "token required", http.StatusUnauthorized)
		return
	}
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	ws, err := upgrader.Upgrade(w, req, nil)
	if err != nil {
		return
	}
	session, err := yamux.Server(tunnel.Conn(ws), yamux.DefaultConfig())
	if err != nil {
		_ = ws.Close()
		return
	}
	r.register(token, session)
	fmt.Println("connected", token)
	<-session.CloseChan()
	r.unregister(token, session)
	fmt.Println("gone", token)
}

func (r *relay) forwardHTTP(w http.ResponseWriter, req *http.Request) {
	var wanted forwardRequest
	if err := json.NewDecoder(req.Body).Decode(&wanted); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer := r.forwardOverTunnel(wanted)
	w.Header().Set("Content-Type", "application/json")
	if answer.Error != nil {
		w.WriteHeader(http.StatusBadGateway)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func failed(code string, err error) forwardResponse {
	return forwardResponse{Error: &forwardError{Code: code, Message: err.Error()}}
}

func (r *relay) forwardOverTunnel(wanted forwardRequest) forwardResponse {
	session := r.lookup(wanted.SessionToken)
	if session == nil || session.IsClosed() {
		return failed("TUNNEL_DISCONNECTED", fmt.Errorf("session not connected"))
	}
	stream, err := session.Open()
	if err != nil {
		return failed("TUNNEL_ERROR", err)
	}
	defer stream.Close()
	body, err := base64.StdEncoding.DecodeString(wanted.Body)
	if err != nil {
		return failed("INVALID_BODY", err)
	}
	request, err := http.NewRequest(wanted.Method, wanted.Path, bytes.NewReader(body))
	if err != nil {
		return failed("INVALID_REQUEST", err)
	}
	request.URL.Scheme = "http"
	request.URL.Host = "127.0.0.1"
	request.Host = "127.0.0.1"
	for name, value := range wanted.Headers {
		request.Header.Set(name, value)
	}
	if err := request.Write(stream); err != nil {
		return failed("TUNNEL_WRITE_ERROR", err)
	}
	response, err := http.ReadResponse(bufio.NewReader(stream), request)
	if err != nil {
		return failed("TUNNEL_READ_ERROR", err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return failed("TUNNEL_READ_ERROR", err)
	}
	return forwardResponse{
		Status:  response.StatusCode,
		Headers: response.Header,
		Body:    base64.StdEncoding.EncodeToString(content),
	}
}

func main() {
	r := &relay{sessions: map[string]*yamux.Session{}}
	http.HandleFunc("/tunnel/connect", r.connect)
	http.HandleFunc("/internal/forward/http", r.forwardHTTP)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("port", listener.Addr().(*net.TCPAddr).Port)
	_ = http.Serve(listener, nil)
}
