// Package dsn reads the addresses of databases without ever showing the secrets in them. Errors of net/url and pgx repeat
// the text they could not parse, and a text that does not parse cannot be cleaned reliably: so nothing of it is shown.
package dsn

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// hidden stands for an address of which nothing can be shown.
const hidden = "(address hidden)"

// causes are pgx's own constant texts, which have nothing of the DSN in them.
var causes = []string{
	"invalid port", "failed to parse as URL", "failed to parse as keyword/value", "failed to configure TLS", "unknown min_protocol_version",
	"cannot parse pool_max_conns", "cannot parse pool_min_conns", "cannot parse pool_max_conn_lifetime", "cannot parse pool_max_conn_idle_time",
	"cannot parse pool_health_check_period", "cannot parse pool_max_conn_lifetime_jitter", "invalid connect_timeout", "unknown target_session_attrs",
}

// Parse reads a DSN. Its error has nothing of the DSN in it.
func Parse(dsn string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err == nil {
		return cfg, nil
	}
	why := "it must be postgres://USER:PASSWORD@HOST:PORT/DATABASE, special characters percent-encoded, or KEY=VALUE pairs"
	for _, cause := range causes {
		if strings.Contains(err.Error(), cause) && !strings.Contains(dsn, cause) {
			why = cause + "; " + why
			break
		}
	}
	return nil, fmt.Errorf("the DSN does not parse: %s", why)
}

// URL reads an address that is a URL. Its error has nothing of the address in it.
func URL(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("the address is no URL (special characters in a user or password must be percent-encoded)")
	}
	return u, nil
}

// Name is an address as it can be shown: a URL without its password and parameters.
func Name(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return hidden
	}
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	if name := u.User.Username(); name != "" {
		shown.User = url.User(name)
	}
	return shown.String()
}

// Hide returns a writer that shows the addresses among these arguments of a command line by their names only. A message
// has to come in one Write.
func Hide(to io.Writer, args []string) io.Writer {
	h := &hider{to: to}
	for _, arg := range args {
		_, value, _ := strings.Cut(arg, "=") // --flag=ADDRESS
		for _, address := range []string{arg, value} {
			if strings.Contains(address, "://") || strings.Contains(address, "@") || strings.Contains(strings.ToLower(address), "password") {
				h.pairs = append(h.pairs, address, Name(address), strings.Trim(strconv.Quote(address), `"`), Name(address))
			}
		}
	}
	return h
}

type hider struct {
	to    io.Writer
	pairs []string // addresses, each with its name behind it
}

// Write passes on what it is given, addresses replaced.
func (h *hider) Write(p []byte) (int, error) {
	if _, err := strings.NewReplacer(h.pairs...).WriteString(h.to, string(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
