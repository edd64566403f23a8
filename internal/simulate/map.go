package simulate

import (
	"fmt"
	"math"

	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/internal/battery"
	"github.com/interlock-energy/ota/internal/buildinfo"
)

// registers is the SunSpec map. Scale factors are those of the test vectors of
// package sunspec; what a point has no value for here is not implemented.
type registers struct {
	image                                                 *sunspec.Image
	ac, controls, storage, dc, control, base, bank, chain sunspec.Model // 701 704 713 714 715 802 803 804
	modules                                               []sunspec.Model
}

// newRegisters lays out the map: 1, 701, 704, 713, 714, 715, 802, 803, 804, and with
// cells 805 for each module.
func newRegisters(base uint16, cells bool) (*registers, error) {
	r := &registers{image: sunspec.NewImage(base)}
	var common sunspec.Model
	type part struct {
		id      uint16
		repeats int
		into    *sunspec.Model
	}
	parts := []part{{1, 0, &common}, {701, 0, &r.ac}, {704, 0, &r.controls}, {713, 0, &r.storage}, {714, 1, &r.dc},
		{715, 0, &r.control}, {802, 0, &r.base}, {803, 1, &r.bank}, {804, battery.Modules, &r.chain}}
	if cells {
		r.modules = make([]sunspec.Model, battery.Modules)
		for i := range r.modules {
			parts = append(parts, part{805, battery.CellsPerModule, &r.modules[i]})
		}
	}
	for _, p := range parts {
		m, err := r.image.Add(p.id, p.repeats)
		if err != nil {
			return nil, fmt.Errorf("lay out the SunSpec map: %w", err)
		}
		*p.into = m
	}
	version, _ := buildinfo.Version("")
	return r, r.image.Set(common, sunspec.Text("Mn", "Interlock"), sunspec.Text("Md", "Simulated 100 kW"),
		sunspec.Text("Opt", "13x16 LFP"), sunspec.Text("Vr", cut(version, 16)), sunspec.Text("SN", "SIM-000001"), sunspec.Raw("DA", 1))
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

// number is missing for NaN.
func number(path string, v float64) sunspec.Setting {
	if math.IsNaN(v) {
		return sunspec.Missing(path)
	}
	return sunspec.Number(path, v)
}

// power is that of the battery in W, as far as 16 bits with a factor of ten go.
func power(m battery.Measurement) float64 {
	return min(max(m.Voltage*m.Current, -mostPower), mostPower)
}

const mostPower = 327_660.0

func whole(path string, v int) sunspec.Setting { return sunspec.Raw(path, uint64(v)) }

func enabled(path string, on bool) sunspec.Setting {
	if on {
		return sunspec.Symbolic(path, "ENABLED")
	}
	return sunspec.Symbolic(path, "DISABLED")
}

// setConverter brings the converter's models up to date.
func (r *registers) setConverter(m battery.Measurement, soc float64, w written) error {
	volts := 400.0 // between phases
	amps := math.Abs(m.ACPower) / volts / math.Sqrt(3)
	running := m.Mode == battery.ModeRunning || m.Mode == battery.ModeShuttingDown
	inverter := map[battery.Mode]string{battery.ModeOff: "OFF", battery.ModeStarting: "STARTING", battery.ModeRunning: "RUNNING",
		battery.ModeShuttingDown: "SHUTTING_DOWN", battery.ModeStandby: "STANDBY"}[m.Mode]
	status, connected, port := "ON", "CONNECTED", "ON"
	if m.Mode == battery.ModeOff {
		status = "OFF"
	}
	if !running {
		connected = "DISCONNECTED"
	}
	var dcAlarms, acAlarms []string
	if m.Connection == battery.Disconnected || m.Connection == battery.Precharging {
		port = "OFF"
	}
	if m.ContactorFault {
		port, dcAlarms, acAlarms = "ERROR", []string{"DC_DISCONNECT"}, []string{"DC_DISCONNECT"}
	}
	err := r.image.Set(r.ac, sunspec.Symbolic("ACType", "THREE_PHASE"), sunspec.Symbolic("St", status), sunspec.Symbolic("InvSt", inverter),
		sunspec.Symbolic("ConnSt", connected), sunspec.Bits("Alrm", acAlarms...), sunspec.Bits("DERMode", "GRID_FOLLOWING"),
		sunspec.Raw("W_SF", 1), number("W", m.ACPower), sunspec.Raw("VA_SF", 1), number("VA", math.Abs(m.ACPower)), number("A", amps),
		number("LLV", volts), number("LNV", volts/math.Sqrt(3)), number("Hz", 50), number("TmpCab", 30))
	if err != nil {
		return err
	}
	if err := r.setControls(m); err != nil {
		return err
	}
	state := "OK"
	switch {
	case len(m.Alarms) > 0:
		state = "ERROR"
	case len(m.Warnings) > 0:
		state = "WARNING"
	}
	available := math.NaN()
	if !math.IsNaN(soc) {
		available = battery.Energy * soc / 100
	}
	if err := r.image.Set(r.storage, number("WHRtg", battery.Energy), number("WHAvail", available), sunspec.Raw("Pct_SF", uint64(0xFFFE)),
		number("SoC", soc), number("SoH", m.SoH), sunspec.Symbolic("Sta", state)); err != nil {
		return err
	}
	p := "Prt[1]."
	if err := r.image.Set(r.dc, sunspec.Bits("PrtAlrms"), number("DCA", m.Current), sunspec.Raw("DCW_SF", 1), number("DCW", power(m)),
		sunspec.Symbolic(p+"PrtTyp", "ESS"), whole(p+"ID", 1), sunspec.Text(p+"IDStr", "battery"), number(p+"DCA", m.Current),
		number(p+"DCV", m.Voltage), number(p+"DCW", power(m)), sunspec.Symbolic(p+"DCSta", port), sunspec.Bits(p+"DCAlrm", dcAlarms...)); err != nil {
		return err
	}
	return r.image.Set(r.control, sunspec.Symbolic("LocRemCtl", "REMOTE"), sunspec.Raw("DERHb", uint64(m.Beat)),
		sunspec.Raw("ControllerHb", uint64(w.converterHb)), sunspec.Raw("AlarmReset", 0), sunspec.Raw("OpCtl", uint64(w.opCtl)))
}

// setControls brings model 704 up to date. Limits in percent of the maximum power
// are there and not in force; reactive power is not controlled.
func (r *registers) setControls(m battery.Measurement) error {
	c, mode := m.Controls, "WATTS"
	if c.Percent {
		mode = "W_MAX_PCT"
	}
	seconds := func(path string, d float64) sunspec.Setting { return sunspec.Raw(path, uint64(math.Ceil(d))) }
	return r.image.Set(r.controls, enabled("WSetEna", c.Enabled), sunspec.Symbolic("WSetMod", mode), sunspec.Raw("WSet_SF", 0),
		number("WSet", c.W), number("WSetRvrt", c.RevertW), number("WSetPct", c.Pct), number("WSetPctRvrt", c.RevertPct),
		enabled("WSetEnaRvrt", c.RevertEnabled), seconds("WSetRvrtTms", c.RevertAfter.Seconds()), seconds("WSetRvrtRem", m.Reverts.Seconds()),
		number("WRmp", c.Ramp), sunspec.Symbolic("WRmpRef", "W_MAX"), enabled("AntiIslEna", true))
}

// setBattery brings the management system's models up to date.
func (r *registers) setBattery(v view, w written) error {
	if err := r.setBase(v, w); err != nil {
		return err
	}
	if err := r.setBank(v); err != nil {
		return err
	}
	if err := r.setString(v); err != nil {
		return err
	}
	for i, m := range r.modules {
		if err := r.setModule(m, v, i); err != nil {
			return err
		}
	}
	return nil
}

// atRest is the current below which a battery counts as at rest, in A.
const atRest = 3.0

func (r *registers) setBase(v view, w written) error {
	cells := v.Voltages()
	state := map[battery.Connection]string{battery.Disconnected: "DISCONNECTED", battery.Precharging: "INITIALIZING",
		battery.Connected: "CONNECTED", battery.Waiting: "STANDBY"}[v.Connection]
	charging := "HOLDING"
	switch {
	case v.Connection == battery.Disconnected:
		charging = "OFF"
	case v.SoC <= 0:
		charging = "EMPTY"
	case v.SoC >= 100:
		charging = "FULL"
	case v.Current >= atRest:
		charging = "DISCHARGING"
	case v.Current <= -atRest:
		charging = "CHARGING"
	}
	return r.image.Set(r.base, number("AHRtg", battery.Capacity), number("WHRtg", battery.Energy),
		number("WChaRteMax", battery.RatedPower), number("WDisChaRteMax", battery.RatedPower),
		number("SoC", v.soc), number("SoH", v.SoH), sunspec.Raw("NCyc", 123),
		sunspec.Symbolic("ChaSt", charging), sunspec.Symbolic("LocRemCtl", "REMOTE"), sunspec.Raw("Hb", uint64(v.Beat&0xFFFF)),
		sunspec.Raw("CtrlHb", uint64(w.batteryHb)), sunspec.Raw("AlmRst", 0), sunspec.Symbolic("Typ", "LITHIUM_ION"), sunspec.Symbolic("State", state),
		sunspec.Bits("Evt1", events(v.Measurement)...), sunspec.Bits("Evt2"), sunspec.Bits("EvtVnd1"), sunspec.Bits("EvtVnd2"),
		number("V", v.Voltage), number("CellVMax", cells.Max), number("CellVMin", cells.Min),
		number("A", v.current), sunspec.Raw("AMax_SF", 0xFFFF), sunspec.Raw("W_SF", 1), number("W", power(v.Measurement)),
		sunspec.Raw("SetOp", uint64(w.setOp)), sunspec.Raw("SetInvState", uint64(w.setInvState)))
}

// closed are the bits of 803 StrSt and 804 St.
func closed(v view) []string {
	if v.Connection == battery.Disconnected || v.Connection == battery.Precharging {
		return []string{"STRING_ENABLED"}
	}
	return []string{"STRING_ENABLED", "CONTACTOR_STATUS"}
}

// contactorBits are those of the positive and the negative pole.
func contactorBits(v view) []string {
	if len(closed(v)) == 1 {
		return nil
	}
	return []string{"CONTACTOR_0", "CONTACTOR_1"}
}

func failure(v view) string {
	if v.ContactorFault {
		return "CONTACTOR_FAILURE"
	}
	return "NO_FAILURE"
}

func (r *registers) setBank(v view) error {
	cells, modules := v.Voltages(), v.Temperatures()
	connected := len(closed(v)) - 1
	s := "string[1]."
	return r.image.Set(r.bank, whole("NStrCon", connected),
		number("ModTmpMax", modules.Max), whole("ModTmpMaxStr", 1), whole("ModTmpMaxMod", modules.AtMax.Module),
		number("ModTmpMin", modules.Min), whole("ModTmpMinStr", 1), whole("ModTmpMinMod", modules.AtMin.Module),
		number(s+"StrSoC", v.soc), number(s+"StrSoH", v.SoH), number(s+"StrA", v.current), whole(s+"StrNMod", battery.Modules),
		sunspec.Bits(s+"StrSt", closed(v)...), sunspec.Symbolic(s+"StrConFail", failure(v)),
		number(s+"StrCellVMax", cells.Max), whole(s+"StrCellVMaxMod", cells.AtMax.Module),
		number(s+"StrCellVMin", cells.Min), whole(s+"StrCellVMinMod", cells.AtMin.Module),
		number(s+"StrModTmpMax", modules.Max), whole(s+"StrModTmpMaxMod", modules.AtMax.Module),
		number(s+"StrModTmpMin", modules.Min), whole(s+"StrModTmpMinMod", modules.AtMin.Module),
		sunspec.Symbolic(s+"StrDisRsn", map[bool]string{true: "FAULT", false: "NONE"}[v.ContactorFault]),
		sunspec.Bits(s+"StrConSt", contactorBits(v)...), sunspec.Bits(s+"StrEvt1", events(v.Measurement)...))
}

func (r *registers) setString(v view) error {
	cells, modules := v.Voltages(), v.Temperatures()
	settings := []sunspec.Setting{whole("Idx", 1), sunspec.Bits("St", closed(v)...), sunspec.Symbolic("ConFail", failure(v)),
		number("SoC", v.soc), sunspec.Raw("NCyc", 123), number("SoH", v.SoH), number("A", v.current), number("V", v.Voltage),
		number("CellVMax", cells.Max), whole("CellVMaxMod", cells.AtMax.Module), number("CellVMin", cells.Min),
		whole("CellVMinMod", cells.AtMin.Module), number("CellVAvg", cells.Mean),
		number("ModTmpMax", modules.Max), whole("ModTmpMaxMod", modules.AtMax.Module), number("ModTmpMin", modules.Min),
		whole("ModTmpMinMod", modules.AtMin.Module), number("ModTmpAvg", modules.Mean),
		sunspec.Bits("ConSt", contactorBits(v)...), sunspec.Bits("Evt1", events(v.Measurement)...)}
	for i := range v.Modules {
		c, t, p := v.Modules[i].Voltages(), v.Modules[i].Temperatures(), sunspec.Path("module", i+1, "")
		settings = append(settings, whole(p+"ModNCell", battery.CellsPerModule), number(p+"ModSoC", v.soc), number(p+"ModSoH", v.SoH),
			number(p+"ModCellVMax", c.Max), whole(p+"ModCellVMaxCell", c.AtMax.Cell), number(p+"ModCellVMin", c.Min),
			whole(p+"ModCellVMinCell", c.AtMin.Cell), number(p+"ModCellVAvg", c.Mean),
			number(p+"ModCellTmpMax", t.Max), whole(p+"ModCellTmpMaxCell", t.AtMax.Cell), number(p+"ModCellTmpMin", t.Min),
			whole(p+"ModCellTmpMinCell", t.AtMin.Cell), number(p+"ModCellTmpAvg", t.Mean))
	}
	return r.image.Set(r.chain, settings...)
}

func (r *registers) setModule(m sunspec.Model, v view, i int) error {
	module := &v.Modules[i]
	c, t := module.Voltages(), module.Temperatures()
	settings := []sunspec.Setting{whole("StrIdx", 1), whole("ModIdx", i+1), whole("NCell", battery.CellsPerModule), number("SoC", v.soc),
		number("SoH", v.SoH), sunspec.Raw("V_SF", 0xFFFE), number("V", module.Voltage),
		number("CellVMax", c.Max), whole("CellVMaxCell", c.AtMax.Cell), number("CellVMin", c.Min), whole("CellVMinCell", c.AtMin.Cell),
		number("CellVAvg", c.Mean), number("CellTmpMax", t.Max), whole("CellTmpMaxCell", t.AtMax.Cell),
		number("CellTmpMin", t.Min), whole("CellTmpMinCell", t.AtMin.Cell), number("CellTmpAvg", t.Mean),
		sunspec.Text("SN", fmt.Sprintf("SIM-MODULE-%02d", i+1))}
	for j, cell := range module.Cells {
		p := sunspec.Path("cell", j+1, "")
		settings = append(settings, number(p+"CellV", cell.Voltage), number(p+"CellTmp", cell.Temperature), sunspec.Bits(p+"CellSt"))
	}
	return r.image.Set(m, settings...)
}

// bits are the names of alarms and warnings in Evt1 of 802, 803 and 804.
var bits = map[battery.Alarm]string{
	battery.OverTemperature: "OVER_TEMP_ALARM", battery.NearOverTemperature: "OVER_TEMP_WARNING",
	battery.UnderTemperature: "UNDER_TEMP_ALARM", battery.NearUnderTemperature: "UNDER_TEMP_WARNING",
	battery.OverCharge: "OVER_CHARGE_CURRENT_ALARM", battery.NearOverCharge: "OVER_CHARGE_CURRENT_WARNING",
	battery.OverDischarge: "OVER_DISCHARGE_CURRENT_ALARM", battery.NearOverDischarge: "OVER_DISCHARGE_CURRENT_WARNING",
	battery.OverVoltage: "OVER_VOLT_ALARM", battery.NearOverVoltage: "OVER_VOLT_WARNING",
	battery.UnderVoltage: "UNDER_VOLT_ALARM", battery.NearUnderVoltage: "UNDER_VOLT_WARNING",
	battery.UnderSoC: "UNDER_SOC_MIN_ALARM", battery.NearUnderSoC: "UNDER_SOC_MIN_WARNING",
	battery.VoltageImbalance: "VOLTAGE_IMBALANCE_WARNING", battery.TemperatureImbalance: "TEMPERATURE_IMBALANCE_WARNING",
	battery.ContactorError: "CONTACTOR_ERROR", battery.Other: "OTHER_ALARM",
}

func events(m battery.Measurement) []string {
	var names []string
	for _, list := range [][]battery.Alarm{m.Alarms, m.Warnings} {
		for _, a := range list {
			names = append(names, bits[a])
		}
	}
	return names
}
