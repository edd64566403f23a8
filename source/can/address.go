package can

import (
	"fmt"

	bus "github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/isotp"
	"github.com/interlock-energy/ota/source/can/profile"
)

// Parts of 29-bit identifiers (ISO 15765-2, 10.3.2, normal fixed addressing): the
// priority is in bits 26 to 28, as in J1939.
const (
	physical29 = 0x00DA_0000
	group      = 0x33 // all devices that can be diagnosed (ISO 15765-4)
)

// addresses works out which identifiers are used.
func (cfg *Config) addresses() error {
	if cfg.Device == 0 {
		cfg.Device = profile.DeviceAddress
	}
	if cfg.Tester == 0 {
		cfg.Tester = profile.TesterAddress
	}
	device, tester, priority := uint32(cfg.Device), uint32(cfg.Tester), uint32(cfg.Priority)<<26
	switch {
	case cfg.ID > bus.MaxExtended || cfg.AnswerID > bus.MaxExtended || cfg.FunctionalID > bus.MaxExtended:
		return fmt.Errorf("identifiers are %X, %X and %X, want at most %X", cfg.ID, cfg.AnswerID, cfg.FunctionalID, bus.MaxExtended)
	case cfg.ID == 0 && (cfg.AnswerID != 0 || cfg.FunctionalID != 0):
		return fmt.Errorf("identifier %X is given without the one that testers send to", max(cfg.AnswerID, cfg.FunctionalID))
	case cfg.ID == 0 && device == tester:
		return fmt.Errorf("device and tester have the same address, %02X", device)
	case cfg.ID == 0:
		cfg.ID = priority | physical29 | device<<8 | tester
		cfg.AnswerID = priority | physical29 | tester<<8 | device
	case cfg.ID > bus.MaxStandard && cfg.AnswerID == 0:
		if cfg.ID>>16&0xFF != physical29>>16 {
			return fmt.Errorf("identifier %08X is not of normal fixed addressing (xxDAttss), so the one of the answers must be given", cfg.ID)
		}
		cfg.AnswerID = cfg.ID&^0xFFFF | cfg.ID>>8&0xFF | cfg.ID&0xFF<<8
	case cfg.AnswerID == 0:
		cfg.AnswerID = cfg.ID + (profile.Response11 - profile.Request11)
	}
	if cfg.eleven() && cfg.FunctionalID == 0 {
		cfg.FunctionalID = profile.Functional11
	}
	switch {
	case cfg.AnswerID == cfg.ID || cfg.FunctionalID == cfg.ID || cfg.FunctionalID == cfg.AnswerID:
		return fmt.Errorf("identifiers %X, %X and %X must differ", cfg.ID, cfg.AnswerID, cfg.FunctionalID)
	case (cfg.AnswerID <= bus.MaxStandard) != cfg.eleven():
		return fmt.Errorf("identifiers %X and %X are of different lengths", cfg.ID, cfg.AnswerID)
	case cfg.FunctionalID > bus.MaxStandard || cfg.FunctionalID != 0 && !cfg.eleven():
		return fmt.Errorf("the identifier for all devices is %X, want one of 11 bits, and only if the others have 11 bits", cfg.FunctionalID)
	}
	return nil
}

// eleven reports whether identifiers have 11 bits.
func (cfg *Config) eleven() bool { return cfg.ID <= bus.MaxStandard }

// physical is how the device talks with its tester.
func (cfg *Config) physical() isotp.Address {
	if cfg.eleven() {
		return isotp.Normal(cfg.AnswerID, cfg.ID)
	}
	return isotp.Normal29(cfg.AnswerID, cfg.ID)
}

// functional is how the device hears what is meant for all devices.
func (cfg *Config) functional() isotp.Address {
	if cfg.eleven() {
		return isotp.Functional(cfg.FunctionalID).Peer()
	}
	return isotp.Functional29(group, cfg.Tester).Peer()
}

// filters let nothing pass but what testers send: the battery's frames are many.
func (cfg *Config) filters() bus.Filters {
	long := !cfg.eleven()
	mask, all := uint32(bus.MaxStandard), cfg.FunctionalID
	if long {
		mask, all = bus.MaxExtended, 0x18DB_0000|group<<8|uint32(cfg.Tester)
	}
	return bus.Filters{{ID: cfg.ID, Mask: mask, Extended: long}, {ID: all, Mask: mask, Extended: long}}
}
