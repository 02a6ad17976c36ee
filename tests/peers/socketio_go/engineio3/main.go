// What the library of the specification's Go listing, github.com/googollee/go-socket.io, does with a
// server: it speaks Engine.IO 3, as Socket.IO 2 did, and tells how its handshake ended.
package main

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/url"
	"os"

	"github.com/googollee/go-socket.io/engineio"
	"github.com/googollee/go-socket.io/engineio/transport"
	"github.com/googollee/go-socket.io/engineio/transport/polling"
	"github.com/googollee/go-socket.io/engineio/transport/websocket"
)

func main() {
	server, err := url.Parse(os.Getenv("SERVER_URL"))
	if err != nil {
		log.Fatal(err)
	}
	server.Path = "/socket.io/"
	server.RawQuery = url.Values{
		"proxyId": {os.Getenv("PROXY_ID")},
		"apiKey":  {os.Getenv("API_KEY")},
	}.Encode()
	for _, one := range []transport.Transport{polling.Default, websocket.Default} {
		dialer := engineio.Dialer{Transports: []transport.Transport{one}}
		connection, err := dialer.Dial(server.String(), nil)
		if err == nil {
			tell("connected", one.Name(), "")
			_ = connection.Close()
			continue
		}
		message := err.Error()
		var refused websocket.DialError
		if errors.As(err, &refused) && refused.Response != nil {
			if body, err := io.ReadAll(refused.Response.Body); err == nil {
				message = string(body)
			}
		}
		tell("refused", one.Name(), message)
	}
}

func tell(event, transport, message string) {
	line := map[string]any{"event": event, "transport": transport, "message": message}
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		log.Fatal(err)
	}
}
