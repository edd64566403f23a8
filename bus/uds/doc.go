// Package uds speaks Unified Diagnostic Services (ISO 14229-1:2020): the requests with
// which a tester reads, unlocks and programs a controller. It is for the parts of
// Interlock that take firmware from a CAN tester, or push it into a battery module.
//
// A controller is a [Server] around a handler, which implements those of the small
// interfaces ([DataReader], [RoutineController], [Downloader] ...) that it wants to serve;
// the rest is answered with [ServiceNotSupported]. A tester is a [Client]. Both work on
// any [Conn]; package isotp makes one of a CAN bus. The codec below both is exported:
// each message is a struct with an Append method, and has a Parse function.
//
//	server := &uds.Server{Handler: h}
//	err := server.Serve(ctx, uds.Tester{Name: "F1", Conn: conn})
//
//	client := uds.NewClient(conn, uds.ClientConfig{})
//	defer client.Close()
//	answer, err := client.DiagnosticSession(ctx, uds.Extended)
//
// Services: 10, 11, 22, 27, 28, 29 (tasks 00, 05, 06 and 08), 2E, 31, 34, 36, 37, 38, 3E
// and 85. What a server promises:
//
//   - One request at a time, of all testers together. Whoever asks meanwhile is told
//     [BusyRepeatRequest].
//   - An answer, or [ResponsePending], leaves within [Server.P2], and then each
//     [Server.P2Star], for as long as the handler works; at most one final answer for a
//     request, and none where the standard wants none.
//   - A tester that stops, at any point, is back in the default session after [Server.S3]:
//     its rights are gone, its transfer is closed, and the handler has been told.
//   - The handler is called for what needs a session or unlocking ([Server.Access]) only
//     with these, and for data only within a transfer that it has accepted itself. The
//     same block sent again is answered, and not handed on.
//   - Memory is bounded: of each tester, a few messages and a session.
//   - A panic of the handler ends the session of the tester that asked, and nothing else
//     ([Server.Crashes]).
//
// There is no policy here: which sessions may be entered, what unlocks, and who may write
// what is the handler's decision, for which it is told who asks ([Call]).
//
// Sources: ISO 14229-1:2020 (names, formats, codes) and ISO 14229-2:2013 (timers). The
// formats of services 29 and 38 were compared with other open implementations; the
// order in which checks are made, and what is said in [Server.Access] and at the timers,
// is from memory of the standards. Deviations are stated where they are.
package uds
