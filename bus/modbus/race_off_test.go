//go:build !race

package modbus

const racing = false
