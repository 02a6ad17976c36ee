//go:build tools

// Package tools pins chisel, so that every build of it is the same version.
package tools

import _ "github.com/jpillora/chisel"
