// A reverse tunnel with nothing in it but hashicorp/yamux: what the libraries themselves cost.
//
//	minimal server TRANSPORT CONTROL VISITORS   minimal server ws 127.0.0.1:7000 127.0.0.1:8001,127.0.0.1:8002
//	minimal client TRANSPORT CONTROL TARGETS    minimal client ws 127.0.0.1:7000 127.0.0.1:80,127.0.0.1:7
//
// The client dials CONTROL and yamux runs on that one connection. A visitor of the server's n-th
// address becomes a stream whose first byte is n; the client connects it to its n-th target.
// TRANSPORT is tcp (plain TCP), ws (binary messages of a gorilla WebSocket with its default buffers)
// or http: plain TCP, and an httputil.ReverseProxy at the first visitors' address; https: the same
// with TLS for visitors, and two more arguments of the server, the files of certificate and key.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

func main() {
	if len(os.Args) < 5 {
		log.Fatal("usage: minimal server|client tcp|ws|http|https CONTROL ADDRESS,ADDRESS [CERTIFICATE KEY]")
	}
	role, transport, control := os.Args[1], os.Args[2], os.Args[3]
	addresses := strings.Split(os.Args[4], ",")
	if role == "server" {
		log.Fatal(serve(transport, control, addresses, os.Args[5:]))
	}
	log.Fatal(dial(transport, control, addresses))
}

func settings() *yamux.Config {
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	return config
}

// -- the server, which visitors come to ----------------------------------------------------------

func serve(transport, control string, visitors, certificate []string) error {
	connection, err := acceptOne(transport, control)
	if err != nil {
		return err
	}
	session, err := yamux.Server(connection, settings())
	if err != nil {
		return err
	}
	for number, address := range visitors {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		if number == 0 && transport == "http" {
			go func() { log.Fatal(http.Serve(listener, reverseProxy(session))) }()
		} else if number == 0 && transport == "https" {
			handler := reverseProxy(session)
			go func() { log.Fatal(http.ServeTLS(listener, handler, certificate[0], certificate[1])) }()
		} else {
			go forward(listener, session, byte(number))
		}
	}
	<-session.CloseChan()
	return fmt.Errorf("the client is gone")
}

func acceptOne(transport, control string) (net.Conn, error) {
	listener, err := net.Listen("tcp", control)
	if err != nil {
		return nil, err
	}
	fmt.Println("listening")
	if transport != "ws" {
		return listener.Accept()
	}
	accepted := make(chan net.Conn)
	upgrader := websocket.Upgrader{}
	handler := func(w http.ResponseWriter, r *http.Request) {
		if ws, err := upgrader.Upgrade(w, r, nil); err == nil {
			accepted <- &messages{Conn: ws}
		}
	}
	go func() { log.Fatal(http.Serve(listener, http.HandlerFunc(handler))) }()
	return <-accepted, nil
}

func open(session *yamux.Session, number byte) (net.Conn, error) {
	stream, err := session.Open()
	if err != nil {
		return nil, err
	}
	_, err = stream.Write([]byte{number})
	return stream, err
}

func forward(listener net.Listener, session *yamux.Session, number byte) {
	for {
		visitor, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			stream, err := open(session, number)
			if err != nil {
				_ = visitor.Close()
				return
			}
			join(visitor, stream)
		}()
	}
}

// -- the client, which has the targets -----------------------------------------------------------

func dial(transport, control string, targets []string) error {
	connection, err := connect(transport, control)
	if err != nil {
		return err
	}
	session, err := yamux.Client(connection, settings())
	if err != nil {
		return err
	}
	for {
		stream, err := session.Accept()
		if err != nil {
			return err
		}
		go answer(stream, targets)
	}
}

func connect(transport, control string) (net.Conn, error) {
	if transport != "ws" {
		return net.Dial("tcp", control)
	}
	ws, _, err := websocket.DefaultDialer.Dial("ws://"+control+"/", nil)
	if err != nil {
		return nil, err
	}
	return &messages{Conn: ws}, nil
}

func answer(stream net.Conn, targets []string) {
	var number [1]byte
	if _, err := io.ReadFull(stream, number[:]); err != nil || int(number[0]) >= len(targets) {
		_ = stream.Close()
		return
	}
	target, err := net.Dial("tcp", targets[number[0]])
	if err != nil {
		_ = stream.Close()
		return
	}
	join(target, stream)
}

// join copies both ways until both have ended. Closing a yamux stream ends its sending half only.
func join(socket, stream net.Conn) {
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(stream, socket)
		_ = stream.Close()
		close(done)
	}()
	_, _ = io.Copy(socket, stream)
	_ = socket.(*net.TCPConn).CloseWrite()
	<-done
	_ = socket.Close()
}
