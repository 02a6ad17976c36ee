// Package tunnel makes a byte stream of a gorilla WebSocket, as the relay and the agent do.
package tunnel

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

type conn struct {
	*websocket.Conn
	reader io.Reader
	mutex  sync.Mutex
}

// Conn is the byte stream over the binary messages of ws.
func Conn(ws *websocket.Conn) net.Conn { return &conn{Conn: ws} }

func (c *conn) Read(into []byte) (int, error) {
	for {
		if c.reader == nil {
			_, reader, err := c.NextReader()
			if err != nil {
				return 0, err
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

func (c *conn) Write(data []byte) (int, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return len(data), c.WriteMessage(websocket.BinaryMessage, data)
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
