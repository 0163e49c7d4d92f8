package edge

import (
	"context"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/projection"
	"example.com/billing/pkg/rpc"
)

// A consistency token says what an answer showed: <aggregate type>.<aggregate id>.<version>, comma separated for several
// streams. A list that is given the token waits until it shows at least that. Callers may join tokens by commas.
const (
	consistencyKey      = "consistency-token" // response metadata; the header X-Consistency-Token over REST
	consistencyTokenMax = 4096                // characters
)

// aggregateTypePattern is what a type in a token looks like.
var aggregateTypePattern = regexp.MustCompile(`^[A-Z][A-Za-z]{0,63}$`)

// ConsistencyToken is a stream at a version, as a token.
func ConsistencyToken(s es.Stream, version int64) string {
	return s.Type + "." + s.ID + "." + strconv.FormatInt(version, 10)
}

// SetConsistencyToken gives an answer tokens for what it shows.
func SetConsistencyToken(ctx context.Context, tokens ...string) {
	_ = grpc.SetHeader(ctx, metadata.Pairs(consistencyKey, strings.Join(tokens, ","))) // fails only outside of a call
}

// ReadConsistencyToken reads a token that a caller sent, and notes in v what is no token: each stream's highest version, none
// for the empty token.
func ReadConsistencyToken(v *rpc.Fields, token string) map[es.Stream]int64 {
	if token == "" {
		return nil
	}
	if len(token) > consistencyTokenMax {
		v.Add("consistencyToken", "max_length:"+strconv.Itoa(consistencyTokenMax), token)
		return nil
	}
	versions := map[es.Stream]int64{}
	for part := range strings.SplitSeq(token, ",") {
		s, version, ok := readVersion(part)
		if !ok {
			v.Add("consistencyToken", "consistency_token", part)
			return nil
		}
		versions[s] = max(versions[s], version)
	}
	return versions
}

func readVersion(part string) (es.Stream, int64, bool) {
	fields := strings.Split(part, ".")
	if len(fields) != 3 {
		return es.Stream{}, 0, false
	}
	id, isUUID := rpc.CanonicalUUID(fields[1])
	version, err := strconv.ParseInt(fields[2], 10, 64)
	ok := aggregateTypePattern.MatchString(fields[0]) && isUUID && id == fields[1] &&
		err == nil && version >= 1 && strconv.FormatInt(version, 10) == fields[2]
	return es.Stream{Type: fields[0], ID: id}, version, ok
}

// HistoryLost is the answer to who has seen more of a stream than the store has.
func HistoryLost(gone *es.GoneError) *rpc.Error {
	return rpc.Fail("HISTORY_LOST", "%s ends at version %d; version %d belongs to a history that the database has lost. Read it anew.",
		gone.Stream.Type, gone.Head, gone.Seen).Because(gone)
}

// AwaitShown has a read model wait until it shows these versions. One that does not get there in time is
// DEADLINE_EXCEEDED; versions that the store does not have are HISTORY_LOST, at once. A service that stops does not wait: the
// caller asks another instance.
func AwaitShown(
	ctx context.Context, stopping <-chan struct{}, wait func(context.Context, map[es.Stream]int64, projection.StillHas) error,
	store es.Store, versions map[es.Stream]int64,
) error {
	if len(versions) == 0 {
		return nil
	}
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-stopping:
			cancel()
		case <-waiting.Done():
		}
	}()
	err := wait(waiting, versions, func(ctx context.Context, versions map[es.Stream]int64) error {
		return es.StillHas(ctx, store, versions)
	})
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return rpc.Fail(rpc.ReasonUnavailable, "The service stops; ask again.").After(time.Second).Because(err)
	}
	var gone *es.GoneError
	if errors.As(err, &gone) {
		return HistoryLost(gone).Because(err)
	}
	if errors.Is(err, projection.ErrBusy) {
		return rpc.Fail(rpc.ReasonOverloaded, "Too many requests wait for the list already.").After(time.Second).Because(err)
	}
	var behind *projection.BehindError
	if errors.As(err, &behind) {
		return rpc.Fail(rpc.ReasonDeadlineExceeded, "The list does not show yet what the consistency token stands for; ask again, or without the token.").Because(err)
	}
	return err
}
