package bundle

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/interlock-energy/ota"
)

// version returns what the image says, which is signed, or what was said about it.
func (f CodeSigned) version(r io.ReaderAt, size int64) (string, error) {
	said, where := f.Version, "the job"
	if said == "" {
		said, where = versionInPath(f.Path), fmt.Sprintf("the path %q", abridge(f.Path))
	}
	inside := ""
	if f.ImageVersion != nil {
		var err error
		if inside, err = f.ImageVersion(r, size); err != nil {
			return "", refuse("read the version in the image: %w", err)
		}
	}
	said, inside = trimV(said), trimV(inside)
	for _, v := range []string{said, inside} {
		if v == "" {
			continue
		}
		if err := ota.CheckVersion(v); err != nil {
			return "", refuse("read the version of a code-signed image: %w", err)
		}
	}
	switch {
	case said == "" && inside == "":
		return "", refuse("tell the version of the code-signed image %q: the job does not say it; add \"version\" to the file in the job's document, or name the file like /fw/bess-1.0.1.bin", abridge(f.Path))
	case said == "":
		return inside, nil
	case inside != "" && ota.CompareVersions(said, inside) != 0:
		return "", refuse("tell the version of the code-signed image: %s says %s, the image itself says %s", where, said, inside)
	}
	return said, nil
}

func trimV(s string) string {
	if t := strings.TrimLeft(s, "vV"); len(s)-len(t) == 1 {
		return t
	}
	return s
}

// versionInPath returns the version at the end of a file's name, before its
// extension: three numbers, and perhaps a pre-release that is called one. What else
// comes after numbers ("-signed") may not belong to them: then there is none.
func versionInPath(path string) string {
	name := path[strings.LastIndexAny(path, `/\`)+1:]
	if i := strings.LastIndexByte(name, '.'); i > 0 && strings.Trim(name[i+1:], "0123456789") != "" && !strings.Contains(name[i:], "-") {
		name = name[:i]
	}
	for i := range len(name) {
		if i > 0 && !strings.ContainsRune("-_ vV", rune(name[i-1])) {
			continue
		}
		core, pre, hasPre := strings.Cut(name[i:], "-")
		if strings.Count(core, ".") != 2 || strings.Trim(core, "0123456789.") != "" || ota.CheckVersion(name[i:]) != nil {
			continue
		}
		kind, _, _ := strings.Cut(strings.TrimRight(pre, "0123456789."), ".")
		if !hasPre || slices.Contains([]string{"rc", "alpha", "beta", "dev", "pre"}, kind) {
			return name[i:]
		}
	}
	return ""
}
