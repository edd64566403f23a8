package awstest

import (
	"math"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Limits of AWS IoT Core's message broker ("AWS IoT Core endpoints and quotas",
// message broker and protocol limits; the packet size is the one its CONNACK of
// MQTT 5 announces). From memory of the documentation.
const (
	maxPayload       = 128 << 10
	maxPacket        = 149504
	maxTopic         = 256 // bytes of UTF-8
	maxSlashes       = 7
	maxClientID      = 128
	maxFilters       = 8 // of one SUBSCRIBE
	maxSubscriptions = 50
)

func capabilities() *mqtt.Capabilities {
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumQos = 1
	c.MaximumPacketSize = maxPacket
	c.ReceiveMaximum = 100
	c.TopicAliasMaximum = 8
	c.SubIDAvailable = 0
	c.MinimumProtocolVersion = 4
	c.MaximumSessionExpiryInterval = 7 * 24 * 3600
	return c
}

// hook is where the broker asks what is allowed, and hands over what was published.
type hook struct {
	mqtt.HookBase
	broker *Broker
	server *mqtt.Server
}

func (h *hook) ID() string { return "awstest" }

func (h *hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnectAuthenticate, mqtt.OnSessionEstablished, mqtt.OnACLCheck, mqtt.OnPacketRead, mqtt.OnPublish:
		return true
	}
	return false
}

// OnConnectAuthenticate demands what the usual policy does: client/${iot:Connection.Thing.ThingName}.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	name, err := commonName(cl.Net.Conn)
	id := pk.Connect.ClientIdentifier
	return err == nil && id == name && len(id) <= maxClientID
}

// OnSessionEstablished turns off how the broker counts what a client has not
// acknowledged: for that it takes a read lock twice (mochi-mqtt 2.7.9,
// Inflight.NextImmediate), and waits for ever if send wants to write between the two.
// So the receive maximum of a client of MQTT 5 is not kept to.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	cl.State.Inflight.ResetSendQuota(0)
}

// OnACLCheck guards subscriptions; publishing is guarded by violation.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	return write || (mayUse(cl.ID, topic) && tooLong(topic) == "")
}

// mayUse says whether a thing's policy allows a topic or filter. Wildcards do not
// reach into $aws, as $aws must be written out (MQTT-4.7.2-1).
func mayUse(thing, topic string) bool {
	rest, reserved := strings.CutPrefix(topic, "$aws/")
	if !reserved {
		return !strings.HasPrefix(topic, "$") || strings.HasPrefix(topic, "$share/")
	}
	return strings.HasPrefix(rest, "things/"+thing+"/")
}

func tooLong(topic string) string {
	switch {
	case len(topic) > maxTopic:
		return "the topic is longer than 256 bytes"
	case strings.Count(topic, "/") > maxSlashes:
		return "the topic has more than 7 slashes"
	}
	return ""
}

// OnPacketRead closes the connection of a client that does what AWS IoT Core
// answers that way.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	code, why := violation(cl, pk)
	if why == "" {
		return pk, nil
	}
	if cl.Properties.ProtocolVersion == 5 {
		code.Reason = why
		_ = h.server.DisconnectClient(cl, code)
	}
	return pk, packets.ErrRejectPacket // ends the connection
}

func violation(cl *mqtt.Client, pk packets.Packet) (packets.Code, string) {
	switch pk.FixedHeader.Type {
	case packets.Publish:
		topic := pk.TopicName
		if why := tooLong(topic); why != "" {
			return packets.ErrTopicNameInvalid, why
		}
		reserved := strings.HasPrefix(topic, "$")
		switch {
		case pk.FixedHeader.Qos > 1:
			return packets.ErrQosNotSupported, "QoS 2 is not supported"
		case len(pk.Payload) > maxPayload:
			return packets.ErrPacketTooLarge, "the payload is larger than 128 KiB"
		case !mayUse(cl.ID, topic):
			return packets.ErrNotAuthorized, "the thing's policy does not allow the topic"
		case reserved && pk.FixedHeader.Retain:
			return packets.ErrRetainNotSupported, "a reserved topic does not retain"
		}
	case packets.Subscribe:
		switch {
		case len(pk.Filters) > maxFilters:
			return packets.ErrQuotaExceeded, "more than 8 topic filters in one SUBSCRIBE"
		case cl.State.Subscriptions.Len()+len(pk.Filters) > maxSubscriptions:
			return packets.ErrQuotaExceeded, "more than 50 subscriptions"
		}
	}
	return packets.Code{}, ""
}

// OnPublish is called before the acknowledgement: what a service was told takes
// effect even if the connection ends before the client knows it.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if !mayUse(cl.ID, pk.TopicName) { // a topic alias hides the topic from violation
		return pk, packets.ErrRejectPacket
	}
	for _, s := range h.broker.services {
		for _, f := range s.Filters() {
			if matches(f, pk.TopicName) {
				s.Receive(cl.ID, pk.TopicName, pk.Payload)
				break
			}
		}
	}
	return pk, nil
}

// deliver writes a service's message to those who are to get it.
func (b *Broker) deliver(m Message) {
	server := b.running()
	if server == nil {
		return // AWS would keep it for sessions that last; this broker forgets them
	}
	subscribed := server.Topics.Subscribers(m.Topic).Subscriptions
	if m.Client != "" {
		sub, ok := subscribed[m.Client]
		if !ok {
			sub.Qos = 0 // unasked for, and without a promise
		}
		send(server, m.Client, m, sub.Qos)
		return
	}
	for id, sub := range subscribed {
		send(server, id, m, sub.Qos)
	}
}

// send is the way of the broker's own subscriptions, but also for a client that
// has none.
func send(server *mqtt.Server, client string, m Message, qos byte) {
	cl, ok := server.Clients.Get(client)
	if !ok || cl.Net.Inline {
		return
	}
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: min(qos, 1)},
		TopicName:   m.Topic, Payload: m.Payload, Created: time.Now().Unix(),
	}
	if pk.FixedHeader.Qos > 0 {
		id, err := cl.NextPacketID()
		if err != nil || id > math.MaxUint16 {
			return
		}
		pk.PacketID = uint16(id)
		// kept until it is acknowledged, over reconnections of a session that lasts
		cl.State.Inflight.Set(pk)
	}
	if !cl.Closed() {
		_ = cl.WritePacket(pk) // a client that is gone gets it again, or has lost it
	}
}

// matches says whether a topic filter matches (MQTT 5, section 4.7).
func matches(filter, topic string) bool {
	want, have := strings.Split(filter, "/"), strings.Split(topic, "/")
	for i, w := range want {
		if w == "#" {
			return true
		}
		if i >= len(have) || (w != "+" && w != have[i]) {
			return false
		}
	}
	return len(want) == len(have)
}
