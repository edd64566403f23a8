package ota

import (
	"context"
	"errors"
	"fmt"
)

// A bootError says that the bootloader did not do what it was asked. It is asked
// again after a while, because every time may wear its flash.
type bootError struct{ error }

func (e bootError) Unwrap() error { return e.error }

// giveUp reports whether err will not mend by waiting.
func giveUp(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrNotNow) { // a refusal, whatever it wraps
		return false
	}
	switch CodeOf(err) {
	case ErrValidation, ErrFlashWrite, ErrIncompatible:
		return true
	}
	return false
}

// coded returns an error that carries code, but not its text: for reasons that
// say more without it.
func coded(code ErrorCode, format string, a ...any) error {
	return &codedError{code, fmt.Errorf(format, a...)}
}

type codedError struct {
	code ErrorCode
	err  error
}

func (e *codedError) Error() string   { return e.err.Error() }
func (e *codedError) Unwrap() []error { return []error{e.code, e.err} }

func codeOr(err error, byDefault ErrorCode) ErrorCode {
	if c := CodeOf(err); c != ErrInternal && !(c == ErrConnectivity && !errors.Is(err, ErrConnectivity)) {
		return c
	}
	return byDefault
}

// networkError classifies what a source did not.
func networkError(err error) error {
	if _, ok := errors.AsType[ErrorCode](err); ok {
		return err
	}
	return fmt.Errorf("%w: %w", ErrConnectivity, err)
}

// sourceError classifies what went wrong while bytes were fetched. The source is
// not trusted to judge a release: whatever else it says, it is its own fault, so
// that a rotten stick does not make the device skip what a server has whole.
func sourceError(err error) error {
	err = networkError(err)
	switch CodeOf(err) {
	case ErrConnectivity, ErrServer, ErrAuthentication:
		return err
	}
	return coded(ErrServer, "%v", err) // without its code
}

// flashError classifies what a slot did not.
func flashError(err error) error {
	if _, ok := errors.AsType[ErrorCode](err); ok {
		return err
	}
	return fmt.Errorf("%w: %w", ErrFlashWrite, err)
}
