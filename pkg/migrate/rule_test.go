package migrate

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// before are the migrations that are older than the rule, by folder: their highest number.
var before = map[string]string{
	"pkg/es/postgres": "00006", "pkg/inbox": "00001", "pkg/job": "00001", "pkg/saga/postgres": "00004",
	"services/account/readmodel": "00003", "services/transaction/readmodel": "00004",
}

// allow says why a statement may stand, in a comment of the file.
const allow = "-- allow: "

// slow are statements that rewrite a table, or hold its exclusive lock while they read all of it, or break the release before.
var slow = map[string]*regexp.Regexp{
	"a generated column":          regexp.MustCompile(`(?is)\badd\b[^;]*\b(stored|generated)\b`),
	"a volatile default":          regexp.MustCompile(`(?is)\badd\b[^;]*\bdefault\b[^;]*\b(clock_timestamp|gen_random_uuid|random|nextval)\s*\(`),
	"a changed type":              regexp.MustCompile(`(?is)\balter\s+table\b[^;]*\btype\b`),
	"an index not CONCURRENTLY":   regexp.MustCompile(`(?i)\bcreate\s+(unique\s+)?index\s+([^c\s]|c[^o]|co[^n]|con[^c]|conc[^u])`),
	"a drop":                      regexp.MustCompile(`(?is)\bdrop\s+table\b|\balter\s+table\b[^;]*\bdrop\s+column\b`),
	"SET NOT NULL":                regexp.MustCompile(`(?i)\bset\s+not\s+null\b`),
	"an UPDATE of a whole table":  regexp.MustCompile(`(?is)\bupdate\s+\w+\s+set\b[^;]*`),
	"a rewrite (CLUSTER, VACUUM)": regexp.MustCompile(`(?i)\bcluster\b|\bvacuum\s+full\b`),
}

var (
	comment  = regexp.MustCompile(`--[^\n]*`)
	newTable = regexp.MustCompile(`(?i)\bcreate\s+table\s+(?:if\s+not\s+exists\s+)?(\w+)`)
	onTable  = regexp.MustCompile(`(?is)\b(?:index\b.*?\bon|alter\s+table|update)\s+(?:only\s+)?(\w+)`)
	where    = regexp.MustCompile(`(?i)\bwhere\b`)
)

// faults names the slow statements of a migration. Those on a table that the same file creates are quick.
func faults(sql string) (found []string) {
	if strings.Contains(sql, allow) {
		return nil
	}
	sql = comment.ReplaceAllString(sql, "")
	created := map[string]bool{}
	for _, m := range newTable.FindAllStringSubmatch(sql, -1) {
		created[strings.ToLower(m[1])] = true
	}
	for statement := range strings.SplitSeq(sql, ";") {
		if m := onTable.FindStringSubmatch(statement); m != nil && created[strings.ToLower(m[1])] {
			continue
		}
		for what, re := range slow {
			if re.MatchString(statement) && (!strings.Contains(what, "UPDATE") || !where.MatchString(statement)) {
				found = append(found, what)
			}
		}
	}
	return found
}

// New migrations run beside the release before: they expand, and a later release contracts.
func TestNewMigrationsHoldNoTableForLong(t *testing.T) {
	root, n := filepath.Join("..", ".."), 0
	for _, top := range []string{"pkg", "services"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d fs.DirEntry, err error) error {
			dir := filepath.Dir(path)
			if err != nil || filepath.Ext(path) != ".sql" || filepath.Base(dir) != "migrations" {
				return err
			}
			n++
			owner, err := filepath.Rel(root, filepath.Dir(dir))
			if err != nil || d.Name()[:5] <= before[filepath.ToSlash(owner)] {
				return err
			}
			sql, err := os.ReadFile(path)
			for _, f := range faults(string(sql)) {
				t.Errorf("%s: %s: expand without it, or say why it is quick: %sREASON", path, f, allow)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n < 17 {
		t.Errorf("only %d migrations were found", n)
	}
}

func TestFaults(t *testing.T) {
	for sql, want := range map[string]bool{
		"ALTER TABLE a ADD COLUMN b int":                                false,
		"ALTER TABLE a ADD COLUMN b text NOT NULL DEFAULT ''":           false,
		"ALTER TABLE a ADD COLUMN b int GENERATED ALWAYS AS (c) STORED": true,
		"ALTER TABLE a ADD COLUMN b uuid DEFAULT gen_random_uuid()":     true,
		"ALTER TABLE a ALTER COLUMN b TYPE bigint":                      true,
		"CREATE INDEX a_b ON a (b)":                                     true,
		"CREATE UNIQUE INDEX a_b ON a (b)":                              true,
		"CREATE INDEX CONCURRENTLY a_b ON a (b)":                        false,
		"CREATE TABLE a (b int); CREATE INDEX a_b ON a (b)":             false,
		"DROP TABLE a":                       true,
		"ALTER TABLE a DROP COLUMN b":        true,
		"ALTER TABLE a ALTER b SET NOT NULL": true,
		"UPDATE a SET b = 1":                 true,
		"UPDATE a SET b = 1 WHERE id = 1":    false,
		"-- allow: the table has one row\nALTER TABLE a ALTER COLUMN b TYPE int": false,
	} {
		if got := faults(sql); (len(got) > 0) != want {
			t.Errorf("%s: %v, want a fault: %v", sql, got, want)
		}
	}
}
