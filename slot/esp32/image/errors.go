package image

import (
	"fmt"

	"github.com/interlock-energy/ota"
)

// invalid is an error about bytes that are wrong for every device.
func invalid(format string, a ...any) error {
	return &codedError{ota.ErrValidation, fmt.Errorf(format, a...)}
}

// unfit is an error about bytes that are right, but not for this device.
func unfit(format string, a ...any) error {
	return &codedError{ota.ErrIncompatible, fmt.Errorf(format, a...)}
}

// codedError carries a code, but not its text: the reason says more without it.
type codedError struct {
	code ota.ErrorCode
	err  error
}

func (e *codedError) Error() string   { return e.err.Error() }
func (e *codedError) Unwrap() []error { return []error{e.code, e.err} }
