//go:build tools

// Package tools pins frp, so that every build of it is the same version.
package tools

import (
	_ "github.com/fatedier/frp/cmd/frpc"
	_ "github.com/fatedier/frp/cmd/frps"
)
