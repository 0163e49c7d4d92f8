package deploy_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v3"
)

// loadCompose loads a compose file as docker compose does: schema validated, variables resolved from environment,
// references between services, networks and volumes checked.
func loadCompose(t *testing.T, content []byte, environment map[string]string) (*types.Project, error) {
	t.Helper()
	directory, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	return loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  directory,
		ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(directory, "docker-compose.yml"), Content: content}},
		Environment: environment,
	}, func(o *loader.Options) { o.SetProjectName("billing", false) })
}

func readFile(t *testing.T, path ...string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(append([]string{root}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func composeProject(t *testing.T) *types.Project {
	t.Helper()
	project, err := loadCompose(t, readFile(t, "docker-compose.yml"), map[string]string{})
	if err != nil {
		t.Fatal(err)
	}
	return project
}

func TestComposeRefusesMistakes(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"unknown key of a service", "services: {a: {image: x, enviroment: {A: b}}}", "enviroment"},
		{"unknown key at the top", "service: {a: {image: x}}", "service"},
		{"unknown key of a healthcheck", "services: {a: {image: x, healthcheck: {test: [CMD, x], intervall: 5s}}}", "intervall"},
		{"a wrong duration", "services: {a: {image: x, stop_grace_period: soon}}", "duration"},
		{"an undefined volume", "services: {a: {image: x, volumes: ['data:/data']}}", "undefined volume data"},
		{"an undefined dependency", "services: {a: {image: x, depends_on: [b]}}", "undefined service"},
		{"a required variable", "services: {a: {image: 'x:${TAG:?}'}}", "TAG"},
		{"a circle", "services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}", "cycle"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := loadCompose(t, []byte(c.file), map[string]string{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one that names %q", err, c.want)
			}
		})
	}
}

func TestComposeVariables(t *testing.T) {
	content := readFile(t, "docker-compose.yml")
	var tree map[string]any
	if err := yaml.Unmarshal(content, &tree); err != nil {
		t.Fatal(err)
	}
	// A line of the table at the head of the file: name, default, meaning.
	row := regexp.MustCompile(`(?m)^#   (BILLING_[A-Z_]+) +(\S+) +\S`)
	documented := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(string(content), -1) {
		documented[m[1]] = m[2]
	}
	used := template.ExtractVariables(tree, template.DefaultPattern)
	for name, variable := range used {
		if documented[name] != variable.DefaultValue || variable.DefaultValue == "" {
			t.Errorf("%s has default %q, in the head of the file %q", name, variable.DefaultValue, documented[name])
		}
	}
	for name := range documented {
		if _, ok := used[name]; !ok {
			t.Errorf("%s is documented and used nowhere", name)
		}
	}
	// The same variable has the same default everywhere: a password is written to Postgres and to a DSN.
	inline := map[string]string{}
	for _, m := range regexp.MustCompile(`\$\{([A-Z_]+):-([^}]*)}`).FindAllStringSubmatch(string(content), -1) {
		if earlier, ok := inline[m[1]]; ok && earlier != m[2] {
			t.Errorf("%s has two defaults, %q and %q", m[1], earlier, m[2])
		}
		inline[m[1]] = m[2]
	}
}

func TestComposeOverrides(t *testing.T) {
	project, err := loadCompose(t, readFile(t, "docker-compose.yml"), map[string]string{
		"BILLING_HTTP_PORT": "18080", "BILLING_KAFKA_PORT": "19092", "BILLING_SAGA_DB_PASSWORD": "other", "BILLING_IMAGE_TAG": "1.2.3",
		"GOPROXY": "https://modules.example.com",
	})
	if err != nil {
		t.Fatal(err)
	}
	environment := func(service, name string) string { return *project.Services[service].Environment[name] }
	for _, c := range []struct{ got, want string }{
		{project.Services["gateway"].Ports[0].Published, "18080"},
		{project.Services["gateway"].Image, "billing/gateway:1.2.3"},
		{*project.Services["gateway"].Build.Args["GOPROXY"], "https://modules.example.com"},
		{project.Services["kafka"].Ports[0].Published, "19092"},
		{environment("kafka", "KAFKA_ADVERTISED_LISTENERS"), "INTERNAL://kafka:9092,HOST://127.0.0.1:19092"},
		{environment("postgres", "SAGA_DB_PASSWORD"), "other"},
		{environment("saga", "BILLING_POSTGRES_DSN"), "postgres://billing_saga:other@postgres:5432/billing_saga?sslmode=disable"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestComposeServices(t *testing.T) {
	project := composeProject(t)
	for name := range programs {
		if _, ok := project.Services[name]; !ok {
			t.Errorf("service %s is missing", name)
		}
	}
	for name, service := range project.Services {
		t.Run(name, func(t *testing.T) {
			if service.Restart != "unless-stopped" {
				t.Errorf("restart is %q", service.Restart)
			}
			if !strings.Contains(service.Image, ":") || strings.HasSuffix(service.Image, ":latest") {
				t.Errorf("image %s has no fixed tag", service.Image)
			}
			for _, port := range service.Ports {
				if port.HostIP != "127.0.0.1" || port.Published == "" {
					t.Errorf("port %d is published on %q:%q, want a fixed port of 127.0.0.1", port.Target, port.HostIP, port.Published)
				}
			}
			for _, volume := range service.Volumes {
				if volume.Type == types.VolumeTypeBind {
					if _, err := os.Stat(volume.Source); err != nil || !volume.ReadOnly {
						t.Errorf("mount %s: read-only %v, %v", volume.Source, volume.ReadOnly, err)
					}
				}
			}
			if p, ok := programs[name]; ok {
				checkComposeProgram(t, service, p)
				return
			}
			if service.HealthCheck == nil || service.HealthCheck.Disable {
				t.Error("no healthcheck")
			}
			for setting := range service.Environment {
				if strings.HasPrefix(setting, "BILLING_") {
					t.Errorf("%s: not a service of ours", setting)
				}
			}
		})
	}
}

func checkComposeProgram(t *testing.T, service types.ServiceConfig, p program) {
	t.Helper()
	environment := map[string]string{}
	for name, value := range service.Environment {
		if value == nil {
			t.Errorf("%s has no value", name)
			continue
		}
		environment[name] = *value
	}
	for _, wrong := range checkSettings(service.Name, environment, nil) {
		t.Error(wrong)
	}
	if service.User != "65532:65532" || !service.ReadOnly || !slices.Equal(service.CapDrop, []string{"ALL"}) {
		t.Errorf("user %q, read-only %v, dropped capabilities %q", service.User, service.ReadOnly, service.CapDrop)
	}
	if len(service.Ports) != 1 || service.Ports[0].Published != p.port || portText(service.Ports[0].Target) != p.port {
		t.Errorf("ports %v, want %s alone", service.Ports, p.port)
	}
	if p.database != "" {
		for _, dependency := range []string{"postgres", "kafka"} {
			if service.DependsOn[dependency].Condition != types.ServiceConditionHealthy {
				t.Errorf("does not wait until %s is healthy", dependency)
			}
		}
	}
	build := service.Build
	if build == nil {
		t.Fatal("no build")
	}
	if _, err := os.Stat(filepath.Join(build.Context, build.Dockerfile)); err != nil {
		t.Errorf("Dockerfile: %v", err)
	}
	for name, want := range map[string]string{"SERVICE": p.directory, "BINARY": p.binary, "PORT": p.port} {
		if value := build.Args[name]; value == nil || *value != want {
			t.Errorf("build argument %s is not %q", name, want)
		}
	}
	// These come from the caller's environment; a value in the file would bind everybody to one network.
	for _, name := range []string{"GOPROXY", "GOSUMDB"} {
		if value, ok := build.Args[name]; ok {
			t.Errorf("build argument %s is fixed to %v", name, value)
		}
	}
}

func TestComposeDatabases(t *testing.T) {
	project := composeProject(t)
	script := string(readFile(t, "deploy", "docker", "postgres", "databases.sh"))
	loop := regexp.MustCompile(`for service in ([a-z ]+);`).FindStringSubmatch(script)
	if loop == nil {
		t.Fatal("databases.sh names no services")
	}
	created := strings.Fields(loop[1])
	for name, p := range programs {
		if p.database == "" {
			continue
		}
		if !slices.Contains(created, strings.TrimPrefix(p.database, "billing_")) {
			t.Errorf("databases.sh does not create %s", p.database)
		}
		password := project.Services["postgres"].Environment[strings.ToUpper(name)+"_DB_PASSWORD"]
		dsn := project.Services[name].Environment["BILLING_POSTGRES_DSN"]
		if password == nil || dsn == nil || !strings.Contains(*dsn, ":"+*password+"@postgres:5432/") {
			t.Errorf("%s does not use the password that its role is created with", name)
		}
	}
	info, err := os.Stat(filepath.Join(root, "deploy", "docker", "postgres", "databases.sh"))
	if err != nil || info.Mode()&0o111 == 0 {
		t.Errorf("databases.sh is not executable: %v", err)
	}
}
