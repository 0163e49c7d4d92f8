package main

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// What is done to a link is what its connections see, and healing it leaves the way free for new ones.
func TestLink(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	l, err := newLink(newProxyServer(), "here", "there", "127.0.0.1:0", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.proxy.Stop() })
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", l.addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	// says is how long an echo took; 0 = it did not come within a while.
	says := func(c net.Conn) (time.Duration, error) {
		began := time.Now()
		_ = c.SetDeadline(began.Add(500 * time.Millisecond))
		if _, err := c.Write([]byte("x")); err != nil {
			return 0, err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return time.Since(began), err
	}
	timeout := func(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

	c := dial()
	if _, err := says(c); err != nil {
		t.Fatal(err)
	}
	if err := l.hang(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]net.Conn{"there before": c, "new": dial()} {
		if _, err := says(c); !timeout(err) {
			t.Errorf("a hanging connection that was %s: %v", name, err)
		}
	}
	if err := l.heal(); err != nil {
		t.Fatal(err)
	}
	if _, err := says(c); err == nil || timeout(err) {
		t.Errorf("a connection that lost something goes on: %v", err)
	}
	c = dial()
	if _, err := says(c); err != nil {
		t.Errorf("healed: %v", err)
	}
	if err := l.slow(50 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if took, err := says(c); err != nil || took < 100*time.Millisecond {
		t.Errorf("slow: %s, %v", took, err)
	}
	if err := l.heal(); err != nil {
		t.Fatal(err)
	}
	c = dial()
	if err := l.cut(); err != nil {
		t.Fatal(err)
	}
	if _, err := says(c); err == nil || timeout(err) {
		t.Errorf("a connection that was cut: %v", err)
	}
	if other, err := net.Dial("tcp", l.addr()); err == nil {
		other.Close()
		t.Error("a cut link takes connections")
	}
	if err := l.heal(); err != nil {
		t.Fatal(err)
	}
	if _, err := says(dial()); err != nil {
		t.Errorf("healed after a cut: %v", err)
	}
}
