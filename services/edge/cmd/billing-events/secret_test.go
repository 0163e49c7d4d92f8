package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

const asMain = "BILLING_EVENTS_TEST_ARGS"

// withSecret are names of stores that are wrong in different ways; each has a password.
var withSecret = []string{
	"postgres://u:s3cret@h:port/db", "postgres://u:a%zzs3cret@h/db", "postgres://u:a/s3cret@h:5432/db", "postgres://u:a s3cret@h/db", "postgres:u:s3cret@h/db",
	"postgres://127.0.0.1:1/x?password=s3cret", "postgres://u:s3cret@127.0.0.1:1/x", "mysql://u:s3cret@h/x?password=s3cret", "kafka://u:s3cret@/x",
	"host=h password=s3cret", "host=h password = s3cret port=x",
}

func TestPasswordsAreNotShown(t *testing.T) {
	for _, store := range withSecret {
		for _, args := range [][]string{
			{"read", store, "Test", "a"}, {"follow", store, "--once"}, {"digest", store}, {"diff", store, "Test", "--kafka-brokers", "127.0.0.1:1"},
			{"copy", store, "kafka://127.0.0.1:1/x"}, {"promote", store},
		} {
			if shown, err := run(t, t.Context(), args...); err == nil || strings.Contains(shown+err.Error(), "s3cret") {
				t.Errorf("%s: %s %v", args, shown, err)
			}
		}
	}
}

// The parser of the command line repeats an argument that it does not take.
func TestPasswordsAreNotShownByTheUsage(t *testing.T) {
	if args := os.Getenv(asMain); args != "" {
		os.Args = append([]string{"billing-events"}, strings.Split(args, "\n")...)
		main()
		return
	}
	const store = "postgres://u:s3cret@127.0.0.1:1/x"
	for _, args := range [][]string{
		{store}, {"digest", store, store}, {"digest", "--end=" + store, store}, {"digest", "--end", store, store}, {"digest", store}, {"--store=" + store},
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPasswordsAreNotShownByTheUsage$")
		cmd.Env = append(os.Environ(), asMain+"="+strings.Join(args, "\n"))
		if shown, err := cmd.CombinedOutput(); err == nil || strings.Contains(string(shown), "s3cret") {
			t.Errorf("%s: %s %v", args, shown, err)
		}
	}
}
