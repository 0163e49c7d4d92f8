package e2e

import (
	"flag"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"pgregory.net/rapid"

	"example.com/billing/test/drive"
	"example.com/billing/test/model"
)

var walks = flag.Int("walks", 8, "random sequences of all operations in each round, each over REST or gRPC; a failing one prints how to run it again")

// walked is model.System on the running system.
type walked struct {
	*drive.Driver
	t  *rapid.T
	tt *testing.T
}

// Expire is model.System's: the hold's time is moved to the past, where the service looks for it.
func (w walked) Expire(hold string) model.Answer {
	expire(w.tt, hold)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // between two looks
		if h := w.Hold(hold); h.Status == "expired" {
			return model.Answer{ID: hold, Status: h.Status, Amount: h.Amount}
		}
	}
	w.t.Fatalf("hold %s does not expire", hold)
	return model.Answer{}
}

// Books is model.System's.
func (w walked) Books() map[string]model.Sums {
	out := map[string]model.Sums{}
	cents := func(c object, key string) int64 {
		n, err := model.Cents(c[key].(string))
		if err != nil {
			w.t.Fatal(err)
		}
		return n
	}
	for _, x := range must(w.tt, http.StatusOK, "GET", "/api/v1/books", nil)["currencies"].([]any) {
		c := x.(object)
		code := c["currency"].(string)
		if code != "USD" && code != "EUR" {
			continue // another test's
		}
		if cents(c, "difference") != 0 || cents(c, "inTransit") != 0 {
			w.t.Fatalf("the books: %v", c)
		}
		out[code] = model.Sums{User: cents(c, "user"), External: cents(c, "external"), System: cents(c, "system")}
	}
	return out
}

// The running system does what the model does, whatever is asked of it in whatever order.
func TestWalks(t *testing.T) {
	settled(t) // what other tests asked for
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given {
		if err := flag.Set("rapid.checks", strconv.Itoa(*walks)); err != nil {
			t.Fatal(err)
		}
	}
	tally := &model.Tally{}
	accountConn, transactionConn := dial(t, now.account), dial(t, now.transaction)
	rapid.Check(t, func(rt *rapid.T) {
		var account, transaction grpc.ClientConnInterface = accountConn, transactionConn
		if rapid.Bool().Draw(rt, "over REST") {
			account, transaction = drive.REST(now.http), drive.REST(now.http)
		}
		w := walked{Driver: drive.New(t.Context(), rt, account, transaction), t: rt, tt: t}
		model.Walk(rt, w, uuid.NewString(), tally)
	})
	t.Log(tally)
}
