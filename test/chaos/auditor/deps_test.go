package auditor

import (
	"os/exec"
	"strings"
	"testing"
)

// What audits the system shares nothing with it.
func TestIndependence(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		if strings.HasPrefix(dep, "example.com/billing/") && dep != "example.com/billing/test/chaos/auditor" {
			t.Errorf("the auditor imports %s", dep)
		}
	}
	if !strings.Contains(string(out), "github.com/shopspring/decimal") {
		t.Errorf("go list says %s", out)
	}
}
