// Package extension runs the whole system on an event store of another make, which is chosen by the configuration alone.
package extension

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/billing/deploy/local/demo"
	"example.com/billing/deploy/local/system"
	"example.com/billing/services/account/examples/filestore"
	"example.com/billing/services/edge"
)

// The demo, which moves money in every way and then proves the books, on the file store, and on a store in memory.
func TestDemoOnOtherStores(t *testing.T) {
	filestore.Register()
	for _, store := range []string{filestore.Name, edge.StoreMemory} {
		t.Run(store, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "billing-extension-") // below no folder that only root may enter
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			sys, err := system.Start(t.Context(), system.Settings{DataDir: dir, EventStore: store, PostgresBin: os.Getenv("BILLING_POSTGRES_BIN")}, t.Logf)
			if err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			err = demo.Run(context.WithoutCancel(t.Context()), "http://"+sys.HTTP, &said)
			if stopped := sys.Stop(); err == nil {
				err = stopped
			}
			if err != nil || !strings.Contains(said.String(), "5 accounts, 25 events: clean") {
				t.Errorf("%v\n%s", err, said.String())
			}
			if store != filestore.Name {
				return
			}
			b, err := os.ReadFile(filepath.Join(dir, "event-store", "events.jsonl"))
			if n := bytes.Count(b, []byte("\n")); err != nil || n != 25 {
				t.Errorf("%d events in the file (%v), want 25", n, err)
			}
		})
	}
}
