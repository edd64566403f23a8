package uds

import "context"

// Call tells a handler what it is asked, and by whom.
type Call struct {
	Service    Service
	Session    Session // the tester's; Default for all but the one that holds another
	Level      byte    // of SecurityAccess that is unlocked, the odd number; 0: none
	Role       string  // that Authenticator has given; "": none
	Functional bool    // the request went to all servers on the bus
	Tester     string  // Tester.Name
}

// Unlocked reports whether the tester has proven something: a key or an identity.
func (c Call) Unlocked() bool { return c.Level != 0 || c.Role != "" }

// A handler implements what it serves of the interfaces below; what it lacks is
// answered with [ServiceNotSupported]. The server has checked lengths, sequences and
// [Server.Access].
//
// One method runs at a time, but for SessionEnded and Close. While one takes long, the server
// asks the tester for patience; after [Server.MaxRun] the context ends and the tester is
// told [GeneralReject]. What a method then still does is kept. An [NRC] as the error (or
// wrapped in it) is what the tester is told; any other error becomes
// [ConditionsNotCorrect], and [GeneralProgrammingFailure] from a [Transfer]. Methods must
// return when their context ends, and not keep the slices that they are given.
type (
	// SessionController decides whether a session may be entered (10). It is not asked
	// about the default session, nor, if the handler is no SessionController, about any:
	// then there is only the default one. [SubFunctionNotSupported] is for sessions that
	// there are not, [ConditionsNotCorrect] for those that are not allowed now.
	SessionController interface {
		EnterSession(ctx context.Context, call Call, session Session) error
	}
	// SessionEnder is told when a tester is back in the default session from another. Its
	// Transfer is closed already. Call is as it was in that session. It must return soon.
	SessionEnder interface {
		SessionEnded(call Call, why End)
	}
	// Resetter resets (11). PrepareReset says whether; then the positive answer is sent;
	// then Reset does it. The server is in the default session from before Reset on.
	Resetter interface {
		PrepareReset(ctx context.Context, call Call, reset Reset) error
		Reset(ctx context.Context, call Call, reset Reset)
	}
	// DataReader serves 22, called for each identifier. [RequestOutOfRange] says that
	// there is no such data: it is left out of an answer that has others.
	DataReader interface {
		ReadData(ctx context.Context, call Call, did DID) ([]byte, error)
	}
	// DataWriter serves 2E.
	DataWriter interface {
		WriteData(ctx context.Context, call Call, did DID, data []byte) error
	}
	// Securer serves 27. Seed returns what the key is computed from, at least a byte that
	// is not 0; the level is the odd number. CheckKey is given that seed; nil unlocks the
	// level, any error is a wrong key: see [Server.Attempts].
	Securer interface {
		Seed(ctx context.Context, call Call, level byte, record []byte) ([]byte, error)
		CheckKey(ctx context.Context, call Call, level byte, seed, key []byte) error
	}
	// Authenticator serves 29. Challenge returns what is to be signed, at least a byte.
	// VerifyProof is given it, and returns who signed; that must not be empty. Any error
	// is a wrong proof: see [Server.Attempts].
	Authenticator interface {
		Challenge(ctx context.Context, call Call, algorithm Algorithm) ([]byte, error)
		VerifyProof(ctx context.Context, call Call, challenge []byte, proof AuthenticationRequest) (role string, err error)
	}
	// CommunicationController serves 28.
	CommunicationController interface {
		ControlCommunication(ctx context.Context, call Call, request CommunicationRequest) error
	}
	// DTCController serves 85.
	DTCController interface {
		ControlDTC(ctx context.Context, call Call, request DTCRequest) error
	}
	// RoutineController serves 31. [RequestOutOfRange] is for routines that there are not.
	RoutineController interface {
		Routine(ctx context.Context, call Call, control Control, rid RID, options []byte) (status []byte, err error)
	}
	// Downloader serves 34: what it returns takes the blocks.
	Downloader interface {
		Download(ctx context.Context, call Call, request DownloadRequest) (Transfer, error)
	}
	// FileTransferer serves 38. Mode, MaxBlock and Format of the answer are filled in if
	// they are 0. The Transfer is nil for DeleteFile.
	FileTransferer interface {
		TransferFile(ctx context.Context, call Call, request FileRequest) (FileAnswer, Transfer, error)
	}
)

// A Transfer takes the blocks of one Download or TransferFile, in their order, each once.
type Transfer interface {
	// Data takes a block. Its answer is empty, but for files that are read. A block for
	// which it returns an error is not taken, and may come again.
	Data(ctx context.Context, call Call, block []byte) (answer []byte, err error)
	// Exit is called when the tester says that it has sent all (37). On an error the
	// transfer stays open.
	Exit(ctx context.Context, call Call, parameters []byte) (answer []byte, err error)
	// Close is called once, whatever happened: after Exit, when the session ends or
	// changes, or another transfer begins. It must return soon.
	Close()
}

// End is why a session ended.
type End string

// Ends of sessions.
const (
	EndAsked   End = "asked"   // the tester asked for the default session
	EndTimeout End = "timeout" // the tester was silent for S3
	EndReset   End = "reset"   // the tester asked for a reset
	EndLine    End = "line"    // Serve ended, or the line did
	EndCrash   End = "crash"   // a request panicked
)
