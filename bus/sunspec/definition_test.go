package sunspec

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// official is what the tables are compared with: the part of the definitions of
// the SunSpec Alliance that they repeat.
type official struct {
	ID    uint16
	Group officialGroup
}

type officialGroup struct {
	Name   string
	Label  string
	Count  json.RawMessage
	Points []struct {
		Name, Type, SF, Units, Access string
		Size                          uint16
		Symbols                       []struct {
			Name  string
			Value uint16
		}
	}
	Groups []officialGroup
}

var officialTypes = map[string]Type{
	"int16": Int16, "uint16": Uint16, "enum16": Enum16, "int32": Int32, "uint32": Uint32, "uint64": Uint64,
	"bitfield32": Bitfield32, "sunssf": ScaleFactor, "string": String, "pad": Pad,
}

// shortNames are the groups whose official names are long.
var shortNames = map[string]string{"lithium_ion_string_module": "module", "lithium-ion-module-cell": "cell"}

func TestTablesAreTheOfficialDefinitions(t *testing.T) {
	points := 0
	for _, got := range Definitions() {
		t.Run(fmt.Sprint(got.ID), func(t *testing.T) {
			data, err := os.ReadFile(fmt.Sprintf("testdata/model_%d.json", got.ID))
			if err != nil {
				t.Fatal(err)
			}
			var from official
			if err := json.Unmarshal(data, &from); err != nil {
				t.Fatal(err)
			}
			want := &Definition{ID: from.ID, Name: from.Group.Label}
			var at uint16
			want.Points, at = from.Group.points(t)
			for _, g := range from.Group.Groups {
				group := Group{Name: g.Name, Offset: at}
				if short := shortNames[g.Name]; short != "" {
					group.Name = short
				}
				group.Points, group.Size = g.points(t)
				at += group.Size
				if g.Count != nil {
					group.Repeats = true
					if string(g.Count) != "0" {
						if err := json.Unmarshal(g.Count, &group.Count); err != nil {
							t.Fatal(err)
						}
					}
				}
				points += len(group.Points)
				want.Groups = append(want.Groups, group)
			}
			points += len(want.Points)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("official -, ours +\n%s", diff)
			}
		})
	}
	t.Logf("compared %d points of %d models", points, len(Definitions()))
	if files, err := filepath.Glob("testdata/model_*.json"); err != nil || len(files) != len(Definitions()) {
		t.Errorf("got %d official definitions and %v, want one for each of %d models", len(files), err, len(Definitions()))
	}
}

func (g officialGroup) points(t *testing.T) ([]Point, uint16) {
	var points []Point
	var at uint16
	for _, o := range g.Points {
		p := Point{Name: o.Name, Offset: at, Type: officialTypes[o.Type], Scale: o.SF, Units: o.Units, Writable: o.Access == "RW"}
		if p.Type == 0 {
			t.Fatalf("%s: got the type %s, want one that the test knows", o.Name, o.Type)
		}
		if p.Type == String {
			p.Length = o.Size
		}
		if got, want := p.Size(), o.Size; got != want {
			t.Errorf("%s: got %d registers, want %d", o.Name, got, want)
		}
		for _, s := range o.Symbols {
			p.Symbols = append(p.Symbols, Symbol{s.Value, s.Name})
		}
		points = append(points, p)
		at += o.Size
	}
	return points, at
}

// Every scale factor that a point names is in the fixed part of its model.
func TestScaleFactorsExist(t *testing.T) {
	for _, d := range Definitions() {
		all := d.Points
		for _, g := range d.Groups {
			all = append(all[:len(all):len(all)], g.Points...)
		}
		for _, p := range all {
			if p.Scale == "" {
				continue
			}
			if sf, _, _, _, err := d.point(p.Scale); err != nil || sf.Type != ScaleFactor {
				t.Errorf("%d %s: scale factor %s: %v", d.ID, p.Name, p.Scale, err)
			}
		}
	}
}

func TestPaths(t *testing.T) {
	for _, c := range []struct {
		model  uint16
		path   string
		offset int // -1: refused
	}{
		{802, "SoC", 11},
		{803, "string[1].StrSoC", 32},
		{803, "string[2].StrSoC", 64},
		{804, "module[13].ModSoC", 48 + 12*16 + 1},
		{714, "Prt[1].DCA", 30},
		{704, "PFWInj.PF", 59},
		{704, "PFWAbsRvrt.Ext", 66},
		{802, "Soc", -1},
		{803, "StrSoC", -1},
		{803, "string.StrSoC", -1},
		{803, "string[0].StrSoC", -1},
		{803, "string[].StrSoC", -1},
		{803, "string[1.StrSoC", -1},
		{803, "string[-1].StrSoC", -1},
		{803, "string[65536].StrSoC", -1},
		{803, "module[1].ModSoC", -1},
		{704, "PFWInj[1].PF", -1},
		{802, "", -1},
	} {
		_, offset, _, _, err := Define(c.model).point(c.path)
		if err != nil {
			offset = -1
		}
		if got, want := offset, c.offset; got != want {
			t.Errorf("%d %q: got %d (%v), want %d", c.model, c.path, got, err, want)
		}
	}
}
