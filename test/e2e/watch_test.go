package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/test/drive"
)

var watchEvents = flag.Int("watch-events", 1000, "events that the watchers of one account see in each round")

// follow reads server-sent events behind an id until f says that it is enough, the server ends the stream, or ctx ends.
func follow(ctx context.Context, path, lastID string, f func(drive.Event) (enough bool)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, now.http+path, nil)
	if err != nil {
		return err
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return drive.Events(res, f)
}

// Two watchers of an account, over REST and gRPC, are cut off at random, now and then in the middle of nowhere, and resume: each
// sees every event once and in order.
func TestWatchersMissNothing(t *testing.T) {
	bank, account := open(t, "EXTERNAL"), open(t, "USER")
	last := 1 + *watchEvents
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	seen := make(chan error, 2)
	go func() { seen <- followAll(ctx, account, last) }()
	client := accountv1.NewAccountServiceClient(dial(t, now.account))
	go func() { seen <- receiveAll(ctx, client, account, last) }()
	for n := *watchEvents; n > 0; {
		var items []object
		for range min(n, 100) {
			o := order(bank, account, "0.01")
			o["type"] = "topup"
			items = append(items, o)
		}
		n -= len(items)
		must(t, http.StatusOK, "POST", "/api/v1/transactions/batch", object{"transactions": items})
	}
	for range 2 {
		if err := <-seen; err != nil {
			t.Error(err)
		}
	}
	wantBalance(t, account, fmt.Sprintf("%d.%02d", *watchEvents/100, *watchEvents%100))
}

func followAll(ctx context.Context, account string, last int) error {
	at, cuts := 0, 0
	for ; at < last; cuts++ {
		until, limit := at+1+rand.IntN(max(last/20, 10)), time.Duration(rand.IntN(200))*time.Millisecond
		var wrong error
		cut, end := context.WithCancel(ctx)
		if cuts%3 == 2 { // not behind an event, but at any moment
			time.AfterFunc(limit, end)
		}
		lastID := ""
		if at > 0 {
			lastID = strconv.Itoa(at)
		}
		err := follow(cut, "/api/v1/accounts/"+account+"/watch", lastID, func(e drive.Event) bool {
			if e.ID != strconv.Itoa(at+1) || e.Data["version"] != float64(at+1) {
				wrong = fmt.Errorf("event %s follows %d", e.ID, at)
				return true
			}
			at++
			return at >= until || at == last
		})
		end()
		if wrong != nil {
			return wrong
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%d events of %d in time", at, last)
		}
	}
	return nil
}

func receiveAll(ctx context.Context, client accountv1.AccountServiceClient, account string, last int) error {
	for at := int32(0); at < int32(last); {
		cut, end := context.WithCancel(ctx)
		stream, err := client.WatchAccount(cut, &accountv1.WatchAccountRequest{AccountId: account, After: &at})
		for until := at + 1 + rand.Int32N(int32(max(last/20, 10))); err == nil && at < min(until, int32(last)); {
			var res *accountv1.WatchAccountResponse
			if res, err = stream.Recv(); err == nil {
				if v := res.GetEvent().GetVersion(); v != at+1 {
					end()
					return fmt.Errorf("version %d follows %d", v, at)
				}
				at++
			}
		}
		end()
		if err != nil {
			return err
		}
	}
	return nil
}

// A saga is watched from before its first step to its end, which ends the stream.
func TestWatchASaga(t *testing.T) {
	source, destination := funded(t, "100.00"), open(t, "USER", "maxBalance", "10.00")
	for _, tc := range []struct{ amount, end, want string }{
		{"10.00", "TransferCompleted", "started, step_completed debit_source, step_completed credit_destination, step_completed complete_transaction, completed"},
		{"50.00", "TransferCompensated", "started, step_completed debit_source, refused credit_destination, compensation_completed credit_source_rollback, compensated"},
		{"500.00", "TransferFailed", "started, refused debit_source, failed"},
	} {
		tx := call(t, "POST", "/api/v1/transactions/transfer", order(source, destination, tc.amount))
		id, _ := tx.body["transactionId"].(string)
		var got []string
		n := 0
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := follow(ctx, "/api/v1/sagas/"+id+"/watch", "", func(e drive.Event) bool {
			if n++; e.ID != strconv.Itoa(n) {
				t.Errorf("entry %s is the %d.", e.ID, n)
			}
			step, _ := e.Data["step"].(string)
			got = append(got, strings.TrimSpace(e.Event+" "+step))
			return false // until the stream ends
		})
		cancel()
		if err != nil || strings.Join(got, ", ") != tc.want {
			t.Errorf("%s: %v (%v), want %s", tc.amount, got, err, tc.want)
		}
		var types []string
		ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
		err = follow(ctx, "/api/v1/transactions/"+id+"/watch", "", func(e drive.Event) bool {
			types = append(types, e.Event)
			return len(types) == 2
		})
		cancel()
		if got := strings.Join(types, ", "); err != nil || got != "TransferRequested, "+tc.end {
			t.Errorf("the transaction: %s (%v), want its end %s", got, err, tc.end)
		}
	}
}

// A list that is given the token of a write shows the write, however far behind it was.
func TestConsistencyToken(t *testing.T) {
	bank := open(t, "EXTERNAL")
	for i := range 25 {
		owner := uuid.NewString()
		a := call(t, "POST", "/api/v1/accounts", object{"ownerId": owner, "ownerType": "person", "accountType": "USER", "currency": "USD"})
		token := a.header.Get("X-Consistency-Token")
		list := must(t, http.StatusOK, "GET", "/api/v1/accounts?ownerId="+owner+"&consistencyToken="+token, nil)["accounts"].([]any)
		if token == "" || len(list) != 1 || list[0].(object)["accountId"] != a.body["accountId"] {
			t.Fatalf("round %d: token %q, list %v", i, token, list)
		}
		id := a.body["accountId"].(string)
		tx := call(t, "POST", "/api/v1/transactions/topup?wait=30s", order(bank, id, "1.00"))
		token = tx.header.Get("X-Consistency-Token")
		of := must(t, http.StatusOK, "GET", "/api/v1/transactions?accountId="+id+"&consistencyToken="+token, nil)["transactions"].([]any)
		if token == "" || len(of) != 1 || of[0].(object)["status"] != "completed" {
			t.Fatalf("round %d: token %q, list %v", i, token, of)
		}
	}
}
