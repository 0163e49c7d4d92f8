package crash

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// An ordinary build has no trace of the failpoints: neither their names nor what arms them.
func TestOrdinaryBuildsHaveNoFailpoints(t *testing.T) {
	for _, tc := range []struct {
		tags string
		want bool
	}{{"", false}, {"failpoints", true}} { // the second shows that the look would find them
		found := map[string]bool{}
		dir, err := built[tc.tags]()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range binaries {
			b, err := os.ReadFile(filepath.Join(dir, filepath.Base(name)))
			if err != nil {
				t.Fatal(err)
			}
			for _, trace := range append(names(), "BILLING_FAILPOINT", "billing/pkg/failpoint.Hit") {
				found[trace] = found[trace] || bytes.Contains(b, []byte(trace))
			}
		}
		for trace, has := range found {
			if has != tc.want {
				t.Errorf("built with tags %q, a service contains %q: %t", tc.tags, trace, has)
			}
		}
	}
}
