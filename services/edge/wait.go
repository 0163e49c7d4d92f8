package edge

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/billing/pkg/rpc"
)

// WaitMax is the longest a caller may wait for the end of what it asked for.
const WaitMax = 30 * time.Second

// JobWait is how long a caller waits for the end of a job if it does not say.
const JobWait = 5 * time.Second

// Wait is how long the caller wants to wait, by the request or by its metadata; fallback if neither says.
func Wait(ctx context.Context, v *rpc.Fields, given *durationpb.Duration, fallback time.Duration) time.Duration {
	caller := rpc.CallerFrom(ctx)
	switch {
	case given != nil:
		d := given.AsDuration()
		if given.CheckValid() != nil || d < 0 || d > WaitMax {
			v.Add("wait", "range:0s.."+WaitMax.String(), d.String())
		}
		return d
	case caller.Wait == "":
		return fallback
	}
	d, err := caller.WaitFor(WaitMax)
	if err != nil {
		v.Add("wait", "range:0s.."+WaitMax.String(), caller.Wait)
	}
	return d
}
