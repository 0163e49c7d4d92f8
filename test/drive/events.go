package drive

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Event is one server-sent event of a watch.
type Event struct {
	ID, Event string
	Data      map[string]any
}

// Events reads the answer to a watch until f says that it is enough, the server ends the stream, or the connection breaks, which
// is an error. What a cut leaves unfinished is no event.
func Events(res *http.Response, f func(Event) (enough bool)) error {
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" {
		b, _ := io.ReadAll(res.Body)
		return fmt.Errorf("%s: %d %s", res.Request.URL.Path, res.StatusCode, b)
	}
	var (
		e    Event
		data string
	)
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "id":
			e.ID = value
		case "event":
			e.Event = value
		case "data":
			data = value
		case "": // the event is whole
			if e.ID == "" {
				continue
			}
			if err := json.Unmarshal([]byte(data), &e.Data); err != nil {
				return err
			}
			if f(e) {
				return nil
			}
			e = Event{}
		}
	}
	return lines.Err()
}
