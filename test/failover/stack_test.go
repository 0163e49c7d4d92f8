package failover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/billing/deploy/local/embedded"
	"example.com/billing/deploy/local/system"
	"example.com/billing/test/drive"
	"example.com/billing/test/failover/pgpair"
	"example.com/billing/test/process"
)

const (
	startMax   = 2 * time.Minute  // for servers and services, on a busy machine
	recoverMax = 30 * time.Second // from the end of a failure until the system works again
	callMax    = 12 * time.Second // for one request
)

type object = map[string]any

// service tells of one of our services.
type service struct{ name, binary, pkg, addr, target, database string }

var services = []service{
	{"account", "accountd", "services/account/cmd/accountd", "BILLING_ACCOUNT_ADDR", "BILLING_ACCOUNT_TARGET", system.AccountDatabase},
	{
		"transaction", "transactiond", "services/transaction/cmd/transactiond", "BILLING_TRANSACTION_ADDR", "BILLING_TRANSACTION_TARGET",
		system.TransactionDatabase,
	},
	{"saga", "sagad", "services/saga-orchestrator/cmd/sagad", "BILLING_SAGA_ADDR", "BILLING_SAGA_TARGET", system.SagaDatabase},
	{"gateway", "gatewayd", "services/gateway/cmd/gatewayd", "BILLING_HTTP_ADDR", "", ""},
}

var databases = []string{system.AccountDatabase, system.TransactionDatabase, system.SagaDatabase}

// The binaries, built once for all tests of the package.
var (
	folder string
	built  = sync.OnceValue(func() error {
		args := []string{"build", "-o", folder + "/"}
		for _, s := range services {
			args = append(args, "example.com/billing/"+s.pkg)
		}
		args = append(args, "example.com/billing/services/edge/cmd/billing-events")
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("build the services: %w\n%s", err, out)
		}
		return nil
	})
)

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "billing-failover-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(folder)
	os.Exit(code)
}

// stack is two sets of the four services, "a" and "b"; each set calls its own. They share the databases and Kafka.
type stack struct {
	t     *testing.T
	pairs map[string]*pgpair.Pair // by database
	kafka *embedded.Kafka
	logs  string
	sets  [2]set
	http  http.Client
	orders
}

// set is one of each service.
type set struct {
	url       string // of its gateway
	accounts  string // gRPC address of its account service
	metrics   map[string]string
	processes map[string]*process.Process
}

// newStack starts everything on one pair, but for the databases that have a pair of their own.
func newStack(t *testing.T, o pgpair.Options, own map[string]pgpair.Options) *stack {
	t.Helper()
	s := &stack{t: t, pairs: map[string]*pgpair.Pair{}, logs: t.TempDir(), http: http.Client{Timeout: callMax}}
	ctx, cancel := context.WithTimeout(t.Context(), startMax)
	defer cancel()
	ready := make(chan error, 1)
	go func() { ready <- built() }()
	for _, d := range databases {
		if special, ok := own[d]; ok {
			special.Databases = []string{d}
			s.pairs[d] = s.startPair(ctx, special)
			continue
		}
		o.Databases = append(o.Databases, d)
	}
	common := s.startPair(ctx, o)
	for _, d := range o.Databases {
		s.pairs[d] = common
	}
	kafka, err := embedded.StartKafka(ctx, embedded.KafkaOptions{})
	if err := errors.Join(err, <-ready); err != nil {
		t.Fatal(err)
	}
	s.kafka = kafka
	t.Cleanup(func() { _ = kafka.Stop(context.Background()) })
	t.Cleanup(s.end)
	for i := range s.sets {
		s.sets[i] = s.startSet(string("ab"[i]))
	}
	s.eventually("both sets are ready", startMax, func() bool { return s.ready(0) && s.ready(1) })
	return s
}

func (s *stack) startPair(ctx context.Context, o pgpair.Options) *pgpair.Pair {
	s.t.Helper()
	p, err := pgpair.Start(ctx, o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := p.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return p
}

// pair is the one that all databases share.
func (s *stack) pair() *pgpair.Pair { return s.pairs[system.AccountDatabase] }

func (s *stack) startSet(name string) set {
	s.t.Helper()
	x := set{metrics: map[string]string{}, processes: map[string]*process.Process{}}
	env := []string{"BILLING_LOG_FORMAT=text", "BILLING_KAFKA_BROKERS=" + strings.Join(s.kafka.Brokers(), ",")}
	for _, v := range services {
		addr := drive.FreeAddr()
		env = append(env, v.addr+"="+addr)
		switch v.name {
		case "gateway":
			x.url = "http://" + addr
			continue
		case "account":
			x.accounts = addr
		}
		env = append(env, v.target+"="+addr)
	}
	for _, v := range services {
		own := append([]string{}, env...)
		if v.database != "" {
			x.metrics[v.name] = drive.FreeAddr()
			own = append(own, "BILLING_POSTGRES_DSN="+s.pairs[v.database].DSN(v.database), "BILLING_METRICS_ADDR="+x.metrics[v.name])
		}
		log := filepath.Join(s.logs, v.binary+"-"+name+".log")
		p := &process.Process{Name: v.binary + "-" + name, Bin: filepath.Join(folder, v.binary), Log: log, Env: own}
		x.processes[v.name] = p
		if err := p.Start(); err != nil {
			s.t.Fatal(err)
		}
	}
	return x
}

// end ends the processes, whatever they are doing, and looks at what they said.
func (s *stack) end() {
	for _, x := range s.sets {
		for _, p := range x.processes {
			if err := p.Died(); err != nil {
				s.t.Errorf("%v: %s", err, p.LastWords())
			}
			_ = p.Kill()
			said, _ := os.ReadFile(p.Log)
			if bytes.Contains(said, []byte("panic:")) {
				s.t.Errorf("%s has panicked", p.Name)
			}
			if s.t.Failed() {
				s.t.Logf("%s said at last:\n%s", p.Name, said[max(0, len(said)-2500):])
			}
		}
	}
}

// each does something with the processes of a service, in both sets; all services = "".
func (s *stack) each(name string, do func(*process.Process) error) {
	s.t.Helper()
	for _, x := range s.sets {
		for of, p := range x.processes {
			if name != "" && of != name {
				continue
			}
			if err := do(p); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// answer is a response of a gateway.
type answer struct {
	status int
	header http.Header
	body   object
}

// call asks a set's gateway; an error means that there was no answer, or none that is JSON.
func (s *stack) call(i int, method, path string, body any) (a answer, err error) {
	var content io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return a, err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.sets[i].url+path, content)
	if err != nil {
		return a, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := s.http.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	a.status, a.header = res.StatusCode, res.Header
	return a, json.NewDecoder(res.Body).Decode(&a.body)
}

// must asks until the answer has the status; an answer that says that the request is wrong fails the test.
func (s *stack) must(i, status int, method, path string, body any) object {
	s.t.Helper()
	var (
		a   answer
		err error
	)
	s.eventually(fmt.Sprintf("%d for %s %s", status, method, path), recoverMax, func() bool {
		a, err = s.call(i, method, path, body)
		if err == nil && a.status >= 400 && a.status < 500 && a.status != http.StatusTooManyRequests && a.status != status {
			s.t.Fatalf("%s %s: %d %v", method, path, a.status, a.body)
		}
		return err == nil && a.status == status
	})
	return a.body
}

func (s *stack) ready(i int) bool {
	a, err := s.call(i, "GET", "/readyz", nil)
	return err == nil && a.status == http.StatusOK
}

// metric is the sum of a metric's samples over all services of a name; services that do not answer add nothing.
func (s *stack) metric(of, name string) (sum float64) {
	for _, x := range s.sets {
		req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+x.metrics[of]+"/metrics", http.NoBody)
		if err != nil {
			s.t.Fatal(err)
		}
		res, err := s.http.Do(req)
		if err != nil {
			continue
		}
		text, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		for line := range strings.Lines(string(text)) {
			var v float64
			if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
				if _, err := fmt.Sscan(rest[strings.LastIndexByte(strings.TrimSpace(rest), ' ')+1:], &v); err == nil {
					sum += v
				}
			}
		}
	}
	return sum
}

// eventually looks until f says yes.
func (s *stack) eventually(what string, most time.Duration, f func() bool) {
	s.t.Helper()
	if !s.within(most, f) {
		s.t.Fatalf("not in %s: %s", most, what)
	}
}

// within reports whether f says yes in time.
func (s *stack) within(most time.Duration, f func() bool) bool {
	s.t.Helper()
	for end := time.Now().Add(most); time.Now().Before(end); {
		if f() {
			return true
		}
		time.Sleep(50 * time.Millisecond) // between two looks
	}
	return false
}

// ok fails the test on an error.
func (s *stack) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}
