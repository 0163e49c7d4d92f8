package deploy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// strictYAML decodes one document and refuses a key that the shape does not have.
func strictYAML(content []byte, into any) error {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if err := decoder.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return errors.New("more than one document")
	}
	return nil
}

// The parts of Prometheus' configuration that we use.
type prometheusConfig struct {
	Global struct {
		ScrapeInterval     string `yaml:"scrape_interval"`
		EvaluationInterval string `yaml:"evaluation_interval"`
	} `yaml:"global"`
	RuleFiles     []string `yaml:"rule_files"`
	ScrapeConfigs []struct {
		JobName       string `yaml:"job_name"`
		StaticConfigs []struct {
			Targets []string `yaml:"targets"`
		} `yaml:"static_configs"`
	} `yaml:"scrape_configs"`
}

type prometheusRules struct {
	Groups []struct {
		Name  string `yaml:"name"`
		Rules []struct {
			Alert       string            `yaml:"alert"`
			Expr        string            `yaml:"expr"`
			For         string            `yaml:"for"`
			Labels      map[string]string `yaml:"labels"`
			Annotations map[string]string `yaml:"annotations"`
		} `yaml:"rules"`
	} `yaml:"groups"`
}

func TestPrometheusRefusesMistakes(t *testing.T) {
	if err := strictYAML([]byte("global: {scrape_intervall: 5s}"), &prometheusConfig{}); err == nil {
		t.Error("an unknown key is accepted")
	}
}

func TestPrometheus(t *testing.T) {
	var config prometheusConfig
	if err := strictYAML(readFile(t, "deploy", "prometheus", "prometheus.yml"), &config); err != nil {
		t.Fatal(err)
	}
	scraped := map[string][]string{}
	for _, job := range config.ScrapeConfigs {
		for _, static := range job.StaticConfigs {
			scraped[job.JobName] = append(scraped[job.JobName], static.Targets...)
		}
	}
	for name := range programs {
		if !slices.Equal(scraped[name], []string{name + ":" + metricsPort}) {
			t.Errorf("job %s scrapes %q", name, scraped[name])
		}
	}
	if len(scraped) != len(programs) {
		t.Errorf("%d jobs, %d services", len(scraped), len(programs))
	}
	for _, file := range config.RuleFiles {
		var rules prometheusRules
		if err := strictYAML(readFile(t, "deploy", "prometheus", file), &rules); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, group := range rules.Groups {
			for _, rule := range group.Rules {
				if rule.Alert == "" || rule.Annotations["summary"] == "" || rule.Labels["severity"] == "" {
					t.Errorf("%s: an alert needs a name, a summary and a severity: %+v", file, rule)
				}
				for _, wrong := range checkExpression(rule.Expr) {
					t.Errorf("%s: %s", rule.Alert, wrong)
				}
			}
		}
	}
}

var limitOfJob = regexp.MustCompile(`^max by \(job\) \((\w+)\) (!=|>) (-?\d+)$`)

// rings evaluates an alert's expression of the form "max by (job) (metric) != 0", or > 60, for one job whose metric is v.
func rings(t *testing.T, expression, metric string, v float64) bool {
	t.Helper()
	parts := limitOfJob.FindStringSubmatch(expression)
	if parts == nil || parts[1] != metric {
		t.Fatalf("no limit of %s that this test understands: %s", metric, expression)
	}
	limit, err := strconv.ParseFloat(parts[3], 64)
	if err != nil {
		t.Fatal(err)
	}
	if parts[2] == "!=" {
		return v != limit
	}
	return v > limit
}

// What is parked rings from the first on, and so does not knowing how much is (-1); an age rings when it is too great.
func TestAlertsRing(t *testing.T) {
	var rules prometheusRules
	if err := strictYAML(readFile(t, "deploy", "prometheus", "alerts.yml"), &rules); err != nil {
		t.Fatal(err)
	}
	expressions := map[string]string{}
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			expressions[rule.Alert] = rule.Expr
		}
	}
	for alert, c := range map[string]struct {
		metric       string
		rings, quiet []float64
	}{
		"BillingEventsParked":   {"outbox_parked_events", []float64{-1, 1, 1000}, []float64{0}},
		"BillingMessagesParked": {"inbox_parked_messages", []float64{-1, 1, 1000}, []float64{0}},
		"BillingEventsLost":     {"es_lost_events", []float64{1, 1000}, []float64{0}},
		"BillingOutboxStuck":    {"outbox_oldest_pending_seconds", []float64{61, 1000}, []float64{0, 60}},
		"BillingSnapshotHeld":   {"postgres_oldest_snapshot_seconds", []float64{301, 86400}, []float64{-1, 0, 300}},
	} {
		for _, v := range c.rings {
			if !rings(t, expressions[alert], c.metric, v) {
				t.Errorf("%s is quiet at %v", alert, v)
			}
		}
		for _, v := range c.quiet {
			if rings(t, expressions[alert], c.metric, v) {
				t.Errorf("%s rings at %v", alert, v)
			}
		}
	}
}

// Shedding rings once it has lasted for five minutes: a burst is what it is there for.
func TestShedding(t *testing.T) {
	var rules prometheusRules
	if err := strictYAML(readFile(t, "deploy", "prometheus", "alerts.yml"), &rules); err != nil {
		t.Fatal(err)
	}
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			if rule.Alert == "BillingRequestsShed" && rule.For == "5m" && rule.Expr == "sum by (job) (rate(transaction_shed_total[1m])) > 0" {
				return
			}
		}
	}
	t.Error("no alert on shedding for five minutes")
}

// emitted are the metrics of the services, and the labels of ours; nil: a metric of the Go client library or of
// Prometheus itself.
var emitted = map[string][]string{
	"rpc_server_duration_seconds_bucket": {"method", "code", "le"},
	"rpc_server_duration_seconds_count":  {"method", "code"},
	"rpc_server_duration_seconds_sum":    {"method", "code"},
	"outbox_pending_events":              {},
	"es_incarnation":                     {},
	"es_lost_events":                     {},
	"outbox_oldest_pending_seconds":      {},
	"outbox_parked_events":               {},
	"inbox_parked_messages":              {},
	"postgres_oldest_snapshot_seconds":   {},
	"transaction_shed_total":             {},
	"transaction_admission_limit":        {},
	"transaction_latency_least_seconds":  {},
	"saga_ended_total":                   {"type", "status"},
	"saga_active":                        {},
	"saga_active_max":                    {},
	"saga_naps_total":                    {},
	"saga_triggers_refused_total":        {},
	"process_cpu_seconds_total":          nil,
	"process_resident_memory_bytes":      nil,
	"go_memstats_heap_alloc_bytes":       nil,
	"go_goroutines":                      nil,
	"up":                                 nil,
}

var (
	quoted    = regexp.MustCompile(`"[^"]*"`)
	grouping  = regexp.MustCompile(`\b(?:by|without) \(([^)]*)\)`)
	matchers  = regexp.MustCompile(`\{([^}]*)\}`)
	ranges    = regexp.MustCompile(`\[[^\]]*\]`)
	words     = regexp.MustCompile(`[a-zA-Z_][a-zA-Z0-9_]*`)
	functions = []string{"sum", "max", "rate", "increase", "histogram_quantile"}
)

// checkExpression is no parser of PromQL: it says which brackets do not pair, and which metrics and labels nobody emits.
func checkExpression(expression string) []string {
	var wrong []string
	bare := quoted.ReplaceAllString(expression, "")
	var open []rune
	for _, r := range bare {
		switch i := strings.IndexRune("(){}[]", r); {
		case i >= 0 && i%2 == 0:
			open = append(open, rune("(){}[]"[i+1]))
		case i >= 0 && (len(open) == 0 || open[len(open)-1] != r):
			return []string{"brackets do not pair in " + expression}
		case i >= 0:
			open = open[:len(open)-1]
		}
	}
	if len(open) != 0 {
		return []string{"brackets do not pair in " + expression}
	}
	labels := []string{}
	for _, part := range append(grouping.FindAllStringSubmatch(bare, -1), matchers.FindAllStringSubmatch(bare, -1)...) {
		labels = append(labels, words.FindAllString(part[1], -1)...)
	}
	rest := bare
	for _, part := range []*regexp.Regexp{grouping, matchers, ranges} {
		rest = part.ReplaceAllString(rest, " ")
	}
	allowed := []string{"job", "instance"} // what Prometheus adds
	metrics := 0
	for _, word := range words.FindAllString(rest, -1) {
		if slices.Contains(functions, word) {
			continue
		}
		metrics++
		own, ok := emitted[word]
		if !ok {
			wrong = append(wrong, "nobody emits "+word)
		}
		allowed = append(allowed, own...)
	}
	if metrics == 0 {
		wrong = append(wrong, "no metric in "+expression)
	}
	for _, label := range labels {
		if !slices.Contains(allowed, label) {
			wrong = append(wrong, "no label "+label+" in "+expression)
		}
	}
	return wrong
}

func TestCheckExpressionSeesMistakes(t *testing.T) {
	for expression, want := range map[string]string{
		`sum(rate(saga_ended_total[5m])`:                          "brackets",
		`sum(rate(saga_finished_total[5m]))`:                      "nobody emits saga_finished_total",
		`sum by (state) (rate(saga_ended_total[5m]))`:             "no label state",
		`rate(rpc_server_duration_seconds_count{codes="OK"}[5m])`: "no label codes",
		`1 > 0`: "no metric",
	} {
		if wrong := strings.Join(checkExpression(expression), "; "); !strings.Contains(wrong, want) {
			t.Errorf("%s: got %q, want %q", expression, wrong, want)
		}
	}
}

// The parts of a dashboard that can be wrong in a way that shows an empty panel.
type dashboard struct {
	UID           string `json:"uid"`
	Title         string `json:"title"`
	SchemaVersion int    `json:"schemaVersion"`
	Templating    struct {
		List []struct {
			Name       string     `json:"name"`
			Datasource datasource `json:"datasource"`
		} `json:"list"`
	} `json:"templating"`
	Panels []struct {
		ID         int        `json:"id"`
		Type       string     `json:"type"`
		Title      string     `json:"title"`
		Datasource datasource `json:"datasource"`
		GridPos    struct{ H, W, X, Y int }
		Targets    []struct {
			RefID      string     `json:"refId"`
			Datasource datasource `json:"datasource"`
			Expr       string     `json:"expr"`
		} `json:"targets"`
	} `json:"panels"`
}

type datasource struct{ Type, UID string }

func TestGrafana(t *testing.T) {
	var sources struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct {
			Name, UID, Type, Access, URL string
			IsDefault                    bool `yaml:"isDefault"`
			Editable                     bool
			JSONData                     map[string]any `yaml:"jsonData"`
		}
	}
	if err := strictYAML(readFile(t, "deploy", "grafana", "provisioning", "datasources", "prometheus.yaml"), &sources); err != nil {
		t.Fatal(err)
	}
	project := composeProject(t)
	prometheus := sources.Datasources[0]
	address, err := url.Parse(prometheus.URL)
	if err != nil {
		t.Fatal(err)
	}
	if target, ok := project.Services[address.Hostname()]; !ok || portText(target.Ports[0].Target) != address.Port() {
		t.Errorf("no service listens at %s", prometheus.URL)
	}

	var providers struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name, Folder, Type    string
			DisableDeletion       bool `yaml:"disableDeletion"`
			AllowUIUpdates        bool `yaml:"allowUiUpdates"`
			UpdateIntervalSeconds int  `yaml:"updateIntervalSeconds"`
			Options               struct{ Path string }
		}
	}
	if err := strictYAML(readFile(t, "deploy", "grafana", "provisioning", "dashboards", "billing.yaml"), &providers); err != nil {
		t.Fatal(err)
	}
	var mounted string
	for _, volume := range project.Services["grafana"].Volumes {
		if volume.Target == providers.Providers[0].Options.Path {
			mounted = volume.Source
		}
	}
	if mounted == "" {
		t.Fatalf("nothing is mounted at %s", providers.Providers[0].Options.Path)
	}

	content, err := os.ReadFile(filepath.Join(mounted, "billing.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board dashboard
	if err := json.Unmarshal(content, &board); err != nil {
		t.Fatal(err)
	}
	checkDashboard(t, board, datasource{Type: prometheus.Type, UID: prometheus.UID})
}

func checkDashboard(t *testing.T, board dashboard, source datasource) {
	t.Helper()
	if board.UID == "" || board.Title == "" || board.SchemaVersion == 0 || len(board.Templating.List) != 1 {
		t.Errorf("uid %q, title %q, schema version %d, %d variables", board.UID, board.Title, board.SchemaVersion, len(board.Templating.List))
	}
	ids, cells, shown := map[int]bool{}, map[[2]int]string{}, map[string]bool{}
	for _, panel := range board.Panels {
		if ids[panel.ID] {
			t.Errorf("two panels have id %d", panel.ID)
		}
		ids[panel.ID] = true
		for x := panel.GridPos.X; x < panel.GridPos.X+panel.GridPos.W; x++ {
			for y := panel.GridPos.Y; y < panel.GridPos.Y+panel.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q overlaps %q or leaves the page", panel.Title, other)
				}
				cells[[2]int{x, y}] = panel.Title
			}
		}
		if panel.Type == "row" {
			continue
		}
		if panel.Datasource != source || len(panel.Targets) == 0 {
			t.Errorf("panel %q: data source %v, %d queries", panel.Title, panel.Datasource, len(panel.Targets))
		}
		for _, target := range panel.Targets {
			if target.Datasource != source {
				t.Errorf("panel %q: data source %v", panel.Title, target.Datasource)
			}
			for _, wrong := range checkExpression(target.Expr) {
				t.Errorf("panel %q: %s", panel.Title, wrong)
			}
			for _, word := range words.FindAllString(target.Expr, -1) {
				shown[word] = true
			}
		}
	}
	for _, metric := range []string{
		"rpc_server_duration_seconds_bucket", "rpc_server_duration_seconds_count", "outbox_pending_events", "outbox_oldest_pending_seconds",
		"saga_ended_total", "saga_active", "process_cpu_seconds_total", "process_resident_memory_bytes",
	} {
		if !shown[metric] {
			t.Errorf("no panel shows %s", metric)
		}
	}
}
