//go:build !failpoints

package failpoint_test

import (
	"os/exec"
	"testing"

	"example.com/billing/pkg/failpoint"
)

// Without the tag nothing is ever done, whatever the environment says.
func TestHitIsNothing(t *testing.T) {
	t.Setenv("BILLING_FAILPOINT", "some.point=kill")
	failpoint.Hit("some.point")
}

// The other build's tests, so that they run with all the rest.
func TestWithTheTag(t *testing.T) {
	if out, err := exec.CommandContext(t.Context(), "go", "test", "-tags", "failpoints", ".").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
