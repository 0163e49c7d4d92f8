// Package deploy_test reads the files that deploy the system with the libraries of the tools that will read them, and
// holds them against each other and against what the services listen to. Nothing is started.
package deploy_test

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// root is the root of the repository, seen from this directory.
const root = "../.."

// metricsPort is where every container serves Prometheus.
const metricsPort = "9464"

// A program is what a container of one service runs, and the settings that it reads. A setting that is not listed
// here would be ignored by the program, so a manifest that has one is wrong.
type program struct {
	directory string // under services/
	binary    string // under cmd/
	listen    string // the setting that says where it listens
	port      string // where it listens in a container
	database  string // its database and the role that owns it; empty: none
	targets   []string
}

var programs = map[string]program{
	"account": {
		directory: "account", binary: "accountd", listen: "BILLING_ACCOUNT_ADDR", port: "9101",
		database: "billing_account", targets: []string{"BILLING_TRANSACTION_TARGET"},
	},
	"transaction": {
		directory: "transaction", binary: "transactiond", listen: "BILLING_TRANSACTION_ADDR", port: "9102",
		database: "billing_transaction", targets: []string{"BILLING_ACCOUNT_TARGET", "BILLING_SAGA_TARGET"},
	},
	"saga": {
		directory: "saga-orchestrator", binary: "sagad", listen: "BILLING_SAGA_ADDR", port: "9103",
		database: "billing_saga", targets: []string{"BILLING_ACCOUNT_TARGET", "BILLING_TRANSACTION_TARGET"},
	},
	"gateway": {
		directory: "gateway", binary: "gatewayd", listen: "BILLING_HTTP_ADDR", port: "8080",
		targets: []string{"BILLING_ACCOUNT_TARGET", "BILLING_TRANSACTION_TARGET", "BILLING_SAGA_TARGET"},
	},
}

// required are the settings without which the program does not do its work in a container.
func (p program) required() []string {
	names := append([]string{p.listen, "BILLING_METRICS_ADDR"}, p.targets...)
	if p.database != "" {
		names = append(names, "BILLING_POSTGRES_DSN", "BILLING_KAFKA_BROKERS")
	}
	return names
}

// known are all the settings that the program reads.
func (p program) known() []string {
	names := append(p.required(), "BILLING_LOG_LEVEL", "BILLING_LOG_FORMAT")
	if p.database != "" {
		names = append(names, "BILLING_KAFKA_PARTITIONS", "BILLING_KAFKA_REPLICATION", "BILLING_TOPIC_PREFIX")
	}
	if p.database == programs["account"].database {
		names = append(names, "BILLING_EVENT_STORE", "BILLING_EVENT_STORE_DIR", "BILLING_ADVERTISE")
	}
	if p.database == programs["transaction"].database {
		names = append(names, "BILLING_LATENCY_TARGET")
	}
	return names
}

// checkSettings says what is wrong with the environment of a container of the named service; nil: nothing. Settings
// in secret have a value that is not known here.
func checkSettings(name string, environment map[string]string, secret []string) []string {
	var wrong []string
	p := programs[name]
	has := func(setting string) bool {
		return slices.Contains(secret, setting) || environment[setting] != ""
	}
	for _, setting := range slices.Sorted(maps.Keys(environment)) {
		if strings.HasPrefix(setting, "BILLING_") && !slices.Contains(p.known(), setting) {
			wrong = append(wrong, fmt.Sprintf("%s is no setting of %s", setting, p.binary))
		}
	}
	for _, setting := range p.required() {
		if !has(setting) {
			wrong = append(wrong, setting+" is missing")
		}
	}
	// A container's loopback address is nobody else's: it must listen on all.
	for setting, port := range map[string]string{p.listen: p.port, "BILLING_METRICS_ADDR": metricsPort} {
		if host, got, err := net.SplitHostPort(environment[setting]); err != nil || got != port || (host != "" && host != "0.0.0.0") {
			wrong = append(wrong, fmt.Sprintf("%s is %q, want all addresses and port %s", setting, environment[setting], port))
		}
	}
	for _, setting := range p.targets {
		target := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(setting, "BILLING_"), "_TARGET"))
		if want := "dns:///" + target + ":" + programs[target].port; environment[setting] != want {
			wrong = append(wrong, fmt.Sprintf("%s is %q, want %s", setting, environment[setting], want))
		}
	}
	if dsn, ok := environment["BILLING_POSTGRES_DSN"]; ok {
		if err := checkDSN(dsn, p.database); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	return wrong
}

// checkDSN wants a URL of the database, as the role of the same name.
func checkDSN(dsn, database string) error {
	u, err := url.Parse(dsn)
	if err != nil {
		return fmt.Errorf("DSN: %w", err)
	}
	password, _ := u.User.Password()
	if u.Scheme != "postgres" || u.User.Username() != database || u.Path != "/"+database || password == "" || u.Port() != "5432" {
		return fmt.Errorf("DSN %s: want role and database %s, a password and port 5432", u.Redacted(), database)
	}
	return nil
}

func TestCheckSettingsSeesMistakes(t *testing.T) {
	good := func() map[string]string {
		return map[string]string{
			"BILLING_SAGA_ADDR": ":9103", "BILLING_METRICS_ADDR": ":9464", "BILLING_KAFKA_BROKERS": "kafka:9092",
			"BILLING_ACCOUNT_TARGET": "dns:///account:9101", "BILLING_TRANSACTION_TARGET": "dns:///transaction:9102",
			"BILLING_POSTGRES_DSN": "postgres://billing_saga:x@postgres:5432/billing_saga",
		}
	}
	if wrong := checkSettings("saga", good(), nil); wrong != nil {
		t.Fatalf("the good one: %q", wrong)
	}
	for _, c := range []struct{ name, setting, value, want string }{
		{"a typo", "BILLING_SAGA_TARGTE", "dns:///saga:9103", "BILLING_SAGA_TARGTE is no setting of sagad"},
		{"another service's", "BILLING_HTTP_ADDR", ":8080", "BILLING_HTTP_ADDR is no setting of sagad"},
		{"empty", "BILLING_KAFKA_BROKERS", "", "BILLING_KAFKA_BROKERS is missing"},
		{"loopback", "BILLING_SAGA_ADDR", "127.0.0.1:9103", "BILLING_SAGA_ADDR is"},
		{"wrong port", "BILLING_ACCOUNT_TARGET", "dns:///account:9102", "BILLING_ACCOUNT_TARGET is"},
		{"another's database", "BILLING_POSTGRES_DSN", "postgres://billing_saga:x@postgres:5432/billing_account", "want role and database billing_saga"},
	} {
		t.Run(c.name, func(t *testing.T) {
			environment := good()
			environment[c.setting] = c.value
			if wrong := strings.Join(checkSettings("saga", environment, nil), "; "); !strings.Contains(wrong, c.want) {
				t.Errorf("got %q, want %q", wrong, c.want)
			}
		})
	}
}
