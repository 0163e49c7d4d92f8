package deploy_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

func portText(port uint32) string { return strconv.FormatUint(uint64(port), 10) }

func parseDockerfile(content []byte) ([]instructions.Stage, []instructions.ArgCommand, error) {
	tree, err := parser.Parse(bytes.NewReader(content))
	if err != nil {
		return nil, nil, err
	}
	return instructions.Parse(tree.AST, nil)
}

func dockerfileStages(t *testing.T) []instructions.Stage {
	t.Helper()
	stages, _, err := parseDockerfile(readFile(t, "deploy", "docker", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	return stages
}

func TestDockerfileRefusesMistakes(t *testing.T) {
	for name, file := range map[string]string{
		"an unknown instruction": "FROM scratch\nENTRYPIONT [\"/service\"]",
		"an unknown flag":        "FROM scratch\nCOPY --form=build /a /a",
		"no FROM":                "USER 65532",
	} {
		if _, _, err := parseDockerfile([]byte(file)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDockerfile(t *testing.T) {
	stages := dockerfileStages(t)
	final := stages[len(stages)-1]
	if len(stages) != 2 || final.BaseName != "scratch" {
		t.Fatalf("%d stages, the last from %s; want a build and scratch", len(stages), final.BaseName)
	}
	var user, entrypoint, expose, binary bool
	for _, command := range final.Commands {
		switch c := command.(type) {
		case *instructions.UserCommand:
			user = c.User == "65532:65532"
		case *instructions.EntrypointCommand:
			// In scratch there is no shell to run the other form.
			entrypoint = !c.PrependShell && slices.Equal(c.CmdLine, []string{"/service"})
		case *instructions.ExposeCommand:
			expose = slices.Equal(c.Ports, []string{"${PORT}", metricsPort})
		case *instructions.CopyCommand:
			if c.From != stages[0].Name {
				t.Errorf("copies from %q, not from the build", c.From)
			}
			binary = binary || c.DestPath == "/service"
		case *instructions.RunCommand:
			t.Error("RUN in scratch, where there is nothing to run")
		}
	}
	if !user || !entrypoint || !expose || !binary {
		t.Errorf("the last stage: user %v, entry point %v, ports %v, binary %v", user, entrypoint, expose, binary)
	}
	declared := map[string]bool{}
	for _, command := range stages[0].Commands {
		if c, ok := command.(*instructions.ArgCommand); ok {
			for _, arg := range c.Args {
				declared[arg.Key] = true
				if arg.Value != nil {
					t.Errorf("ARG %s has a default", arg.Key)
				}
			}
		}
	}
	for _, name := range []string{"SERVICE", "BINARY", "GOPROXY", "GOSUMDB", "TARGETOS", "TARGETARCH"} {
		if !declared[name] {
			t.Errorf("ARG %s is missing in the build", name)
		}
	}
	text := string(readFile(t, "deploy", "docker", "Dockerfile"))
	for _, want := range []string{"CGO_ENABLED=0", "GOWORK=off", "-trimpath"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing", want)
		}
	}
}

// TestDockerfileBuildContext does the build's COPY instructions for each service into an empty directory, under the
// rules of .dockerignore, and asks Go whether the command's packages are all there.
func TestDockerfileBuildContext(t *testing.T) {
	patterns, err := ignorefile.ReadAll(bytes.NewReader(readFile(t, ".dockerignore")))
	if err != nil {
		t.Fatal(err)
	}
	build := dockerfileStages(t)[0]
	for name, p := range programs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ignored, err := patternmatcher.New(patterns) // one each: a matcher compiles its patterns when it first needs them
			if err != nil {
				t.Fatal(err)
			}
			into := t.TempDir()
			for _, command := range build.Commands {
				c, ok := command.(*instructions.CopyCommand)
				if !ok {
					continue
				}
				for _, source := range c.SourcePaths {
					source = strings.ReplaceAll(source, "${SERVICE}", p.directory)
					destination := strings.ReplaceAll(c.DestPath, "${SERVICE}", p.directory)
					if strings.HasSuffix(destination, "/") {
						destination = filepath.Join(destination, filepath.Base(source))
					}
					if err := copyContext(ignored, source, filepath.Join(into, destination)); err != nil {
						t.Errorf("COPY %s %s: %v", source, c.DestPath, err)
					}
				}
			}
			if t.Failed() {
				return
			}
			list := exec.CommandContext(t.Context(), "go", "list", "-mod=readonly", "-deps", "-f", "{{with .Error}}{{.}}{{end}}", "./cmd/"+p.binary)
			list.Dir = filepath.Join(into, "services", p.directory)
			list.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
			if output, err := list.CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", list.Args, err, output)
			}
		})
	}
}

// copyContext copies a file or directory of the repository as COPY does: without what is ignored. A source of which
// nothing is left is an error.
func copyContext(ignored *patternmatcher.PatternMatcher, source, destination string) error {
	copied := 0
	err := filepath.WalkDir(filepath.Join(root, source), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		inContext, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if skip, err := ignored.MatchesOrParentMatches(inContext); err != nil || skip {
			return err
		}
		below, err := filepath.Rel(filepath.Join(root, source), path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		target := filepath.Join(destination, below)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		copied++
		return os.WriteFile(target, content, 0o600)
	})
	if err == nil && copied == 0 {
		return fs.ErrNotExist
	}
	return err
}
