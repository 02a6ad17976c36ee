// The specification's sample agent for Go on the library of the specification's own listing,
// github.com/googollee/go-socket.io: it speaks Engine.IO 3, as Socket.IO 2 did. Its releases have a
// client for Engine.IO and the parser for Socket.IO, which are put together here as the listing
// uses them: in the namespace "/", with proxyId and apiKey in the query. What the listing leaves
// open, executeCommand, runs the command on this machine.
package main

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/url"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"

	"github.com/googollee/go-socket.io/engineio"
	"github.com/googollee/go-socket.io/engineio/transport"
	"github.com/googollee/go-socket.io/engineio/transport/polling"
	"github.com/googollee/go-socket.io/engineio/transport/websocket"
	"github.com/googollee/go-socket.io/parser"
)

// ClientOptions are those that the tests change.
type ClientOptions struct {
	Transports []string `json:"transports"`
}

type command struct {
	CommandID string `json:"commandId"`
	Command   string `json:"command"`
}

type agent struct {
	connection engineio.Conn
	decoder    *parser.Decoder
	sending    sync.Mutex
	encoder    *parser.Encoder
}

func main() {
	var options ClientOptions
	if text := os.Getenv("CLIENT_OPTIONS"); text != "" {
		if err := json.Unmarshal([]byte(text), &options); err != nil {
			log.Fatal(err)
		}
	}
	server, err := url.Parse(os.Getenv("SERVER_URL"))
	if err != nil {
		log.Fatal(err)
	}
	server.Path = "/socket.io/"
	server.RawQuery = url.Values{
		"proxyId": {os.Getenv("PROXY_ID")},
		"apiKey":  {os.Getenv("API_KEY")},
	}.Encode()
	for _, one := range choose(options.Transports) {
		dialer := engineio.Dialer{Transports: []transport.Transport{one}}
		connection, err := dialer.Dial(server.String(), nil)
		if err != nil {
			tell(map[string]any{"event": "refused", "transport": one.Name(), "message": words(err)})
			continue
		}
		tell(map[string]any{"event": "open", "transport": one.Name()})
		err = (&agent{
			connection: connection,
			decoder:    parser.NewDecoder(connection),
			encoder:    parser.NewEncoder(connection),
		}).serve(one.Name())
		tell(map[string]any{"event": "disconnected", "reason": err.Error()})
		return
	}
}

// serve takes events until the connection ends.
func (a *agent) serve(transport string) error {
	for {
		var header parser.Header
		var event string
		if err := a.decoder.DecodeHeader(&header, &event); err != nil {
			return err
		}
		switch header.Type {
		case parser.Connect:
			tell(map[string]any{"event": "connected", "transport": transport})
			if err := a.decoder.DiscardLast(); err != nil {
				return err
			}
		case parser.Event:
			values, err := a.decoder.DecodeArgs([]reflect.Type{reflect.TypeOf(json.RawMessage{})})
			if err != nil {
				return err
			}
			content, _ := values[0].Interface().(json.RawMessage)
			if err := a.take(event, content); err != nil {
				return err
			}
		case parser.Error:
			values, err := a.decoder.DecodeArgs([]reflect.Type{})
			_ = values
			tell(map[string]any{"event": "refused", "transport": transport, "message": "by the server"})
			if err != nil {
				return err
			}
		default:
			if err := a.decoder.DiscardLast(); err != nil {
				return err
			}
		}
	}
}

func (a *agent) take(event string, content json.RawMessage) error {
	switch event {
	case "execute_command":
		var wanted command
		if err := json.Unmarshal(content, &wanted); err != nil {
			return err
		}
		go a.execute(wanted)
	case "command_result_received":
		tell(map[string]any{"event": "received", "data": content})
	}
	return nil
}

func (a *agent) execute(wanted command) {
	var stdout, stderr strings.Builder
	process := exec.Command("sh", "-c", wanted.Command)
	process.Stdout, process.Stderr = &stdout, &stderr
	exitCode := 0
	if err := process.Run(); err != nil {
		exitCode = 1
		var exited *exec.ExitError
		if errors.As(err, &exited) {
			exitCode = exited.ExitCode()
		}
	}
	result := map[string]any{"stdout": stdout.String(), "stderr": stderr.String(), "exitCode": exitCode}
	a.sending.Lock()
	defer a.sending.Unlock()
	if err := a.encoder.Encode(parser.Header{Type: parser.Event}, []any{
		"command_result",
		map[string]any{"commandId": wanted.CommandID, "result": result},
	}); err != nil {
		log.Print(err)
	}
}

func choose(names []string) []transport.Transport {
	known := map[string]transport.Transport{
		"polling":   polling.Default,
		"websocket": websocket.Default,
	}
	if len(names) == 0 {
		names = []string{"polling", "websocket"}
	}
	var chosen []transport.Transport
	for _, name := range names {
		chosen = append(chosen, known[name])
	}
	return chosen
}

// words are what the server said; the library shows them for a WebSocket only.
func words(err error) string {
	var refused websocket.DialError
	if errors.As(err, &refused) && refused.Response != nil {
		if body, err := io.ReadAll(refused.Response.Body); err == nil {
			return string(body)
		}
	}
	return err.Error()
}

var telling sync.Mutex

// tell writes a line for the test that looks on.
func tell(line map[string]any) {
	telling.Lock()
	defer telling.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		log.Fatal(err)
	}
}
