package sunspec

// The tables in this file follow json/model_N.json of the SunSpec Alliance
// (github.com/sunspec/models, Apache-2.0); a test compares every point with them.

// model1 is model 1, Common.
var model1 = &Definition{
	ID: 1, Name: "Common",
	Points: []Point{
		{Name: "ID", Offset: 0, Type: Uint16},
		{Name: "L", Offset: 1, Type: Uint16},
		{Name: "Mn", Offset: 2, Type: String, Length: 16},
		{Name: "Md", Offset: 18, Type: String, Length: 16},
		{Name: "Opt", Offset: 34, Type: String, Length: 8},
		{Name: "Vr", Offset: 42, Type: String, Length: 8},
		{Name: "SN", Offset: 50, Type: String, Length: 16},
		{Name: "DA", Offset: 66, Type: Uint16, Writable: true},
		{Name: "Pad", Offset: 67, Type: Pad},
	},
}

// model713 is model 713, DER Storage Capacity.
var model713 = &Definition{
	ID: 713, Name: "DER Storage Capacity",
	Points: []Point{
		{Name: "ID", Offset: 0, Type: Uint16},
		{Name: "L", Offset: 1, Type: Uint16},
		{Name: "WHRtg", Offset: 2, Type: Uint16, Scale: "WH_SF", Units: "WH"},
		{Name: "WHAvail", Offset: 3, Type: Uint16, Scale: "WH_SF", Units: "WH"},
		{Name: "SoC", Offset: 4, Type: Uint16, Scale: "Pct_SF", Units: "Pct"},
		{Name: "SoH", Offset: 5, Type: Uint16, Scale: "Pct_SF", Units: "Pct"},
		{Name: "Sta", Offset: 6, Type: Enum16, Symbols: []Symbol{{0, "OK"}, {1, "WARNING"}, {2, "ERROR"}}},
		{Name: "WH_SF", Offset: 7, Type: ScaleFactor},
		{Name: "Pct_SF", Offset: 8, Type: ScaleFactor},
	},
}

// model714 is model 714, DER DC Measurement.
var model714 = &Definition{
	ID: 714, Name: "DER DC Measurement",
	Points: []Point{
		{Name: "ID", Offset: 0, Type: Uint16},
		{Name: "L", Offset: 1, Type: Uint16},
		{Name: "PrtAlrms", Offset: 2, Type: Bitfield32},
		{Name: "NPrt", Offset: 4, Type: Uint16},
		{Name: "DCA", Offset: 5, Type: Int16, Scale: "DCA_SF", Units: "A"},
		{Name: "DCW", Offset: 6, Type: Int16, Scale: "DCW_SF", Units: "W"},
		{Name: "DCWhInj", Offset: 7, Type: Uint64, Scale: "DCWH_SF", Units: "Wh"},
		{Name: "DCWhAbs", Offset: 11, Type: Uint64, Scale: "DCWH_SF", Units: "Wh"},
		{Name: "DCA_SF", Offset: 15, Type: ScaleFactor},
		{Name: "DCV_SF", Offset: 16, Type: ScaleFactor},
		{Name: "DCW_SF", Offset: 17, Type: ScaleFactor},
		{Name: "DCWH_SF", Offset: 18, Type: ScaleFactor},
		{Name: "Tmp_SF", Offset: 19, Type: ScaleFactor},
	},
	Groups: []Group{
		{Name: "Prt", Offset: 20, Size: 25, Repeats: true, Count: "NPrt", Points: []Point{
			{Name: "PrtTyp", Offset: 0, Type: Enum16, Symbols: []Symbol{
				{0, "PV"}, {1, "ESS"}, {2, "EV"}, {3, "INJ"}, {4, "ABS"}, {5, "BIDIR"}, {6, "DC_DC"},
			}},
			{Name: "ID", Offset: 1, Type: Uint16},
			{Name: "IDStr", Offset: 2, Type: String, Length: 8},
			{Name: "DCA", Offset: 10, Type: Int16, Scale: "DCA_SF", Units: "A"},
			{Name: "DCV", Offset: 11, Type: Uint16, Scale: "DCV_SF", Units: "V"},
			{Name: "DCW", Offset: 12, Type: Int16, Scale: "DCW_SF", Units: "W"},
			{Name: "DCWhInj", Offset: 13, Type: Uint64, Scale: "DCWH_SF", Units: "Wh"},
			{Name: "DCWhAbs", Offset: 17, Type: Uint64, Scale: "DCWH_SF", Units: "Wh"},
			{Name: "Tmp", Offset: 21, Type: Int16, Scale: "Tmp_SF", Units: "C"},
			{Name: "DCSta", Offset: 22, Type: Enum16, Symbols: []Symbol{{0, "OFF"}, {1, "ON"}, {2, "WARNING"}, {3, "ERROR"}}},
			{Name: "DCAlrm", Offset: 23, Type: Bitfield32, Symbols: []Symbol{
				{0, "GROUND_FAULT"}, {1, "INPUT_OVER_VOLTAGE"}, {3, "DC_DISCONNECT"}, {5, "CABINET_OPEN"},
				{6, "MANUAL_SHUTDOWN"}, {7, "OVER_TEMP"}, {12, "BLOWN_FUSE"}, {13, "UNDER_TEMP"}, {14, "MEMORY_LOSS"},
				{15, "ARC_DETECTION"}, {19, "RESERVED"}, {20, "TEST_FAILED"}, {21, "INPUT_UNDER_VOLTAGE"},
				{22, "INPUT_OVER_CURRENT"},
			}},
		}},
	},
}

// model715 is model 715, DERCtl.
var model715 = &Definition{
	ID: 715, Name: "DERCtl",
	Points: []Point{
		{Name: "ID", Offset: 0, Type: Uint16},
		{Name: "L", Offset: 1, Type: Uint16},
		{Name: "LocRemCtl", Offset: 2, Type: Enum16, Symbols: remoteLocal},
		{Name: "DERHb", Offset: 3, Type: Uint32},
		{Name: "ControllerHb", Offset: 5, Type: Uint32, Writable: true},
		{Name: "AlarmReset", Offset: 7, Type: Uint16, Writable: true},
		{Name: "OpCtl", Offset: 8, Type: Enum16, Writable: true, Symbols: []Symbol{{0, "STOP"}, {1, "START"}, {2, "ENTER_STANDBY"}, {3, "EXIT_STANDBY"}}},
	},
}
