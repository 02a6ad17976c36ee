// An agent that knows nothing of tunnelmux: it dials the relay's
// WebSocket with its token, runs a yamux session on it as the client, and answers each stream with
// what a local web server says to the one HTTP/1.1 request on it.
//
// usage: agent WS-URL TOKEN TARGET-HOST:PORT. It prints "connected", and "gone" at the end.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"

	"tunnelmux-peers/tunnel"
)

func isUpgrade(request *http.Request) bool {
	return strings.EqualFold(request.Header.Get("Upgrade"), "websocket")
}

// serve answers the one request of a stream.
func serve(stream net.Conn, target string) error {
	defer stream.Close()
	reader := bufio.NewReader(stream)
	request, err := http.ReadRequest(reader)
	if err != nil {
		return err
	}
	request.Host = target
	local, err := net.Dial("tcp", target)
	if err != nil {
		_, err = io.WriteString(stream, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return err
	}
	defer local.Close()
	if err := request.Write(local); err != nil {
		return err
	}
	if isUpgrade(request) {
		go func() {
			_, _ = io.Copy(local, reader)
			_ = local.(*net.TCPConn).CloseWrite()
		}()
		_, err := io.Copy(stream, local)
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(local), request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return response.Write(stream)
}

func run(url, token, target string) error {
	header := http.Header{"Authorization": {"Bearer " + token}}
	ws, response, err := websocket.DefaultDialer.Dial(url, header)
	if err != nil {
		if response != nil {
			return fmt.Errorf("%w: %s", err, response.Status)
		}
		return err
	}
	session, err := yamux.Client(tunnel.Conn(ws), yamux.DefaultConfig())
	if err != nil {
		return err
	}
	fmt.Println("connected")
	for {
		stream, err := session.Accept()
		if err != nil {
			fmt.Println("gone")
			return nil
		}
		go func() {
			if err := serve(stream, target); err != nil {
				fmt.Fprintln(os.Stderr, "stream:", err)
			}
		}()
	}
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: agent WS-URL TOKEN TARGET-HOST:PORT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
