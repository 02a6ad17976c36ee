// The specification's sample agent for Go, on the Socket.IO 4 client of github.com/zishang520: the
// library of the specification's own listing speaks an older protocol (../engineio3). What the
// listing leaves open, executeCommand, runs the command on this machine.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/zishang520/socket.io/clients/engine/v3/transports"
	socketio "github.com/zishang520/socket.io/clients/socket/v3"
	"github.com/zishang520/socket.io/v3/pkg/types"
)

// Config is what the agent takes from its environment.
type Config struct {
	ServerURL string
	ProxyID   string
	APIKey    string
	Client    ClientOptions
}

// ClientOptions are those of the client library that the tests change.
type ClientOptions struct {
	Transports []string `json:"transports"`
}

func main() {
	config := Config{
		ServerURL: getEnv("SERVER_URL", "http://localhost:3000"),
		ProxyID:   getEnv("PROXY_ID", "proxy-1"),
		APIKey:    getEnv("API_KEY", "your-api-key"),
	}
	if err := json.Unmarshal([]byte(getEnv("CLIENT_OPTIONS", "{}")), &config.Client); err != nil {
		log.Fatal(err)
	}

	options := socketio.DefaultOptions()
	options.SetQuery(url.Values{"proxyId": {config.ProxyID}, "apiKey": {config.APIKey}})
	options.SetTransports(chooseTransports(config.Client.Transports))
	options.SetAutoConnect(false) // until all handlers are there
	client, err := socketio.Connect(config.ServerURL+"/proxy", options)
	if err != nil {
		log.Fatal(err)
	}

	on := func(event string, handler func(...any)) {
		if err := client.On(types.EventName(event), handler); err != nil {
			log.Fatal(err)
		}
	}
	on("execute_command", func(args ...any) {
		data, ok := first(args).(map[string]any)
		if !ok {
			return
		}
		go func() { // the client reads on meanwhile, pings included
			result, err := executeCommand(data)
			if err != nil {
				result = map[string]any{"stdout": "", "stderr": err.Error(), "exitCode": 1}
			}
			emit(client, "command_result", map[string]any{
				"commandId": data["commandId"],
				"result":    result,
			})
		}()
	})
	on("command_result_received", func(args ...any) { tell("received", "data", is(first(args))) })
	on("connect", func(...any) {
		engine := client.Io().Engine()
		transport := func() any { return engine.Transport().Name() }
		if err := engine.Once("upgrade", func(...any) {
			tell("upgraded", "transport", transport)
		}); err != nil {
			log.Fatal(err)
		}
		tell("connected", "transport", transport)
	})
	on("connect_error", func(args ...any) {
		if err, ok := first(args).(error); ok {
			tell("refused", "message", is(err.Error()))
		}
	})
	on("disconnect", func(args ...any) { tell("disconnected", "reason", is(first(args))) })

	client.Connect()
	select {}
}

func executeCommand(data map[string]any) (map[string]any, error) {
	command, _ := data["command"].(string)
	if command == "throw" {
		return nil, errors.New("it threw")
	}
	timeout, _ := data["timeout"].(float64)
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(timeout)*time.Millisecond)
	defer cancel()
	var stdout, stderr bytes.Buffer
	process := exec.CommandContext(ctx, "sh", "-c", command)
	process.Stdout, process.Stderr = &stdout, &stderr
	var exited *exec.ExitError
	if err := process.Run(); err != nil && !errors.As(err, &exited) {
		return nil, err
	}
	return map[string]any{
		"stdout":   stdout.String(),
		"stderr":   stderr.String(),
		"exitCode": process.ProcessState.ExitCode(),
	}, nil
}

func chooseTransports(names []string) *types.Set[transports.TransportCtor] {
	if len(names) == 0 {
		return types.NewSet(socketio.Polling, socketio.WebSocket)
	}
	chosen := types.NewSet[transports.TransportCtor]()
	for _, name := range names {
		switch name {
		case "polling":
			chosen.Add(socketio.Polling)
		case "websocket":
			chosen.Add(socketio.WebSocket)
		default:
			log.Fatalf("no transport %q", name)
		}
	}
	return chosen
}

func emit(client *socketio.Socket, event string, content map[string]any) {
	if err := client.Emit(event, content); err != nil {
		log.Print(err)
	}
}

func first(args []any) any {
	if len(args) == 0 {
		return nil
	}
	return args[0]
}

var telling sync.Mutex

// tell writes a line for the test that looks on. The value is what it is when the line's turn has
// come: the upgrade goes on beside "connect", and is told after it.
func tell(event, key string, value func() any) {
	telling.Lock()
	defer telling.Unlock()
	line := map[string]any{"event": event, key: value()}
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		log.Fatal(err)
	}
}

func is(value any) func() any { return func() any { return value } }

func getEnv(key, fallback string) string {
	if value, ok := os.LookupEnv(key); ok {
		return value
	}
	return fallback
}
