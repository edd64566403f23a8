package overcan

import (
	"context"
	"errors"
	"fmt"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/can/profile"
)

// program goes into the programming session and shows who asks, unless that is done.
func (d *Device) program(ctx context.Context) error {
	if d.inside {
		return nil
	}
	prove, err := d.proof()
	if err != nil {
		return err
	}
	for _, s := range []uds.Session{uds.Extended, uds.Programming} {
		if err := d.enter(ctx, s); err != nil {
			return occupied(err)
		}
	}
	if err := unlock(ctx, prove); err != nil {
		return err
	}
	d.inside, d.announced = true, false
	return nil
}

// mostSeeds is how many keys are tried in one attempt to go on. A device says the same seed
// again until a key has come, and compares only one key with it; so both may be sent again
// if no answer comes, and no right key is ever taken for a wrong one.
const mostSeeds = 8

// proof is how the device wants to be shown who asks; nil: it does not want to know. What
// cannot work is said before a session is opened.
func (d *Device) proof() (func(context.Context) error, error) {
	caps := d.identity.Caps
	switch {
	case caps&profile.CapOpen != 0:
		return nil, nil
	case caps&(profile.CapSecurityAccess|profile.CapAuthentication) == 0:
		return nil, push.Fail(ota.ErrAuthentication, "the device takes firmware from nobody over CAN: it knows no tester's key, or none of a kind that is known here")
	case d.cfg.Key == nil:
		return nil, push.Fail(ota.ErrAuthentication, "the device takes firmware only from testers whose keys it knows; give the private key of one")
	case caps&profile.CapSecurityAccess != 0: // shorter than the other, and as strong: the same signature
		return d.accessKey, nil
	}
	return d.authenticate, nil
}

// unlock shows who asks.
func unlock(ctx context.Context, prove func(context.Context) error) error {
	if prove == nil {
		return nil
	}
	for try := 1; ; try++ {
		err := prove(ctx)
		switch {
		case err == nil:
			return nil
		case code(err) == uds.InvalidKey || code(err) == uds.OwnershipVerificationFailed:
			return push.Fail(ota.ErrAuthentication, "the device does not know this tester's key (%v)", code(err))
		case code(err) == uds.ExceededNumberOfAttempts:
			return push.Fail(ota.ErrAuthentication, "the device does not know this tester's key, and has seen too many of those; it listens again in 10 s (%v)", code(err))
		case try == mostSeeds || !errors.Is(err, push.ErrLine) && code(err) != uds.RequestSequenceError:
			return err
		}
	}
}

// accessKey answers a seed (27).
func (d *Device) accessKey(ctx context.Context) error {
	var seed []byte
	err := d.ask(ctx, "ask for a seed", func(c *uds.Client) (err error) {
		seed, err = c.RequestSeed(ctx, profile.SecurityLevel, nil)
		return err
	})
	if err != nil {
		return err
	}
	if open := !nonZero(seed); open { // unlocked already: ISO 14229-1, 10.4
		return nil
	}
	key, err := d.sign(seed)
	if err != nil {
		return err
	}
	return d.insist(ctx, "send the key", func(c *uds.Client) error { return c.SendKey(ctx, profile.SecurityLevel, key) })
}

// authenticate proves ownership of the key (29).
func (d *Device) authenticate(ctx context.Context) error {
	algorithm := uds.Algorithm(profile.Algorithm)
	var challenge []byte
	err := d.ask(ctx, "ask for a challenge", func(c *uds.Client) (err error) {
		challenge, err = c.Challenge(ctx, algorithm)
		return err
	})
	if err != nil {
		return err
	}
	proof, err := d.sign(challenge)
	if err != nil {
		return err
	}
	return d.insist(ctx, "prove who asks", func(c *uds.Client) error {
		return c.Prove(ctx, uds.AuthenticationRequest{Algorithm: algorithm, Proof: proof})
	})
}

// sign signs a seed of the length that devices use: nothing else is signed with this key.
func (d *Device) sign(seed []byte) ([]byte, error) {
	if len(seed) != profile.SeedSize {
		return nil, push.Fail(ota.ErrAuthentication, "the device wants %d bytes signed, and %d are usual: nothing was signed", len(seed), profile.SeedSize)
	}
	b, err := profile.SignSeed(d.cfg.Key, d.serial, seed)
	if err != nil {
		return nil, fmt.Errorf("answer the device's seed: %w", err)
	}
	return b, nil
}

func nonZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return true
		}
	}
	return false
}
