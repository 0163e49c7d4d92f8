package embedded

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

const superuser = "billing"

// dataMajor reads the major version that made the data directory; 0 = there is
// no data directory yet.
func dataMajor(data string) (int, error) {
	b, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if err == nil {
		major, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", filepath.Join(data, "PG_VERSION"), err)
		}
		return major, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
		return 0, errors.Join(err, fmt.Errorf("%s exists and is not a Postgres data directory", data))
	}
	return 0, nil
}

// password reads the superuser's password, or chooses it where no data
// directory knows one yet.
func password(file string, exists bool) (string, error) {
	b, err := os.ReadFile(file)
	if err == nil {
		if pw := strings.TrimSpace(string(b)); pw != "" {
			return pw, nil
		}
		err = errors.New("the file is empty")
	} else if errors.Is(err, os.ErrNotExist) && !exists {
		pw := rand.Text()
		if err := writeFileAtomic(file, []byte(pw+"\n"), 0o600); err != nil {
			return "", fmt.Errorf("write the password: %w", err)
		}
		return pw, nil
	}
	return "", fmt.Errorf("the data directory exists but the password kept beside it cannot be read: %w", err)
}

// initdb makes the data directory. It works under another name and renames, so
// that a kill in between leaves nothing that looks like a database.
func initdb(ctx context.Context, b binaries, acct account, data, pw string) error {
	work := data + ".new"
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(work) // gone already when all went well
	if err := acct.own(work); err != nil {
		return err
	}
	// initdb reads the password as the account, which cannot read our own file.
	pwfile := data + ".pwfile"
	if err := writeFileAtomic(pwfile, []byte(pw+"\n"), 0o600); err != nil {
		return err
	}
	defer os.Remove(pwfile)
	if err := acct.own(pwfile); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(b.dir, "initdb"),
		"-D", work, "-U", superuser, "--pwfile="+pwfile, "-E", "UTF8", "--no-locale",
		"--auth-host=scram-sha-256", "--auth-local=scram-sha-256")
	cmd.Env = cleanEnv()
	cmd.Dir = work
	acct.run(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, bytes.TrimSpace(out))
	}
	return os.Rename(work, data)
}

// cleanEnv is our environment without what would steer Postgres elsewhere.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") {
			env = append(env, kv)
		}
	}
	return append(env, "LC_ALL=C")
}
