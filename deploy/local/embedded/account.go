package embedded

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// account is the user that Postgres runs as. The zero account is whoever we
// are: only root must hand over, because Postgres refuses to run as root.
type account struct {
	name     string
	uid, gid uint32
	groups   []uint32
}

// postgresAccount answers the unprivileged user for Postgres: the machine's
// postgres user, else nobody; the zero account when we are not root.
func postgresAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
		if errUID != nil || errGID != nil || uid == 0 {
			continue
		}
		a := account{name: name, uid: uint32(uid), gid: uint32(gid)}
		ids, _ := u.GroupIds()
		for _, id := range ids {
			if g, err := strconv.ParseUint(id, 10, 32); err == nil {
				a.groups = append(a.groups, uint32(g))
			}
		}
		return a, nil
	}
	return account{}, errors.New("postgres refuses to run as root, and this machine has neither a user postgres nor a user nobody")
}

func (a account) other() bool { return a.name != "" }

// run makes the command run as the account, in a process group of its own: a
// Ctrl-C in the terminal reaches us, and we stop the server in our own time.
func (a account) run(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a.other() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
	}
}

// own gives the path to the account.
func (a account) own(path string) error {
	if !a.other() {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}

// canReach answers nil when the account can traverse every directory from the
// root down to dir, and otherwise names the one in the way and the remedy.
func (a account) canReach(dir, remedy string) error {
	if !a.other() {
		return nil
	}
	path := string(filepath.Separator)
	parts := []string{path}
	for p := filepath.Clean(dir); p != path; p = filepath.Dir(p) {
		parts = append(parts, p)
	}
	slices.Sort(parts) // a parent is a prefix of its children, so it sorts first
	for _, p := range parts {
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		if !a.mayTraverse(info) {
			return fmt.Errorf("postgres runs as user %s here (it refuses to run as root), and that user cannot enter %s (mode %04o): %s, or run `chmod o+x %s`",
				a.name, p, info.Mode().Perm(), remedy, p)
		}
	}
	return nil
}

// letIn opens our own directory to passing through (not to listing or
// reading) where temporary directories are made closed.
func (a account) letIn(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || !a.other() || a.mayTraverse(info) {
		return err
	}
	return os.Chmod(dir, info.Mode().Perm()|0o001)
}

func (a account) mayTraverse(info os.FileInfo) bool {
	perm := info.Mode().Perm()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		switch {
		case st.Uid == a.uid:
			return perm&0o100 != 0
		case st.Gid == a.gid || slices.Contains(a.groups, st.Gid):
			return perm&0o010 != 0
		}
	}
	return perm&0o001 != 0
}
