package dsn_test

import (
	"fmt"
	"strings"
	"testing"

	"example.com/billing/pkg/dsn"
)

const secret = "s3cret"

// broken are DSNs that do not parse. Each has the secret, or its end behind a character that should have been encoded.
var broken = []string{
	"postgres://u:s3cret@h:port/db", "postgres://u:s3cret%zz@h/db", "postgres://u:s3/s3cret@h:5432/db", "postgres://u:s3 s3cret@h/db",
	"postgres://u:s3cret@h1:1,h2:x/db", "postgres://h/db?password=s3cret&sslmode=bad", "postgres://u:s3cret@h/db?pool_max_conns=x",
	"host=h password=s3cret port=x", "host=h password = s3cret port=x", "host=h password='a s3cret", `password=a\ s3cret port=x`,
	"postgres:u:s3cret@h/db", "u:s3cret@h/db", "postgres://u:s3cret invalid port@h/db", "s3cret", "postgres://u:s3cret@[h/db", "postgres://u:s3cret\x00@h/db",
}

func TestErrorsShowNothingOfTheAddress(t *testing.T) {
	for _, address := range broken {
		cfg, err := dsn.Parse(address)
		if err == nil {
			t.Errorf("%q parsed: %v", address, cfg.ConnConfig.Host)
			continue
		}
		for e := err; e != nil; e = unwrap(e) {
			if strings.Contains(fmt.Sprintf("%v %+v %#v", e, e, e), secret) {
				t.Errorf("%q: %v", address, e)
			}
		}
		if _, err := dsn.URL(address); err != nil && strings.Contains(fmt.Sprintf("%v", err), secret) {
			t.Errorf("%q: %v", address, err)
		}
		if name := dsn.Name(address); strings.Contains(name, secret) {
			t.Errorf("%q is shown as %s", address, name)
		}
	}
	if _, err := dsn.Parse("postgres://u:s3cret@h:port/db"); err == nil || !strings.Contains(err.Error(), "invalid port") {
		t.Errorf("the cause is not said: %v", err)
	}
}

func unwrap(err error) error {
	if w, ok := err.(interface{ Unwrap() error }); ok {
		return w.Unwrap()
	}
	return nil
}

func TestName(t *testing.T) {
	for address, want := range map[string]string{
		"postgres://u:s3cret@h:5432/db?password=s3cret": "postgres://u@h:5432/db", "kafka://b1,b2/topic": "kafka://b1,b2/topic",
		"postgres://h/db": "postgres://h/db", "host=h password=s3cret": "(address hidden)", "postgres:u:s3cret@h": "(address hidden)", "": "(address hidden)",
	} {
		if got := dsn.Name(address); got != want {
			t.Errorf("%q: %s, want %s", address, got, want)
		}
	}
}

func TestHide(t *testing.T) {
	var b strings.Builder
	args := append([]string{"read", "--limit", "4", "--end=postgres://u:s3cret@h/flag"}, broken[:12]...)
	w := dsn.Hide(&b, args)
	for _, arg := range args {
		_, _ = fmt.Fprintf(w, "unexpected argument %s; %q\n", arg, arg)
	}
	_, _ = fmt.Fprintln(w, "but got \"postgres://u:s3cret@h/flag\"")
	if strings.Contains(b.String(), secret) {
		t.Errorf("shown: %s", b.String())
	}
	if !strings.Contains(b.String(), "unexpected argument read;") || !strings.Contains(b.String(), "postgres://u@h/flag") {
		t.Errorf("too much is hidden: %s", b.String())
	}
}
