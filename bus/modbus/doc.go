// Package modbus is a Modbus client and server: TCP, TCP within TLS ("Modbus/TCP
// Security") and RTU on serial lines. It is for the parts of Interlock that talk to
// battery systems, inverters and meters (package sunspec builds on it), and for the
// service technician's way in: firmware offered to a device by a Modbus master.
//
// A client starts with [Dial], [NewTCP] or [NewRTU], and [Client.Unit] gives the view of
// one device. A server is a [Server] around a handler, which implements those of the
// one-method interfaces ([HoldingReader], [FileWriter] ...) that it wants to serve; the
// rest is answered with exception 1. [Memory] is a handler for simulators and tests. The
// codec below both is exported for those who bring their own wire: the Append functions
// write into the caller's buffer, the Parse functions return views, neither allocates.
//
// Function codes: 1 to 6, 15, 16, 20 to 24. Promised:
//
//   - The limits of the specification hold in both directions. A client refuses to send
//     what breaks them ([ErrRequest]); a server answers exception 2 or 3; an answer that
//     does not fit its request in length, count, echo, function or unit is an error
//     ([ErrAnswer]), never data.
//   - An answer reaches the call that it belongs to, or nobody. (RTU has no transaction
//     number: see [Config.Turnaround] for what is done about answers that come too late.)
//   - Calls end at once when their context does.
//   - A request is sent again only if that does no harm: see [Config.RepeatWrites].
//   - A server's memory is bounded, whatever its clients do: connections, frame sizes,
//     slow readers, idle ones.
//   - A panic of a server's handler ends that request alone ([Server.Crashes]).
//
// There is no policy here: who may write what is the handler's decision, for which it is
// told who asks ([Call]). Nothing that came over plain Modbus can be trusted: neither
// TCP nor RTU know who speaks.
//
// Sources: Modbus Application Protocol Specification V1.1b3 ("V1.1b3"), Modbus
// Messaging on TCP/IP Implementation Guide V1.0b ("TCP guide"), Modbus over Serial Line
// V1.02 ("serial guide"), MODBUS/TCP Security v21 ("security").
package modbus
