package gateway

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	errorv1 "example.com/billing/proto/gen/go/billing/error/v1"
)

// Proxies and clients give up on a connection that says nothing.
func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gateway{marshaler: newMarshaler()}
		w := httptest.NewRecorder()
		ctx, cancel := context.WithTimeout(t.Context(), 46*time.Second)
		defer cancel()
		news := make(chan received)
		go func() {
			time.Sleep(20 * time.Second) // in the bubble's time
			news <- received{event: happening{7, "AccountOpened", &accountv1.Currency{Code: "USD"}}}
		}()
		g.follow(ctx, newEventStream(w, g.marshaler), received{}, news)
		beat := ": still here\n\n"
		want := beat + "id: 7\nevent: AccountOpened\ndata: {\"code\":\"USD\",\"scale\":0,\"kind\":\"\"}\n\n" + beat + beat
		if got := w.Body.String(); got != want || !w.Flushed {
			t.Errorf("got %q", got)
		}
	})
}

// A service that says nothing at first has taken the request: the headers go out.
func TestSilentStreamIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gateway{}
		begun := time.Now()
		if r := g.first(t.Context(), make(chan received)); r.err != nil || time.Since(begun) != watchOpenTimeout {
			t.Errorf("got %+v after %s", r, time.Since(begun))
		}
		begun = time.Now()
		news := make(chan received, 1)
		news <- received{} // its headers
		if r := g.first(t.Context(), news); r.err != nil || time.Since(begun) != watchSettleTime {
			t.Errorf("got %+v after %s", r, time.Since(begun))
		}
	})
}

func TestTooManyWatches(t *testing.T) {
	catalog, err := rpc.NewCatalog("billing", errorv1.Reason(0).Descriptor(), errorv1.E_Mapping)
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{catalog: catalog}
	g.watchers.Store(watchersMax)
	w := httptest.NewRecorder()
	g.serveWatch(&recorder{ResponseWriter: w}, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil), &watch{}, "x", false)
	if w.Code != 429 || !strings.Contains(w.Body.String(), reasonOverloaded) || g.watchers.Load() != watchersMax {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}
