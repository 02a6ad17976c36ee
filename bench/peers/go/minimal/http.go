package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httputil"

	"github.com/hashicorp/yamux"
)

// idleStreams is above the connections of any load here, so that streams are kept alive: the
// default of two would open one for nearly every request.
const idleStreams = 256

// reverseProxy sends each request down a stream of the session, and keeps streams for later ones.
func reverseProxy(session *yamux.Session) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(request *httputil.ProxyRequest) {
			request.Out.URL.Scheme = "http"
			request.Out.URL.Host = request.In.Host
			request.SetXForwarded()
		},
		Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				return open(session, 0)
			},
			MaxIdleConns:        idleStreams,
			MaxIdleConnsPerHost: idleStreams,
			DisableCompression:  true,
		},
	}
}
