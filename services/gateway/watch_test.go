package gateway_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	eventv1 "example.com/billing/proto/gen/go/billing/event/v1"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// follower is a client that reads server-sent events.
type follower struct {
	*http.Response
	t     *testing.T
	lines *bufio.Reader
	leave context.CancelFunc
}

func watchAt(t *testing.T, url string, pairs ...string) *follower {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		r.Header.Add(pairs[i], pairs[i+1])
	}
	w, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { leave(); _ = w.Body.Close() })
	return &follower{Response: w, t: t, lines: bufio.NewReader(w.Body), leave: leave}
}

// frame reads to the next empty line; "" = the answer has ended.
func (f *follower) frame() string {
	f.t.Helper()
	var all strings.Builder
	for {
		line, err := f.lines.ReadString('\n')
		if err == io.EOF {
			return all.String()
		}
		if err != nil {
			f.t.Fatal(err)
		}
		if line == "\n" {
			return all.String()
		}
		all.WriteString(line)
	}
}

func (f *follower) expect(want string) {
	f.t.Helper()
	if got := f.frame(); got != want {
		f.t.Fatalf("got %q\nwant %q", got, want)
	}
}

func event(version int32) *eventv1.RecordedEvent {
	at := timestamppb.New(time.Date(2025, 12, 9, 12, 0, 0, 0, time.UTC))
	data := &structpb.Struct{Fields: map[string]*structpb.Value{"text": structpb.NewStringValue("two\nlines")}}
	return &eventv1.RecordedEvent{Version: version, EventId: "e", EventType: "BalanceChanged", OccurredAt: at, RecordedAt: at, Step: proto.String("debit_source"), Data: data}
}

const eventJSON = `,"eventId":"e","eventType":"BalanceChanged","occurredAt":"2025-12-09T12:00:00Z","recordedAt":"2025-12-09T12:00:00Z",` +
	`"correlationId":"","causationId":"","actor":"","step":"debit_source","data":{"text":"two\nlines"}}`

func TestWatch(t *testing.T) {
	for _, path := range []string{account + "/a-1/watch", transactions + "/t-1/watch"} {
		b := &backend{watching: make(chan *eventv1.RecordedEvent)}
		f := watchAt(t, start(t, b)+path+"?after=1", "X-Correlation-ID", "c-1")
		f.expect("retry: 1000\n") // before there is any event
		if f.StatusCode != http.StatusOK || f.Header.Get("Content-Type") != "text/event-stream" || f.Header.Get("Cache-Control") != "no-cache" ||
			f.Header.Get("X-Accel-Buffering") != "no" || f.Header.Get("X-Correlation-ID") != "c-1" {
			t.Errorf("got %d %v", f.StatusCode, f.Header)
		}
		for _, version := range []string{"2", "3"} {
			b.watching <- event(int32(version[0] - '0'))
			f.expect("id: " + version + "\nevent: BalanceChanged\ndata: {\"version\":" + version + eventJSON + "\n")
		}
		if b.caller.CorrelationID != "c-1" || b.deadline || asked(b.request) != [2]any{strings.Split(path, "/")[4], int32(1)} {
			t.Errorf("asked %v by %+v, deadline %v", b.request, b.caller, b.deadline)
		}
		b.watching <- nil // the service breaks off: the answer ends as it is
		f.expect("")
	}
}

// asked is the id and the version that a watch was asked with.
func asked(request any) [2]any {
	switch r := request.(type) {
	case *accountv1.WatchAccountRequest:
		return [2]any{r.GetAccountId(), r.GetAfter()}
	case *transactionv1.WatchTransactionRequest:
		return [2]any{r.GetTransactionId(), r.GetAfter()}
	case *sagav1.WatchSagaRequest:
		return [2]any{r.GetSagaId(), r.GetAfter()}
	}
	return [2]any{}
}

func TestWatchGoesOnWhereTheClientWas(t *testing.T) {
	b := &backend{watching: make(chan *eventv1.RecordedEvent)}
	url := start(t, b) + account + "/a-1/watch"
	close(b.watching) // ends at once, with nothing said: cut off, the client comes back
	for _, tc := range []struct {
		query, header string
		want          int32
	}{{"", "", 0}, {"?after=7", "", 7}, {"", "8", 8}, {"?after=7", "9", 9}, {"?after=7", "0", 0}} {
		var pairs []string
		if tc.header != "" {
			pairs = []string{"Last-Event-ID", tc.header}
		}
		f := watchAt(t, url+tc.query, pairs...)
		f.expect("retry: 1000\n")
		f.expect("")
		given := tc.query != "" || tc.header != ""
		if r, ok := b.request.(*accountv1.WatchAccountRequest); !ok || r.GetAfter() != tc.want || (r.After != nil) != given {
			t.Errorf("%+v: asked %v", tc, b.request)
		}
	}
}

func TestWatchOfASagaEnds(t *testing.T) {
	b := &backend{entries: make(chan *sagav1.SagaEntry, 1)}
	url := start(t, b) + "/api/v1/sagas/s-1/watch"
	b.entries <- &sagav1.SagaEntry{Id: 4, Type: "completed", Timestamp: timestamppb.New(time.Date(2025, 12, 9, 12, 0, 0, 0, time.UTC))}
	close(b.entries)
	f := watchAt(t, url)
	f.expect("retry: 1000\n")
	f.expect("id: 4\nevent: completed\ndata: {\"id\":4,\"type\":\"completed\",\"timestamp\":\"2025-12-09T12:00:00Z\"}\n")
	f.expect("")
	// An EventSource comes back after any end but this one.
	if a := ask(t, "GET", url, "", "Last-Event-ID", "4"); a.status != 204 || a.body != "" {
		t.Errorf("got %+v", a)
	}
	if asked(b.request) != [2]any{"s-1", int32(4)} {
		t.Errorf("asked %v", b.request)
	}
}

func TestWatchProblems(t *testing.T) {
	b := &backend{err: rpc.Fail("ACCOUNT_NOT_FOUND", "There is no account a-1.")}
	url := start(t, b) + account + "/a-1/watch"
	if p := problemIn(t, ask(t, "GET", url, "")); p.Status != 404 || p.Reason != "ACCOUNT_NOT_FOUND" {
		t.Errorf("got %+v", p)
	}
	b.err = rpc.Fail("OVERLOADED", "Later.").After(2 * time.Second)
	if a := ask(t, "GET", url, ""); a.status != 429 || a.header.Get("Retry-After") != "2" {
		t.Errorf("got %+v", a)
	}
	b.servers["account"].Stop()
	if p := problemIn(t, ask(t, "GET", url, "")); p.Status != 503 {
		t.Errorf("got %+v", p)
	}
}

func TestWatchMethods(t *testing.T) {
	b := &backend{watching: make(chan *eventv1.RecordedEvent)}
	url := start(t, b) + account + "/a-1/watch"
	if a := ask(t, "HEAD", url, ""); a.status != 200 || a.header.Get("Content-Type") != "text/event-stream" || a.body != "" {
		t.Errorf("HEAD: %+v", a)
	}
	for method, status := range map[string]int{"OPTIONS": 204, "POST": 405} {
		if a := ask(t, method, url, ""); a.status != status || a.header.Get("Allow") != "GET, HEAD, OPTIONS" {
			t.Errorf("%s: %+v", method, a)
		}
	}
}

// The stop must not wait for those who watch.
func TestWatchEndsWithTheGateway(t *testing.T) {
	b := &backend{watching: make(chan *eventv1.RecordedEvent), stopping: make(chan struct{})}
	url := start(t, b) + account + "/a-1/watch"
	f := watchAt(t, url)
	f.expect("retry: 1000\n")
	close(b.stopping)
	f.expect("")
	if err := b.front.Config.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// When the client goes, the service's stream ends.
func TestWatchEndsWithTheClient(t *testing.T) {
	b := &backend{watching: make(chan *eventv1.RecordedEvent), left: make(chan struct{})}
	f := watchAt(t, start(t, b)+account+"/a-1/watch")
	f.expect("retry: 1000\n")
	f.leave()
	<-b.left
}
