package job

import "time"

// SetTTL changes how long a lease lives.
func (j *Jobs) SetTTL(d time.Duration) { j.ttl = d }
