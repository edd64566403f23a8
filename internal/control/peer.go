package control

import (
	"context"
	"net"
)

// Peer is the process at the other end of the socket, as the kernel knows it. The
// zero Peer is not known: not all systems tell.
type Peer struct {
	Known bool
	UID   uint32
	PID   int32
	Bus   string // it came over a field bus, by this source; "": not
}

// A PeerDevice is a [Device] that wants to know who gives a command.
type PeerDevice interface {
	Device
	CommandBy(Peer, Command) Call
	SetThresholdsBy(Peer, ThresholdsChange) (Thresholds, error)
}

type peerKey struct{}

// withPeer adds who connected to the context of the connection's requests.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, peerOf(u))
}

// give gives the command c in the name of whoever is at the other end.
func give(ctx context.Context, d Device, c Command) Call {
	if p, ok := d.(PeerDevice); ok {
		peer, _ := ctx.Value(peerKey{}).(Peer)
		return p.CommandBy(peer, c)
	}
	return d.Command(c)
}

func setThresholds(ctx context.Context, d Device, t ThresholdsChange) (Thresholds, error) {
	if p, ok := d.(PeerDevice); ok {
		peer, _ := ctx.Value(peerKey{}).(Peer)
		return p.SetThresholdsBy(peer, t)
	}
	return d.SetThresholds(t)
}
