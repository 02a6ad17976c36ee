package main

import (
	"io"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// messages makes a byte stream of a WebSocket's binary messages.
type messages struct {
	*websocket.Conn
	reader  io.Reader
	writing sync.Mutex
}

func (m *messages) Read(into []byte) (int, error) {
	for {
		if m.reader == nil {
			_, reader, err := m.NextReader()
			if err != nil {
				return 0, err
			}
			m.reader = reader
		}
		count, err := m.reader.Read(into)
		if err == io.EOF {
			m.reader, err = nil, nil
		}
		if count > 0 || err != nil {
			return count, err
		}
	}
}

func (m *messages) Write(data []byte) (int, error) {
	m.writing.Lock()
	defer m.writing.Unlock()
	return len(data), m.WriteMessage(websocket.BinaryMessage, data)
}

func (m *messages) SetDeadline(when time.Time) error {
	if err := m.SetReadDeadline(when); err != nil {
		return err
	}
	return m.SetWriteDeadline(when)
}
