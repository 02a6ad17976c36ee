// A back end as those before tunnelmux were, which knows nothing of it: it drives the six routes of
// the internal API with net/http, decodes the JSON into types of its own, and says what it saw.
//
// usage: backend URL SECRET TOKEN. The device behind TOKEN answers /api/status with JSON, /echo with
// the body it gets, /camera with MJPEG and /ws as a WebSocket echo. The session is closed at the end.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// Summary is what the list holds.
type Summary struct {
	Token            string    `json:"token"`
	UserID           string    `json:"userId"`
	DeviceID         string    `json:"deviceId,omitempty"`
	ConnectedAt      time.Time `json:"connectedAt"`
	LastHeartbeat    time.Time `json:"lastHeartbeat"`
	RemoteAddr       string    `json:"remoteAddr,omitempty"`
	ProxyNodeID      string    `json:"proxyNodeId,omitempty"`
	ProxyInternalURL string    `json:"proxyInternalUrl,omitempty"`
}

// Session is what one session's own route answers.
type Session struct {
	Token         string    `json:"token"`
	Connected     bool      `json:"connected"`
	ConnectedAt   time.Time `json:"connected_at"`
	LastHeartbeat time.Time `json:"last_heartbeat"`
	RemoteAddr    string    `json:"remote_addr"`
	UserID        string    `json:"user_id"`
	DeviceID      string    `json:"device_id"`
}

// ForwardHTTPRequest is what forward/http takes.
type ForwardHTTPRequest struct {
	SessionToken string            `json:"session_token"`
	Method       string            `json:"method"`
	Path         string            `json:"path"`
	Headers      map[string]string `json:"headers,omitempty"`
	Body         string            `json:"body,omitempty"`
}

// ForwardHTTPResponse is what forward/http answers.
type ForwardHTTPResponse struct {
	Status  int               `json:"status"`
	Headers http.Header       `json:"headers,omitempty"`
	Body    string            `json:"body,omitempty"`
	Error   *ForwardHTTPError `json:"error,omitempty"`
}

// ForwardHTTPError says why there is no response.
type ForwardHTTPError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

type backend struct {
	base   string
	secret string
	client *http.Client
}

func (b *backend) request(method, path string, body io.Reader) *http.Request {
	request, err := http.NewRequest(method, b.base+path, body)
	if err != nil {
		panic(err)
	}
	request.Header.Set("Authorization", "Bearer "+b.secret)
	return request
}

// call decodes the JSON answer into result, whatever its status, unknown keys refused.
func (b *backend) call(method, path string, content, result any) (int, error) {
	var body io.Reader
	if content != nil {
		encoded, err := json.Marshal(content)
		if err != nil {
			return 0, err
		}
		body = bytes.NewReader(encoded)
	}
	response, err := b.client.Do(b.request(method, path, body))
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	decoder := json.NewDecoder(response.Body)
	decoder.DisallowUnknownFields()
	return response.StatusCode, decoder.Decode(result)
}

func (b *backend) list(token string) error {
	var listed struct {
		Sessions []*Summary `json:"sessions"`
		Total    int        `json:"total"`
	}
	status, err := b.call("GET", "/internal/sessions", nil, &listed)
	if err != nil || status != 200 {
		return fmt.Errorf("status %d: %w", status, err)
	}
	for _, session := range listed.Sessions {
		if session.Token == token && !session.ConnectedAt.IsZero() {
			return nil
		}
	}
	return fmt.Errorf("the session is not among %d", listed.Total)
}

func (b *backend) get(token string) error {
	var session Session
	status, err := b.call("GET", "/internal/session/"+url.PathEscape(token), nil, &session)
	if err != nil || status != 200 {
		return fmt.Errorf("status %d: %w", status, err)
	}
	if session.Token != token || !session.Connected || time.Since(session.LastHeartbeat) > time.Minute {
		return fmt.Errorf("got %+v", session)
	}
	return nil
}

func (b *backend) forwardHTTP(token string) error {
	wanted := ForwardHTTPRequest{SessionToken: token, Method: "GET", Path: "/api/status"}
	var answer ForwardHTTPResponse
	status, err := b.call("POST", "/internal/forward/http", wanted, &answer)
	if err != nil || status != 200 || answer.Status != 200 || answer.Error != nil {
		return fmt.Errorf("status %d, answer %+v: %w", status, answer, err)
	}
	if kind := answer.Headers.Get("Content-Type"); kind != "application/json" {
		return fmt.Errorf("Content-Type is %q in %v", kind, answer.Headers)
	}
	content := bytes.Repeat([]byte("0123456789abcdef"), 65536)
	wanted = ForwardHTTPRequest{
		SessionToken: token, Method: "POST", Path: "/echo",
		Headers: map[string]string{"Content-Type": "application/octet-stream"},
		Body:    base64.StdEncoding.EncodeToString(content),
	}
	answer = ForwardHTTPResponse{}
	if status, err = b.call("POST", "/internal/forward/http", wanted, &answer); err != nil {
		return fmt.Errorf("status %d: %w", status, err)
	}
	if got, err := base64.StdEncoding.DecodeString(answer.Body); err != nil || !bytes.Equal(got, content) {
		return fmt.Errorf("the echo has %d bytes: %w", len(got), err)
	}
	answer = ForwardHTTPResponse{}
	wanted = ForwardHTTPRequest{SessionToken: "nobodys-token", Method: "GET", Path: "/"}
	status, err = b.call("POST", "/internal/forward/http", wanted, &answer)
	if err != nil || status != 502 || answer.Error == nil || answer.Error.Code != "TUNNEL_DISCONNECTED" {
		return fmt.Errorf("for nobody's token: status %d, %+v: %w", status, answer, err)
	}
	return nil
}

// watch reads a few frames of the camera through a raw stream.
func watch(stream io.ReadWriteCloser) error {
	defer stream.Close()
	request, err := http.NewRequest("GET", "http://device/camera", nil)
	if err != nil {
		return err
	}
	if err := request.Write(stream); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(stream), request)
	if err != nil {
		return err
	}
	// Its body never ends: it is the stream that is closed.
	if kind := response.Header.Get("Content-Type"); !strings.HasPrefix(kind, "multipart/x-mixed-replace") {
		return fmt.Errorf("Content-Type is %q", kind)
	}
	lines := bufio.NewReader(response.Body)
	for frames := 0; frames < 5; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return fmt.Errorf("after %d frames: %w", frames, err)
		}
		if strings.HasPrefix(line, "--frame") {
			frames++
		}
	}
	return nil
}

// forwardRaw takes the connection by an upgrade, as net/http hands one out.
func (b *backend) forwardRaw(token string) error {
	request := b.request("POST", "/internal/forward/raw?token="+url.QueryEscape(token), nil)
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", "tunnel")
	// Not through a Client: with a Timeout, it would hide that the body can be written to.
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		return err
	}
	stream, ok := response.Body.(io.ReadWriteCloser)
	if response.StatusCode != http.StatusSwitchingProtocols || !ok {
		return fmt.Errorf("status %s", response.Status)
	}
	return watch(stream)
}

type hijacked struct {
	net.Conn
	reader *bufio.Reader
}

func (h *hijacked) Read(into []byte) (int, error) { return h.reader.Read(into) }

// forwardRawDialled takes the connection as a program does that dials it by hand.
func (b *backend) forwardRawDialled(token string) error {
	request := b.request("POST", "/internal/forward/raw?token="+url.QueryEscape(token), nil)
	conn, err := net.Dial("tcp", request.URL.Host)
	if err != nil {
		return err
	}
	if err := request.Write(conn); err != nil {
		return err
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return err
	}
	if response.StatusCode != 200 {
		return fmt.Errorf("status %s", response.Status)
	}
	return watch(&hijacked{conn, reader})
}

func (b *backend) forwardWS(token string) error {
	address := "ws" + strings.TrimPrefix(b.base, "http") + "/internal/forward/ws?token=" +
		url.QueryEscape(token) + "&path=" + url.QueryEscape("/ws?id=1")
	header := http.Header{"Authorization": {"Bearer " + b.secret}}
	ws, _, err := websocket.DefaultDialer.Dial(address, header)
	if err != nil {
		return err
	}
	defer ws.Close()
	for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
		message := bytes.Repeat([]byte("echo "), 20000)
		if err := ws.WriteMessage(kind, message); err != nil {
			return err
		}
		gotKind, got, err := ws.ReadMessage()
		if err != nil || gotKind != kind || !bytes.Equal(got, message) {
			return fmt.Errorf("kind %d of %d bytes came back: %w", gotKind, len(got), err)
		}
	}
	return nil
}

func (b *backend) kick(token string) error {
	path := "/internal/session/" + url.PathEscape(token)
	var closed struct {
		Closed bool `json:"closed"`
	}
	status, err := b.call("POST", path+"/close", nil, &closed)
	if err != nil || status != 200 || !closed.Closed {
		return fmt.Errorf("status %d: %w", status, err)
	}
	var failed struct {
		Error ForwardHTTPError `json:"error"`
	}
	status, err = b.call("GET", "/internal/session/nobodys-token", nil, &failed)
	if err != nil || status != 404 || failed.Error.Code != "NOT_FOUND" {
		return fmt.Errorf("status %d, %+v: %w", status, failed, err)
	}
	return nil
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: backend URL SECRET TOKEN")
		os.Exit(2)
	}
	b := &backend{os.Args[1], os.Args[2], &http.Client{Timeout: 20 * time.Second}}
	token := os.Args[3]
	steps := []struct {
		name string
		run  func(string) error
	}{
		{"sessions", b.list},
		{"session", b.get},
		{"forward/http", b.forwardHTTP},
		{"forward/raw upgraded", b.forwardRaw},
		{"forward/raw dialled", b.forwardRawDialled},
		{"forward/ws", b.forwardWS},
		{"close", b.kick},
	}
	var failed []error
	for _, step := range steps {
		if err := step.run(token); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", step.name, err))
			continue
		}
		fmt.Println("ok", step.name)
	}
	if len(failed) > 0 {
		fmt.Fprintln(os.Stderr, errors.Join(failed...))
		os.Exit(1)
	}
}
