package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

const (
	fetchedVersion = embeddedpostgres.V17
	fetchedMajor   = 17
	majorMin       = 14 // older servers are out of support
)

// binaries is one installation of Postgres: the directory that holds initdb
// and postgres, and the major version of both.
type binaries struct {
	dir   string
	major int
}

// chooseBinaries answers the binaries to run. A data directory belongs to one
// major version, so dataMajor (0 = none yet) decides among several.
func chooseBinaries(ctx context.Context, o PostgresOptions, acct account, dataMajor int, logf func(string, ...any)) (binaries, error) {
	if o.Bin != "" && o.Bin != "none" {
		b, err := inspect(ctx, o.Bin)
		if err != nil {
			return binaries{}, fmt.Errorf("postgres binaries in %s: %w", o.Bin, err)
		}
		return b, errors.Join(matches(b, dataMajor), acct.canReach(b.dir, "give another directory of binaries"))
	}
	var best binaries
	if o.Bin == "" {
		for _, dir := range machineDirs() {
			b, err := inspect(ctx, dir)
			if err != nil || b.major < majorMin || acct.canReach(b.dir, "") != nil {
				continue
			}
			if b.major == dataMajor {
				return b, nil
			}
			if b.major > best.major {
				best = b
			}
		}
	}
	if best.dir != "" && (dataMajor == 0 || dataMajor != fetchedMajor) {
		return best, matches(best, dataMajor)
	}
	if dataMajor != 0 && dataMajor != fetchedMajor {
		return binaries{}, matches(binaries{dir: "(fetched)", major: fetchedMajor}, dataMajor)
	}
	dir, err := cacheDir(o.CacheDir)
	if err != nil {
		return binaries{}, fmt.Errorf("postgres cache: %w", err)
	}
	b, err := fetch(ctx, dir, logf)
	if err != nil {
		return binaries{}, fmt.Errorf("fetch Postgres %s: %w (or install Postgres %d or later, or point at a running server)", fetchedVersion, err, majorMin)
	}
	return b, acct.canReach(b.dir, "choose another cache directory for the fetched binaries")
}

func matches(b binaries, dataMajor int) error {
	if dataMajor == 0 || b.major == dataMajor {
		return nil
	}
	return fmt.Errorf("the data directory was made by Postgres %d, but the binaries in %s are Postgres %d: install Postgres %d, or choose another data directory",
		dataMajor, b.dir, b.major, dataMajor)
}

// machineDirs lists where an installed Postgres may be: on PATH, and where
// Debian and Homebrew keep the versions side by side.
func machineDirs() []string {
	var dirs []string
	if p, err := exec.LookPath("postgres"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil {
			dirs = append(dirs, filepath.Dir(p))
		}
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",
		"/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin",
	} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, found...)
	}
	return dirs
}

// inspect runs postgres --version, which root may do too.
func inspect(ctx context.Context, dir string) (binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return binaries{}, err
	}
	for _, name := range []string{"initdb", "postgres"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return binaries{}, err
		} else if info.Mode()&0o111 == 0 {
			return binaries{}, fmt.Errorf("%s is not executable", filepath.Join(dir, name))
		}
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return binaries{}, fmt.Errorf("postgres --version: %w", err)
	}
	// postgres (PostgreSQL) 15.12 (Debian 15.12-0+deb12u2)
	_, version, _ := strings.Cut(string(out), "(PostgreSQL) ")
	digits := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if digits <= 0 {
		return binaries{}, fmt.Errorf("postgres --version: unexpected answer %q", out)
	}
	major, err := strconv.Atoi(version[:digits])
	if err != nil {
		return binaries{}, fmt.Errorf("postgres --version: %w", err)
	}
	return binaries{dir: dir, major: major}, nil
}

// cacheDir answers where fetched binaries are kept. Root's own cache is under
// /root, which the user that Postgres runs as usually cannot enter.
func cacheDir(given string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	name := "postgres-" + string(fetchedVersion)
	if os.Geteuid() == 0 {
		return filepath.Join("/var/cache/billing", name), nil
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(base, "billing", name), nil
}

// fetch downloads and unpacks Postgres into dir, once: concurrent processes
// wait for one another, and dir appears complete or not at all.
func fetch(ctx context.Context, dir string, logf func(string, ...any)) (binaries, error) {
	if b, err := inspect(ctx, filepath.Join(dir, "bin")); err == nil {
		return b, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return binaries{}, err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return binaries{}, err
	}
	// Neither the lock nor the download can be cancelled, so they have a
	// goroutine of their own that ends, and closes the lock, in any case.
	done := make(chan error, 1)
	go func() {
		defer lock.Close()
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
			done <- fmt.Errorf("lock %s: %w", lock.Name(), err)
			return
		}
		if _, err := inspect(ctx, filepath.Join(dir, "bin")); err == nil {
			done <- nil // another process was faster
			return
		}
		logf("fetching Postgres %s for %s/%s into %s", fetchedVersion, runtime.GOOS, runtime.GOARCH, dir)
		done <- fetchInto(ctx, dir)
	}()
	select {
	case err := <-done:
		if err != nil {
			return binaries{}, err
		}
	case <-ctx.Done():
		return binaries{}, ctx.Err()
	}
	return inspect(ctx, filepath.Join(dir, "bin"))
}

func fetchInto(ctx context.Context, dir string) error {
	temp, err := os.MkdirTemp(filepath.Dir(dir), ".unpack-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	unpacked := filepath.Join(temp, "postgres")
	if err := unpack(temp, unpacked); err != nil {
		return err
	}
	if b, err := inspect(ctx, filepath.Join(unpacked, "bin")); err != nil {
		return fmt.Errorf("the unpacked binaries do not run here: %w", err)
	} else if b.major != fetchedMajor {
		return fmt.Errorf("unpacked Postgres %d, not %d", b.major, fetchedMajor)
	}
	if err := os.Chmod(unpacked, 0o755); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s exists and holds no Postgres %d: %w", dir, fetchedMajor, err)
	}
	return os.Rename(unpacked, dir)
}

// unpack has the library download, verify and unpack, and nothing more. Its
// only entry point is Start, which goes on to initialise a database and start
// it, and fails to as root. A data directory that holds PG_VERSION alone looks
// initialised, so Start goes straight from unpacking to pg_ctl, which refuses
// that directory at once: that one refusal says that unpacking is complete.
func unpack(temp, into string) error {
	data := filepath.Join(temp, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte(strconv.Itoa(fetchedMajor)+"\n"), 0o600); err != nil {
		return err
	}
	port, err := choosePort("")
	if err != nil {
		return err
	}
	err = embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(fetchedVersion).
		Port(uint32(port)).
		CachePath(temp).
		BinariesPath(into).
		RuntimePath(filepath.Join(temp, "runtime")).
		DataPath(data).
		Logger(io.Discard)).Start()
	if err == nil {
		return errors.New("unpack: pg_ctl accepted an empty data directory")
	}
	if !strings.HasPrefix(err.Error(), "could not start postgres using ") {
		return err
	}
	return nil
}
