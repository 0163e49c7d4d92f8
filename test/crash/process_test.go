package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binaries are the services' commands, by service; the gateway has no failpoints.
var binaries = map[string]string{
	accounts: "account/cmd/accountd", transactions: "transaction/cmd/transactiond", sagas: "saga-orchestrator/cmd/sagad", "gateway": "gateway/cmd/gatewayd",
}

// built build the services and return the folder with the binaries, by the compiler's tags.
var built = map[string]func() (string, error){
	"":           sync.OnceValues(func() (string, error) { return build("") }),
	"failpoints": sync.OnceValues(func() (string, error) { return build("failpoints") }),
}

var folder string // of all that is built

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "billing-crash-"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(folder)
	os.Exit(code)
}

func build(tags string) (string, error) {
	dir := filepath.Join(folder, "tags-"+tags)
	args := []string{"build", "-tags", tags, "-o", dir + "/"}
	for _, name := range binaries {
		args = append(args, "example.com/billing/services/"+name)
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the services: %w\n%s", err, out)
	}
	return dir, nil
}

// process is one service. It is told by a file which failpoint is armed, so that it need not be started again for that.
type process struct {
	t     *testing.T
	path  string
	log   string // the file
	env   []string
	armed string // the file

	cmd   *exec.Cmd
	ended chan struct{}
}

// newProcess starts a binary, armed with a failpoint or with none; what it says goes to a file in dir.
func newProcess(t *testing.T, binary, dir string, env []string, failpoint string) *process {
	p := &process{t: t, path: binary, log: filepath.Join(dir, filepath.Base(binary)+".log"), armed: filepath.Join(dir, filepath.Base(binary)+".armed")}
	p.env = append(append(os.Environ(), env...), "BILLING_FAILPOINT=@"+p.armed)
	if failpoint != "" {
		p.arm(failpoint)
	}
	p.start()
	t.Cleanup(p.stop)
	return p
}

func (p *process) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	cmd, ended := exec.Command(p.path), make(chan struct{})
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, log, log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.cmd, p.ended = cmd, ended
	go func() { _ = cmd.Wait(); close(ended) }()
}

// stop ends the process in an orderly way; of a test that failed it shows what the process said.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(15 * time.Second):
		p.t.Errorf("%s does not stop", p.path)
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	if b, _ := os.ReadFile(p.log); p.t.Failed() {
		p.t.Logf("%s said at last:\n%s", p.path, b[max(0, len(b)-4000):])
	}
}

// arm has the process do to itself what the text says, at a point, or disarms it.
func (p *process) arm(text string) {
	p.t.Helper()
	if text == "" {
		if err := os.Remove(p.armed); err != nil {
			p.t.Fatal(err)
		}
		return
	}
	// In one step: the process reads the file at any time.
	if err := errors.Join(os.WriteFile(p.armed+".new", []byte(text), 0o600), os.Rename(p.armed+".new", p.armed)); err != nil {
		p.t.Fatal(err)
	}
}

// killed: the process, which has ended, was ended by SIGKILL.
func (p *process) killed() bool {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// dead reports whether the process has ended.
func (p *process) dead() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// state is the process's, as the kernel has it: T = stopped.
func (p *process) state() string {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(p.cmd.Process.Pid), "stat"))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1]
}

func (p *process) stopped() bool { return p.state() == "T" }

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// said is all that the process has logged, over all its starts.
func (p *process) said() string {
	p.t.Helper()
	b, err := os.ReadFile(p.log)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}
